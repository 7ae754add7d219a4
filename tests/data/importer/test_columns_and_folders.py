"""Parquet and Arrow in folders that say something, with columns of other names, in both ways."""

import datetime
import decimal
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jaxclip.data import sources, table_splits
from jaxclip.data.importer.items import Cursor
from jaxclip.data.importer.readers import open_reader
from jaxclip.data.record import Record

A, B = b"first picture" * 40, b"second picture" * 40
PAIR = [(A, ("a cat",), ""), (B, ("a dog",), "")]
TURNS = [[{"from": "human", "value": "?"}, {"from": "gpt", "value": text}] for text in "xy"]


@pytest.fixture
def write(tmp_path):
    """Writes columns to files by name; Parquet, or Arrow where it is called so."""

    def write(files):
        for name, columns in files.items():
            path = tmp_path / "in" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if not isinstance(columns, dict):
                path.write_bytes(columns.encode() if isinstance(columns, str) else columns)
            elif name.endswith(".parquet"):
                pq.write_table(pa.table(columns), path)
            else:
                table = pa.table(columns)
                with pa.ipc.new_stream(str(path), table.schema) as stream:
                    stream.write_table(table)
        return tmp_path / "in"

    return write


def in_place(name):
    data_set = sources.open(name)
    return {
        split: [
            (record.image, record.texts) if isinstance(record, Record) else record.reason
            for record in data_set.source(split).read(range(count))
        ]
        for split, count in data_set.splits.items()
    }


