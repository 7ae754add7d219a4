"""A run in a bucket: what comes to the address, going on from it, what is refused, what is lost."""

import contextlib
import errno
import json
import logging
import shutil
import signal
import threading
import time

import fsspec
import jax
import numpy as np
import pytest
from etils import epath

import jaxclip
from jaxclip import cli, lock, storage
from jaxclip import config as config_lib
from jaxclip.data.bucket import Bucket, BucketError
from jaxclip.errors import ProcessesError
from jaxclip.lock import LockedError, LostLockError
from jaxclip.parallel import distributed
from jaxclip.train import (
    checkpoint,
    loop,
    manifest,
    metrics,
    mirror,
    multihost,
    parts,
    setup,
    shards,
    staging,
    workdir,
    workdir_config,
)
from tests.google_store import serve
from tests.patience import LONG, until


@pytest.fixture(autouse=True)
def cached(compilation_cache):
    with compilation_cache():
        yield


@pytest.fixture
def address(tmp_path, monkeypatch):
    """``memory://…``, empty, with staging folders of its own."""
    monkeypatch.setenv("JAXCLIP_STAGING", str(tmp_path / "staging"))
    files = fsspec.filesystem("memory")
    files.store.clear()
    yield "memory://bucket/runs/one"
    files.store.clear()


def names(address):
    return Bucket(address).names()


def folder_of(address):
    return staging.folder_of(address)


def upload(folder, address):
    """What a run in ``folder`` would have left at an address."""
    for file in folder.rglob("*"):
        if file.is_file():
            Bucket(address).write(str(file.relative_to(folder)), file.read_bytes())


def final_state(config, place):
    with checkpoint.Checkpointer(f"{place}/checkpoints", writable=False) as checkpointer:
        restored = checkpointer.restore_latest(setup.build(config).abstract_state)
    return jax.tree.map(np.asarray, restored.state)


def assert_equal(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, one, other)


def stopped(address, config, monkeypatch):
    """A run at the address that SIGTERM has stopped after step 13."""
    from jaxclip.train import signals

    asked = signals.StopSignals.requested
    with monkeypatch.context() as patch:

        def requested(self, at):
            if at == 13:
                signal.raise_signal(signal.SIGTERM)
            return asked(self, at)

        patch.setattr(signals.StopSignals, "requested", requested)
        assert loop.train(config, address).step == 13


@pytest.fixture
def amazon(monkeypatch):
    """``s3://runs`` on this machine: a server that tests of Amazon's own clients use."""
    server = pytest.importorskip("moto.server").ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    boto3 = pytest.importorskip("boto3")
    boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1").create_bucket(
        Bucket="runs"
    )
    yield
    server.stop()


@pytest.mark.slow
@pytest.mark.parametrize("store", ["s3", "gs"])
def test_a_run_in_a_store_is_stopped_and_goes_on_to_the_bit(
    store, request, trained, tiny_config, monkeypatch, tmp_path, capsys
):
    monkeypatch.setenv("JAXCLIP_STAGING", str(tmp_path / "staging"))
    with contextlib.ExitStack() as stack:
        if store == "gs":
            stack.enter_context(serve(monkeypatch))
        else:
            request.getfixturevalue("amazon")
        stopped(f"{store}://runs/a run", tiny_config(), monkeypatch)
        goes_on_elsewhere(f"{store}://runs/a run", trained, tiny_config(), capsys)


def test_a_run_killed_goes_on_elsewhere_to_the_bit(address, trained, tiny_config):
    """As a kill left it that came when step 20 was uploaded but for its manifest."""
    upload(trained, address)
    Bucket(address).remove("checkpoints/step_00000020/manifest.json")
    assert loop.train(tiny_config(), address).finished
    assert_equal(final_state(tiny_config(), address), final_state(tiny_config(), trained))
    assert {"config.json", "metrics.jsonl", "report.html", "eval.json"} <= set(names(address))
    for name in names(address):
        if name != staging.MARK:
            assert (folder_of(address) / name).read_bytes() == Bucket(address).read(name), name


def goes_on_elsewhere(address, trained, config, capsys):
    folder = folder_of(address)
    capsys.readouterr()
    found = names(address)
    assert {"config.json", "metrics.jsonl", "report.html", "environment.json"} <= set(found)
    assert lock.FILE_NAME not in found and any(name.startswith("tensorboard/") for name in found)
    assert "checkpoints/step_00000013/manifest.json" in found
    for name, content in ((n, Bucket(address).read(n)) for n in found):
        if name != staging.MARK:
            assert (folder / name).read_bytes() == content, name
    shutil.rmtree(folder)  # another machine
    assert cli.main(["train", "--workdir", address]) == 0
    assert f"workdir {address}: going on after step 13" in capsys.readouterr().out
    assert_equal(final_state(config, address), final_state(config, trained))
    with workdir.lent(address) as (copy, _):
        steps, _ = metrics.curves(metrics.read_metrics(copy))["loss"]
        assert steps.tolist() == list(range(1, 21))
    steps = {name.split("/")[1] for name in names(address) if name.startswith("checkpoints/")}
    assert steps == {path.name for path in (folder / "checkpoints").iterdir()}


# What comes to the address, and in which order. Checkpoints are made up: the mirror looks at
# manifests alone.


