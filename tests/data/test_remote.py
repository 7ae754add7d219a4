"""Data in a bucket: a server on this machine that speaks the part of Google's API that is used."""

import http.server
import json
import os
import socket
import threading
import urllib.parse
from typing import ClassVar

import numpy as np
import pytest

from jaxclip.data import pipeline, remote, sources
from jaxclip.data.record import BadRecord, Record, serialize_record
from tests.patience import LONG

pytest.importorskip("tensorstore")


class Bucket(http.server.BaseHTTPRequestHandler):
    """Lists and gives the files of ``files``; fails as ``faults`` says."""

    protocol_version = "HTTP/1.1"
    files: ClassVar[dict[str, bytes]] = {}
    faults: ClassVar[dict[str, list[int]]] = {}
    asked: ClassVar[list[str]] = []

    def do_GET(self):
        where = urllib.parse.urlsplit(self.path)
        query = urllib.parse.parse_qs(where.query)
        _, _, name = where.path.partition("/o/")
        name = urllib.parse.unquote(name)
        if not name:
            begin, end = (query.get(key, [""])[0] for key in ("startOffset", "endOffset"))
            found = [each for each in sorted(self.files) if begin <= each < (end or "~")]
            items = [{"name": each} for each in found]
            return self.answer(200, json.dumps({"items": items}).encode())
        self.asked.append(name)
        if self.faults.get(name):
            return self.answer(self.faults[name].pop(0), b"{}")
        if name not in self.files:
            return self.answer(404, b"{}")
        data = self.files[name]
        if query.get("alt") != ["media"]:
            about = {"name": name, "size": str(len(data)), "generation": "7"}
            return self.answer(200, json.dumps(about).encode())
        return self.give(data)

    def give(self, data):
        if "Range" not in self.headers:
            return self.answer(200, data)
        first, _, last = self.headers["Range"].removeprefix("bytes=").partition("-")
        if not first:  # so many from the end
            first, last = str(max(0, len(data) - int(last))), ""
        if int(first) >= len(data):
            return self.answer(416, b"")
        piece = data[int(first) : int(last) + 1 if last else None]
        return self.answer(206, piece, f"bytes {first}-{int(first) + len(piece) - 1}/{len(data)}")

    def answer(self, status, body, content_range=None):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("x-goog-generation", "7")
        self.send_header("ETag", '"7"')
        if content_range:
            self.send_header("Content-Range", content_range)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def bucket(monkeypatch, tmp_path):
    """The handler's class: its ``files`` are those of ``gs://pictures/``."""
    url, stop = serve(Bucket)
    monkeypatch.setenv("TENSORSTORE_GCS_HTTP_URL", url)
    monkeypatch.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "none")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(Bucket, "files", {})
    monkeypatch.setattr(Bucket, "faults", {})
    monkeypatch.setattr(Bucket, "asked", [])
    remote._open.cache_clear()
    yield Bucket
    remote._open.cache_clear()
    stop()


class AmazonBucket(Bucket):
    """The same in Amazon's words; the address of a file begins with that of the bucket."""

    def do_GET(self):
        where = urllib.parse.urlsplit(self.path)
        query = urllib.parse.parse_qs(where.query)
        name = urllib.parse.unquote(where.path.removeprefix("/pictures").lstrip("/"))
        self.asked.append(name)
        if "list-type" in query:
            begin = query.get("prefix", [""])[0]
            found = [each for each in sorted(self.files) if each.startswith(begin)]
            items = "".join(f"<Contents><Key>{each}</Key></Contents>" for each in found)
            head = f"<KeyCount>{len(found)}</KeyCount><IsTruncated>false</IsTruncated>"
            text = f'<?xml version="1.0"?><ListBucketResult>{head}{items}</ListBucketResult>'
            return self.answer(200, text.encode())
        if self.faults.get(name):
            return self.answer(self.faults[name].pop(0), b"")
        if name not in self.files:
            return self.answer(404, b"")
        return self.give(self.files[name])

    def do_HEAD(self):
        name = urllib.parse.unquote(self.path.removeprefix("/pictures").lstrip("/"))
        found = name in self.files
        self.send_response(200 if found else 404)
        self.send_header("ETag", '"7"')
        self.send_header("Content-Length", str(len(self.files.get(name, b""))))
        self.end_headers()


