"""Parquet files and saved Hugging Face data sets in place: the same records as an import's."""

import json

import numpy as np
import pytest

from jaxclip.data import pipeline, sources
from jaxclip.data.record import BadRecord

pyarrow = pytest.importorskip("pyarrow")
pytest.importorskip("pyarrow.parquet")


def table(toys, start, stop, *, names=("cat", "dog"), captions=True, metadata=True):
    """Rows as Hugging Face writes them: images as structs, labels with names in the metadata."""
    numbers = range(start, stop)
    columns = {
        "image": pyarrow.array(
            [{"bytes": toys.picture(n), "path": f"{n}.png"} for n in numbers],
            pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())]),
        ),
        "label": pyarrow.array([n % len(names) for n in numbers], pyarrow.int64()),
        "width": pyarrow.array(list(numbers), pyarrow.int32()),
    }
    if captions:
        columns["Caption"] = pyarrow.array([[f"item {n}", f"thing {n}"] for n in numbers])
    features = {"label": {"names": list(names), "_type": "ClassLabel"}}
    known = {"huggingface": json.dumps({"info": {"features": features}})} if metadata else {}
    return pyarrow.table(columns).replace_schema_metadata(known)


def save_to_disk(folder, parts):
    """What ``Dataset.save_to_disk`` writes, with one file for each table."""
    folder.mkdir(parents=True)
    names = [f"data-{n:05d}-of-{len(parts):05d}.arrow" for n in range(len(parts))]
    for name, part in zip(names, parts, strict=True):
        with (
            pyarrow.OSFile(str(folder / name), "wb") as sink,
            pyarrow.ipc.new_stream(sink, part.schema) as writer,
        ):
            writer.write_table(part, max_chunksize=3)
    state = {"_data_files": [{"filename": name} for name in names], "_split": "train"}
    (folder / "state.json").write_text(json.dumps(state))


@pytest.fixture
def parquet_folder(tmp_path, toys):
    """A folder as on the hub: two files of train in groups of three rows, one of test."""
    folder = tmp_path / "hub" / "data"
    folder.mkdir(parents=True)
    for name, start, stop in (
        ("train-00000-of-00002-1a2b", 0, 7),
        ("train-00001-of-00002-3c4d", 7, 10),
        ("test-00000-of-00001-5e6f", 10, 12),
    ):
        rows = table(toys, start, stop)
        pyarrow.parquet.write_table(rows, folder / f"{name}.parquet", row_group_size=3)
    return tmp_path / "hub"


def check(source, toys, start=0):
    for index in (4, 0, len(source) - 1, 2):
        record = source[index]
        number = start + index
        assert record.image == toys.picture(number) and record.key == f"{number}.png"
        assert record.texts == (f"item {number}", f"thing {number}")
        assert record.label == number % 2 and json.loads(record.meta)["width"] == number


def test_a_folder_of_the_hub_has_its_splits(parquet_folder, toys):
    data_set = sources.open(f"parquet:{parquet_folder}")
    assert data_set.splits == {"train": 10, "test": 2}
    assert data_set.class_names() == ["cat", "dog"] and data_set.has_texts
    check(data_set.source("train"), toys)
    assert data_set.source("test")[1].key == "11.png"


def test_a_pattern_is_one_split(parquet_folder, toys):
    data_set = sources.open(f"parquet:{parquet_folder}/data/train-0000{{0..1}}-*.parquet")
    assert data_set.splits == {"train": 10}
    check(data_set.source("train"), toys)


def test_what_datasets_saved_is_read_in_place(tmp_path, toys):
    save_to_disk(tmp_path / "one", [table(toys, 0, 7), table(toys, 7, 10)])
    data_set = sources.open(f"arrow:{tmp_path / 'one'}")
    assert data_set.splits == {"train": 10} and data_set.class_names() == ["cat", "dog"]
    check(data_set.source("train"), toys)
    save_to_disk(tmp_path / "two" / "train", [table(toys, 0, 5)])
    save_to_disk(tmp_path / "two" / "validation", [table(toys, 5, 9)])
    (tmp_path / "two" / "dataset_dict.json").write_text('{"splits": ["train", "validation"]}')
    data_set = sources.open(f"arrow:{tmp_path / 'two'}")
    assert data_set.splits == {"train": 5, "validation": 4}
    assert data_set.source("validation")[0].key == "5.png"


def with_splits(toys, values, start=0):
    rows = table(toys, start, start + len(values))
    return rows.append_column("part", pyarrow.array(values))