def save(folder, step, text="x", keep=2):
    """A checkpoint as the checkpointer leaves it, and the old ones removed."""
    path = epath.Path(folder) / "checkpoints" / f"step_{step:08d}"
    path.mkdir(parents=True)
    for name in ("a", "b", "c"):
        (path / name).write_text(f"{name} of {step} {text}")
    manifest.write(path, {"step": step, "metrics": {}})
    for old in sorted((folder / "checkpoints").iterdir())[:-keep]:
        shutil.rmtree(old)


def whole(address):
    """Steps that a run could go on from, each verified."""
    with staging.Borrowed(address) as copy:
        found = sorted(path.name for path in (copy.folder / "checkpoints").glob("*"))
        for name in found:
            copy.fetch(name)
            manifest.verify(epath.Path(copy.folder / "checkpoints" / name))
        return [int(name.removeprefix("step_")) for name in found]


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(mirror, "SECONDS", 0.02)
    monkeypatch.setattr(mirror, "FINAL_SECONDS", 0.0)
    monkeypatch.setattr(mirror, "_LONGEST_PAUSE", 0.02)


@pytest.fixture
def still(monkeypatch):
    """No passes but those that the test makes."""
    monkeypatch.setattr(mirror, "SECONDS", 1e6)
    monkeypatch.setattr(mirror.Mirror, "committed", lambda self: None)
    monkeypatch.setattr(mirror, "FINAL_SECONDS", 0.0)


class Gone(BaseException):
    """As if the process was killed."""