def serve(handler):
    """A server on this machine; call what is returned with it to end it."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()

    def stop():
        server.shutdown()
        server.server_close()
        thread.join()

    return f"http://127.0.0.1:{server.server_port}", stop


@pytest.fixture
def amazon(monkeypatch, tmp_path):
    """As ``bucket``, for ``s3://pictures/``."""
    url, stop = serve(AmazonBucket)
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "y")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("files", "faults"):
        monkeypatch.setattr(AmazonBucket, name, {})
    monkeypatch.setattr(AmazonBucket, "asked", [])
    remote._open.cache_clear()
    yield AmazonBucket
    remote._open.cache_clear()
    stop()


def upload(bucket, folder, under):
    for file in folder.rglob("*"):
        if file.is_file() and not file.name.startswith("."):
            bucket.files[f"{under}/{file.relative_to(folder).as_posix()}"] = file.read_bytes()


def test_ranges_files_and_folders(bucket):
    bucket.files = {"a/b.bin": bytes(range(100)), "a/c/d.txt": b"text", "e.txt": b""}
    assert remote.read_range("gs://pictures/a/b.bin", 10, 5) == bytes(range(10, 15))
    assert remote.read_range("gs://pictures/a/b.bin", 95, 50) == bytes(range(95, 100))
    assert remote.read("gs://pictures/none") is None
    folder = remote.path_of("gs://pictures/a")
    assert folder.is_dir() and not remote.path_of("gs://pictures/b").is_dir()
    assert [each.name for each in folder.iterdir()] == ["b.bin", "c"]
    assert [str(each) for each in folder.glob("*/*.txt")] == ["gs://pictures/a/c/d.txt"]
    assert (folder / "b.bin").is_file() and not (folder / "z").is_file()
    assert remote.path_of("gs://pictures/e.txt").is_file()
    with pytest.raises(FileNotFoundError, match="gs://pictures/none"):
        remote.read_range("gs://pictures/none", 0, 1)


@pytest.mark.parametrize("kind", ["tfds", "webdataset"])
def test_training_from_a_bucket_is_training_from_a_folder(bucket, tmp_path, toys, tokenize, kind):
    pytest.importorskip("tensorflow")
    if kind == "tfds":
        toys.write_data_set(tmp_path / "set", {"train": toys.records(12)}, shards=3)
        names = [str(tmp_path / "set"), "gs://pictures/set"]
    else:
        (tmp_path / "set").mkdir()
        for shard in range(2):
            numbers = range(6 * shard, 6 * shard + 6)
            members = [(f"{n}.png", toys.picture(n)) for n in numbers]
            members += [(f"{n}.txt", f"item {n}".encode()) for n in numbers]
            toys.make_tar(tmp_path / "set" / f"{shard}.tar", sorted(members))
        names = [
            f"webdataset:{tmp_path}/set/{{0..1}}.tar",
            "webdataset:gs://pictures/set/{0..1}.tar",
        ]
    upload(bucket, tmp_path / "set", "set")
    batches = []
    for name in names:
        iterator = pipeline.train_iterator(
            {"name": name, "image_size": 8}, tokenizer=tokenize, global_batch_size=8, seed=1
        )
        batches.append([next(iterator) for _ in range(3)])
        iterator.close()
    for here, there in zip(*batches, strict=True):
        for key in here:
            np.testing.assert_array_equal(here[key], there[key])
    assert sources.open(names[1]).splits == sources.open(names[0]).splits


def test_an_index_is_made_once_on_a_machine(bucket, tmp_path, toys):
    toys.write_data_set(tmp_path / "set", {"train": toys.records(4)}, shards=1)
    upload(bucket, tmp_path / "set", "set")
    shard = "set/toy-train.tfrecord-00000-of-00001"
    first = sources.open("gs://pictures/set").source("train")[0]
    before = bucket.asked.count(shard)
    again = sources.open("gs://pictures/set").source("train")[0]
    # Of what an index is valid for, and the record: nothing is read as a whole again.
    assert bucket.asked.count(shard) - before == 2 < before
    assert first == again


