"""Classes keep the numbers that their source gives them."""

import io
import json

import pyarrow as pa
import pyarrow.parquet
import pytest

from jaxclip.data import sources
from jaxclip.data.importer.items import from_fields
from jaxclip.data.importer.readers import open_reader
from jaxclip.data.naming import unique_names
from jaxclip.evaluate import class_names

NAMES = ["tench", "missile", "dog", "missile"]


def table(classes, **columns):
    """A Parquet file as `datasets` writes it; ``classes`` are names by column."""
    features = {name: {"names": names, "_type": "ClassLabel"} for name, names in classes.items()}
    noted = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    stream = io.BytesIO()
    pa.parquet.write_table(pa.table(columns).replace_schema_metadata(noted), stream)
    return stream.getvalue()


def test_two_classes_of_one_name_stay_two(fill, records):
    content = table({"label": NAMES}, image=[b"a", b"b", b"c"], label=[3, 1, 0])
    folder = fill({"a.parquet": content})
    assert open_reader(folder).class_names() == ["tench", "missile", "dog", "missile #2"]
    assert [label for _, label, _ in records(folder)] == ["missile #2", "missile", "tench"]
    data = sources.open(f"parquet:{folder}")
    assert [each.label for each in data.source("train").read([0, 1, 2])] == [3, 1, 0]
    assert list(class_names.resolve("", data.class_names()).values()) == NAMES


def test_class_folders_are_numbered_in_the_order_of_letters(fill):
    folder = fill({"test/b/1.jpg": "x", "train/a/1.jpg": "y", "train/b/2.jpg": "z"})
    assert open_reader(folder).class_names() == ["a", "b"]


def test_folders_that_are_numbers_have_no_names(fill):
    folder = fill({"2/1.jpg": "x", "10/1.jpg": "y"})
    assert open_reader(folder).class_names() == []


def test_a_class_may_be_named_by_its_column(fill, records, caplog):
    names = {"family": ["747", "A320"], "variant": ["747-100", "747-200", "A320"]}
    folder = fill({"a.parquet": table(names, image=[b"a"], family=[0], variant=[1])})
    assert records(folder) == [(b"a", "747", "")]
    assert "the class of a record is 'family', not variant; " in caplog.text
    assert records(folder, text_column="variant") == [(b"a", "747-200", "")]


def test_a_truth_value_is_a_class(fill, records):
    content = table({}, image=[b"a", b"b"], label=[True, False])
    assert [label for _, label, _ in records(fill({"a.parquet": content}))] == [1, 0]


@pytest.mark.parametrize(
    ("names", "expected"),
    [(["a", "b"], ["a", "b"]), (["a", "a", "a"], ["a", "a #2", "a #3"]), ([], [])],
)
def test_unique_names(names, expected):
    assert unique_names(names) == expected
    assert [class_names.tidy(name) for name in expected] == names


def test_several_labels_are_no_class_and_not_lost():
    item = from_fields({"labels": ["cat", "dog"], "text": "x"}, key="a", image=b"a")
    assert (item.label, item.meta) == (None, {"labels": ["cat", "dog"]})
    item = from_fields({"labels": "cat", "text": "x"}, key="a", image=b"a")
    assert (item.label, item.meta) == ("cat", {})