@pytest.mark.parametrize("every", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_at_any_request_the_address_has_whole_checkpoints(
    every, address, still, monkeypatch
):
    """And the metrics are never behind them; the next run uploads the rest of what its folder has.

    A checkpoint that was removed in the folder only comes back: rather one too many.
    """
    count = [0]

    def counted(method):
        def call(self, name, *content):
            if self.address == address and name not in (staging.MARK, lock.FILE_NAME):
                count[0] -= 1
                if count[0] <= 0:
                    raise Gone  # from here on: the end of the run uploads nothing either
            return method(self, name, *content)

        return call

    for number in range(1, 100, every):
        fsspec.filesystem("memory").store.clear()
        shutil.rmtree(folder_of(address), ignore_errors=True)
        with workdir.hold(address) as held:
            (held.path / "metrics.jsonl").write_text("1\n")
            save(held.path, 1, keep=2)
            save(held.path, 2, keep=2)
        assert whole(address) == [1, 2]
        count[0] = 1000
        with pytest.raises((Gone, AssertionError)), monkeypatch.context() as patch:
            patch.setattr(Bucket, "swap", counted(Bucket.swap))
            with workdir.hold(address) as held:
                count[0] = number
                (held.path / "metrics.jsonl").write_text("1\n3\n")
                (held.path / "config.json").write_text("{}")
                shutil.rmtree(held.path / "checkpoints" / "step_00000002")
                save(held.path, 2, "saved again", keep=2)
                save(held.path, 3, keep=2)
                held.copy.sync()
                raise AssertionError("done")
        found = whole(address)
        assert found and found[0] in (1, 2), number
        if 3 in found:
            assert Bucket(address).read("metrics.jsonl") == b"1\n3\n"
        if count[0] > 0:
            assert found == [2, 3]
            break
        with workdir.hold(address):
            pass
        assert whole(address)[-2:] == [2, 3]
        assert Bucket(address).read("checkpoints/step_00000002/a") == b"a of 2 saved again"
    assert 12 < number < 40, "any request was once the last one"


def test_what_is_not_of_a_run_is_left_alone(address, still):
    others = ["data/000.tar", "data/notes.json", "model.pt", "checkpoints/mine/a"]
    for name in others:
        Bucket(address).write(name, b"not a run's")
    for _ in range(2):
        with workdir.hold(address) as held:
            (held.path / "config.json").write_text("{}")
            held.copy.sync()
            assert not [name for name in others if (held.path / name).exists()]
    assert set(others) < set(names(address))


def test_a_removed_file_is_removed_there_and_an_equal_one_is_not_sent_again(address, still):
    with workdir.hold(address) as held:
        (held.path / "tensorboard").mkdir()
        for name in ("metrics.jsonl", "tensorboard/one", "half.tmp", ".hidden", "lock.json"):
            (held.path / name).write_text(name)
        held.copy.sync()
        assert names(address) == ["lock.json", "metrics.jsonl", staging.MARK, "tensorboard/one"]
        assert b"token" in Bucket(address).read("lock.json")
        (held.path / "tensorboard/one").unlink()
        Bucket(address).write("metrics.jsonl", b"not looked at")
        held.copy.sync()
        assert names(address) == ["lock.json", "metrics.jsonl", staging.MARK]
        assert Bucket(address).read("metrics.jsonl") == b"not looked at"


def test_new_metrics_of_a_checkpoint_send_its_manifest_alone(address, still):
    with workdir.hold(address) as held:
        save(held.path, 1)
        held.copy.sync()
        path = epath.Path(held.path) / "checkpoints" / "step_00000001"
        manifest.put(path, {**manifest.read(path), "metrics": {"top1": 0.5}})
        Bucket(address).write("checkpoints/step_00000001/a", b"not looked at")
        held.copy.sync()
    content = json.loads(Bucket(address).read("checkpoints/step_00000001/manifest.json"))
    assert content["metrics"] == {"top1": 0.5}
    assert Bucket(address).read("checkpoints/step_00000001/a") == b"not looked at"


def test_what_came_to_the_address_after_a_run_is_kept(address, still):
    """An evaluation made elsewhere; the staging folder has an older one."""
    with workdir.hold(address) as held:
        (held.path / "eval.json").write_text("{}")
    Bucket(address).write("eval.json", b'{"ema": {}}')
    with workdir.hold(address) as held:
        assert (held.path / "eval.json").read_text() == '{"ema": {}}'
    assert Bucket(address).read("eval.json") == b'{"ema": {}}'


def test_neither_half_a_removal_nor_a_damaged_manifest_is_uploaded(address, still):
    with workdir.hold(address) as held:
        save(held.path, 1)
        held.copy.sync()
        folder = held.path / "checkpoints"
        shutil.copytree(folder / "step_00000001", folder / "step_00000001.removed")
        (folder / "step_00000001" / "manifest.json").write_text("{")
        (held.path / "metrics.jsonl").write_text("1\n")
        held.copy.sync()
        assert whole(address) == [1] and "metrics.jsonl" in names(address)
        assert not [name for name in names(address) if ".removed" in name]


def test_an_upload_that_broke_off_goes_on_where_it_was(address, still, monkeypatch):
    swap, written, fails = Bucket.swap, [], [True]

    def counted(self, name, before, content):
        if name.endswith("/b") and fails:
            fails.clear()
            raise BucketError("no route to host")
        written.append(name)
        return swap(self, name, before, content)

    with workdir.hold(address) as held:
        save(held.path, 1)
        monkeypatch.setattr(Bucket, "swap", counted)
        with pytest.raises(BucketError):
            held.copy.sync()
        held.copy.sync()
        assert whole(address) == [1] and len(written) == len(set(written)) == 4


def test_nothing_is_written_outside_of_a_copy(address, tmp_path):
    """Somebody else's bucket may have names that lead there."""
    place, base = Bucket(address), "checkpoints/step_00000001"
    stray = {"../../../one.json": [1, ""], "state/../../../../one.json": [1, ""]}
    place.write(f"{base}/manifest.json", manifest.text_of({"format": 1, "files": stray}).encode())
    for name in ("spikes/../../one.json", *(f"{base}/{name}" for name in stray)):
        place.write(name, b"x")
    copy = staging.Copy(place, tmp_path / "a" / "b")
    copy.pull()
    copy.fetch("step_00000001")
    found = [path for path in (tmp_path / "a").rglob("*") if path.is_file()]
    assert found == [copy.folder / base / "manifest.json"]


# Faults.


@pytest.fixture
def network(monkeypatch):
    """``network(False)``: nothing at an address can be reached."""
    asked, up = Bucket._try, [True]

    def ask(self, what, request):
        if not up[0]:
            raise BucketError(f"{what}: no route to host")
        return asked(self, what, request)

    monkeypatch.setattr(Bucket, "_try", ask)

    def switch(value):
        up[0] = value

    return switch


def test_an_outage_is_said_once_and_made_up_for(address, quick, network, caplog):
    with caplog.at_level(logging.WARNING), workdir.hold(address) as held:
        network(False)
        save(held.path, 1)
        until(lambda: "are behind" in caplog.text)
        time.sleep(0.2)
        assert caplog.text.count("are behind") == 1 and str(held.path) in caplog.text
        save(held.path, 2)
        save(held.path, 3)
        network(True)
        until(lambda: "caught up after" in caplog.text)
        # A pass that was under way before the last save leaves that to the next one.
        last = [f"checkpoints/step_0000000{step}/manifest.json" for step in (2, 3)]
        until(lambda: [n for n in names(address) if n.endswith("manifest.json")] == last)
        assert whole(address) == [2, 3]


@pytest.mark.parametrize("when", ["in the run", "at its end"])
def test_an_interrupt_does_not_wait_for_a_store_and_loses_nothing(
    when, address, still, monkeypatch, capsys
):
    swap, hangs, go_on = Bucket.swap, threading.Event(), threading.Event()
    removed, came_back = [], []

    def hang(self, name, before, content):
        if name == lock.FILE_NAME and content is None:
            removed.append(name)
        if name in (lock.FILE_NAME, staging.MARK) or go_on.is_set():
            return swap(self, name, before, content)
        hangs.set()
        go_on.wait(LONG)
        came_back.append(name)
        raise BucketError("no answer in time")

    monkeypatch.setattr(Bucket, "swap", hang)
    monkeypatch.setattr(workdir, "_PARTING_SECONDS", LONG)

    def interrupt():
        hangs.wait(LONG)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)  # as Ctrl-C comes

    with pytest.raises(KeyboardInterrupt, match="all of it is in") as caught:  # noqa: SIM117
        with workdir.hold(address) as held:
            save(held.path, 1)
            if when == "in the run":
                raise KeyboardInterrupt
            threading.Thread(target=interrupt).start()
    assert removed and not came_back, "nobody waits for what hangs"
    assert str(held.path) in str(caught.value) and address in str(caught.value)
    assert not whole(address)
    go_on.set()
    with workdir.hold(address):
        pass
    assert whole(address) == [1]

    def fail(arguments):
        raise caught.value

    left = []
    monkeypatch.setattr("jaxclip.parallel.distributed.leave", left.append)
    monkeypatch.setattr(cli, "_report", fail)
    cli.main(["report", "--workdir", address])
    assert left == [130] and capsys.readouterr().err.count("\n") == 1


