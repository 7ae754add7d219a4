"""The readers alone, on anything that might stand in a table or a tar."""

import csv
import io
import json
import pathlib
import tarfile

import hypothesis
import hypothesis.strategies as st
import pytest

from jaxclip.data.class_values import parse_label, printable
from jaxclip.data.importer.inline import is_inline
from jaxclip.data.importer.items import (
    Cursor,
    Item,
    from_fields,
    text_bytes,
)
from jaxclip.data.importer.table import TableReader
from jaxclip.data.importer.tars import TarReader
from jaxclip.data.record import REASONS, BadRecord

valid = st.characters(exclude_categories=["Cs"], exclude_characters="\x00")
words = st.text(valid, max_size=12)
# Names of files: not blank, no white space at the ends, which tables are full of, and neither links
# nor pictures themselves.
names = (
    st.text(valid, min_size=1, max_size=8)
    .map(str.strip)
    .filter(lambda name: name and not name.startswith(("http:", "https:")) and not is_inline(name))
)


def read(reader, start=None):
    found = list(reader.items(start or Cursor()))
    for cursor, item in found:
        assert isinstance(cursor, Cursor)
        assert isinstance(item, Item) or item.reason in REASONS
    return found


def write(tmp_path_factory, name, data):
    path = tmp_path_factory.mktemp("table") / name
    path.write_bytes(data if isinstance(data, bytes) else data.encode("utf-8"))
    return path


def together(rows):
    """Each file with the captions of all its rows."""
    found = {}
    for file, texts in rows:
        found.setdefault(file, []).extend(text.encode() for text in texts)
    return [(file, tuple(texts)) for file, texts in found.items()]


# Blanks behind a comma are taken for the table's, not for the caption's.
cells = words.map(lambda text: text.lstrip(" "))


@hypothesis.given(rows=st.lists(st.tuples(names, cells), max_size=8), tabs=st.booleans())
def test_csv_comes_back(rows, tabs, tmp_path_factory):
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, delimiter="\t" if tabs else ",")
    writer.writerows([["file", "caption"], *rows])
    path = write(tmp_path_factory, f"captions.{'tsv' if tabs else 'csv'}", buffer.getvalue())
    found = [item for _, item in read(TableReader(path))]
    expected = together((file, [text]) for file, text in rows)
    assert [(item.key, item.texts) for item in found] == expected
    assert [item.image for item in found] == [path.parent / file for file, _ in expected]


@hypothesis.given(rows=st.lists(st.tuples(names, st.lists(words, max_size=3)), max_size=8))
def test_jsonl_comes_back(rows, tmp_path_factory):
    lines = [json.dumps({"file": file, "captions": texts}) for file, texts in rows]
    path = write(tmp_path_factory, "captions.jsonl", "\n".join(lines))
    found = [(item.key, item.texts) for _, item in read(TableReader(path))]
    assert found == together(rows)


@hypothesis.given(data=st.binary(max_size=150))
def test_any_bytes_are_items_or_reasons(data, tmp_path_factory):
    read(TableReader(write(tmp_path_factory, "captions.csv", b"file,caption,key\n" + data)))
    read(TableReader(write(tmp_path_factory, "captions.jsonl", data)))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=6,
)


@hypothesis.given(
    st.dictionaries(
        st.sampled_from(["file", "image", "caption", "texts", "key", "id", "label", "x"]),
        json_values,
    )
)
def test_any_json_object_is_an_item_or_a_reason(tmp_path_factory, values):
    path = write(tmp_path_factory, "captions.jsonl", json.dumps(values))
    for _, item in read(TableReader(path)):
        if isinstance(item, Item):
            item.key.encode("utf-8")
            json.dumps(item.meta, ensure_ascii=False, allow_nan=False).encode("utf-8")
            assert item.label is None or isinstance(item.label, int | str)


@hypothesis.given(data=st.data())
def test_reading_goes_on_after_any_item(data, tmp_path_factory):
    lines = ["file,caption", "a.png,1", "a.png,2", "broken", "b.png,3", '"c', 'd.png",4', "e.png,5"]
    path = write(tmp_path_factory, "captions.csv", "\n".join(lines))
    whole = read(TableReader(path))
    start = data.draw(st.integers(0, len(whole)))
    cursor = whole[start - 1][0] if start else Cursor()
    assert read(TableReader(path), cursor) == whole[start:]


@hypothesis.given(
    change=st.tuples(st.integers(0, 8000), st.integers(0, 255)), cut=st.integers(0, 8000)
)
def test_any_damage_of_a_tar_is_items_or_reasons(change, cut, tmp_path_factory):
    path = tmp_path_factory.mktemp("tar") / "a.tar"
    with tarfile.open(path, "w") as tar:
        for name in ("0.png", "0.txt", "1.txt", "1.png", "2.png", "2.json"):
            info = tarfile.TarInfo(name)
            info.size = 30
            tar.addfile(info, io.BytesIO(b'{"caption": "thirty bytes...."}'[:30]))
    data = bytearray(path.read_bytes())
    data[change[0] % len(data)] = change[1]
    path.write_bytes(data[: cut or None])
    reader = TarReader([path])
    whole = read(reader)
    assert 0 <= len(whole) <= 7
    for i, (cursor, _) in enumerate(whole):
        assert read(TarReader([path]), cursor) == whole[i + 1 :]


@pytest.mark.parametrize(
    ("value", "label"),
    [
        (3, 3), ("3", 3), (" 12 ", 12), ("-1", -1), ("cat", "cat"), ("a  b\n", "a b"), ("", None),
        (None, None), (True, None), (2.5, None), ([1], None), ("-7", "-7"), ("1.5", "1.5"),
        (10**30, str(10**30)), ("\ud800", "\\ud800"),
    ],
)  # fmt: skip
def test_labels(value, label):
    assert parse_label(value) == label


def test_captions_as_bytes():
    assert text_bytes("d\u00e9") == ("d\u00e9".encode(),)
    assert text_bytes(["a", b"\xff", None, ["b"]]) == (b"a", b"\xff", b"b")
    # What was read with surrogateescape is what it was before.
    assert text_bytes(b"caf\xe9".decode("utf-8", "surrogateescape")) == (b"caf\xe9",)
    (odd,) = text_bytes("\ud800")
    with pytest.raises(UnicodeDecodeError):
        odd.decode("utf-8")
    with pytest.raises(TypeError, match="members 'x' is no caption"):
        text_bytes([{"x": 3}])


def test_fields_find_their_place():
    item = from_fields(
        {"title": "t", "caption": "c", "id": 7, "class": "x", "w": 3, "empty": ""},
        key="fallback", image=b"",
    )  # fmt: skip
    assert (item.key, item.texts, item.label) == ("7", (b"c",), "x")
    assert item.meta == {"title": "t", "w": 3}
    bad = from_fields({"caption": {"x": 3}}, key="k", image=pathlib.Path("x"))
    assert isinstance(bad, BadRecord) and bad.reason == "bad_row" and bad.key == "k"


@hypothesis.given(st.text(st.characters()))
def test_printable_is_valid_and_keeps_what_was(text):
    result = printable(text)
    result.encode("utf-8")
    assert result == text or any("\ud800" <= c <= "\udfff" for c in text)
