"""Random access into TFRecord files, sound and damaged."""

import gc
import threading
import warnings

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from jaxclip.data import tfrecord
from jaxclip.data.record import BadRecord


def write(path, payloads):
    path.write_bytes(b"".join(tfrecord.frame(data) for data in payloads))
    return path


PAYLOADS = [f"record {i}".encode() * (i + 1) for i in range(9)]


def test_frames_are_tensorflows(tmp_path):
    tf = pytest.importorskip("tensorflow")
    path = tmp_path / "a.tfrecord"
    write(path, PAYLOADS)
    assert list(tf.data.TFRecordDataset(str(path)).as_numpy_iterator()) == PAYLOADS
    with tf.io.TFRecordWriter(str(tmp_path / "b.tfrecord")) as writer:
        for data in PAYLOADS:
            writer.write(data)
    assert (tmp_path / "b.tfrecord").read_bytes() == path.read_bytes()


@hypothesis.given(
    shards=st.lists(st.lists(st.binary(max_size=30), max_size=5), max_size=4), random=st.randoms()
)
def test_any_record_of_any_shards(shards, random, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    paths = [str(write(folder / f"{i}", payloads)) for i, payloads in enumerate(shards)]
    reader = tfrecord.TFRecordReader(paths, [len(payloads) for payloads in shards], max_indices=2)
    flat = [data for payloads in shards for data in payloads]
    assert len(reader) == len(flat)
    order = list(range(len(flat)))
    random.shuffle(order)
    assert [reader.read(i) for i in order] == [flat[i] for i in order]


def test_many_threads(tmp_path):
    paths = [str(write(tmp_path / f"{i}", PAYLOADS)) for i in range(5)]
    reader = tfrecord.TFRecordReader(paths, [9] * 5, max_indices=2)
    wrong = []

    def read(seed):
        for i in np.random.default_rng(seed).integers(0, 45, 200):
            if reader.read(int(i)) != PAYLOADS[i % 9]:
                wrong.append(i)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def outcomes(path):
    reader = tfrecord.TFRecordReader([str(path)], [len(PAYLOADS)])
    return [reader.read(i) for i in range(len(PAYLOADS))]


def test_a_damaged_payload_costs_that_record_only(tmp_path):
    path = write(tmp_path / "a", PAYLOADS)
    data = path.read_bytes()
    path.write_bytes(data.replace(b"record 4record 4", b"record 4recorX 4", 1))
    found = outcomes(path)
    assert found[4].reason == "corrupted" and "checksum" in found[4].detail
    assert [x for i, x in enumerate(found) if i != 4] == PAYLOADS[:4] + PAYLOADS[5:]


def test_a_damaged_header_loses_it_and_nothing_else(tmp_path):
    path = write(tmp_path / "a", PAYLOADS)
    start = sum(len(tfrecord.frame(data)) for data in PAYLOADS[:3])
    data = bytearray(path.read_bytes())
    data[start] ^= 0xFF
    path.write_bytes(data)
    found = outcomes(path)
    assert found[3].reason == "corrupted"
    assert found[:3] + found[4:] == PAYLOADS[:3] + PAYLOADS[4:]


def test_a_cut_file_loses_its_end(tmp_path):
    path = write(tmp_path / "a", PAYLOADS)
    path.write_bytes(path.read_bytes()[:-10])
    found = outcomes(path)
    assert found[:-1] == PAYLOADS[:-1] and isinstance(found[-1], BadRecord)
    path.write_bytes(b"")
    assert all(isinstance(each, BadRecord) for each in outcomes(path))


def test_two_damaged_headers_lose_one_record_each(tmp_path):
    path = write(tmp_path / "a", PAYLOADS)
    data = bytearray(path.read_bytes())
    for record in (2, 6):
        data[sum(len(tfrecord.frame(each)) for each in PAYLOADS[:record])] ^= 0xFF
    path.write_bytes(data)
    found = outcomes(path)
    assert [i for i, each in enumerate(found) if each != PAYLOADS[i]] == [2, 6]


@hypothesis.given(
    changes=st.lists(st.tuples(st.integers(0, 500), st.integers(0, 255)), min_size=1, max_size=4)
)
def test_damage_gives_no_record_that_was_not_there(changes, tmp_path_factory):
    path = write(tmp_path_factory.mktemp("damage") / "a", PAYLOADS)
    data = bytearray(path.read_bytes())
    for position, value in changes:
        data[position % len(data)] = value
    path.write_bytes(data)
    found = [each for each in outcomes(path) if not isinstance(each, BadRecord)]
    # Some of the payloads, each at most once, in their order.
    assert found == [each for each in PAYLOADS if each in found]
    if len(changes) == 1:
        assert len(found) >= len(PAYLOADS) - 1


def test_index_is_kept_beside_large_files_and_renewed(tmp_path, monkeypatch):
    monkeypatch.setattr(tfrecord, "_SIDECAR_MIN_BYTES", 0)
    path = write(tmp_path / "a", PAYLOADS)
    tfrecord.index_shard(path, 9)
    sidecar = tmp_path / ".a.index.npz"
    assert sidecar.exists() and len(list(tmp_path.iterdir())) == 2
    monkeypatch.setattr(tfrecord, "_scan", None)  # not called if the index is used
    assert outcomes(path) == PAYLOADS
    monkeypatch.undo()
    monkeypatch.setattr(tfrecord, "_SIDECAR_MIN_BYTES", 0)
    write(path, [b"longer than before"] * 9)
    assert tfrecord.TFRecordReader([str(path)], [9]).read(8) == b"longer than before"
    sidecar.write_bytes(b"PK\x03\x04 half an index")
    assert tfrecord.TFRecordReader([str(path)], [9]).read(8) == b"longer than before"


def test_files_are_closed_when_there_are_too_many(tmp_path):
    cache = tfrecord.FileCache(limit=2)
    paths = [str(write(tmp_path / f"{i}", [bytes([i])])) for i in range(5)]
    for _ in range(3):
        for i, path in enumerate(paths):
            assert cache.pread(path, 1, 12) == bytes([i])
    assert len(cache._files) == 2


def test_a_file_that_is_let_go_is_closed_without_a_warning(tmp_path):
    for name in "ab":
        (tmp_path / name).write_bytes(b"content")
    cache = tfrecord.FileCache(limit=1)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for name in "ab":
            assert cache.pread(str(tmp_path / name), 3, 2) == b"nte"
        del cache
        gc.collect()
    assert not said
