"""Parquet as other programs write it: imported and read in place alike."""

import base64
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jaxclip.data import sources
from jaxclip.data.importer import Options, import_records
from jaxclip.data.importer.items import Cursor, Item, read_image
from jaxclip.data.importer.readers import open_reader
from jaxclip.data.record import Record, decode_foreign_texts

PICTURES = [b"first picture" * 40, b"second picture" * 40]
STRUCTS = [{"bytes": data, "path": None} for data in PICTURES]
TEXTS = ["a cat", "a dog"]


def write(path, columns, names=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    table = columns if isinstance(columns, pa.Table) else pa.table(columns)
    if names:
        features = {column: {"names": ["cat", "dog"], "_type": "ClassLabel"} for column in names}
        table = table.replace_schema_metadata(
            {"huggingface": json.dumps({"info": {"features": features}})}
        )
    pq.write_table(table, path)
    return path


def imported(source):
    items = [item for _, item in open_reader(source).items(Cursor())]
    return [
        (read_image(item.image), decode_foreign_texts(item.texts)[0] or item.label)
        if isinstance(item, Item)
        else item.reason
        for item in items
    ]


def in_place(source):
    data_set = sources.open(f"parquet:{source}")
    return [
        (record.image, record.texts) if isinstance(record, Record) else record.reason
        for split, count in data_set.splits.items()
        for record in data_set.source(split).read(range(count))
    ]


def turns(key, value, texts=TEXTS):
    return [[{key: "user", value: "?"}, {key: "assistant", value: text}] for text in texts]


COLUMNS = {
    "strings of a dictionary": (PICTURES, "text", pa.array(TEXTS).dictionary_encode()),
    "pictures of a dictionary": (pa.array(PICTURES).dictionary_encode(), "text", TEXTS),
    "large": (pa.array(PICTURES, pa.large_binary()), "text", pa.array(TEXTS, pa.large_string())),
    "lists of one picture": ([[each] for each in STRUCTS], "text", TEXTS),
    "lists of bytes": ([[each] for each in PICTURES], "text", TEXTS),
    "letters for addresses": (
        [base64.urlsafe_b64encode(each).decode() for each in PICTURES], "text", TEXTS,
    ),
    "views": (pa.array(PICTURES, pa.binary_view()), "text", pa.array(TEXTS, pa.string_view())),
    "lists of one length": (PICTURES, "captions", pa.array([[t] for t in TEXTS],
                                                           pa.list_(pa.string(), 1))),
    "by language": (PICTURES, "caption", [{"en": t, "de": None} for t in TEXTS]),
    "a map of languages": (PICTURES, "caption", pa.array([[("en", t)] for t in TEXTS],
                                                         pa.map_(pa.string(), pa.string()))),
    "names of classes": (PICTURES, "label", pa.array(TEXTS).dictionary_encode()),
    "objects": (PICTURES, "captions", [[{"text": t, "lang": "en"}] for t in TEXTS]),
    "lists in an object": (PICTURES, "sentences", [{"raw": [t], "id": [1]} for t in TEXTS]),
    "chats": (PICTURES, "messages", turns("role", "content")),
    "LLaVA": (PICTURES, "conversations", turns("from", "value")),
    "questions": (PICTURES, "texts", [[{"user": "?", "assistant": t}] for t in TEXTS]),
}  # fmt: skip


@pytest.mark.parametrize("kind", COLUMNS)
@pytest.mark.parametrize("name", ["image", "images"])
def test_columns(tmp_path, kind, name):
    pictures, column, texts = COLUMNS[kind]
    path = write(tmp_path / "a.parquet", {name: pictures, column: texts})
    expected = [(data, (text,)) for data, text in zip(PICTURES, TEXTS, strict=True)]
    assert in_place(path) == expected
    labelled = list(zip(PICTURES, TEXTS, strict=True))
    assert imported(path) == (labelled if column == "label" else expected)


def test_which_of_several_pictures_is_taken_is_said(tmp_path, caplog):
    columns = {"image_1": PICTURES, "image_2": PICTURES[::-1], "text": TEXTS}
    path = write(tmp_path / "a.parquet", columns)
    assert [image for image, _ in imported(path)] == PICTURES
    assert [image for image, _ in in_place(path)] == PICTURES
    said = "the picture of a record is 'image_1', not image_2; "
    assert [record.getMessage() for record in caplog.records] == [
        f"{said}say which it is with --image-column",
        f"{said}write ?image=COLUMN behind the name of the data set",
    ]


def test_the_first_caption_that_is_not_empty(tmp_path):
    columns = {
        "image": [*PICTURES, PICTURES[0]],
        "text": ["a cat", None, "nan"],
        "title": ["x", "a dog", None],
    }
    path = write(tmp_path / "a.parquet", columns)
    expected = [(PICTURES[0], ("a cat",)), (PICTURES[1], ("a dog",))]
    assert in_place(path) == [*expected, "empty_caption"]
    assert imported(path) == [*expected, (PICTURES[0], None)]


@pytest.mark.parametrize("column", ["label", "Label", "fine_label"])
def test_columns_of_classes(tmp_path, column):
    path = write(tmp_path / "a.parquet", {"img": STRUCTS, column: [1, 0]}, names=[column])
    assert imported(path) == [(PICTURES[0], "dog"), (PICTURES[1], "cat")]
    data_set = sources.open(f"parquet:{path}")
    assert [r.label for r in data_set.source("train").read(range(2))] == [1, 0]
    # Beside captions they are what the file says besides.
    path = write(tmp_path / "a.parquet", {"img": STRUCTS, "text": TEXTS, "kind": [1, 0]}, ["kind"])
    assert sources.open(f"parquet:{path}").source("train")[0].label == -1


@pytest.mark.parametrize(
    ("columns", "problem"),
    [
        ({"image": [[[1, 2]]] * 2, "text": TEXTS}, r"'image' holds numbers; store pictures as"),
        ({"image": PICTURES, "text": [True, False]}, r"no column with captions .*text: bool"),
        ({"URL": ["http://a", "http://b"], "text": TEXTS}, r"'URL' are links: download"),
        (
            pa.Table.from_arrays([pa.array(TEXTS)] * 2, names=["text", "text"]),
            r"several columns 'text'; give them different names",
        ),
    ],
)
def test_columns_that_are_none(tmp_path, columns, problem):
    path = write(tmp_path / "a.parquet", columns)
    for read in (imported, in_place):
        with pytest.raises(ValueError, match=problem):
            read(path)


def test_cells_that_are_no_picture(tmp_path):
    pictures = [STRUCTS, [], None, STRUCTS[:1]]
    path = write(tmp_path / "a.parquet", {"image": pictures, "text": ["a", "b", "c", "d"]})
    assert imported(path)[:2] == ["bad_row", "bad_row"] and imported(path)[3][1] == ("d",)
    path = write(tmp_path / "a.parquet", {"image": ["ff" * 400 + "!"], "text": ["a"]})
    assert imported(path) == in_place(path) == ["undecodable"]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "a.parquet is empty"),
        (b"<!DOCTYPE html>", "is no Parquet file, but a page of the web"),
        (b"version https://git-lfs.github.com/spec/v1", r"Git LFS pointer: run `git lfs pull`"),
        (b"PAR1 and no more", "a.parquet is damaged"),
    ],
)
def test_files_that_are_none(tmp_path, content, problem):
    (tmp_path / "a.parquet").write_bytes(content)
    for read in (imported, in_place):
        with pytest.raises(ValueError, match=problem):
            read(tmp_path / "a.parquet")