def dataset_of(kind, folder, toys):
    """Write a data set; returns its folder and its name, with ``{at}`` for that."""
    if kind == "tfds":
        toys.write_data_set(folder, {"train": toys.records(12)}, shards=3)
        return folder, "{at}"
    folder.mkdir()
    if kind == "webdataset":
        members = [
            (f"{n}.{end}", data)
            for n in range(9)
            for end, data in (("png", toys.picture(n)), ("txt", b"thing"))
        ]
        toys.make_tar(folder / "0.tar", members)
        return folder, "webdataset:{at}"
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = {"image": [toys.picture(n) for n in range(9)], "text": ["thing"] * 9}
    pq.write_table(pa.table(rows), folder / "train.parquet", row_group_size=4)
    return folder, "parquet:{at}"


@pytest.mark.parametrize("kind", ["tfds", "webdataset", "parquet"])
def test_records_from_amazon_are_those_of_a_folder(amazon, tmp_path, toys, kind):
    folder, name = dataset_of(kind, tmp_path / "set", toys)
    upload(amazon, folder, "set")
    here, there = (
        sources.open(name.format(at=at)).source("train") for at in (folder, "s3://pictures/set")
    )
    assert len(here) == len(there) and here.read(range(9)) == there.read(range(9))
    assert isinstance(there[8], Record)


@pytest.fixture
def memory(tmp_path, monkeypatch):
    """fsspec's ``memory://``."""
    fsspec = pytest.importorskip("fsspec")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    files = fsspec.filesystem("memory")
    files.store.clear()
    remote._open.cache_clear()
    yield files
    files.store.clear()
    remote._open.cache_clear()


@pytest.mark.parametrize("kind", ["tfds", "webdataset", "parquet"])
def test_what_fsspec_knows_is_read_as_a_folder(memory, tmp_path, toys, kind):
    folder, name = dataset_of(kind, tmp_path / "set", toys)
    for file in folder.iterdir():
        memory.pipe(f"/pictures/set/{file.name}", file.read_bytes())
    here, there = (
        sources.open(name.format(at=at)).source("train") for at in (folder, "memory://pictures/set")
    )
    assert len(here) == len(there) and here.read(range(9)) == there.read(range(9))
    assert isinstance(there[8], Record)


def test_ranges_of_fsspec(memory):
    memory.pipe("/pictures/a", bytes(range(100)))
    assert remote.read_range("memory://pictures/a", 95, 50) == bytes(range(95, 100))
    assert remote.read_slice("memory://pictures/a", -3, None) == bytes([97, 98, 99])
    assert remote.read_slice("memory://pictures/a", -300, 2) == bytes([0, 1])
    assert remote.read("memory://pictures/none") is None
    before = remote.generation("memory://pictures/a")
    memory.pipe("/pictures/a", bytes(50))
    assert not np.array_equal(before, remote.generation("memory://pictures/a"))
    with pytest.raises(FileNotFoundError, match="no such directory"):
        sources.open("memory://pictures/none")


def test_a_busy_or_missing_amazon(amazon):
    amazon.files["a"] = bytes(range(100))
    amazon.faults["a"] = [503]
    assert remote.read_range("s3://pictures/a", 95, 50) == bytes(range(95, 100))
    assert remote.read_range("s3://pictures/a", 10, 2) == bytes([10, 11])
    assert not amazon.faults["a"] and remote.read("s3://pictures/none") is None
    with pytest.raises(FileNotFoundError, match="no such directory"):
        sources.open("s3://pictures/none")


@pytest.mark.slow
def test_training_from_motos_server(tmp_path, toys, monkeypatch):
    """The same with a server of Amazon's kind that others wrote, where it is installed."""
    server = pytest.importorskip("moto.server").ThreadedMotoServer("127.0.0.1", 0)
    boto3 = pytest.importorskip("boto3")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "y")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    server.start()
    url = "http://{}:{}".format(*server.get_host_and_port())
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    remote._open.cache_clear()
    try:
        client = boto3.client("s3", endpoint_url=url)
        client.create_bucket(Bucket="pictures")
        toys.write_data_set(tmp_path / "set", {"train": toys.records(12)}, shards=3)
        for file in (tmp_path / "set").iterdir():
            client.upload_file(str(file), "pictures", f"set/{file.name}")
        source = sources.open("s3://pictures/set").source("train")
        assert source.read(range(12)) == sources.open(tmp_path / "set").source("train").read(
            range(12)
        )
    finally:
        remote._open.cache_clear()
        server.stop()