PARTS = ["train", "val", None, "restval", "Validation", "test", "train", "gold"]


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_splits_by_a_column(tmp_path, toys, kind):
    folder = tmp_path / "all"
    if kind == "parquet":
        folder.mkdir()
        pyarrow.parquet.write_table(
            with_splits(toys, PARTS), folder / "0.parquet", row_group_size=3
        )
        more = with_splits(toys, PARTS[::-1], 8).cast(
            with_splits(toys, ["x"]).schema.set(4, pyarrow.field("part", pyarrow.large_string()))
        )
        pyarrow.parquet.write_table(more, folder / "1.parquet", row_group_size=5)
    else:
        save_to_disk(folder, [with_splits(toys, PARTS), with_splits(toys, PARTS[::-1], 8)])
    both = [*PARTS, *PARTS[::-1]]
    places = {"train": ("train", None, "restval"), "val": ("val",), "validation": ("Validation",),
              "test": ("test",), "gold": ("gold",)}  # fmt: skip
    data_set = sources.open(f"{kind}:{folder}?split=part")
    assert data_set.name.endswith("?split=part")
    for split, names in places.items():
        expected = [f"{i}.png" for i, each in enumerate(both) if each in names]
        source = data_set.source(split)
        assert data_set.splits[split] == len(source) == len(expected)
        assert [record.key for record in source.read(range(len(source)))] == expected
        # One by one, last first.
        assert [source[i].key for i in reversed(range(len(source)))] == expected[::-1]
    assert sources.open(f"{kind}:{folder}").splits == {"train": 16}


def test_columns_that_are_no_splits(tmp_path, toys):
    rows = with_splits(toys, [str(n) for n in range(150)])
    pyarrow.parquet.write_table(rows, tmp_path / "a.parquet")
    for column, said in (
        ("prt", r"has no column 'prt' \(\?split=\), but image, .*did you mean 'part'"),
        ("part", r"has 150 values, such as '0' and '1'"),
        ("Caption", r"a column of list<.*> \(\?split=\) names no splits"),
    ):
        with pytest.raises(ValueError, match=said):
            sources.open(f"parquet:{tmp_path}/a.parquet?split={column}")
    assert sources.open(f"parquet:{tmp_path}/?.parquet").splits == {"train": 150}


def test_training_reads_one_split_and_goes_on_where_it_stopped(tmp_path, toys, tokenize):
    pytest.importorskip("tensorflow")
    rows = with_splits(toys, [("train", "test")[n % 2] for n in range(12)])
    pyarrow.parquet.write_table(rows, tmp_path / "a.parquet", row_group_size=5)

    def batches(first, count):
        iterator = pipeline.train_iterator(
            {"name": f"parquet:{tmp_path}/a.parquet?split=part", "image_size": 8},
            tokenizer=tokenize,
            global_batch_size=3,
            seed=0,
            start_step=first,
        )
        found = [next(iterator)["text"][:, 1].tolist() for _ in range(count)]
        iterator.close()
        return found

    whole = batches(0, 5)
    assert sorted([*whole[0], *whole[1]]) == list(range(0, 12, 2))
    assert batches(2, 3) == whole[2:]


def test_training_reads_them(parquet_folder, tokenize):
    pytest.importorskip("tensorflow")
    iterator = pipeline.train_iterator(
        {"name": f"parquet:{parquet_folder}", "image_size": 8},
        tokenizer=tokenize,
        global_batch_size=10,
        seed=0,
    )
    batch = next(iterator)
    iterator.close()
    assert sorted(batch["text"][:, 1]) == list(range(10))


def test_labels_alone_serve_for_evaluation(tmp_path, toys):
    rows = table(toys, 0, 4, captions=False)
    pyarrow.parquet.write_table(rows, tmp_path / "a.parquet")
    data_set = sources.open(f"parquet:{tmp_path}/a.parquet")
    assert not data_set.has_texts and data_set.class_names() == ["cat", "dog"]
    assert [data_set.source("train")[i].label for i in range(4)] == [0, 1, 0, 1]


def test_bad_rows_are_told_one_by_one(tmp_path, toys):
    rows = table(toys, 0, 3, metadata=False).to_pylist()
    rows[0]["image"] = None
    rows[1].update(label=None, Caption=None)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    source = sources.open(f"parquet:{tmp_path}/a.parquet").source("train")
    assert [getattr(source[i], "reason", "") for i in range(3)] == [
        "missing_image", "empty_caption", "",
    ]  # fmt: skip
    assert source[2].label == 0


