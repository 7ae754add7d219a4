"""Tables in parts, and captions and classes in files and folders beside the pictures'."""

import json

import pytest

from jaxclip.data.importer.items import Cursor
from jaxclip.data.importer.readers import open_reader

A, B = b"first picture" * 40, b"second picture" * 40
PICTURES = {"a.png": A, "b.png": B}
PAIR = [(A, ("a cat",), ""), (B, ("a dog",), "")]
SPLITS = [(A, ("a cat",), "train"), (B, ("a dog",), "val")]


def rows(*pairs):
    return "file,caption\n" + "".join(f"{file},{text}\n" for file, text in pairs)


def redcaps(name, folder, text):
    entry = {"image_id": name, "caption": text, "subreddit": folder, "url": "http://x"}
    return json.dumps({"info": {}, "annotations": [entry]})


UUID = "-1b4e28ba-2fa1-11d2-883f-0016d3cca427-c000"
PARTS = {
    "of Spark": (
        {f"part-00000{UUID}.csv": rows(("a.png", "a cat")), "_SUCCESS": "",
         f"part-00001{UUID}.csv": rows(("b.png", "a dog")), f"part-00002{UUID}.csv": ""},
        PAIR,
    ),
    "of splits": (
        {"train-0.csv": rows(("a.png", "a cat")), "train-1.csv": rows(("b.png", "x")),
         "val-0.csv": rows(("b.png", "a dog"))},
        [(A, ("a cat",), "train"), (B, ("x",), "train"), (B, ("a dog",), "val")],
    ),
    "more than there may be of others": (
        {f"{i:02}.jsonl": json.dumps({"file": "ab"[i % 2] + ".png", "text": str(i)})
         for i in range(20)},
        [((A, B)[i % 2], (str(i),), "") for i in range(20)],
    ),
    "RedCaps": (
        {"images/cats/x.jpg": A, "images/dogs/y.jpg": B,
         "annotations/cats_2017.json": redcaps("x", "cats", "a cat"),
         "annotations/dogs_2018.json": redcaps("y", "dogs", "a dog")},
        PAIR,
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", PARTS)
def test_tables_in_parts(fill, records, kind, caplog):
    files, expected = PARTS[kind]
    folder = fill({**({} if kind == "RedCaps" else PICTURES), **files})
    assert records(folder) == expected
    assert "tables are taken for parts of one" in caplog.text


def test_a_pattern_of_tables(fill, records):
    folder = fill({**PICTURES, "x.csv": rows(("a.png", "a cat")), "y.csv": rows(("b.png", "a dog")),
                   "train.tsv": "file\tcaption\na.png\ta cat\n",
                   "val.tsv": "file\tcaption\nb.png\ta dog\n"})  # fmt: skip
    assert records(folder / "?.csv") == PAIR
    assert records(folder / "*.tsv") == SPLITS
    with pytest.raises(ValueError, match=r"\(x.csv, y.csv\); name one, or by a pattern"):
        for name in ("train.tsv", "val.tsv"):
            (folder / name).unlink()
        records(folder)
    (folder / "images.rar").write_bytes(b"Rar!")
    (folder / "a.png").unlink()
    (folder / "b.png").unlink()
    with pytest.raises(ValueError, match=r"first pictures that .*x.csv names is there; unpack ima"):
        records(folder / "?.csv")


@pytest.mark.parametrize("name", ["captions_v{}.csv", "captions{}.csv"])
def test_versions_of_a_table_are_no_parts_of_one(fill, records, name):
    tables = {name.format(i): rows(("a.png", "a cat"), ("b.png", "x")) for i in (1, 2)}
    with pytest.raises(ValueError, match="several tables of captions"):
        records(fill({**PICTURES, **tables}))


def test_tables_of_one_name_in_many_folders(fill):
    folder = fill({f"{i}/x.csv": rows(("a.png", f"{i}")) for i in range(3)})
    found = [item for _, item in open_reader(folder / "*" / "x.csv").items(Cursor())]
    assert [(each.key, each.alias) for each in found] == [
        ("a.png", f"{i}/x/a.png") for i in range(3)
    ]


def test_a_picture_that_several_parts_name_is_in_none_lost(fill):
    folder = fill({"a.png": A, "0.csv": rows(("a.png", "x"), ("a.png", "y")),
                   "1.csv": rows(("a.png", "z"))})  # fmt: skip
    found = [item for _, item in open_reader(folder).items(Cursor())]
    assert [(each.key, each.alias, each.texts) for each in found] == [
        ("a.png", "0/a.png", (b"x", b"y")), ("a.png", "1/a.png", (b"z",)),
    ]  # fmt: skip


def test_many_texts_that_are_no_tables(fill, records):
    words = {f"words/{i}.txt": "nothing" for i in range(3)}
    texts = {f"{i:04}.txt": "nothing" for i in range(20)}
    assert records(fill({"x/a.png": A, **texts, **words}))[0][0] == "empty_caption"


SIDECARS = {
    "captions within splits": (
        {"train/images/1.png": A, "train/captions/1.txt": "a cat", "val/images/1.png": B,
         "val/captions/1.txt": "a dog"},
        SPLITS,
    ),
    "splits within captions": (
        {"images/train/1.png": A, "captions/train/1.txt": "a cat", "images/val/1.png": B,
         "captions/val/1.txt": "a dog"},
        SPLITS,
    ),
    "splits in a folder": (
        {"set/train/1.png": A, "set/train/1.txt": "a cat", "set/val/1.png": B,
         "set/val/1.txt": "a dog"},
        SPLITS,
    ),
    "a picture far below those of splits": (
        {"set/train/1.png": A, "set/train/1.txt": "a cat", "set/x/y/z/w/2.png": B,
         "set/x/y/z/w/2.txt": "a dog"},
        [(A, ("a cat",), "train"), (B, ("a dog",), "")],
    ),
    "things that are called like splits": (
        {"train/1.png": A, "train/1.txt": "a cat", "bus/1.png": B, "bus/1.txt": "a dog"},
        [(B, ("a dog",), ""), (A, ("a cat",), "train")],
    ),
    "JSON in a folder": (
        {"images/1.png": A, "metadata/1.json": '{"caption": "a cat"}', "images/2.png": B,
         "metadata/2.json": '{"caption": "a dog"}'},
        PAIR,
    ),
    "JSON of something else in a folder": (
        {"cats/1.png": A, "dogs/2.png": B, "meta/cats/1.json": "{}", "meta/dogs/2.json": "{}"},
        [(A, "cats", ""), (B, "dogs", "")],
    ),
    "classes in a folder": (
        {"images/1.png": A, "labels/1.txt": "tabby cat\n", "images/2.png": B, "labels/2.txt": "7"},
        [(A, "tabby cat", ""), (B, 7, "")],
    ),
    "boxes in a folder": (
        {"images/1.png": A, "labels/1.txt": "7 0.5 0.5 0.1 0.1\n", "captions/1.txt": "a cat",
         "images/2.png": B, "labels/2.txt": "1 2 3 4 5 6 7 8 plane 0\n", "captions/2.txt": "a dog"},
        PAIR,
    ),
    "a tar of WebDataset that is unpacked": (
        {"1.png": A, "1.cls": "3", "2.png": B, "2.cls": "cat\n"}, [(A, 3, ""), (B, "cat", "")],
    ),
    "lists of splits": (
        {"images/1.X/a.jpg": A, "images/2.Y/b.jpg": B, "text/1.X/a.txt": "a cat",
         "text/2.Y/b.txt": "a dog", "images.txt": "1 1.X/a.jpg\n2 2.Y/b.jpg\n",
         "train_test_split.txt": "1 1\n2 0\n"},
        [(A, ("a cat",), "train"), (B, ("a dog",), "test")],
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", SIDECARS)
def test_files_beside_pictures(fill, records, kind):
    files, expected = SIDECARS[kind]
    assert records(fill(files)) == expected


def test_a_class_beside_a_caption(fill):
    folder = fill({"images/1.png": A, "captions/1.txt": "a cat", "labels/1.txt": "3"})
    ((_, item),) = open_reader(folder).items(Cursor())
    assert (item.texts, item.label) == ((b"a cat",), 3)
