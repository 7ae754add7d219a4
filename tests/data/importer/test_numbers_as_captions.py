"""Captions that are numbers, true, null or nested in JSON and Parquet: the same everywhere."""

import io
import json
import tarfile

import pyarrow as pa
import pyarrow.parquet
import pytest

from jaxclip.data import sources
from jaxclip.data.importer.items import Cursor, Item
from jaxclip.data.importer.readers import open_reader
from jaxclip.data.record import Record, decode_foreign_texts

# A value of JSON under "caption", and the captions that it is.
VALUES = [
    (12, ["12"]), (0, ["0"]), (1.5, ["1.5"]), (3.0, ["3"]), (1e300, ["1e+300"]), (True, []),
    (None, []), (float("nan"), []), ("", []), ([], []), ([101, 2023, 102], []),
    (["a", ["b", 7, None, True]], ["a", "b", "7"]), ({"en": "a", "de": None}, ["a"]),
    ({"text": 5}, ["5"]),
]  # fmt: skip
PICTURE = b"a picture" * 40


@pytest.fixture
def write(tmp_path):
    def write(name, content):
        path = tmp_path / "in" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path.parent

    return write


def captions_of(source):
    return [
        list(decode_foreign_texts(item.texts)[0]) if isinstance(item, Item) else []
        for _, item in open_reader(source).items(Cursor())
    ]


def tar(entries):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for number, entry in enumerate(entries):
            for ending, data in (("jpg", PICTURE), ("json", json.dumps(entry).encode())):
                info = tarfile.TarInfo(f"{number:02}.{ending}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return stream.getvalue()


@pytest.mark.parametrize("kind", ["lines", "by name", "pairs", "tar", "in place"])
def test_values_of_json(write, kind):
    values = [value for value, _ in VALUES]
    expected = [captions for _, captions in VALUES]
    names = [f"{number}.jpg" for number in range(len(VALUES))]
    if kind in ("by name", "pairs"):  # objects would be rows of their own
        keep = [i for i, value in enumerate(values) if not isinstance(value, dict)]
        values, expected, names = ([each[i] for i in keep] for each in (values, expected, names))
    if kind in ("tar", "in place"):
        place = write("0.tar", tar([{"caption": value} for value in values])) / "0.tar"
        if kind == "in place":
            records = sources.open(f"webdataset:{place}").source("train").read(range(len(values)))
            found = [list(each.texts) if isinstance(each, Record) else [] for each in records]
        else:
            found = captions_of(place)
    else:
        pairs = list(zip(names, values, strict=True))
        content = {
            "lines": lambda: "\n".join(json.dumps({"file": n, "caption": v}) for n, v in pairs),
            "by name": lambda: json.dumps(dict(pairs)),
            "pairs": lambda: json.dumps(pairs),
        }[kind]()
        found = captions_of(
            write("captions.jsonl" if kind == "lines" else "captions.json", content)
        )
    assert found == expected


def test_a_number_counts_only_where_there_is_no_text(write):
    entries = [{"caption": 7, "title": "a cat"}, {"caption": True, "alt": 8}, {"text": "b"}]
    place = write("0.tar", tar(entries))
    assert captions_of(place) == [["a cat"], ["8"], ["b"]]


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        ([0, 7, None], [["0"], ["7"], []]),
        ([0.5, 7.0, None], [["0.5"], ["7"], []]),
        ([[1, 2], [3], []], [[], [], []]),
        ([["a"], ["b", None], None], [["a"], ["b"], []]),
    ],
)
def test_columns_of_parquet(write, column, expected):
    stream = io.BytesIO()
    pa.parquet.write_table(pa.table({"image": [PICTURE] * 3, "caption": column}), stream)
    place = write("a.parquet", stream.getvalue())
    assert captions_of(place) == expected
    records = sources.open(f"parquet:{place}").source("train").read([0, 1, 2])
    assert [list(r.texts) if isinstance(r, Record) else [] for r in records] == expected


def test_a_column_of_numbers_beside_labels_is_none_of_captions(write):
    stream = io.BytesIO()
    table = {"image": [PICTURE], "caption": [1], "label": [0]}
    pa.parquet.write_table(pa.table(table), stream)
    assert captions_of(write("a.parquet", stream.getvalue())) == [[]]