def test_a_damaged_group_is_bad_records_and_no_error(tmp_path, toys):
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(
        table(toys, 0, 6), path, row_group_size=3, compression="none", use_dictionary=False
    )
    data = bytearray(path.read_bytes())
    middle = data.index(toys.picture(4))
    data[middle - 60 : middle] = b"\xff" * 60
    path.write_bytes(data)
    source = sources.open(f"parquet:{path}").source("train")
    read = [source[index] for index in range(6)]
    assert [record.key for record in read[:3]] == ["0.png", "1.png", "2.png"]
    assert any(isinstance(record, BadRecord) for record in read[3:]) or [
        record.image for record in read[3:]
    ] != [toys.picture(n) for n in range(3, 6)]


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("parquet:{tmp}/none.parquet", FileNotFoundError, "no such file"),
        ("parquet:{tmp}/empty", FileNotFoundError, r"holds no \*.parquet"),
        ("parquet:{tmp}/text.parquet", ValueError, "is no Parquet file"),
        ("parquet:{tmp}/numbers.parquet", ValueError, "write .image=COLUMN behind the name"),
        ("arrow:{tmp}/emtpy", FileNotFoundError, "did you mean 'empty'"),
        ("arrow:{tmp}/empty", ValueError, "it has no state.json"),
        ("arrow:{tmp}/selected", ValueError, "flatten_indices"),
        ("arrow:{tmp}/lost", FileNotFoundError, "state.json beside it names it"),
        ("arrow:{tmp}/broken", ValueError, "no Arrow stream"),
    ],
)
def test_mistakes_are_named(tmp_path, toys, name, error, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.parquet").write_text("no parquet")
    pyarrow.parquet.write_table(pyarrow.table({"a": [1]}), tmp_path / "numbers.parquet")
    for folder in ("selected", "lost", "broken"):
        save_to_disk(tmp_path / folder, [table(toys, 0, 3)])
    state = json.loads((tmp_path / "selected" / "state.json").read_text())
    state["_indices_files"] = [{"filename": "indices.arrow"}]
    (tmp_path / "selected" / "state.json").write_text(json.dumps(state))
    (tmp_path / "lost" / "data-00000-of-00001.arrow").unlink()
    (tmp_path / "broken" / "data-00000-of-00001.arrow").write_bytes(b"no arrow" * 9)
    with pytest.raises(error, match=message):
        sources.open(name.format(tmp=tmp_path))


def test_threads_share_what_is_read(parquet_folder, toys):
    from concurrent.futures import ThreadPoolExecutor

    source = sources.open(f"parquet:{parquet_folder}").source("train")
    wanted = np.random.default_rng(0).integers(0, 10, 200)
    with ThreadPoolExecutor(4) as pool:
        keys = list(pool.map(lambda index: source[int(index)].key, wanted))
    assert keys == [f"{index}.png" for index in wanted]


def saved(folder, table):
    """What ``save_to_disk`` of ``datasets`` writes."""
    folder.mkdir()
    (folder / "state.json").write_text('{"_data_files": [{"filename": "data.arrow"}]}')
    with pyarrow.ipc.new_stream(str(folder / "data.arrow"), table.schema) as writer:
        writer.write_table(table, max_chunksize=3)
    return folder / "data.arrow"


@pytest.mark.parametrize("captions", ["text", "texts"])
def test_rows_of_a_damaged_arrow_file_are_corrupted_not_the_end_of_the_process(
    tmp_path, toys, captions
):
    rows = [
        {"image": toys.picture(n), captions: f"item {n}" if captions == "text" else [f"item {n}"]}
        for n in range(6)
    ]
    file = saved(tmp_path / "saved", pyarrow.Table.from_pylist(rows))
    data = file.read_bytes()
    # Where the captions of the second batch begin and end: made to point far away.
    ends = np.cumsum([0, 6, 6, 6]).astype("<i4").tobytes()
    place = data.rindex(ends)
    far = np.array([0, 2**30, 2**30, 18], "<i4").tobytes()
    file.write_bytes(data[:place] + far + data[place + len(ends) :])
    source = sources.open(f"arrow:{tmp_path}/saved").source("train")
    found = [source[n] for n in range(6)]
    assert [each.texts for each in found[:3]] == [("item 0",), ("item 1",), ("item 2",)]
    assert {each.reason for each in found[3:]} == {"corrupted"}
    if captions == "text":
        with pytest.raises(ValueError, match=r"data\.arrow is damaged in its column 'text'"):
            sources.open(f"arrow:{tmp_path}/saved?split=text")


def test_captions_that_are_no_utf_8_are_not_damage(tmp_path, toys):
    texts = pyarrow.array([b"item 0", b"\xff\xfe caf\xe9", b"item 2"]).view(pyarrow.string())
    pictures = pyarrow.array([toys.picture(n) for n in range(3)])
    saved(tmp_path / "saved", pyarrow.table({"image": pictures, "text": texts}))
    source = sources.open(f"arrow:{tmp_path}/saved").source("train")
    assert source[0].texts == ("item 0",) and source[2].texts == ("item 2",)
    assert isinstance(source[1], BadRecord) and source[1].reason == "bad_utf8"


@pytest.mark.parametrize("files", [3, [3], [[]], [{}], {"filename": "data.arrow"}])
def test_a_strange_list_of_files_names_none(tmp_path, files):
    (tmp_path / "state.json").write_text(json.dumps({"_data_files": files}))
    with pytest.raises(ValueError, match=r"state\.json names no files"):
        sources.open(f"arrow:{tmp_path}")
