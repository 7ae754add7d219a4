"""Imports of each kind of source, and every reason to skip a record."""

import gzip
import hashlib
import io
import json
import pathlib

import numpy as np
import pytest
from PIL import Image

from jaxclip.data import sources
from jaxclip.data.importer import Options, import_records, job
from jaxclip.data.record import REASONS

pytest.importorskip("tensorflow_datasets")


def read(folder, split="train"):
    source = sources.open(folder).source(split)
    return [source[i] for i in range(len(source))]


def digests(folder):
    return {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(pathlib.Path(folder).iterdir())
        if file.name != "import.json"  # holds the time it took
    }


# --- each kind of source ------------------------------------------------------------------------


def test_folder_with_csv_and_what_tfds_makes_of_it(tmp_path, toys):
    import tensorflow_datasets as tfds

    summary = import_records(toys.photo_folder(tmp_path / "photos"), tmp_path / "out")
    assert summary.splits == {"train": 6} and summary.captions == 12 and not summary.skipped
    first = read(tmp_path / "out")[0]
    assert (first.texts, first.key, first.label) == (("thing 0", "item 0"), "0.png", -1)
    assert first.image == toys.picture(0)
    builder = tfds.builder_from_directory(str(tmp_path / "out"))
    assert builder.info.splits["train"].num_examples == 6
    examples = list(tfds.as_numpy(builder.as_dataset(split="train")))
    assert [example["key"].decode() for example in examples] == [f"{i}.png" for i in range(6)]
    assert examples[2]["texts"].tolist() == [b"thing 2", b"item 2"]
    pixels = np.asarray(Image.open(io.BytesIO(toys.picture(2))))
    np.testing.assert_array_equal(examples[2]["image"], pixels)
    # Nothing is left but the data set.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "photos"]
    assert not list((tmp_path / "out").glob("*.part")) + list((tmp_path / "out").glob("*.sqlite"))