def test_a_busy_server_is_asked_again(bucket):
    bucket.files = {"a": b"bytes"}
    bucket.faults = {"a": [503]}
    assert remote.read("gs://pictures/a") == b"bytes"
    assert bucket.asked.count("a") == 2


def test_a_store_that_never_answered_is_given_up_soon(monkeypatch, caplog):
    monkeypatch.setattr(remote, "_PATIENCE", 0.05)
    monkeypatch.setattr(remote, "_FIRST", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes calls, and says nothing
        root = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(OSError, match=r"no answer within 0\.2 seconds; is there a network\?"):
            remote.read(f"{root}/set/sizes.json")
        assert f"waiting for {root}/set/sizes.json" in caplog.text
        # Of the many files that are asked for next, none is waited for.
        monkeypatch.setattr(remote, "_NOT_AGAIN", LONG)
        monkeypatch.setattr(remote, "_answer", lambda *_: pytest.fail("it was asked"))
        with pytest.raises(OSError, match="no answer within"):
            sources.open(f"webdataset:{root}/set/{{0..9}}.tar")


@pytest.mark.parametrize("kind", ["amazon", "web"])
def test_a_file_that_is_forbidden_forbids_no_other(kind, amazon, monkeypatch):
    """S3 calls so what is not there, if one may not list: the first file asked for, mostly."""
    monkeypatch.setattr(remote, "_ANSWERED", set())
    monkeypatch.setattr(remote, "_SILENT", {})
    amazon.files = {"0.tar": b"bytes"}
    amazon.faults = {"sizes.json": [403]}
    root = "s3://pictures" if kind == "amazon" else os.environ["AWS_ENDPOINT_URL"]
    with pytest.raises(OSError, match="permission denied; log in"):
        remote.read(f"{root}/sizes.json")
    assert remote.read(f"{root}/0.tar") == b"bytes"


def test_a_network_that_is_not_there_is_asked_for():
    gone = ValueError("ABORTED: All 4 retry attempts failed: CURL error Could not resolve host")
    assert remote.reason(gone).startswith("it can't be reached; is there a network? (ABORTED")


def test_a_file_elsewhere_is_called_what_it_is():
    with pytest.raises(ValueError, match=r"read in place as webdataset:https://nowhere/a\.tar"):
        sources.open("https://nowhere/a.tar")


def test_a_store_that_does_not_answer_gives_records_that_may_come_later(
    bucket, tmp_path, toys, monkeypatch
):
    toys.write_data_set(tmp_path / "set", {"train": toys.records(4)}, shards=1)
    upload(bucket, tmp_path / "set", "set")
    source = sources.open("gs://pictures/set").source("train")
    good = source[1]

    def refuse(*_):
        raise OSError("no route")

    with monkeypatch.context() as patch:
        patch.setattr(remote, "_read", refuse)
        bad = source[1]
    assert isinstance(bad, BadRecord) and bad.reason == "unreachable" and "no route" in bad.detail
    assert source[1] == good


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("gs://pictures/none", FileNotFoundError, "no such directory"),
        ("webdataset:gs://pictures/none/{0..1}.tar", FileNotFoundError, "no such file"),
        ("parquet:gs://pictures/none", FileNotFoundError, r"holds no \*\.parquet"),
        ("parquet:gs://pictures/none/0.parquet", FileNotFoundError, "no such file"),
        ("arrow:gs://pictures/set", ValueError, "from this machine's disks only"),
        ("nope://pictures/set", ValueError, "can't be opened: Protocol not known"),
    ],
)
def test_mistakes_are_named(bucket, name, error, message):
    with pytest.raises(error, match=message):
        sources.open(name)


def array_record_set(folder, toys, options):
    """A data set of 12 records in two ArrayRecord files."""
    module = pytest.importorskip("array_record.python.array_record_module")
    toys.write_data_set(folder, {"train": toys.records(12)}, shards=2)
    info = json.loads((folder / "dataset_info.json").read_text())
    info["fileFormat"] = "array_record"
    (folder / "dataset_info.json").write_text(json.dumps(info))
    records = toys.records(12)
    for shard in range(2):
        path = folder / f"toy-train.array_record-{shard:05d}-of-00002"
        writer = module.ArrayRecordWriter(str(path), options)
        for each in records[shard::2]:
            writer.write(serialize_record(each))
        writer.close()
    return folder


