"""TFRecord files of other programs."""

import gzip
import struct

import pyarrow as pa
import pyarrow.parquet
import pytest

from jaxclip.data.importer import import_records
from jaxclip.data.importer.items import Cursor, Item
from jaxclip.data.importer.readers import open_reader
from jaxclip.data.record import example_class
from jaxclip.data.tfrecord import frame


def example(**features):
    message = example_class()()
    for name, value in features.items():
        values = value if isinstance(value, list) else [value]
        feature = message.features.feature[name]
        kinds = {bytes: feature.bytes_list, int: feature.int64_list, float: feature.float_list}
        kinds[type(values[0])].value.extend(values)
    return frame(message.SerializeToString())


OF_IMG2DATASET = [
    {"jpg": b"a", "txt": b"a cat", "key": b"000", "url": b"http://x", "width": 3},
    {"jpg": b"b", "txt": b"a dog", "key": b"001", "similarity": 0.5},
]
OF_TENSORFLOW = {
    "image/encoded": b"a", "image/class/label": 3, "image/caption": [b"x", b"y"], "image/width": 2,
}  # fmt: skip


def found(source):
    return [item for _, item in open_reader(source).items(Cursor())]


def test_what_img2dataset_writes(tmp_path):
    (tmp_path / "00000.tfrecord").write_bytes(b"".join(example(**e) for e in OF_IMG2DATASET))
    table = pa.table({"url": ["http://x"] * 2, "key": ["000", "001"]})
    pa.parquet.write_table(table, tmp_path / "00000.parquet")
    first, second = found(tmp_path)
    assert first == Item("000", b"a", (b"a cat",), None, {"url": "http://x", "width": 3},
                         has_own_key=True)  # fmt: skip
    assert (second.key, second.texts, second.meta) == ("001", (b"a dog",), {"similarity": 0.5})
    # From a place on, as an import that was interrupted.
    reader = open_reader(tmp_path)
    (_, (cursor, item)) = list(reader.items(Cursor()))
    assert [each for _, each in reader.items(Cursor(0, 1))] == [item] and cursor == Cursor(0, 2)


def test_what_tensorflow_writes(tmp_path):
    for split in ("train", "val"):
        name = f"set-{split}.tfrecord-00000-of-00001"
        (tmp_path / name).write_bytes(example(**OF_TENSORFLOW))
    train, val = found(tmp_path)
    assert (train.texts, train.split, val.split) == ((b"x", b"y"), "train", "val")
    assert (train.image, train.label, train.meta) == (b"a", 3, {"width": 2})


@pytest.mark.parametrize(
    ("change", "reasons"),
    [
        (lambda data: data[:-10], [None, "corrupted"]),  # the end
        (lambda data: data[:40] + b"?" + data[41:], ["corrupted", None]),  # a checksum
        (lambda data: b"?" * 8 + data[8:], ["corrupted"]),  # a length
        (lambda data: data[:5], ["corrupted"]),
        (lambda data: gzip.compress(data), [None, None]),
        (lambda data: gzip.compress(data)[:-30], [None, "corrupted"]),
        (lambda data: frame(b"\xff\xff") + data, ["corrupted", None, None]),
        (lambda data: example(txt=b"x") + data, ["missing_image", None, None]),
        (lambda data: struct.pack("<QI", 1 << 60, 0) + data, ["corrupted"]),
    ],
)
def test_damage_is_counted(tmp_path, change, reasons):
    data = b"".join(example(**each) for each in OF_IMG2DATASET)
    (tmp_path / "0.tfrecord").write_bytes(change(data))
    assert [getattr(item, "reason", None) for item in found(tmp_path)] == reasons


def test_import(tmp_path, toys):
    files = tmp_path / "in"
    files.mkdir()
    data = b"".join(example(jpg=toys.picture(i), txt=b"x", key=b"%d" % i) for i in range(3))
    (files / "0.tfrecord").write_bytes(data)
    assert import_records(files, tmp_path / "out").splits == {"train": 3}
