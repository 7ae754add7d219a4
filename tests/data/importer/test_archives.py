"""ZIP archives are read as the folders that they would be if they were unpacked."""

import io
import json
import struct
import tarfile
import zipfile
import zlib

import pytest

from jaxclip.data import sources
from jaxclip.data.importer import archives
from jaxclip.data.importer.items import Cursor, Item, KnowsClasses, read_image
from jaxclip.data.importer.readers import open_reader
from jaxclip.data.importer.zip_index import ZipIndex
from jaxclip.data.record import BadRecord, decode_foreign_texts

A, B, C = (name * 40 for name in (b"first picture", b"second picture", b"third picture"))
TABLE = "file_name,text\n1.jpg,one\n2.jpg,two\n"
UPWARD = "file,caption\n../a/1.jpg,x\n../b/1.jpg,y\n"


def packed(members, method=zipfile.ZIP_DEFLATED):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return stream.getvalue()


def tar(members):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, data in members.items():
            data = data.encode() if isinstance(data, str) else data
            info = tarfile.TarInfo(name)
            info.type = tarfile.DIRTYPE if data is None else tarfile.REGTYPE
            info.size = len(data or b"")
            archive.addfile(info, io.BytesIO(data or b""))
    return stream.getvalue()


def found(source, **options):
    """(key, bytes of the picture, captions or label, split) of each record, or what is wrong."""
    return [
        (
            item.key,
            read_image(item.image),
            decode_foreign_texts(item.texts)[0] or item.label,
            item.split,
        )
        if isinstance(item, Item)
        else item
        for _, item in open_reader(source, **options).items(Cursor())
    ]


def class_names(source):
    reader = open_reader(source)
    return list(reader.class_names()) if isinstance(reader, KnowsClasses) else []


def coco(split):
    document = {
        "images": [{"id": 1, "file_name": "000000000001.jpg"}],
        "annotations": [{"image_id": 1, "caption": f"of {split}"}],
    }
    return json.dumps(document)