@pytest.mark.parametrize("options", ["group_size:1", "group_size:4", "group_size:2,uncompressed"])
def test_array_record_in_a_bucket(bucket, tmp_path, toys, options):
    folder = array_record_set(tmp_path / "set", toys, options)
    upload(bucket, folder, "set")
    here = sources.open(folder).source("train")
    there = sources.open("gs://pictures/set").source("train")
    assert [there[i] for i in range(12)] == [here[i] for i in range(12)]
    assert all(isinstance(here[i], Record) for i in range(12))


def test_damaged_array_records_are_bad_records(bucket, tmp_path, toys):
    folder = array_record_set(tmp_path / "set", toys, "group_size:1")
    upload(bucket, folder, "set")
    shards = sorted(name for name in bucket.files if "array_record-" in name)
    bucket.files[shards[0]] = bucket.files[shards[0]][:-1000]  # without its end
    whole = bucket.files[shards[1]]
    bucket.files[shards[1]] = whole[:70] + bytes(100) + whole[170:]  # the first chunk
    source = sources.open("gs://pictures/set").source("train")
    found = [source[i] for i in range(12)]
    assert all(each.reason == "corrupted" for each in found[:6])
    assert {type(each) for each in found[6:]} == {BadRecord, Record}


def test_a_fuzzed_array_record_never_raises(tmp_path, toys):
    from jaxclip.data import array_record_file

    folder = array_record_set(tmp_path / "set", toys, "group_size:2")
    data = next(folder.glob("*array_record-00000*")).read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(300):
        changed = bytearray(data)
        for place in rng.choice([*range(2000), *range(65536, 67000)], 3):
            changed[place] = rng.integers(256)
        cut = len(data) if rng.random() < 0.8 else int(rng.integers(len(data)))
        content = bytes(changed[:cut])
        try:
            index = array_record_file.read_index(lambda a, b, c=content: c[a:b])
            for number in range(int(min(index.starts[-1], 10))):
                array_record_file.read_record(lambda a, b, c=content: c[a:b], index, number)
        except ValueError:
            pass


def parquet_file(path, numbers, toys):
    import pyarrow
    import pyarrow.parquet

    rows = [
        {"image": {"bytes": toys.picture(n), "path": None}, "text": f"item {n}"} for n in numbers
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=3)


@pytest.mark.parametrize("name", ["{}/set", "{}/set/*.parquet", "{}/set/train-{{0..1}}.parquet"])
def test_parquet_in_a_bucket(bucket, tmp_path, toys, name):
    (tmp_path / "set").mkdir()
    for number in range(2):
        parquet_file(
            tmp_path / "set" / f"train-{number}.parquet", range(7 * number, 7 * number + 7), toys
        )
    upload(bucket, tmp_path / "set", "set")
    here = sources.open("parquet:" + name.format(tmp_path))
    there = sources.open("parquet:" + name.format("gs://pictures"))
    assert there.splits == here.splits == {"train": 14}
    bucket.asked.clear()
    found = [there.source("train")[i] for i in range(14)]
    assert found == [here.source("train")[i] for i in range(14)]
    assert all(isinstance(each, Record) for each in found)
    # Six groups of rows, in a few ranges each.
    assert len(bucket.asked) <= 6 * 3


def test_an_unreachable_parquet_file_is_asked_again_later(bucket, tmp_path, toys, monkeypatch):
    (tmp_path / "set").mkdir()
    parquet_file(tmp_path / "set" / "0.parquet", range(3), toys)
    upload(bucket, tmp_path / "set", "set")
    source = sources.open("parquet:gs://pictures/set").source("train")

    def refuse(*_):
        raise OSError("no route")

    with monkeypatch.context() as patch:
        patch.setattr(remote, "_read", refuse)
        bad = source[0]
    assert isinstance(bad, BadRecord) and bad.reason == "unreachable" and "no route" in bad.detail
    assert isinstance(source[0], Record)
