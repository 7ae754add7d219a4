"""Tars as people pack, join and download them: imported and read in place alike."""

import io
import json
import tarfile

import pyarrow as pa
import pytest

from jaxclip.data import patterns, sources
from jaxclip.data.importer import Options, import_records
from jaxclip.data.importer.items import Cursor, Item
from jaxclip.data.importer.readers import open_reader
from jaxclip.data.record import Record, decode_foreign_texts


def pack(path, members, mode="w"):
    """A tar of (name, bytes), or (name, None) for a link to ``a.png``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            if data is None:
                info.type, info.linkname = tarfile.LNKTYPE, "a.png"
            info.size = len(data or b"")
            tar.addfile(info, io.BytesIO(data or b""))
    return path


def pair(key, text=b"a cat"):
    return [(f"{key}.png", b"picture"), (f"{key}.txt", text)]


def imported(source):
    """Captions by key, or the reason and the detail of what can't be used."""
    return {
        item.key: decode_foreign_texts(item.texts)[0]
        if isinstance(item, Item)
        else (item.reason, item.detail)
        for _, item in open_reader(source).items(Cursor())
    }


def in_place(source):
    data_set = sources.open(f"webdataset:{source}")
    return {
        record.key: record.texts if isinstance(record, Record) else (record.reason,)
        for split, count in data_set.splits.items()
        for record in data_set.source(split).read(range(count))
    }


SAMPLES = {
    "a leading ./": [("./a.png", b"x"), ("./a.txt", b"a cat")],
    "macOS": [("._a.png", b"x"), *pair("a"), ("._a.txt", b"x"), (".DS_Store", b"x")],
    "UTF-16": pair("a", "a cat".encode("utf-16")),
    "a byte order mark": pair("a", b"\xef\xbb\xbfa cat"),
    "a list": [("a.png", b"x"), ("a.json", b'["a cat"]')],
    "a text in JSON": [("a.png", b"x"), ("a.json", b'"a cat"')],
    "a marked JSON": [("a.png", b"x"), ("a.json", b'\xef\xbb\xbf{"caption": "a cat"}')],
    "no text by pandas": [*pair("a", b"nan"), ("a.json", b'{"text": "None", "title": "a cat"}')],
    "no text to see": [*pair("a", "\u200b".encode()), ("a.json", b'{"caption": "a cat"}')],
}


@pytest.mark.parametrize("kind", SAMPLES)
def test_samples(tmp_path, kind):
    path = pack(tmp_path / "0.tar", SAMPLES[kind])
    key = "./a" if "./" in kind else "a"
    assert imported(path) == in_place(path) == {key: ("a cat",)}


def test_the_name_of_a_class_is_a_caption_in_place_too(tmp_path):
    path = pack(tmp_path / "0.tar", [("a.png", b"x"), ("a.cls", b"cat")])
    assert in_place(path) == {"a": ("cat",)}


@pytest.mark.parametrize("ending", ["tar.gz", "tar.zst"])
def test_packed_tars(tmp_path, ending):
    whole = pack(tmp_path / "x", pair("a"), "w:gz" if ending == "tar.gz" else "w").read_bytes()
    if ending == "tar.zst":
        whole = pa.Codec("zstd").compress(whole, asbytes=True)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / f"0.{ending}").write_bytes(whole)
    assert imported(tmp_path / "in") == {"a": ("a cat",)}
    with pytest.raises(ValueError, match=r"compressed.*`jaxclip data import`"):
        in_place(tmp_path / "in")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "0.tar: it is empty"),
        (b"<html>404</html>" * 99, "it is no tar, but a page of the web"),
        (b"version https://git-lfs.github.com/spec/v1\n" * 20, "but a Git LFS pointer"),
    ],
)
def test_what_is_no_tar_says_so_in_one_line(tmp_path, caplog, content, problem):
    (tmp_path / "0.tar").write_bytes(content)
    ((reason, detail),) = imported(tmp_path / "0.tar").values()
    assert reason == "corrupted" and problem in detail and "\n" not in detail
    with pytest.raises(ValueError, match="holds no samples: it is"):
        in_place(tmp_path / "0.tar")


def test_what_is_left_out_is_said(tmp_path, caplog):
    first, second = (pack(tmp_path / name, pair(name[0])) for name in ("a.tar", "b.tar"))
    joined = tmp_path / "joined.tar"
    joined.write_bytes(first.read_bytes() + second.read_bytes())
    assert imported(joined)["a"] == ("a cat",) and "another tar stands" in imported(joined)[""][1]
    assert in_place(joined) == {"a": ("a cat",)} and "join tars with `tar -A`" in caplog.text
    links = pack(tmp_path / "links.tar", [*pair("a"), ("b.png", None), ("b.txt", b"b")])
    assert imported(links)["b"][1].endswith("b.png is a link to a.png: make the tar with "
                                            "`tar --dereference --hard-dereference`")  # fmt: skip
    assert in_place(links)["b"] == ("missing_image",) and "1 pictures are links" in caplog.text
    other = pack(tmp_path / "other.tar", [("a.img", b"x"), ("a.cap", b"x")])
    for read in (imported, in_place):
        with pytest.raises(ValueError, match=r"holds no samples: its files end in .img, .cap; a s"):
            read(other)


def test_hidden_tars_and_missing_ones(tmp_path):
    pack(tmp_path / "in" / "test" / "0.tar", pair("a"))
    (tmp_path / "in" / "test" / "._0.tar").write_bytes(b"junk")
    assert list(imported(tmp_path / "in")) == ["test/a"] and list(in_place(tmp_path / "in")) == [
        "a"
    ]
    (tmp_path / "in" / "test" / "nshards.txt").write_text("2\n")
    for read in (imported, in_place):
        with pytest.raises(FileNotFoundError, match=r"test holds 1 tars, but nshards.txt says 2"):
            read(tmp_path / "in")


def test_patterns_of_webdataset(tmp_path):
    names = [str(pack(tmp_path / f"{n}.tar", pair(str(n)))) for n in range(4)]
    assert patterns.expand(f"{names[3]}::{tmp_path}/{{0..1}}.tar") == [names[3], *names[:2]]
    assert patterns.expand(f"{tmp_path}/{{0..3..2}}.tar") == names[0::2]
    with pytest.raises(ValueError, match="commands are not run; name files, or gs://"):
        patterns.expand("pipe:aws s3 cp s3://x/0.tar -")


def test_tars_that_all_count_from_0(tmp_path, toys):
    """Another tar's sample of the same name is another sample; the same tar's is there twice."""
    pytest.importorskip("tensorflow_datasets")
    for n in range(3):
        members = [("0.png", toys.picture(n)), ("0.json", json.dumps({"text": f"{n}"}).encode())]
        pack(tmp_path / "in" / f"{n}.tar", [*members, (f"x{n}.txt", b"x"), *members])
    summary = import_records(tmp_path / "in", tmp_path / "out", Options())
    found = sources.open(tmp_path / "out").source("train").read(range(3))
    assert {record.key: record.texts for record in found} == {
        "0": ("0",), "1/0": ("1",), "2/0": ("2",),
    }  # fmt: skip
    assert summary.splits == {"train": 3} and summary.skipped["duplicate_key"] == 3
