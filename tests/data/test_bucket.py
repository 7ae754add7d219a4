"""Writing to object stores: on a condition, as a lock needs it; what is wrong in one line."""

import re
import threading
import time
import types
from typing import ClassVar

import fsspec
import pytest

from jaxclip import lock as lock_lib
from jaxclip.data import bucket as bucket_lib
from jaxclip.data import remote
from jaxclip.data.bucket import Bucket, BucketError, LockFile
from jaxclip.lock import Holder, Lock, LockedError, LostLockError
from tests.google_store import serve

pytest.importorskip("tensorstore")


@pytest.fixture
def google(monkeypatch):
    monkeypatch.setitem(bucket_lib._RETRIES, "max_retries", 1)
    with serve(monkeypatch) as server:
        yield server


@pytest.fixture(params=["gs://runs/a b", "memory://runs/one"])
def address(request, google):
    fsspec.filesystem("memory").store.clear()
    yield request.param
    fsspec.filesystem("memory").store.clear()


@pytest.fixture
def quick(monkeypatch):
    """Beats of 20 ms."""
    monkeypatch.setattr(lock_lib, "BEAT_SECONDS", 0.02)


def test_files_are_written_listed_and_removed(address):
    place, other = Bucket(address), Bucket(address + " too")
    other.write("x", b"other")
    place.write("a/b c%ü.json", b"{}")
    place.write("empty", b"")
    assert place.names() == ["a/b c%ü.json", "empty"] and place.names("a/") == ["a/b c%ü.json"]
    assert place.read("a/b c%ü.json") == b"{}" and place.read("empty") == b""
    assert place.read("nothing") is None
    place.remove("a/b c%ü.json")
    place.remove("nothing")
    assert place.names() == ["empty"] and other.read("x") == b"other"


def test_a_version_changes_with_the_file_and_is_what_a_change_may_be_bound_to(address):
    place = Bucket(address)
    missing = place.version("file")
    assert place.look("file") == (missing, None) and missing == place.version("other")
    first = place.swap("file", missing, b"1")
    assert first and place.look("file") == (first, b"1") and place.version("file") == first
    assert place.swap("file", missing, b"2") is None and place.read("file") == b"1"
    second = place.swap("file", first, b"2")
    assert second and second != first and place.look("file") == (second, b"2")
    assert place.swap("file", first, None) is None and place.read("file") == b"2"
    assert place.swap("file", second, None) and place.version("file") == missing
    assert place.swap("file", second, b"3") is None and place.read("file") is None


def test_what_stands_for_a_folder_is_no_file(google):
    Bucket("gs://runs/one").write("tensorboard/", b"")
    assert google.files and not Bucket("gs://runs/one").names()


def test_a_large_file_has_more_time():
    class Store:
        waited: ClassVar[list[float]] = []

        def read(self, key, byte_range=None):
            return self

        def result(self, timeout):
            self.waited.append(timeout)
            raise TimeoutError

    place = Bucket("memory://runs/one")
    place._store = Store()
    for size in (0, 2**28):
        with pytest.raises(BucketError, match=r"runs/one/a can't be read: no answer in time"):
            place.read("a", size)
    assert Store.waited[1] > Store.waited[0] + 500


def test_a_condition_holds_or_nothing_is_changed(address):
    place = Bucket(address)
    assert place.create("lock", b"one") and not place.create("lock", b"two")
    assert not place.replace("lock", b"two", b"three") and place.read("lock") == b"one"
    assert place.replace("lock", b"one", b"three") and place.read("lock") == b"three"
    assert not place.replace("lock", b"one", None) and place.read("lock") == b"three"
    assert place.replace("lock", b"three", None) and place.read("lock") is None
    assert not place.replace("lock", b"three", b"four") and place.read("lock") is None


def test_a_change_between_look_and_write_is_noticed(address, monkeypatch):
    """What a condition is for: another one writes after this one has looked."""
    place, looked = Bucket(address), Bucket._read

    def look(self, name):
        found = looked(self, name)
        with monkeypatch.context() as patch:
            patch.setattr(Bucket, "_read", looked)
            Bucket(address).write(name, b"another one's")
        return found

    monkeypatch.setattr(Bucket, "_read", look)
    assert not place.create("lock", b"mine")
    if address.startswith("gs://"):  # of other stores a look is all there is
        assert not place.replace("lock", b"another one's", b"mine")
        assert not place.replace("lock", b"another one's", None)
        monkeypatch.setattr(Bucket, "_read", looked)
        assert place.read("lock") == b"another one's"