# What is published -> what it is unpacked to, as far as it is not the archives' own content.
PAIR = {"1.jpg": A, "2.jpg": B}
LAYOUTS = {
    "imagefolder of the hub": (
        {f"data/{each}.zip": packed({"metadata.csv": TABLE, **PAIR}) for each in ("train", "test")},
        {
            f"data/{split}/{name}": content
            for split in ("train", "test")
            for name, content in {"metadata.csv": TABLE, **PAIR}.items()
        },
    ),
    "splits of classes": (
        {
            "train.zip": packed({"train/cats/1.jpg": A, "train/dogs/1.jpg": B}),
            "test.zip": packed({"cats/1.jpg": C, "dogs/1.jpg": A}),
        },
        {
            "train/cats/1.jpg": A, "train/dogs/1.jpg": B,
            "test/cats/1.jpg": C, "test/dogs/1.jpg": A,
        },
    ),
    "a class each": (
        {"cats.zip": packed({"1.jpg": A}), "dogs.ZIP": packed({"1.jpg": B})},
        {"cats/1.jpg": A, "dogs/1.jpg": B},
    ),
    "COCO": (
        {
            "train2017.zip": packed({"train2017/": b"", "train2017/000000000001.jpg": A}),
            "val2017.zip": packed({"val2017/000000000001.jpg": B}),
            "annotations_trainval2017.zip": packed(
                {f"annotations/captions_{each}2017.json": coco(each) for each in ("train", "val")}
            ),
        },
        {
            "train2017/000000000001.jpg": A, "val2017/000000000001.jpg": B,
            "annotations/captions_train2017.json": coco("train"),
            "annotations/captions_val2017.json": coco("val"),
        },
    ),
    "Flickr8k": (
        {
            "Flickr8k_Dataset.zip": packed(
                {"Flicker8k_Dataset/a.jpg": A, "__MACOSX/Flicker8k_Dataset/._a.jpg": b"x"}
            ),
            "Flickr8k_text.zip": packed(
                {"Flickr8k.token.txt": "a.jpg#0\tone\na.jpg#1\ttwo\n", "readme.txt": "hello",
                 ".DS_Store": b"x", "Flickr_8k.trainImages.txt": "a.jpg\n"}
            ),
        },
        {
            "Flicker8k_Dataset/a.jpg": A, "Flickr8k.token.txt": "a.jpg#0\tone\na.jpg#1\ttwo\n",
            "readme.txt": "hello", "Flickr_8k.trainImages.txt": "a.jpg\n",
        },
    ),
    "Kaggle": (
        {
            "archive.zip": packed(
                {"set/captions.txt": "image,caption\n1.jpg,x\n", "set/Images/1.jpg": A}
            )
        },
        {"set/captions.txt": "image,caption\n1.jpg,x\n", "set/Images/1.jpg": A},
    ),
    "a table of parts": (
        {
            "captions.csv": TABLE, "images_part1.zip": packed({"images/1.jpg": A}),
            "images_part2.zip": packed({"images/2.jpg": B}),
        },
        {"captions.csv": TABLE, "images/1.jpg": A, "images/2.jpg": B},
    ),
    "a table of parts without a folder": (
        {
            "captions.csv": TABLE, "images_1.zip": packed({"1.jpg": A}),
            "images_2.zip": packed({"2.jpg": B}),
        },
        {"captions.csv": TABLE, "images_1/1.jpg": A, "images_2/2.jpg": B},
    ),
    "the same names twice": (
        {
            "a.zip": packed({"i/1.jpg": A, "i/1.txt": "a.zip"}),
            "b.zip": packed({"i/1.jpg": B, "i/1.txt": "b.zip"}),
        },
        {"a/i/1.jpg": A, "a/i/1.txt": "a.zip", "b/i/1.jpg": B, "b/i/1.txt": "b.zip"},
    ),
    "beside what is unpacked": (
        {
            "train2017/1.jpg": A, "train2017/1.txt": "x",
            "val2017.zip": packed({"val2017/2.jpg": B, "val2017/2.txt": "y"}),
        },
        {"train2017/1.jpg": A, "train2017/1.txt": "x", "val2017/2.jpg": B, "val2017/2.txt": "y"},
    ),
    "unpacked already": (
        {"photos.zip": packed({"1.jpg": A, "1.txt": "x"}), "photos/1.jpg": A, "photos/1.txt": "x"},
        {"photos/1.jpg": A, "photos/1.txt": "x"},
    ),
    "unpacked in part": (
        {
            "all.zip": packed({f"i/{n:02}.{e}": A for n in range(40) for e in ("jpg", "txt")}),
            **{f"i/{n:02}.{e}": A for n in range(38) for e in ("jpg", "txt")},
        },
        {f"i/{n:02}.{e}": A for n in range(40) for e in ("jpg", "txt")},
    ),
    "a table that goes up": (
        {
            "all.zip": packed({"a/1.jpg": A, "b/1.jpg": B, "meta/captions.csv": UPWARD})
        },
        {"a/1.jpg": A, "b/1.jpg": B, "meta/captions.csv": UPWARD},
    ),
    "others of the same names": (
        {"test.zip": packed({"1.jpg": A, "1.txt": "x"}), "1.jpg": B, "1.txt": "y"},
        {"test/1.jpg": A, "test/1.txt": "x", "1.jpg": B, "1.txt": "y"},
    ),
    "unpacked already without its folder": (
        {"all.zip": packed({"top/1.jpg": A, "top/1.txt": "x"}), "1.jpg": A, "1.txt": "x"},
        {"1.jpg": A, "1.txt": "x"},
    ),
    "a tar of splits of classes": (
        {
            "all.tar": tar(
                {"set/train/cats/1.jpg": A, "set/test/dogs/1.jpg": B, "set/info.txt": "x"}
            )
        },
        {"set/train/cats/1.jpg": A, "set/test/dogs/1.jpg": B, "set/info.txt": "x"},
    ),
    "a folder with a list of splits": (
        {
            "CUB.zip": packed(
                {"CUB/images/x/1.jpg": A, "CUB/images/y/2.jpg": B,
                 "CUB/images.txt": "1 x/1.jpg\n2 y/2.jpg\n",
                 "CUB/train_test_split.txt": "1 1\n2 0\n"}
            )
        },
        {
            "CUB/images/x/1.jpg": A, "CUB/images/y/2.jpg": B,
            "CUB/images.txt": "1 x/1.jpg\n2 y/2.jpg\n",
            "CUB/train_test_split.txt": "1 1\n2 0\n",
        },
    ),
    "a list beside pictures and masks": (
        {
            "ADE.zip": packed(
                {"ADE/images/training/a.jpg": A, "ADE/annotations/training/a.png": B,
                 "ADE/sceneCategories.txt": "a bathroom\n"}
            )
        },
        {
            "ADE/images/training/a.jpg": A, "ADE/annotations/training/a.png": B,
            "ADE/sceneCategories.txt": "a bathroom\n",
        },
    ),
    "tars of splits": (
        {
            "data/train.tar": tar({"metadata.csv": TABLE, **PAIR}),
            "data/test.tar": tar({"metadata.csv": TABLE, **PAIR}),
        },
        {
            f"data/{split}/{name}": content
            for split in ("train", "test")
            for name, content in {"metadata.csv": TABLE, **PAIR}.items()
        },
    ),
    "a table beside a tar": (
        {
            "captions.csv": TABLE, "a.tar": tar({"images/1.jpg": A}),
            "b.tar": tar({"images/2.jpg": B}),
        },
        {"captions.csv": TABLE, "images/1.jpg": A, "images/2.jpg": B},
    ),
    "a list beside a tar": (
        {
            "results.token": "1.jpg#0\tx\n",
            "pictures.tar": tar({"./": None, "./flickr30k/1.jpg": A}),
        },
        {"results.token": "1.jpg#0\tx\n", "flickr30k/1.jpg": A},
    ),
    "captions beside": (
        {
            "images.zip": packed({"images/1.jpg": A}),
            "captions.zip": packed({"captions/1.txt": "x"}),
        },
        {"images/1.jpg": A, "captions/1.txt": "x"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_as_if_unpacked(fill, tmp_path, layout):
    published, unpacked = LAYOUTS[layout]
    folder = fill(published)
    before = sorted(folder.rglob("*"))
    read, names = found(folder), class_names(folder)
    assert sorted(folder.rglob("*")) == before
    folder.rename(tmp_path / "published")
    expected = found(fill(unpacked))
    assert read == expected and names == class_names(folder)
    assert expected and all(isinstance(each, tuple) and each[2] for each in expected)


def test_lists_in_the_only_folder(fill):
    read = found(fill(LAYOUTS["a folder with a list of splits"][0]))
    assert [each[3] for each in read] == ["train", "test"]
    read = found(fill(LAYOUTS["a list beside pictures and masks"][0]) / "ADE.zip")
    assert [each[:3] for each in read] == [("a", A, ("bathroom",))]


def test_an_archive_outright(fill):
    pair = [("1.jpg", A, ("one",), ""), ("2.jpg", B, ("two",), "")]
    folder = fill(
        {
            "a.zip": packed({"metadata.csv": TABLE, **PAIR}),
            "b.zip": packed({f"b/{n}": c for n, c in {"metadata.csv": TABLE, **PAIR}.items()}),
            "c.zip": packed({"test/cats/1.jpg": A, "test/dogs/1.jpg": B}),
            "x/t.csv": TABLE,
            "x/images.zip": packed({"far/1.jpg": A, "far/2.jpg": B}),
            "p/1.zip": packed({"1.jpg": A, "1.txt": "x"}),
            "p/2.zip": packed({"2.jpg": A, "2.txt": "y"}),
            "p/2.csv": "text",
        }
    )
    assert found(folder / "a.zip") == found(folder / "b.zip") == found(folder / "x/t.csv") == pair
    assert [each[2:] for each in found(folder / "c.zip")] == [("cats", "test"), ("dogs", "test")]
    assert [each[0] for each in found(f"{folder}/p/[12].zip")] == ["1/1.jpg", "2/2.jpg"]


def test_a_path_within_an_archive(fill):
    files = {"set/train.csv": "file,caption\na.jpg,x\n", "set/other.csv": "file,caption\na.jpg,y\n",
             "set/a.jpg": A, "set/1/b.jpg": B, "set/1/b.txt": "z", "set/0.tar": b"x"}  # fmt: skip
    folder = fill(
        {"a.zip": packed(files), "b.tar": tar(files), "c.zip/d/1.jpg": A, "c.zip/d/1.txt": "x"}
    )
    for archive in ("a.zip", "b.tar"):
        for name, expected in (
            ("train.csv", ("a.jpg", A, ("x",), "")), ("other.csv", ("a.jpg", A, ("y",), "")),
            ("1", ("b.jpg", B, ("z",), "")),
        ):  # fmt: skip
            assert found(folder / archive / "set" / name) == [expected]
    assert found(folder / "c.zip" / "d") == [("1.jpg", A, ("x",), "")]
    for name, said in (("2", r"a\.zip holds no set/2"), ("0.tar", "holds 0.tar; unpack a.zip")):
        with pytest.raises((FileNotFoundError, ValueError), match=said):
            found(folder / "a.zip" / "set" / name)


def test_a_folder_by_a_relative_name(fill, monkeypatch):
    monkeypatch.chdir(fill({"a.zip": packed({"1.jpg": A, "1.txt": "x"})}))
    assert found(".") == [("a/1.jpg", A, ("x",), "")]
    assert found("a.zip") == [("1.jpg", A, ("x",), "")]


@pytest.mark.parametrize(
    "method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
)
def test_methods_and_sizes_of_more_than_32_bits(fill, method, monkeypatch):
    members = {"1.jpg": A, "metadata.csv": TABLE, "2.jpg": B}
    assert [each[1] for each in found(fill({"a.zip": packed(members, method)}))] == [A, B]
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 10)
    wide = packed(members, method)
    assert b"PK\6\6" in wide
    # And with a program before it, as archives that unpack themselves have.
    for data in (wide, b"MZ" * 5000 + wide, b"MZ" * 5000 + packed(members, method)):
        assert [each[1] for each in found(fill({"a.zip": data}))] == [A, B]


@pytest.mark.parametrize(
    "name, encoding, option",
    [
        ("ü.jpg", "utf-8", {}),  # as macOS writes it, without saying so
        ("é.jpg", "cp437", {}),
        ("日本.jpg", "cp932", {"encoding": "cp932"}),
    ],
)
def test_encodings_of_names(fill, name, encoding, option):
    raw = name.encode(encoding)
    old = "x" * (len(raw) - 4) + ".jpg"
    data = packed({old: A}).replace(old.encode(), raw)
    assert list(ZipIndex(fill({"a.zip": data}) / "a.zip", **option).walk()) == [name]


def test_a_name_in_unicode_beside_another_one(fill):
    meant = "猫.jpg".encode()
    info = zipfile.ZipInfo("_.jpg")
    info.extra = struct.pack("<2HBI", 0x7075, 5 + len(meant), 1, zlib.crc32(b"\xff.jpg")) + meant
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr(info, A)
    file = fill({"a.zip": stream.getvalue().replace(b"_.jpg", b"\xff.jpg")}) / "a.zip"
    assert list(ZipIndex(file).walk()) == ["猫.jpg"]


def test_what_is_wrong_is_counted_and_does_not_stop_an_import(fill, monkeypatch):
    monkeypatch.setattr("jaxclip.data.importer.items.MAX_IMAGE_BYTES", 1 << 20)
    data = packed({"torn.jpg": A, "bomb.jpg": bytes(2 << 20), "good.jpg": B, "strange.jpg": C,
                   "../outside.jpg": A, "in/more.zip": packed(PAIR), "locked.jpg": A,
                   f"{'d/' * 2000}deep.jpg": A})  # fmt: skip
    place = data.index(b"torn.jpg") + len(b"torn.jpg")
    data = data[:place] + bytes(4) + data[place + 4 :]
    place = data.rindex(b"strange.jpg") - 46
    data = data[: place + 10] + b"\x09\0" + data[place + 12 :]  # Deflate64
    place = data.rindex(b"locked.jpg") - 46
    data = data[: place + 8] + b"\1\0" + data[place + 10 :]
    table = "file_name,text\n" + "".join(
        f"{name}.jpg,x\n" for name in ("torn", "bomb", "good", "strange", "locked", "gone")
    )
    folder = fill({"a.zip": data, "captions.csv": table, "cut.zip": packed(PAIR)[:-9]})
    *read, cut, outside, deep, nested = sorted(
        found(folder), key=lambda each: isinstance(each, BadRecord) and each.key != "cut.zip"
    )
    reasons = {key: image.reason for key, image, *_ in read if isinstance(image, BadRecord)}
    assert reasons == {
        "torn.jpg": "corrupted", "bomb.jpg": "absurd_size", "strange.jpg": "corrupted",
        "locked.jpg": "corrupted", "gone.jpg": "missing_image",
    }  # fmt: skip
    details = {key: image.detail for key, image, *_ in read if isinstance(image, BadRecord)}
    assert "it is encrypted; unpack" in details["locked.jpg"]
    assert "by Deflate64, which is not read; unpack" in details["strange.jpg"]
    assert "a.zip is damaged: " in details["torn.jpg"]
    assert read[2][:2] == ("good.jpg", B)
    details = [each.detail for each in (cut, outside, deep, nested)]
    for detail, said in zip(
        details, ("is cut off", "outside of", "more than 100 folders", "the archive in/more.zip"),
        strict=True,
    ):  # fmt: skip
        assert said in detail


DAMAGED = {
    "cut off": (packed(PAIR)[:-30], "is a ZIP archive that is cut off: the list at its end"),
    "without its beginning": (packed(PAIR)[60:], "a piece of it is missing; copy it again"),
    "with a torn list": (packed(PAIR).replace(b"PK\1\2", b"PK\1\3", 1), "its list is torn"),
    "a page": (b"<!DOCTYPE html><html>", "is no ZIP archive, but a page of the web"),
    "empty": (b"", "is empty"),
    "one of several": (
        packed(PAIR)[:-18] + b"\2\0\2\0" + packed(PAIR)[-14:], "is one part of an archive of sev",
    ),
    "of tars": (packed({"0.tar": bytes(1024)}), r"a\.zip holds 0\.tar; unpack a\.zip first"),
    "of archives": (packed({"b.zip": packed(PAIR)}), r"holds the archive b\.zip; unpack a\.zip"),
    "of nothing": (packed({}), "holds no images"),
    "of other things": (packed({"a.xlsx": b"PK\3\4"}), "a.xlsx is a spreadsheet: save it as CSV"),
}  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGED)
@pytest.mark.parametrize("source", ["", "a.zip"])
def test_one_line_says_what_is_wrong_with_the_only_archive(fill, kind, source):
    data, said = DAMAGED[kind]
    with pytest.raises((ValueError, FileNotFoundError), match=said) as error:
        found(fill({"a.zip": data}) / source)
    assert "\n" not in str(error.value)


def test_links_in_a_tar_are_the_files_that_they_lead_to(fill):
    stream = io.BytesIO(tar({"./set/cats/1.jpg": A, "./set/dogs/2.jpg": B}))
    with tarfile.open(fileobj=stream, mode="a") as archive:
        for name, kind, target in (
            ("./set/cats/3.jpg", tarfile.LNKTYPE, "./set/cats/1.jpg"),
            ("./set/dogs/4.jpg", tarfile.SYMTYPE, "../cats/1.jpg"),
            ("./set/dogs/5.jpg", tarfile.SYMTYPE, "../../../../etc/passwd"),
            ("./set/dogs/6.jpg", tarfile.SYMTYPE, "/etc/passwd"),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            archive.addfile(info)
    *read, up, elsewhere = found(fill({"a.tar": stream.getvalue()}))
    assert [each[1:3] for each in read] == [(A, "cats"), (A, "cats"), (B, "dogs"), (A, "dogs")]
    assert up.reason == elsewhere.reason == "missing_image"
    assert "6.jpg is a link to /etc/passwd, which is no file in it" in elsewhere.detail


def test_a_damaged_tar_of_pictures(fill):
    long = "x" * 120 + ".jpg"
    whole = tar({"cats/1.jpg": A, "dogs/2.jpg": B, f"dogs/{long}": C, "dogs/9.jpg": A * 99})
    folder = fill({"all.tar": whole, "more.tar.gz": b"\x1f\x8b"})
    *read, compressed = found(folder)
    assert [(key, data) for key, data, *_ in read] == [
        ("cats/1.jpg", A), ("dogs/2.jpg", B), ("dogs/9.jpg", A * 99), (f"dogs/{long}", C),
    ]  # fmt: skip
    assert compressed.reason == "undecodable" and "is compressed" in compressed.detail
    (folder / "more.tar.gz").unlink()
    (folder / "all.tar").write_bytes(whole[: whole.index(A * 99) + 1000])
    *read, cut = found(folder / "all.tar")
    assert [item[1].reason for item in read if isinstance(item[1], BadRecord)] == ["corrupted"]
    assert len(read) == 4 and cut.reason == "corrupted" and "all.tar is damaged" in cut.detail


def test_a_table_in_a_tar_is_a_stream(fill):
    folder = fill({"all.tar": tar({"x/metadata.csv": TABLE, "x/1.jpg": A, "x/2.jpg": B})})
    root = archives.Archives([folder / "all.tar"]).path(folder)
    with (root / "x" / "metadata.csv").open("rb") as stream:
        assert stream.read(4) == b"file" and stream.tell() == 4
        stream.seek(0)
        assert stream.read() == TABLE.encode() and not stream.read(1)
    assert [each[:2] for each in found(folder)] == [("x/1.jpg", A), ("x/2.jpg", B)]


def test_an_encrypted_archive(fill):
    data = packed(PAIR)
    for _ in PAIR:
        place = data.index(b"PK\1\2\x14\x03\x14\0\0")
        data = data[: place + 8] + b"\1" + data[place + 9 :]
    with pytest.raises(ValueError, match="is encrypted; unpack it with its password first"):
        found(fill({"a.zip": data}) / "a.zip")


def test_an_archive_of_no_use_beside_a_table(fill):
    folder = fill({"t.csv": "image,caption\n9.jpg,x\n", "a.zip": packed(PAIR)})
    with pytest.raises(ValueError, match=r"names is there, nor in a\.zip beside it$"):
        found(folder / "t.csv")


def test_training_reads_no_archive(fill):
    archive = fill({"all.zip": packed(PAIR)}) / "all.zip"
    with pytest.raises(ValueError, match=r"`jaxclip data import --from .*all\.zip --to DIR` makes"):
        sources.open(archive)


def test_an_archive_elsewhere():
    with pytest.raises(ValueError, match=r"'s3://x/a\.zip' is elsewhere, .*: copy it first$"):
        open_reader("s3://x/a.zip")


@pytest.mark.parametrize("kind", ["webdataset", "parquet"])
def test_in_place_an_archive_is_sent_to_import(fill, kind):
    archive = fill({"all.zip": packed(PAIR)}) / "all.zip"
    with pytest.raises(ValueError, match="a ZIP archive, which only `jaxclip data import` reads"):
        sources.open(f"{kind}:{archive}").source("train")


def test_positions_go_through_what_is_wrong_with_archives(fill):
    folder = fill(
        {"a.zip": packed({"1.jpg": A, "1.txt": "x"}), "b.zip": b"PK", "c.zip": b"PK", "d/2.jpg": B,
         "d/2.txt": "y"}
    )  # fmt: skip
    whole = list(open_reader(folder).items(Cursor()))
    assert [item.key for _, item in whole] == ["a/1.jpg", "d/2.jpg", "b.zip", "c.zip"]
    for number, (cursor, _) in enumerate(whole, 1):
        assert list(open_reader(folder).items(cursor)) == whole[number:]
    before = open_reader(folder).stamp()
    (folder / "a.zip").write_bytes(packed({"1.jpg": C, "1.txt": "x"}, zipfile.ZIP_STORED))
    assert open_reader(folder).stamp() != before


def test_paths_made_from_one_in_an_archive_are_in_it_too(fill):
    file = fill({"a.zip": packed({"x/1.jpg": A, "x/y/2.jpg": B}), "x/3.jpg": C}) / "a.zip"
    root = archives.Archives([file]).path(file.parent)
    inner = root / "x" / "y" / "2.jpg"
    assert inner.is_file() and inner.stat().st_size == len(B) and inner.read_bytes() == B
    assert (inner.parent.parent / "1.jpg").open("rb").read() == A
    assert inner.with_suffix(".jpg").exists() and not inner.with_suffix(".txt").exists()
    assert (root / "x" / "y").is_dir() and not (root / "x" / "y").is_file()
    assert sorted(each.name for each in (root / "x").iterdir()) == ["1.jpg", "3.jpg", "y"]
    assert [each.name for each in root.iterdir()] == ["x"]
    with pytest.raises(FileNotFoundError):
        (root / "z").stat()