def test_folder_with_jsonl(tmp_path, toys):
    lines = [
        {"file": "a.png", "captions": ["one", "two"], "key": "A", "label": "cat", "source": "web"},
        {"file_name": "b.png", "text": "three", "label": "dog"},
        {"file": "a.png", "caption": "four", "key": "A2", "label": "cat"},
    ]
    for name in "ab":
        (tmp_path / f"{name}.png").write_bytes(toys.picture(ord(name)))
    (tmp_path / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    summary = import_records(tmp_path, tmp_path / "out")
    assert summary.classes == 2
    found = read(tmp_path / "out")
    assert [record.texts for record in found] == [("one", "two"), ("three",), ("four",)]
    assert [record.key for record in found] == ["A", "b.png", "A2"]
    assert [record.label for record in found] == [0, 1, 0]
    assert json.loads(found[0].meta) == {"source": "web"}
    assert sources.open(tmp_path / "out").class_names() == ["cat", "dog"]


def test_folder_with_text_files(tmp_path, toys):
    for name in ("b/2", "a/1", "0"):
        path = tmp_path / "in" / f"{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(toys.picture(1, format="JPEG"))
        path.with_suffix(".txt").write_text(f"picture {name}\n\n another  caption \n")
    (tmp_path / "in" / "alone.jpg").write_bytes(toys.picture(1, format="JPEG"))
    summary = import_records(tmp_path / "in", tmp_path / "out")
    found = read(tmp_path / "out")
    assert [record.key for record in found] == ["0.jpg", "a/1.jpg", "b/2.jpg"]
    assert found[1].texts == ("picture a/1", "another caption")
    assert summary.skipped == {"empty_caption": 1}


@pytest.mark.parametrize("ending", [".tar", ".tar.gz"])
def test_tars(tmp_path, toys, ending):
    (tmp_path / "in").mkdir()
    toys.make_tar(
        tmp_path / "in" / f"0{ending}",
        [
            ("x/1.png", toys.picture(1)),
            ("x/1.txt", b"one"),
            ("x/1.json", b'{"caption": "not this", "url": "u", "key": "ignored"}'),
            ("x/1.cls", b"7"),
            ("x/2.json", b'{"captions": ["two", "deux"]}'),
            ("x/2.png", toys.picture(2)),
            ("readme", b"part of no sample"),
        ],
    )
    toys.make_tar(tmp_path / "in" / f"1{ending}", [("3.png", toys.picture(3)), ("3.txt", b"three")])
    pattern = str(tmp_path / "in" / ("{0..1}" + ending))
    summary = import_records(pattern, tmp_path / "out")
    assert summary.splits == {"train": 3} and not summary.skipped
    found = read(tmp_path / "out")
    assert [(record.key, record.texts, record.label) for record in found] == [
        ("x/1", ("one",), 7), ("x/2", ("two", "deux"), -1), ("3", ("three",), -1),
    ]  # fmt: skip
    assert json.loads(found[0].meta) == {"url": "u"}
    assert [record.image for record in found] == [toys.picture(i) for i in (1, 2, 3)]


@pytest.mark.parametrize("kind", ["bytes", "struct"])
def test_parquet(tmp_path, toys, kind):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    def column(i):
        return toys.picture(i) if kind == "bytes" else {"bytes": toys.picture(i), "path": f"p{i}"}

    for part in range(2):
        rows = range(part * 40, part * 40 + 40)
        table = pa.table(
            {
                "image": [column(i) for i in rows],
                "caption": [[f"thing {i}", f"item {i}"] for i in rows],
                "label": list(rows),
                "width": [12] * 40,
            }
        )
        pq.write_table(table, tmp_path / f"part-{part}.parquet", row_group_size=15)
    summary = import_records(tmp_path / "part-*.parquet", tmp_path / "out")
    assert summary.splits == {"train": 80} and not summary.skipped
    found = read(tmp_path / "out")
    assert [record.image for record in found] == [toys.picture(i) for i in range(80)]
    assert found[50].texts == ("thing 50", "item 50") and found[50].label == 50
    assert found[50].key == ("part-1/10" if kind == "bytes" else "p50")
    assert json.loads(found[50].meta) == {"width": 12}


# --- what is skipped ----------------------------------------------------------------------------


def test_every_reason(tmp_path, toys):
    good = toys.picture(0, 20, 20)
    (tmp_path / "in").mkdir()
    files = {
        "good.png": good,
        "same.png": good,
        "text.png": b"no picture at all",
        "cut.png": good[: len(good) // 2],
        "empty.png": b"",
        "narrow.png": toys.picture(0, 300, 10),
        "tiny.png": toys.picture(0, 3, 3),
        "huge.png": toys.picture(0, 110, 110),
    }
    for name, data in files.items():
        (tmp_path / "in" / name).write_bytes(data)
    table = (
        b"file,caption,key\n"
        b"good.png,a fine picture,1\n"
        b"text.png,a,2\n"
        b"cut.png,a,3\n"
        b"empty.png,a,4\n"
        b"narrow.png,a,5\n"
        b"tiny.png,a,6\n"
        b"huge.png,a,7\n"
        b"good.png,  ,8\n"
        b"missing.png,a,10\n"
        b"good.png,caf\xe9,9\n"
        b"cut.png,a,1\n"
        b"same.png,the same key again,1\n"
        b"only-one-field\n"
        b",no file,11\n"
    )
    (tmp_path / "in" / "captions.csv").write_bytes(table)
    summary = import_records(tmp_path / "in", tmp_path / "out", Options(max_pixels=12_000))
    assert summary.splits == {"train": 1}
    assert summary.skipped == {
        "undecodable": 1,
        "truncated": 2,
        "zero_bytes": 1,
        "absurd_size": 3,
        "empty_caption": 1,
        "missing_image": 1,
        "bad_utf8": 1,
        "duplicate_key": 1,
        "bad_row": 2,
    }
    lines = (tmp_path / "out" / "skipped.jsonl").read_text().splitlines()
    log = [json.loads(line) for line in lines]
    assert len(log) == 13
    by_key = {entry["key"]: entry["reason"] for entry in log}
    assert by_key["6"] == "absurd_size" and by_key["9"] == "bad_utf8"
    text = summary.as_text()
    for reason in summary.skipped:
        assert reason in text and REASONS[reason] in text


def test_damaged_tars_and_what_follows(tmp_path, toys):
    (tmp_path / "in").mkdir()
    first = tmp_path / "in" / "0.tar"
    toys.make_tar(first, [(f"{i}.{e}", d) for i in range(3) for e, d in
                     (("png", toys.picture(i)), ("txt", b"thing"))])  # fmt: skip
    first.write_bytes(first.read_bytes()[:3000])  # ends within the second sample
    toys.make_tar(
        tmp_path / "in" / "1.tar",
        [
            ("a.png", toys.picture(5)),
            ("a.txt", b"fine"),
            ("b.txt", b"a caption without a picture"),
            ("c.png", toys.picture(6)),
            ("d.png", toys.picture(6)),
            ("d.json", b"{not json"),
            ("e.png", toys.picture(6)),
            ("e.json", b'{"caption": "\xff"}'),
            ("f.png", toys.picture(6)),
            ("f.json", b'{"caption": {"x": 3}}'),
        ],
    )
    summary = import_records(tmp_path / "in", tmp_path / "out")
    assert [record.key for record in read(tmp_path / "out")] == ["0", "a"]
    assert summary.skipped == {
        "corrupted": 1, "missing_image": 1, "empty_caption": 1, "bad_row": 2, "bad_utf8": 1,
    }  # fmt: skip


def test_cut_gzip(tmp_path, toys):
    path = tmp_path / "in.tar.gz"
    toys.make_tar(path, [(f"{i}.{e}", d) for i in range(30) for e, d in
                         (("png", toys.picture(i)), ("txt", b"thing"))])  # fmt: skip
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    summary = import_records(path, tmp_path / "out")
    assert summary.skipped["corrupted"] == 1
    assert 5 < summary.splits["train"] < 20


def test_parquet_with_bad_text_and_damage(tmp_path, toys):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    bad = pa.StringArray.from_buffers(
        3, pa.py_buffer(np.array([0, 2, 4, 6], np.int32)), pa.py_buffer(b"ok\xff\xffok")
    )
    table = pa.table({"image": [toys.picture(i) for i in range(2)] + [None], "text": bad})
    pq.write_table(table, tmp_path / "a.parquet")
    summary = import_records(tmp_path / "a.parquet", tmp_path / "out")
    assert summary.splits == {"train": 1}
    assert summary.skipped == {"bad_utf8": 1, "missing_image": 1}


def test_mixed_kinds_of_labels(tmp_path, toys):
    toys.photo_folder(tmp_path / "in", count=2)
    (tmp_path / "in" / "captions.csv").write_text(
        "file,caption,label\n0.png,a,3\n1.png,b,cat\n", encoding="utf-8"
    )
    summary = import_records(tmp_path / "in", tmp_path / "out")
    assert summary.skipped == {"bad_row": 1}
    assert [record.label for record in read(tmp_path / "out")] == [3]


def test_partly_bad_captions_are_left_out(tmp_path, toys):
    toys.photo_folder(tmp_path / "in", count=1)
    (tmp_path / "in" / "captions.csv").write_bytes(
        b"file,caption\n0.png,good  one\n0.png,caf\xe9\n0.png,\n0.png,good one\n"
    )
    summary = import_records(tmp_path / "in", tmp_path / "out")
    assert read(tmp_path / "out")[0].texts == ("good one",)
    assert summary.lost_captions == 2 and "2 blank or undecodable" in summary.as_text()


# --- splits, shards, pictures -------------------------------------------------------------------


def test_splits_depend_on_keys_alone(tmp_path, toys):
    toys.photo_folder(tmp_path / "in", count=60)
    import_records(tmp_path / "in", tmp_path / "out", Options(val_fraction=0.3))
    val = {record.key for record in read(tmp_path / "out", "val")}
    train = {record.key for record in read(tmp_path / "out", "train")}
    assert len(val) + len(train) == 60 and not val & train and 8 <= len(val) <= 28
    toys.photo_folder(tmp_path / "more", count=80)
    import_records(tmp_path / "more", tmp_path / "more_out", Options(val_fraction=0.3))
    more = {record.key for record in read(tmp_path / "more_out", "val")}
    assert more & (val | train) == val  # no record changes sides when others come


def test_shards_have_the_asked_size(tmp_path, toys, monkeypatch):
    import tensorflow_datasets as tfds

    toys.photo_folder(tmp_path / "in", count=20)
    whole = import_records(tmp_path / "in", tmp_path / "one")
    original = job.Store
    monkeypatch.setattr(job, "Store", lambda folder, request, size: original(folder, request, 2000))
    import_records(tmp_path / "in", tmp_path / "many")
    shards = sorted((tmp_path / "many").glob("*.tfrecord-*"))
    assert len(shards) > 3
    assert shards[0].name == f"many-train.tfrecord-00000-of-{len(shards):05d}"
    assert all(2000 <= shard.stat().st_size < 3000 for shard in shards[:-1])
    assert read(tmp_path / "many") == read(tmp_path / "one")
    builder = tfds.builder_from_directory(str(tmp_path / "many"))
    assert builder.info.splits["train"].num_examples == 20
    assert builder.info.splits["train"].num_bytes == whole.bytes


def test_pictures_are_encoded_anew_only_where_needed(tmp_path, toys):
    def encoded(image, format, **options):
        buffer = io.BytesIO()
        image.save(buffer, format=format, **options)
        return buffer.getvalue()

    noise = Image.open(io.BytesIO(toys.picture(0, 30, 40)))
    files = {
        "kept.png": toys.picture(0),
        "kept.jpg": toys.picture(0, format="JPEG"),
        "gray.png": encoded(Image.new("L", (20, 20), 9), "PNG"),
        "alpha.png": encoded(Image.new("RGBA", (20, 20), (255, 0, 0, 0)), "PNG"),
        "photo.webp": encoded(noise, "WEBP"),
        "exact.bmp": encoded(noise, "BMP"),
        "large.png": toys.picture(0, 50, 100),
        "large.jpg": toys.picture(0, 50, 100, format="JPEG"),
    }
    (tmp_path / "in").mkdir()
    for name, data in files.items():
        (tmp_path / "in" / name).write_bytes(data)
        (tmp_path / "in" / name).with_suffix(".txt").write_text("a picture")
    import_records(tmp_path / "in", tmp_path / "out", Options(max_side=64))
    images = {record.key: record.image for record in read(tmp_path / "out")}
    for name in ("kept.png", "kept.jpg", "gray.png"):
        assert images[name] == files[name]
    opened = {name: Image.open(io.BytesIO(data)) for name, data in images.items()}
    assert all(image.format in ("PNG", "JPEG") for image in opened.values())
    assert opened["alpha.png"].mode == "RGB"
    assert opened["alpha.png"].getpixel((0, 0)) == (255, 255, 255)
    np.testing.assert_array_equal(np.asarray(opened["exact.bmp"]), np.asarray(noise))
    assert opened["photo.webp"].format == "JPEG"
    assert opened["large.png"].size == opened["large.jpg"].size == (64, 32)
    assert (opened["large.png"].format, opened["large.jpg"].format) == ("PNG", "JPEG")


# --- mistakes ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda p: p / "nowhere", FileNotFoundError, "no such file"),
        (lambda p: p / "{0..3}.tar", FileNotFoundError, r"'.*/0.tar': no such file \(of"),
        (lambda p: p / "*.tgz", FileNotFoundError, "no such file"),
        (lambda p: p, FileNotFoundError, "holds no images"),
        (lambda p: p / "notes.doc", ValueError, "neither a folder nor a table"),
        (lambda p: p / "bad.csv", ValueError, "no column with the caption"),
        (lambda p: p / "bad.parquet", ValueError, "no Parquet file"),
        (lambda p: p / "empty.csv", ValueError, "nothing to import.*it is empty"),
        (lambda p: p / "useless.csv", ValueError, "no usable record.*missing_image 1"),
    ],
)
def test_sources_that_are_none(tmp_path, make, error, message):
    pytest.importorskip("pyarrow")
    folder = tmp_path / "in"
    folder.mkdir()
    if make(folder) != folder:
        (folder / "notes.doc").write_text("hello")
        (folder / "bad.csv").write_text("file,price\n")
        (folder / "bad.parquet").write_text("hello")
        (folder / "empty.csv").write_text("file,caption\n")
        (folder / "useless.csv").write_text("file,caption\nx.png,a\n")
    with pytest.raises(error, match=message):
        import_records(make(folder), tmp_path / "out")
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.importing").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"val_fraction": 1.0}, "val_fraction=1.0"),
        ({"shard_mb": 0}, "shard_mb=0"),
        ({"min_side": 0}, "min_side=0"),
        ({"name": "My Data"}, "name='My Data'"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        Options(**options)


def test_an_ambiguous_folder_asks_for_the_format(tmp_path, toys):
    toys.make_tar(tmp_path / "a.tar", [("1.png", toys.picture(1)), ("1.txt", b"one")])
    (tmp_path / "b.parquet").write_bytes(b"")
    with pytest.raises(ValueError, match="--format"):
        import_records(tmp_path, tmp_path / "out")
    import_records(tmp_path, tmp_path / "out", Options(format="webdataset"))
    assert len(read(tmp_path / "out")) == 1
    with pytest.raises(ValueError, match="format='zip'"):
        import_records(tmp_path, tmp_path / "other", Options(format="zip"))


def test_gzip_of_nothing_is_no_tar(tmp_path):
    with gzip.open(tmp_path / "a.tar.gz", "wb") as file:
        file.write(b"no tar")
    with pytest.raises(ValueError, match="corrupted 1"):
        import_records(tmp_path / "a.tar.gz", tmp_path / "out")
