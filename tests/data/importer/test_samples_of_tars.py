"""Samples of tars whose files have two endings, and classes wherever tars have them: both ways."""

import json
import subprocess

import pytest

from jaxclip.data import class_values, sources, tar_index
from jaxclip.data.importer.items import Cursor, Item
from jaxclip.data.importer.readers import open_reader
from jaxclip.data.record import Record, decode_foreign_texts


def imported(source):
    """Captions and class by key, or the reason."""
    return {
        item.key: (decode_foreign_texts(item.texts)[0], item.label)
        if isinstance(item, Item)
        else item.reason
        for _, item in open_reader(source).items(Cursor())
    }


def in_place(source):
    data_set = sources.open(f"webdataset:{source}")
    return {
        record.key: (record.texts, record.label) if isinstance(record, Record) else record.reason
        for split, count in data_set.splits.items()
        for record in data_set.source(split).read(range(count))
    }


def js(**values):
    return json.dumps(values).encode()


CAT, THREE = (("a cat",), None), ((), 3)
SAMPLES = {
    "a text behind the picture's name": ({"a.png.txt": b"a cat"}, CAT, ("a cat",)),
    "a caption behind a longer one": ({"a.jpeg.caption": b"a cat"}, CAT, ("a cat",)),
    "JSON behind the picture's name": ({"a.png.json": js(caption="a cat")}, CAT, ("a cat",)),
    "a caption that is a text": ({"a.caption.txt": b"a cat"}, CAT, ("a cat",)),
    "a text that is JSON": ({"a.text.json": js(caption="a cat")}, CAT, ("a cat",)),
    "another text": ({"a.url.txt": b"http://x", "a.txt": b"a cat"}, CAT, ("a cat",)),
    "a list as text": ({"a.json": js(texts='["a cat", "b"]')}, (("a cat", "b"), None),
                       ("a cat", "b")),
    "numbered captions": ({"a.json": js(caption_0="a cat", caption_1="b")},
                          (("a cat", "b"), None), ("a cat", "b")),
    "a class with a fraction": ({"a.cls": b"3.0\n"}, THREE, 3),
    "a class that is a text": ({"a.txt": b"a cat", "a.cls.txt": b"3"}, (("a cat",), 3), 3),
    "a class in JSON": ({"a.json": js(label=3)}, THREE, 3),
    "a class beside a caption": ({"a.txt": b"a cat", "a.json": js(label=3)}, (("a cat",), 3), 3),
    "a name in JSON": ({"a.json": js(**{"Class-Name": "cat"})}, ((), "cat"), ("cat",)),
    "a category in JSON": ({"a.json": js(category="cat", score=1)}, ((), "cat"), ("cat",)),
    "a category beside a caption": ({"a.txt": b"a cat", "a.json": js(category="cat")}, CAT,
                                    ("a cat",)),
    "JSON before a file": ({"a.cls": b"2", "a.json": js(label=3)}, THREE, 3),
    "a number in place of a name": ({"a.cls": b"3", "a.json": js(label="cat")}, ((), "cat"), 3),
    "a file before other JSON": ({"a.cls": b"3", "a.json": js(class_id=2)}, THREE, 3),
}  # fmt: skip


@pytest.mark.parametrize("kind", SAMPLES)
def test_samples(tmp_path, toys, kind):
    files, expected, in_short = SAMPLES[kind]
    path = tmp_path / "0.tar"
    toys.make_tar(path, [("a.png", b"x"), *files.items()])
    source = open_reader(path, "webdataset")
    ((_, item),) = source.items(Cursor())
    assert (decode_foreign_texts(item.texts)[0], item.label) == expected
    texts, label = in_place(path)["a"]
    assert in_short == (label if isinstance(in_short, int) else texts)
    if expected[0]:
        assert texts == expected[0]


def test_pictures_with_two_endings(tmp_path, toys):
    files = [("a.image.png", b"x"), ("a.caption.txt", b"a cat"), ("b.mask.png", b"y")]
    toys.make_tar(tmp_path / "0.tar", files)
    assert imported(tmp_path) == {"a": CAT}
    assert in_place(tmp_path) == {"a": (("a cat",), -1)}


@pytest.mark.parametrize(
    ("ending", "plain"),
    [
        ("txt", "txt"), ("png.txt", "txt"), ("jpg.text", "text"), ("url.txt", "url.txt"),
        ("label.txt", "label"), ("cls.json", "cls.json"), ("img.jpeg", "jpeg"), ("seg.png",) * 2,
        ("png.png.txt",) * 2, (".txt",) * 2, ("",) * 2,
    ],
)  # fmt: skip
def test_endings(ending, plain):
    assert tar_index.plain_ending(ending) == plain


def test_class_names_of_notepad(tmp_path, toys):
    toys.make_tar(tmp_path / "0.tar", [("a.png", b"x"), ("a.cls", b"0")])
    (tmp_path / "classnames.txt").write_bytes("\ufeffcat\r\ndog\r\n".encode())
    assert imported(tmp_path) == {"a": ((), "cat")} and in_place(tmp_path) == {"a": (("cat",), 0)}


def test_a_name_that_is_among_those_of_the_classes(tmp_path, toys):
    toys.make_tar(tmp_path / "0.tar", [("a.png", b"x"), ("a.cls", b"dog"), ("a.txt", b"y")])
    (tmp_path / "classnames.txt").write_text("cat\ndog\n")
    assert imported(tmp_path) == {"a": (("y",), "dog")} and in_place(tmp_path) == {"a": (("y",), 1)}


def test_a_tar_without_the_rest_of_its_last_block(tmp_path, toys):
    files = [(f"{key}.{end}", data) for key in "ab" for end, data in (("png", b"x"), ("txt", b"y"))]
    toys.make_tar(tmp_path / "0.tar", files)
    path = tmp_path / "0.tar"
    path.write_bytes(path.read_bytes().rstrip(b"\0"))
    assert imported(path) == {"a": (("y",), None), "b": (("y",), None), "": "corrupted"}
    assert in_place(path) == {"a": (("y",), -1), "b": (("y",), -1)}


def test_a_sparse_file_is_named(tmp_path, caplog):
    with (tmp_path / "a.png").open("wb") as file:
        file.write(b"picture")
        file.truncate(1 << 20)
    (tmp_path / "a.txt").write_text("a cat")
    command = ["tar", "--sparse", "-C", tmp_path, "-cf", tmp_path / "0.tar", "a.png", "a.txt"]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs GNU tar")
    (tmp_path / "a.png").unlink()
    assert imported(tmp_path / "0.tar") == {"a": CAT}
    assert in_place(tmp_path / "0.tar") == {"a": "missing_image"}
    assert "a.png is a sparse file, which cannot be read in place; make the tar" in caplog.text


def test_a_member_of_json_that_says_no_class_is_none():
    for text in ('{"caption": "label"}', '{"labeled": 3}', "{}"):
        assert class_values.of_sample(None, json.loads(text), has_captions=False) is None