def test_what_the_end_could_not_upload_the_next_start_does(
    address, quick, network, monkeypatch, caplog
):
    monkeypatch.setattr(lock, "BEAT_SECONDS", 1e6)
    with pytest.raises(mirror.MirrorError, match="all of it is in") as failed:  # noqa: SIM117
        with workdir.hold(address) as held:
            network(False)
            save(held.path, 1)
    assert str(folder_of(address)) in str(failed.value)
    network(True)
    # The lock could not be removed either: it is that of a process that runs, this one.
    with workdir.hold(address, break_lock=True):
        pass
    assert whole(address) == [1]
    with pytest.raises(ZeroDivisionError), workdir.hold(address) as held:
        network(False)
        save(held.path, 2)
        raise ZeroDivisionError
    assert "not everything is at" in caplog.text, "and the first error is the one that is raised"


def test_half_a_save_is_not_taken_for_what_the_address_has(address, still, network):
    """A step is saved anew, and a kill comes before its manifest, here and there."""
    with pytest.raises(mirror.MirrorError), workdir.hold(address) as held:
        save(held.path, 1)
        held.copy.sync()
        folder = held.path / "checkpoints/step_00000001"
        shutil.rmtree(folder)
        folder.mkdir()
        (folder / "a").write_text("A of 1 x")
        (held.path / "metrics.jsonl").write_text("1\n")
        network(False)
    network(True)
    with workdir.hold(address, break_lock=True) as held:
        held.copy.fetch("step_00000001")
        manifest.verify(epath.Path(folder))


def test_a_folder_that_was_overtaken_starts_anew_and_loses_nothing(
    address, still, network, monkeypatch, tmp_path, caplog
):
    with pytest.raises(mirror.MirrorError), workdir.hold(address) as held:
        save(held.path, 1)
        held.copy.sync()
        save(held.path, 2, "never seen")
        network(False)
    network(True)
    monkeypatch.setenv("JAXCLIP_STAGING", str(tmp_path / "other machine"))
    with workdir.hold(address, break_lock=True) as held:
        assert (held.path / "checkpoints/step_00000001/manifest.json").exists()
        save(held.path, 3, keep=1)
    monkeypatch.setenv("JAXCLIP_STAGING", str(tmp_path / "staging"))
    with workdir.hold(address) as held:
        assert [path.name for path in (held.path / "checkpoints").iterdir()] == ["step_00000003"]
    (aside,) = (tmp_path / "staging").glob("*/run.left-*")
    assert (aside / "checkpoints/step_00000002/a").read_text() == "a of 2 never seen"
    assert str(aside) in caplog.text


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_folder_that_a_living_run_uses_is_left_to_it(elsewhere, address, still, monkeypatch):
    """It was overtaken and does not know yet; its machine may be another with the same home."""
    with contextlib.suppress(LostLockError), workdir.hold(address) as first:
        save(first.path, 1)
        first.copy.sync()
        save(first.path, 2, "of the first")
        if elsewhere:
            monkeypatch.setattr(lock, "_machine", lambda: "another machine")
        with workdir.hold(address, break_lock=True) as second:
            assert second.path != first.path == folder_of(address)
            assert (first.path / "checkpoints/step_00000002").exists(), "nothing is taken from it"
            save(second.path, 2, "of the second")
            second.copy.sync()
        assert not second.path.parent.exists(), "all of it is at the address"
    assert whole(address) == [1, 2]
    assert Bucket(address).read("checkpoints/step_00000002/a") == b"a of 2 of the second"
    with workdir.hold(address) as third:
        assert third.path == first.path, "which is free now"
        assert (third.path.parent / "lock.json").exists()
    assert not (third.path.parent / "lock.json").exists()


def test_the_folder_that_wrote_last_is_gone_on_with(address, still, network, monkeypatch):
    """Also where that is not the first one, because another run had it."""
    with contextlib.suppress(LostLockError), workdir.hold(address) as first:
        with pytest.raises(mirror.MirrorError), workdir.hold(address, break_lock=True) as second:
            save(second.path, 1)
            network(False)
        network(True)
        assert second.path != first.path
    with workdir.hold(address, break_lock=True) as third:
        assert third.path == second.path
    assert whole(address) == [1] and not second.path.parent.exists()


def test_two_addresses_and_two_processes_have_folders_of_their_own(address):
    places = [(address, 0), (address, 1), (address + "/x", 0), (address.replace("one", "x/one"), 0)]
    assert len({staging.folder_of(*place).parent for place in places}) == 4
    assert staging.folder_of("gs://b/é ü/") == staging.folder_of("gs://b/é ü")


def test_under_another_one_s_lock_nothing_is_uploaded(address, still):
    with pytest.raises(LostLockError, match="taken over"):  # noqa: SIM117
        with workdir.hold(address) as held:
            Bucket(address).write("lock.json", lock._encode(lock.Holder("far", "b", 7, "1", "t")))
            (held.path / "metrics.jsonl").write_text("1")
    assert names(address) == ["lock.json", staging.MARK]


