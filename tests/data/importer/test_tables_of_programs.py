"""Tables as pandas, R, Spark, databases and people write them, and what is in their cells."""

import json
import re

import pytest

from jaxclip.data import written_values

A, B = b"first picture" * 40, b"second picture" * 40
PICTURES = {"a.png": A, "b.png": B}
PAIR = [(A, ("a cat",), ""), (B, ("a dog",), "")]
MORE = [(A, ("a cat", "a kitten"), ""), (B, ("a dog",), "")]
OBJECTS = [{"image": "a.png", "caption": "a cat"}, {"image": "b.png", "caption": "a dog"}]


def lines(*values, **options):
    return "\n".join(json.dumps(each, **options) for each in values)


TABLES = {
    "notes on top": ("x.csv", "# by me\n\n# 2024\nfile,caption\na.png,a cat\nb.png,a dog\n", PAIR),
    "a marked header": ("x.tsv", "#file\tcaption\na.png\ta cat\nb.png\ta dog\n", PAIR),
    "a title": ("x.csv", "My pictures,\n,\nfile,caption\na.png,a cat\nb.png,a dog\n", PAIR),
    "pandas's second column": (
        "x.csv", "file,caption,caption.1\na.png,a cat,a kitten\nb.png,a dog,\n", MORE,
    ),
    "a numbered second column": (
        "x.csv", "file,caption,caption_2\na.png,a cat,a kitten\nb.png,a dog,\n", MORE,
    ),
    "Spark": (
        "x.csv", 'file,caption\na.png,"a \\"fat, old\\" cat"\nb.png,"a dog\\\\"\n',
        [(A, ('a "fat, old" cat',), ""), (B, ("a dog\\\\",), "")],
    ),
    "commas of a text without names": (
        "captions.txt", "a.png,a cat, on a mat\nb.png,a dog\n",
        [(A, ("a cat, on a mat",), ""), (B, ("a dog",), "")],
    ),
    "blanks behind commas without names": ("x.csv", "a.png, a cat, 0.9\nb.png, a dog, 1\n", PAIR),
    "two captions without names": (
        "x.tsv", "a.png\ta cat\ta kitten here\nb.png\ta dog\t\n",
        [(A, ("a cat", "a kitten here"), ""), (B, ("a dog",), "")],
    ),
    "quotes that nobody quoted": (
        "x.tsv", 'file\tcaption\na.png\t"Hello" says a cat\nb.png\ta "dog"\n',
        [(A, ('"Hello" says a cat',), ""), (B, ('a "dog"',), "")],
    ),
    "quotes on further lines of a cell": (
        "x.csv", 'file,caption\na.png,"a cat says\n""hello"", and goes"\nb.png,a dog\n',
        [(A, ('a cat says\n"hello", and goes',), ""), (B, ("a dog",), "")],
    ),
    "cells of several lines before the file": (
        "x.csv", 'caption,file\n"a cat\non a mat",a.png\n"a ""big""\ndog",b.png\n',
        [(A, ("a cat\non a mat",), ""), (B, ('a "big"\ndog',), "")],
    ),
    "a quote before the file that nobody closed": (
        "x.csv", 'caption,file\n"a cat,a.png\n"a dog",b.png\n',
        [("bad_row", "row 2 has 1 fields of 2"), PAIR[1]],
    ),
    "lines in cells of Spark": (
        "x.csv", 'file,caption\na.png,"a \\"fat\\"\n\\"old\\", cat"\nb.png,"a dog"\n',
        [(A, ('a "fat"\n"old", cat',), ""), (B, ("a dog",), "")],
    ),
    "R": ("x.csv", '"file","caption"\n"1","a.png","a cat"\n"2","b.png","a dog"\n', PAIR),
    "commas at the ends of rows": (
        "x.csv", "caption,file\na cat,a.png,\na dog,b.png,\n", PAIR,
    ),
    "a missing value of a database": (
        "x.csv", "file,caption\na.png,a cat\na.png,\\N\nb.png,a dog\nb.png,NA\n", PAIR,
    ),
    "UTF-16 without a mark": (
        "x.csv", "file,caption\na.png,a cat\nb.png,a dog\n".encode("utf-16-le"), PAIR,
    ),
    "links beside files": (
        "x.csv", "image,image_path,text\nhttp://x/1,a.png,a cat\nhttp://x/2,b.png,a dog\n", PAIR,
    ),
    "links beside files in JSON": (
        "x.json", json.dumps([{**each, "image": "http://x/1", "path": each["image"]}
                              for each in OBJECTS]), PAIR,
    ),
    "a name by the habit of `datasets`": (
        "x.csv", "photo_file_name,text\na.png,a cat\nb.png,a dog\n", PAIR,
    ),
    "rows that are apart": (
        "x.csv", "file,caption\na.png,a cat\nb.png,a dog\na.png,a kitten\nb.png,a dog\n",
        [(A, ("a cat", "a kitten"), ""), (B, ("a dog", "a dog"), "")],
    ),
    "objects that are apart": (
        "x.json", json.dumps([*OBJECTS, {"image": "a.png", "caption": "a kitten"}]), MORE,
    ),
    "numbers of captions": (
        "x.csv", "image,caption\na.png#0,a cat\na.png#1,a kitten\nb.png#0,a dog\n", MORE,
    ),
    "numbers of captions, no names": (
        "x.csv", "a.png#0,a cat\na.png#1,a kitten\nb.png#0,a dog\n", MORE,
    ),
    "numbers of captions before a blank": (
        "x.txt", "a.png#0 a cat\na.png#1 a kitten\nb.png#0 a dog\n", MORE,
    ),
    "colons": ("x.txt", "# mine\na.png: a cat\nb.png: a dog\n", PAIR),
    "dashes": ("x.txt", "a.png - a cat\nb.png - a dog\n", PAIR),
    "a picture in each line": ("x.jsonl", lines({"a.png": "a cat"}, {"b.png": "a dog"}), PAIR),
    "a pair in each line": ("x.jsonl", lines(["a.png", "a cat"], ["b.png", "a dog"]), PAIR),
    "objects over several lines": ("x.jsonl", lines(*OBJECTS, indent=1), PAIR),
    "objects one behind the other": ("x.json", "".join(map(json.dumps, OBJECTS)), PAIR),
    "lists as text": (
        "x.jsonl", lines({"image": "a.png", "captions": '["a cat", "a kitten"]'}, OBJECTS[1]), MORE,
    ),
    "lists of NumPy": (
        "x.csv", "file,caption\na.png,\"['a cat'\n 'a kitten']\"\nb.png,['a dog']\n", MORE,
    ),
    "an object as text": (
        "x.csv", 'file,caption\na.png,"{""en"": ""a cat""}"\nb.png,{\'raw\': \'a dog\'}\n', PAIR,
    ),
    "objects by number within one": (
        "x.json", json.dumps({"images": {f"{i}": each for i, each in enumerate(OBJECTS)}}), PAIR,
    ),
    "VizWiz": (
        "x.json", json.dumps({
            "images": [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "b.png"}],
            "annotations": [
                {"image_id": 1, "caption": "a cat", "is_rejected": False, "is_precanned": False},
                {"image_id": 1, "caption": "buy this", "is_rejected": True},
                {"image_id": 2, "caption": "a dog"},
                {"image_id": 2, "caption": "Quality issues …", "is_precanned": True},
            ],
        }), PAIR,
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", TABLES)
def test_tables(fill, records, kind):
    name, content, expected = TABLES[kind]
    assert records(fill({**PICTURES, name: content})) == expected


def test_a_single_object(fill, records):
    assert records(fill({**PICTURES, "x.json": json.dumps(OBJECTS[0])})) == PAIR[:1]


def test_pictures_of_coco_2014_by_their_numbers(fill, records):
    name = "train2014/COCO_train2014_000000000042.jpg"
    assert records(fill({name: A, "x.csv": "image_id,caption\n42,a cat\n"})) == PAIR[:1]


def test_a_picture_of_several_classes_is_of_none(fill, records):
    table = "file,label\na.png,cat\nb.png,dog\na.png,dog\n"
    (reason, detail), other = records(fill({**PICTURES, "x.csv": table}))
    assert reason == "empty_caption" and other == (B, "dog", "")
    assert detail == "its rows name 2 classes (cat, dog), and a record has one"
    named = "file,label,caption\na.png,cat,x\na.png,dog,y\n"
    assert records(fill({"x.csv": named})) == [(A, ("x", "y"), "")]


def test_rows_of_other_keys_and_splits_are_other_records(fill, records):
    table = "file,caption,key,split\na.png,x,1,train\nb.png,y,2,train\na.png,z,{}\n"
    for last, count in (("3,train", 3), ("1,val", 3), ("1,train", 2)):
        assert len(records(fill({**PICTURES, "x.csv": table.format(last)}))) == count


def test_commas_of_a_text_before_its_picture_are_not_guessed_at(fill, records):
    folder = fill({**PICTURES, "captions.csv": "a cat, and a dog,a.png\na dog,b.png\n"})
    with pytest.raises(ValueError, match="if that is no line of names, put one above it"):
        records(folder)


def test_a_column_with_a_number_can_be_named(fill, records):
    folder = fill({**PICTURES, "x.csv": "file,caption_1,caption_2\na.png,x,a cat\nb.png,y,a dog\n"})
    assert records(folder, text_column="caption_2") == PAIR


def test_the_error_shows_the_first_line_that_is_no_note(fill, records):
    folder = fill({"captions.csv": "# by me\nwhat,caption\na.png,a cat\n"})
    with pytest.raises(ValueError, match=re.escape("its first line is ['what', 'caption']")):
        records(folder)


@pytest.mark.filterwarnings("error")
def test_a_backslash_in_a_list_stands_for_itself():
    assert written_values.read(r"['a \d cat', 'it\'s']") == [r"a \d cat", "it's"]


@pytest.mark.parametrize(
    "text",
    [
        "[{'a': " + "[" * 20_000 + "]" * 20_000 + "}]", "{'a': 1" + "+1" * 20_000 + "}",
        "{'a': " + "-" * 20_000 + "1}", "['a'" + "(" * 5_000 + "]", "[" + "'a'\n" * 20_000 + "]",
    ],
)  # fmt: skip
def test_texts_that_are_made_to_hurt_stay_texts(text):
    assert written_values.read(text) is None


@pytest.mark.parametrize(
    "text",
    ["[cat] x", '["a"] and ["b"]', "['a', 1]", "[['a']]", '["a", …]', "{'a'}", "['open", "[1, 2]",
     "[]", "", b"", b'["\xff"]', "{not an object}"],
)  # fmt: skip
def test_texts_that_are_no_lists_stay_texts(text):
    assert written_values.read(text) is None