SETS = {
    "splits by folders of Spark": (
        {
            "split=train/part-0.parquet": {"image": [A], "text": ["a cat"]},
            "split=test/part-0.parquet": {"image": [B], "text": ["a dog"]},
            "_SUCCESS": "", "split=train/.part-0.parquet.crc": "crc",
        },
        [(A, ("a cat",), "train"), (B, ("a dog",), "test")],
    ),
    "what programs leave beside": (
        {
            "data/0.parquet": {"image": [A, B], "text": ["a cat", "a dog"]},
            "data/_metadata": b"PAR1", "_temporary/0/1.parquet": {"x": [1]},
            "_delta_log/0.checkpoint.parquet": {"txn": [1]},
        },
        PAIR,
    ),
    "numbered captions": (
        {"0.parquet": {"image": [A, B], "caption_0": ["a cat", "a dog"], "caption_1": ["x", "y"]}},
        [(A, ("a cat", "x"), ""), (B, ("a dog", "y"), "")],
    ),
    "numbered captions beside one without": (
        {"0.parquet": {"image": [A, B], "text": ["a cat", "a dog"], "text.1": ["x", None],
                       "title_1": ["no", "no"]}},
        [(A, ("a cat", "x"), ""), (B, ("a dog",), "")],
    ),
    "lists as text": (
        {"0.parquet": {"image": [A, B], "captions": ['["a cat", "x"]', "['a dog' 'y']"]}},
        [(A, ("a cat", "x"), ""), (B, ("a dog", "y"), "")],
    ),
    "conversations as text": (
        {"0.parquet": {"image": [A, B], "conversations": list(map(json.dumps, TURNS))}},
        [(A, ("x",), ""), (B, ("y",), "")],
    ),
    "NoCaps of the hub": (
        {"0.parquet": {"image": [A, B], "annotations_captions": [["a cat"], ["a dog"]]}}, PAIR,
    ),
    "pictures in a folder beside": (
        {"images/a.png": A, "images/b.png": B,
         "0.parquet": {"image": ["a.png", "b.png"], "text": ["a cat", "a dog"]}},
        PAIR,
    ),
    "what `datasets` saved": (
        {
            "dataset_dict.json": '{"splits": ["train", "test"]}',
            **{f"{split}/{name}": content
               for split, image, text in (("train", A, "a cat"), ("test", B, "a dog"))
               for name, content in (
                   ("data.arrow", {"image": [{"bytes": image, "path": None}], "text": [text]}),
                   ("state.json", '{"_data_files": [{"filename": "data.arrow"}]}'),
                   ("dataset_info.json", "{}"),
               )},
        },
        [(A, ("a cat",), "train"), (B, ("a dog",), "test")],
    ),
    "the cache of `datasets`": (
        {"x-train.arrow": {"image": [A], "text": ["a cat"]}, "dataset_info.json": "{}",
         "x-test.arrow": {"image": [B], "text": ["a dog"]}, "cache-0.arrow": {"x": [1]}},
        [(A, ("a cat",), "train"), (B, ("a dog",), "test")],
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", SETS)
def test_sets(write, records, kind):
    files, expected = SETS[kind]
    folder = write(files)
    assert sorted(records(folder)) == sorted(expected)
    way = "arrow" if "datasets" in kind else "parquet"
    by_split = {}
    for first, second, *split in expected:
        found = (first, second) if split else first
        by_split.setdefault("".join(split) or "train", []).append(found)
    assert in_place(f"{way}:{folder}") == by_split


@pytest.mark.parametrize("read", ["import", "in place"])
def test_a_table_of_delta_lake_is_said_to_be_one(write, records, read, caplog):
    log = f"{read}/_delta_log/0.json"  # what is said is said once
    folder = write({f"{read}/0.parquet": {"image": [A], "text": ["a cat"]}, log: "{}"}) / read
    assert records(folder) if read == "import" else in_place(f"parquet:{folder}")
    assert "is a table of Delta Lake, whose log is not read" in caplog.text


def test_failed_downloads_say_why(write, records):
    folder = write({"0.parquet": {
        "jpg": [A, None], "txt": ["a cat", "x"], "status": ["success", "failed"],
        "error_message": [None, "HTTP Error 404"]}})  # fmt: skip
    why = "no bytes in the image's column (failed: HTTP Error 404)"
    assert records(folder) == [PAIR[0], ("missing_image", why)]


def test_classes_by_folders(write, records):
    folder = write({f"label={name}/0.parquet": {"image": [data]}
                    for name, data in (("hot%20dog", B), ("cat", A))})  # fmt: skip
    assert sorted(records(folder)) == [(A, "cat", ""), (B, "hot dog", "")]
    assert in_place(f"parquet:{folder}") == {"train": [(A, ("cat",)), (B, ("hot dog",))]}
    data_set = sources.open(f"parquet:{folder}")
    assert data_set.class_names("train") == ["cat", "hot dog"]
    assert [record.label for record in data_set.source("train").read([0, 1])] == [0, 1]


def test_folders_within_folders_of_the_same_names(write):
    folder = write({f"split={split}/id={i}/part-0.parquet": {"image": [A], "text": ["a cat"]}
                    for split in ("test", "train") for i in (1, 2)})  # fmt: skip
    items = [item for _, item in open_reader(folder).items(Cursor())]
    assert {each.key for each in items} == {"part-0/0"}
    assert [each.alias for each in items] == [
        f"split={split}/id={i}/part-0/0" for split in ("test", "train") for i in (1, 2)
    ]


def test_splits_of_files_that_are_named(write, records):
    folder = write({"train/a.png": A, "test/b.png": B, "metadata.parquet": {
        "file_name": ["train/a.png", "test/b.png"], "text": ["a cat", "a dog"]}})  # fmt: skip
    assert records(folder) == [(A, ("a cat",), "train"), (B, ("a dog",), "test")]


def test_own_columns(write, records):
    columns = {"photo": [A, B], "words": ["a cat", "a dog"], "part": ["train", "val"]}
    for name, way in (("0.parquet", "parquet"), ("0.arrow", "arrow")):
        file = write({name: columns}) / name
        with pytest.raises(ValueError, match=r"write \?text=COLUMN behind the name"):
            in_place(f"{way}:{file}")
        with pytest.raises(ValueError, match=r"no column 'word' \(\?text=\); did you mean 'words'"):
            in_place(f"{way}:{file}?text=word")
        both = [(A, ("a cat",)), (B, ("a dog",))]
        assert in_place(f"{way}:{file}?image=photo&texts=words") == {"train": both}
        split = in_place(f"{way}:{file}?split=part&text=words")
        assert split == {"train": both[:1], "val": both[1:]}
        with pytest.raises(ValueError, match="--text-column"):
            records(file)
        assert records(file, image_column="photo", text_column="words") == PAIR


def test_what_is_said_behind_a_name():
    parse = table_splits.parse
    assert parse("a?.parquet") == ("a?.parquet", ("", "", ""))
    assert parse("a?split=b") == ("a", ("b", "", ""))
    assert parse("a?x.parquet?images=i&text=t") == ("a?x.parquet", ("", "i", "t"))


def test_times_and_decimals_are_kept(write):
    folder = write({"0.parquet": {
        "image": [A], "text": ["a cat"], "when": [datetime.datetime(2024, 1, 2, 3)],
        "price": [decimal.Decimal("1.20")], "none": [None]}})  # fmt: skip
    ((_, item),) = open_reader(folder).items(Cursor())
    assert item.meta == {"when": "2024-01-02 03:00:00", "price": "1.20"}


def test_a_damaged_arrow_file(write, records):
    table = {"image": [A, B], "text": ["a cat", "a dog"]}
    file = write({"0.arrow": table}) / "0.arrow"
    whole = file.read_bytes()
    offsets = whole.index((5).to_bytes(4, "little") + (10).to_bytes(4, "little"))
    file.write_bytes(whole[:offsets] + b"\xff\xff\xff\x0f" + whole[offsets + 4 :])
    ((reason, detail),) = records(file)
    assert reason == "corrupted" and "0.arrow is damaged, 2 rows" in detail
    file.write_bytes(b"FEA1" + bytes(20))
    with pytest.raises(ValueError, match="first version of Feather; write it as Parquet"):
        records(file)


@pytest.mark.parametrize(
    ("name", "begin", "said"), [("x.orc", b"ORC", "an ORC file"), ("x.avro", b"Obj\1", "an Avro")]
)
def test_other_files_of_tables(write, records, name, begin, said):
    folder = write({name: begin})
    for source in (folder, folder / name):
        with pytest.raises((ValueError, FileNotFoundError), match=f"{name} is {said}.* Parquet"):
            records(source)


def test_reading_an_arrow_file_goes_on_anywhere(write):
    folder = write({"0.arrow": {"image": [A, B] * 40, "text": [str(i) for i in range(80)]}})
    reader = open_reader(folder)
    found = list(reader.items(Cursor()))
    assert reader.fraction() == 1.0 and len(found) == 80
    for place in (0, 31, 32, 79):
        assert list(reader.items(found[place][0])) == found[place + 1 :]