@pytest.fixture(params=["memory", "gs"])
def store(request, address, monkeypatch):
    """An address whose file system looks before it writes, and one whose store keeps conditions."""
    if request.param == "memory":
        yield address
        return
    with serve(monkeypatch):
        yield "gs://runs/one"


def write_all(held, text):
    """A checkpoint and a file of the run, on the way to the address and there."""
    (held.path / "metrics.jsonl").write_text(text)
    save(held.path, 1, text)
    held.copy.sync()


@pytest.mark.parametrize("name", ["metrics.jsonl", "checkpoints/step_00000001/b",
                                  "checkpoints/step_00000001/manifest.json"])  # fmt: skip
@pytest.mark.parametrize("lands", ["before", "after"])
def test_what_hung_until_another_run_had_the_address_changes_nothing(
    name, lands, store, still, monkeypatch, tmp_path
):
    """An upload of the first run arrives before the second one wrote that file, or afterwards."""
    swap, hangs, go_on = Bucket.swap, threading.Event(), threading.Event()

    def hang(self, at, before, content):
        if at == name and not hangs.is_set():
            hangs.set()
            assert go_on.wait(LONG)
        return swap(self, at, before, content)

    def send():
        with contextlib.suppress(LostLockError):
            write_all(first, "of the first")

    monkeypatch.setattr(Bucket, "swap", hang)
    late = threading.Thread(target=send)
    with contextlib.suppress(LostLockError), workdir.hold(store) as first:
        late.start()
        assert hangs.wait(LONG)
        monkeypatch.setenv("JAXCLIP_STAGING", str(tmp_path / "other machine"))
        with workdir.hold(store, break_lock=True) as second:
            if lands == "after":
                write_all(second, "of the second")
            go_on.set()
            late.join()
            if lands == "before":
                write_all(second, "of the second")
        assert whole(store) == [1]
        assert Bucket(store).read("checkpoints/step_00000001/b") == b"b of 1 of the second"
        assert Bucket(store).read("metrics.jsonl") == b"of the second"


def test_a_removal_that_hung_removes_nothing_of_the_next_run(store, still, monkeypatch, tmp_path):
    with contextlib.suppress(LostLockError), workdir.hold(store) as first:
        write_all(first, "of the first")
        monkeypatch.setenv("JAXCLIP_STAGING", str(tmp_path / "other machine"))
        with workdir.hold(store, break_lock=True) as second:
            shutil.rmtree(second.path / "checkpoints" / "step_00000001")
            write_all(second, "of the second")
            # As if it had seen the lock to be its own just before.
            monkeypatch.setattr(first.lock, "look", lambda: None)
            for name in ("metrics.jsonl", "checkpoints/step_00000001/b"):
                version = first.copy._versions[name]
                assert Bucket(store).swap(name, version, None) is None
                with pytest.raises(LostLockError), monkeypatch.context() as patch:
                    patch.setattr(first.copy, "_look", type(first.lock).look.__get__(first.lock))
                    first.copy.drop(name)
        assert whole(store) == [1]


def test_a_write_whose_answer_was_lost_is_one(store, still, monkeypatch):
    swap, lost = Bucket.swap, []

    def lose(self, name, before, content):
        now = swap(self, name, before, content)
        if name == "metrics.jsonl" and len(lost) < 2:
            lost.append(name)
            if len(lost) == 1:
                raise BucketError("no answer in time")
            return None
        return now

    with workdir.hold(store) as held:
        monkeypatch.setattr(Bucket, "swap", lose)
        (held.path / "metrics.jsonl").write_text("1")
        with pytest.raises(BucketError):
            held.copy.sync()
        held.copy.sync()
        (held.path / "metrics.jsonl").write_text("1\n2")
        held.copy.sync()
    assert Bucket(store).read("metrics.jsonl") == b"1\n2" and len(lost) == 2


def test_a_process_that_was_overtaken_uploads_no_part(address, monkeypatch):
    """Not only process 0, whose lock it is."""
    with contextlib.suppress(LostLockError), workdir.hold(address) as held:
        place = workdir.bucket_lib.LockFile(Bucket(address), lock.FILE_NAME)
        shared = lock.Shared(place, held.lock.holder.token)
        copy = staging.Copy(Bucket(address), held.path, shared.look)
        copy.put("part", b"ours")
        with workdir.hold(address, break_lock=True) as second:
            second.copy.put("part", b"of the next")
            with pytest.raises(LostLockError, match="taken over by process"):
                copy.put("part", b"ours again")
            with pytest.raises(LostLockError):
                copy.drop("other")
        assert Bucket(address).read("part") == b"of the next"


def test_a_lock_that_is_lost_at_the_start_is_told_to_the_other_processes(address, monkeypatch):
    """They would wait for this one without end."""
    told = []

    def tell(problem):
        told.append(problem)
        return problem

    def lose(self):
        raise LostLockError("taken over")

    monkeypatch.setattr(workdir.multihost, "first_problem", tell)
    monkeypatch.setattr(mirror.Mirror, "begin", lose)
    with pytest.raises(LostLockError), workdir.hold(address):
        pass
    assert told == ["taken over"]


def test_a_lost_lock_is_said_though_the_network_is_gone(address, still, network):
    with pytest.raises(LostLockError, match="by somebody"), workdir.hold(address) as held:
        held.lock._lost = True
        network(False)
        held.check()