def test_a_lock_of_a_bucket_is_one_run_s(address, quick):
    def take(**options):
        return Lock(LockFile(Bucket(address), "lock.json"), **options)

    first = take()
    with pytest.raises(LockedError, match=f"{address} is in use by process"):
        take()
    time.sleep(0.1)
    first.check()
    first.look()
    second = take(force=True)
    with pytest.raises(LostLockError, match="taken over by process"):
        first.look()
    first.release()
    assert Bucket(address).names() == ["lock.json"], "another one's lock is left alone"
    second.release()
    assert not Bucket(address).names()


def test_an_answer_that_was_lost_does_not_lock_a_run_out_of_its_own(address, monkeypatch):
    """The file was made, but the store was asked again, and said that there is one."""
    create = LockFile.create
    monkeypatch.setattr(LockFile, "create", lambda self, content: create(self, content) and False)
    lock = Lock(LockFile(Bucket(address), "lock.json"))
    lock.look()
    lock.release()
    assert not Bucket(address).names()


def test_many_at_once_over_a_dead_lock_and_one_gets_it(address, quick):
    gone = Holder.this_process()._replace(pid=2**22 + 1)
    Bucket(address).write("lock.json", lock_lib._encode(gone))
    got, refused, barrier = [], [], threading.Barrier(6)

    def take():
        place = LockFile(Bucket(address), "lock.json")
        barrier.wait()
        try:
            got.append(Lock(place))
        except LockedError:
            refused.append(1)

    threads = [threading.Thread(target=take) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 1 and len(refused) == 5
    got[0].release()


def test_a_lock_elsewhere_that_beats_is_respected_and_a_still_one_is_taken(google, monkeypatch):
    place = Bucket("gs://runs/one")
    far = Holder("far", "boot", 7, "1", "token")
    place.write("lock.json", lock_lib._encode(far))
    now = [0.0]

    def sleep(seconds):
        now[0] += seconds
        if now[0] == 3:
            place.write("lock.json", lock_lib._encode(far._replace(beat=1)))

    clock = types.SimpleNamespace(monotonic=lambda: now[0], sleep=sleep)
    monkeypatch.setattr(lock_lib, "time", clock)
    with pytest.raises(LockedError, match="process 7 on host far"):
        Lock(LockFile(place, "lock.json"))
    assert now[0] == 3
    Lock(LockFile(place, "lock.json")).release()
    assert now[0] >= 3 + lock_lib.WATCH_SECONDS


@pytest.mark.parametrize(
    ("said", "means"),
    [
        ("NOT_FOUND: NoSuchBucket: The bucket\n does not", "there is no such bucket; create"),
        ("PERMISSION_DENIED: no [http_response_body='<?xml\\n>']", "permission denied"),
        ("PERMISSION_DENIED: InvalidAccessKeyId: unknown", "no valid credentials; log in"),
        ("PERMISSION_DENIED: Anonymous [http_response_code='401']", "no valid credentials; log in"),
        ("ExpiredToken: The provided token has expired.", "the credentials have expired; log in"),
        ("UNKNOWN: PermanentRedirect: elsewhere", "in another region; set AWS_REGION"),
        ("AuthorizationHeaderMalformed: use 'eu-west-1'", "region; set AWS_REGION .*eu-west"),
        ("PERMISSION_DENIED: RequestTimeTooSkewed: late", "the clock of this machine is wrong"),
        ("ABORTED: All 2 retry attempts failed [http_response_code='503']", "^ABORTED.*failed$"),
    ],
)  # fmt: skip
def test_what_a_store_says_and_what_helps(said, means):
    text = remote.reason(ValueError(said))
    assert re.search(means, text) and "http_response" not in text and "\n" not in text


def test_keys_in_the_environment_are_all_that_is_looked_for(monkeypatch):
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ACCESS_KEY_ID"):
        monkeypatch.delenv(name, raising=False)
    assert remote.spec_of("s3://runs/") == {"driver": "s3", "bucket": "runs"}
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    assert remote.spec_of("s3://runs/")["aws_credentials"] == {"type": "environment"}


def test_what_is_wrong_is_said_in_one_line(google):
    for broken, what in ((0, "no such bucket; create it"), (403, "permission denied"),
                         (401, "credentials")):  # fmt: skip
        google.broken[:] = [broken] if broken else []
        with pytest.raises(BucketError, match=what) as caught:
            bucket_lib.probe(Bucket("gs://runs/one" if broken else "gs://nowhere/one"))
        assert "\n" not in str(caught.value) and "gs://" in str(caught.value)
    for address in ("https://runs/one", "gs://", "gs:///one"):
        with pytest.raises(ValueError, match="no address that can be written to"):
            Bucket(address)
    with pytest.raises(ValueError, match="nothing://runs/ can't be opened"):
        Bucket("nothing://runs/one")