def test_folders_and_rows_of_the_same_name(tmp_path, toys):
    """No row is lost for a name that its picture shares with others; one with its own key is."""
    pytest.importorskip("tensorflow_datasets")
    (tmp_path / "in" / "._0.parquet").parent.mkdir()
    (tmp_path / "in" / "._0.parquet").write_bytes(b"junk")
    for n, language in enumerate(("de", "en")):
        pictures = [{"bytes": toys.picture(n + i), "path": "image.png"} for i in (0, 2)]
        columns = {"image": pictures, "text": [f"{language}{i}" for i in range(2)]}
        write(tmp_path / "in" / language / "train-0.parquet", columns)
    summary = import_records(tmp_path / "in", tmp_path / "out", Options())
    found = sources.open(tmp_path / "out").source("train").read(range(4))
    assert {record.key: record.texts[0] for record in found} == {
        "image.png": "de0", "de/train-0/1": "de1", "en/train-0/0": "en0", "en/train-0/1": "en1",
    }  # fmt: skip
    columns = {"image": [toys.picture(0), toys.picture(1)], "text": TEXTS, "id": [7, 7]}
    write(tmp_path / "b.parquet", columns)
    summary = import_records(tmp_path / "b.parquet", tmp_path / "b", Options())
    assert summary.skipped == {"duplicate_key": 1}


@pytest.mark.parametrize(
    ("file", "way"),
    [
        ("0.tar", "webdataset"), ("data/x.parquet", "parquet"), ("dataset_dict.json", "arrow"),
        ("state.json", "arrow"), ("test/0.tar", "webdataset"),
    ],
)  # fmt: skip
def test_a_folder_that_is_read_in_place_by_another_name(tmp_path, file, way):
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_bytes(b"x")
    with pytest.raises(ValueError, match=f"is not a TFDS data set.* in place as {way}:"):
        sources.open(str(tmp_path))


@pytest.mark.parametrize("path", ["/home/me/set/img/a.jpg", "img/a.jpg", r"C:\set\img\a.jpg"])
def test_a_picture_by_its_path_on_another_machine(tmp_path, path):
    (tmp_path / "img").mkdir()
    (tmp_path / "img" / "a.jpg").write_bytes(PICTURES[0])
    columns = {"image": [{"bytes": None, "path": path}], "text": ["a cat"]}
    file = write(tmp_path / "a.PARQUET", columns)
    assert imported(file) == in_place(file) == [(PICTURES[0], ("a cat",))]
    assert in_place(tmp_path) == in_place(file)


def test_arrow_files_on_their_own(tmp_path):
    """Streams as `datasets` keeps them in its cache, and files with an index, as Feather's."""
    table = pa.table({"image": PICTURES, "text": TEXTS})
    for name in ("set-train.arrow", "set-validation.arrow", "cache-0.arrow"):
        with pa.ipc.new_stream(str(tmp_path / name), table.schema) as stream:
            stream.write_table(table)
    with pa.ipc.new_file(str(tmp_path / "a.feather"), table.schema) as whole:
        whole.write_table(table)
    assert sources.open(f"arrow:{tmp_path}").splits == {"train": 2, "validation": 2}
    record = sources.open(f"arrow:{tmp_path}/a.feather").source("train")[1]
    assert (record.image, record.texts) == (PICTURES[1], ("a dog",))
    with pytest.raises(ValueError, match=r"is a file, not a folder; it is read in place as arrow:"):
        sources.open(str(tmp_path / "a.feather"))
    assert imported(tmp_path / "a.feather")[1] == (PICTURES[1], ("a dog",))