def test_a_staging_folder_that_cannot_be_made_is_said_with_its_way_out(
    address, tmp_path, monkeypatch
):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("JAXCLIP_STAGING", str(tmp_path / "file"))
    message = "staging folder .* can't be written .* JAXCLIP_STAGING"
    with pytest.raises(workdir.WorkdirError, match=message), workdir.hold(address):
        pass
    assert not names(address)


def test_a_staging_folder_that_can_not_be_marked_is_let_go(address, monkeypatch):
    def fail(path, text):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(storage, "write_text", fail)
    with pytest.raises(workdir.WorkdirError, match="No space left"), workdir.hold(address):
        pass
    folder = folder_of(address).parent
    assert folder.is_dir() and not (folder / lock.FILE_NAME).exists()


def test_a_full_disk_below_a_run_at_an_address_names_what_moves_its_folder(address, monkeypatch):
    full = OSError(errno.ENOSPC, "No space left on device")
    with workdir.hold(address) as held:
        text = storage.reason(full, held.path / "checkpoints")
        assert "in the environment's JAXCLIP_STAGING, on another disk" in text
        assert "choose" not in text and "lower checkpoint.keep_last" in text
    assert "choose a workdir on another disk" in storage.reason(full, "/tmp/a run")

    def fill(self, content):
        raise full

    Bucket(address).write("config.json", b"{}")
    monkeypatch.setattr("pathlib.Path.write_bytes", fill)
    with pytest.raises(staging.CopyError, match=r"config.json can't be copied .* TMPDIR, on"):
        workdir_config.find_config(address)


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("gs:/x/y", "gs://x/y"),
        ("gs:x", "gs://x"),
        ("s3//x/y", "s3://x/y"),
        ("gs:///x", "gs://x"),
        ("s3://", "s3://bucket/folder"),
        (" gs://x/y", "gs://x/y"),
        ("gs://x/y\n", "gs://x/y"),
        ("GS://x/Y", "gs://x/Y"),
        ("gcs://x", "gs://x"),
    ],
)
def test_what_is_nearly_an_address_is_no_folder(wrong, right, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for command in (["train"], ["report"], ["eval"]):
        assert cli.main([*command, "--workdir", wrong]) == 2
        error = capsys.readouterr().err
        assert f"{wrong!r} is no address of a bucket; write {right!r}" in error
        assert error.count("\n") == 1
    with pytest.raises(ValueError, match="is no address"), workdir.hold(wrong):
        pass
    assert not list(tmp_path.iterdir())


def test_addresses_and_folders_are_what_they_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gs:/x").mkdir(parents=True)
    for fine in ("gs://x", "s3://x/a b/é/", "az://c/x", "gs:/x", "gsx", "s3/x", "runs/gs:", "~/s3"):
        storage.check_address(fine)
    assert storage.absolute("file:///tmp/x") == "/tmp/x"


def test_a_refusal_names_the_address(tiny_config, tmp_path):
    config_lib.save(tiny_config(), tmp_path / "config.json")
    with pytest.raises(workdir.WorkdirError) as refused:
        workdir_config.check_config(tiny_config("seed=5"), tmp_path, name="gs://bucket/run")
    assert str(refused.value).startswith("workdir gs://bucket/run holds a run of another")
    assert "--config.init_from=gs://bucket/run" in str(refused.value)


def test_a_second_run_is_refused_and_one_that_came_to_nothing_leaves_nothing(address, capsys):
    with workdir.hold(address):
        assert cli.main(["report", "--workdir", address]) == 2
        with pytest.raises(LockedError, match=f"{address} is in use"), workdir.hold(address):
            pass
    assert not names(address)
    assert f"{address} is not the workdir of a run" in capsys.readouterr().err


def test_a_network_that_is_gone_at_the_start_is_one_line(address, network, capsys):
    network(False)
    assert cli.main(["train", "--workdir", address]) == 1
    error = capsys.readouterr().err
    assert "no route to host" in error and error.count("\n") == 1
    with pytest.raises(BucketError), workdir.hold(address):
        pass


# Several processes, of which this one is 0 and the other is made up.


def part(held, step, monkeypatch):
    """What orbax leaves of process 0's part, and what commits it: ``(parts, folder, number)``."""
    monkeypatch.setattr(parts.jax, "process_count", lambda: 2)
    monkeypatch.setattr(parts.multihost, "broadcast", lambda value: value)
    mine = parts.Parts(held.copy)
    folder = epath.Path(held.path / "checkpoints" / f"step_{step:08d}")
    mine.prepare(folder)
    number = mine.begin()
    for name in ("_METADATA", "ocdbt.process_0/d/a", "manifest.ocdbt", "d/index"):
        (folder / "state" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "state" / name).write_text(name)
    return mine, folder, number


def other_part(address, step, number, tmp_path):
    folder = epath.Path(tmp_path / "other" / "state" / "ocdbt.process_1")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "b").write_text("b")
    table = manifest.table_of(folder.parent.parent)
    base = f"checkpoints/step_{step:08d}"
    Bucket(address).write(f"{base}/state/ocdbt.process_1/b", b"b")
    Bucket(address).write(
        f"{base}/part_{number}_1.json", json.dumps({"files": table, "blocks": {}}).encode()
    )


def test_a_checkpoint_is_one_when_all_parts_are_there(address, still, monkeypatch, tmp_path):
    with workdir.hold(address) as held:
        mine, folder, number = part(held, 4, monkeypatch)
        (held.path / "metrics.jsonl").write_text("4")
        other_part(address, 4, "of another save", tmp_path)
        thread = threading.Thread(target=mine.commit, args=(folder, {"step": 4}, number))
        thread.start()
        until(lambda: Bucket(address).read(f"checkpoints/{folder.name}/part_{number}_0.json"))
        time.sleep(0.1)
        assert thread.is_alive() and not whole(address)
        other_part(address, 4, number, tmp_path)
        thread.join()
        assert whole(address) == [4] and Bucket(address).read("metrics.jsonl") == b"4"
        held.copy.sync()
    files = manifest.read(folder)["files"]
    assert set(files) == {f"state/{n}" for n in ("_METADATA", "ocdbt.process_0/d/a",
                                                 "ocdbt.process_1/b")}  # fmt: skip
    assert whole(address) == [4], "the mirror has nothing to add"


def test_a_part_that_does_not_come_costs_its_checkpoint_alone(address, quick, monkeypatch, network):
    monkeypatch.setattr(parts, "_PATIENCE", 0.1)
    with workdir.hold(address) as held:
        mine, folder, number = part(held, 4, monkeypatch)
        mine.hurry.set()
        with pytest.raises(OSError, match="the part of process 1 did not come to"):
            mine.commit(folder, {"step": 4}, number)
        assert not folder.exists() and not whole(address)
        mine, folder, number = part(held, 6, monkeypatch)
        mine.hurry.set()
        network(False)
        with pytest.raises(BucketError, match="no route"):
            mine.commit(folder, {"step": 6}, number)
        network(True)
        assert not folder.exists()


def test_a_part_that_failed_is_not_waited_for(address, still, monkeypatch):
    with workdir.hold(address) as held:
        mine, folder, number = part(held, 4, monkeypatch)
        mine.fail(folder.name, number, "disk full")
        failed = Bucket(address).read(f"checkpoints/{folder.name}/part_{number}_0.json")
        Bucket(address).write(f"checkpoints/{folder.name}/part_{number}_1.json", failed)
        with pytest.raises(parts.PartError, match="process 1 could not write its part: disk full"):
            mine.commit(folder, {"step": 4}, number)
        assert not folder.exists() and not whole(address)


@pytest.fixture
def apart(address, still, monkeypatch):
    """Saves at an address as process 0 of two, of which ``tell("problem")`` is the other."""
    told = [""]
    monkeypatch.setattr(multihost, "first_problem", lambda problem: problem or told[0])
    with workdir.hold(address) as held:
        with monkeypatch.context() as two:
            two.setattr(jax, "process_count", lambda: 2)
            checkpointer = checkpoint.Checkpointer(held.path / "checkpoints", copy=held.copy)
        checkpointer.tell = lambda problem: told.__setitem__(0, problem)
        yield checkpointer


def lose_part(monkeypatch):
    def tables(self, step, number):
        raise parts.PartError("process 1 could not write its part: connection reset by peer")

    monkeypatch.setattr(parts.Parts, "_tables", tables)


def test_a_last_checkpoint_whose_part_failed_elsewhere_is_no_success(apart, monkeypatch):
    lose_part(monkeypatch)
    what = r"step 1 was not written .*process 1 could not .*reset by peer"
    with pytest.raises(checkpoint.CheckpointError, match=what) as error, apart:
        apart.save(1, {"w": np.arange(3.0)})
    assert not distributed.explain_loss(error.value), "that process is not lost"


def test_a_part_that_failed_elsewhere_is_told_once(apart, monkeypatch, caplog):
    lose_part(monkeypatch)
    with pytest.raises(ProcessesError, match="by all processes: process 1: disk full"), apart:
        apart.save(1, {"w": np.arange(3.0)})
        apart.tell("process 1: disk full")
        apart.wait()
    assert not caplog.text


def test_a_save_that_can_not_begin_elsewhere_ends_with_its_reason(apart, monkeypatch, caplog):
    """What this process began to write of it is neither left nor an error of its own."""
    begin = checkpoint.ocp.AsyncCheckpointer.save

    def save(self, *arguments, **options):
        begin(self, *arguments, **options)
        apart.tell("process 1: disk full")

    monkeypatch.setattr(checkpoint.ocp.AsyncCheckpointer, "save", save)
    with pytest.raises(ProcessesError, match="by all processes: process 1: disk full"), apart:
        apart.save(1, {f"w{i}": np.zeros((500, 500)) for i in range(20)})
    assert not list(apart.directory.iterdir()) and not caplog.text


def test_the_address_has_all_before_other_processes_look(address, still, network, monkeypatch):
    with pytest.raises(mirror.MirrorError), workdir.hold(address) as held:
        save(held.path, 1)
        network(False)
    network(True)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(workdir.multihost, "first_problem", lambda problem: problem)
    monkeypatch.setattr(workdir.multihost, "broadcast", lambda value: value)
    with workdir.hold(address, break_lock=True):
        assert whole(address) == [1]


def test_processes_that_do_not_come_to_hold_an_address_leave_all_as_it_was(address, monkeypatch):
    """Neither the parts of a living run on these hosts, nor a trace at the address."""
    others = staging.folder_of(address, 1) / "checkpoints"
    others.mkdir(parents=True)
    monkeypatch.setattr(workdir.multihost, "first_problem", lambda problem: "no route")
    for process in (0, 1):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        with (
            pytest.raises(workdir.WorkdirError, match=r"another process.*no route"),
            workdir.hold(address),
        ):
            pass
    assert others.exists() and not names(address)
    assert not [each for each in threading.enumerate() if each.name == "workdir_mirror"]
    monkeypatch.setattr(workdir.multihost, "first_problem", lambda problem: problem)
    # What process 0 wrote: this is another place, as memory:// is to each process.
    with pytest.raises(workdir.WorkdirError, match="same endpoint"), workdir.hold(address):
        pass
    assert others.exists()
    Bucket(address).write(lock.FILE_NAME, b"of process 0")
    with workdir.hold(address) as held:
        assert held.path.exists() and not others.exists() and held.lock is None


# Readers.


def test_all_that_reads_a_workdir_reads_an_address(address, trained, tmp_path, capsys):
    upload(trained, address)
    assert cli.main(["eval", "--workdir", address, "--config.evaluate.gallery_split="]) == 0
    assert "checkpoint of step 20" in capsys.readouterr().out
    results = json.loads(Bucket(address).read("eval.json"))
    before = json.loads((trained / "eval.json").read_text())
    assert results["ema"]["metrics"] == before["ema"]["metrics"]
    assert results["ema"]["time"] > before["ema"]["time"]
    Bucket(address).remove("report.html")
    assert cli.main(["report", "--workdir", address]) == 0
    assert capsys.readouterr().out.strip() == f"{address}/report.html"
    assert b"<title>one " in Bucket(address).read("report.html")
    assert cli.main(["weights", "info", address]) == 0
    assert "workdir of a run" in capsys.readouterr().out
    ours, theirs = jaxclip.load(address).params, jaxclip.load(trained).params
    assert_equal(ours, theirs)
    assert not folder_of(address).exists(), "readers leave nothing behind"


@pytest.mark.parametrize("in_part", [False, True, "of an unknown index"])
def test_of_a_damaged_checkpoint_a_reader_takes_the_one_before(
    address, trained, tiny_config, in_part, caplog, monkeypatch
):
    if in_part == "of an unknown index":  # then all of it is fetched
        monkeypatch.setattr(shards, "_read_index", lambda source: {})
    upload(trained, address)
    for folder in (trained / "checkpoints").iterdir() if in_part else ():
        path = epath.Path(folder)
        content = manifest.read(path) | {"blocks": manifest.blocks_of(path)}
        content["block_bytes"] = manifest.BLOCK
        text = manifest.text_of(content).encode()
        Bucket(address).write(f"checkpoints/{folder.name}/manifest.json", text)
    assert int(final_state(tiny_config(), address).step) == 20
    damaged = next(name for name in names(address) if "00000020/state/d/" in name)
    for change in (lambda: Bucket(address).write(damaged, b"x"),
                   lambda: Bucket(address).remove(damaged)):  # fmt: skip
        change()
        caplog.clear()
        assert int(final_state(tiny_config(), address).step) == 10
        assert damaged.rpartition("state/")[2] in caplog.text


def test_an_index_of_the_parts_is_made_where_there_is_none(trained, tiny_config, tmp_path):
    """As of several processes, whose index is not made when they save."""
    shutil.copytree(trained / "checkpoints", tmp_path / "checkpoints")
    state = epath.Path(tmp_path / "checkpoints" / "step_00000020" / "state")
    parts.forget_index(state)
    assert not (state / "d").exists() and (state / "ocdbt.process_0").exists()
    path = state.parent
    manifest.write(path, {k: v for k, v in manifest.read(path).items() if k != "files"})
    assert_equal(final_state(tiny_config(), tmp_path), final_state(tiny_config(), trained))


def test_parts_that_cannot_be_joined_cost_their_checkpoint_alone(trained, tiny_config, tmp_path):
    shutil.copytree(trained / "checkpoints", tmp_path / "checkpoints")
    state = epath.Path(tmp_path / "checkpoints" / "step_00000020" / "state")
    parts.forget_index(state)
    (state / "ocdbt.process_0" / "manifest.ocdbt").write_text("not one")
    path = state.parent
    manifest.write(path, {k: v for k, v in manifest.read(path).items() if k != "files"})
    assert int(final_state(tiny_config(), tmp_path).step) == 10


def test_a_reader_does_not_make_an_index_that_was_lost(trained, tiny_config, tmp_path):
    shutil.copytree(trained / "checkpoints", tmp_path / "checkpoints")
    index = tmp_path / "checkpoints" / "step_00000020" / "state" / "manifest.ocdbt"
    index.unlink()
    assert int(final_state(tiny_config(), tmp_path).step) == 10 and not index.exists()


@pytest.mark.slow
def test_a_run_starts_from_weights_at_an_address(address, trained, tiny_config, tmp_path):
    upload(trained, address)
    experiment = setup.build(tiny_config(f"init_from={address}"))
    assert_equal(
        jax.tree.map(np.asarray, experiment.init_state().params["image"]),
        jax.tree.map(np.asarray, dict(jaxclip.load(trained).params)["image"]),
    )
