"""Imports of sources as people have them: other delimiters, names, layouts and labels."""

import csv
import io
import json

import numpy as np
import pytest
from PIL import Image

from jaxclip.data import sources
from jaxclip.data.importer import Options, import_records, output_folder

pytest.importorskip("tensorflow_datasets")


@pytest.fixture
def run(tmp_path):
    """Imports and returns the summary and the records of each split."""

    def run(source, **options):
        summary = import_records(source, tmp_path / "out", Options(**options), overwrite=True)
        data_set = sources.open(tmp_path / "out")
        found = {
            split: data_set.source(split).read(range(n)) for split, n in summary.splits.items()
        }
        return summary, found

    return run


def write_rows(path, rows, delimiter):
    with open(path, "w", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)


@pytest.mark.parametrize("delimiter", [",", "\t", ";", "|"])
@pytest.mark.parametrize("name", ["captions.csv", "captions.tsv"])
def test_the_delimiter_is_found(tmp_path, toys, run, delimiter, name):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(toys.picture(0))
    rows = [["FilePath", "Title", "lang"], ["a.png", "a cat, or; a | dog", "en"]]
    write_rows(tmp_path / "in" / name, rows, delimiter)
    _, found = run(tmp_path / "in")
    assert found["train"][0].texts == ("a cat, or; a | dog",)
    assert json.loads(found["train"][0].meta) == {"lang": "en"}


def test_columns_by_option(tmp_path, toys, run):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(toys.picture(0))
    rows = [["where", "says", "text"], ["a.png", "this", "not this"]]
    write_rows(tmp_path / "in" / "captions.csv", rows, ";")
    with pytest.raises(ValueError, match=r"no column with the image file; .*--image-column"):
        run(tmp_path / "in")
    with pytest.raises(ValueError, match=r"no column 'wher' \(--image-column\); did you mean 'w"):
        run(tmp_path / "in", image_column="wher")
    _, found = run(tmp_path / "in", image_column="where", text_column="Says")
    assert found["train"][0].texts == ("this",)
    (tmp_path / "in" / "captions.csv").unlink()
    line = {"where": "a.png", "says": ["this", "that"], "text": "not this"}
    (tmp_path / "in" / "metadata.jsonl").write_text(json.dumps(line))
    _, found = run(tmp_path / "in", image_column="where", text_column="says")
    assert found["train"][0].texts == ("this", "that")


@pytest.mark.parametrize("name", ["txt", "TEXT", "Prompt", "alt_text"])
def test_usual_names_of_captions(tmp_path, toys, run, name):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"JPG": [toys.picture(0)], name: ["a cat"]}), path)
    _, found = run(path)
    assert found["train"][0].texts == ("a cat",)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(toys.picture(0))
    line = {"File_Name": "a.png", "text": None, "caption": " ", name: "a cat"}
    (tmp_path / "in" / "metadata.jsonl").write_text(json.dumps(line))
    _, found = run(tmp_path / "in")
    assert found["train"][0].texts == ("a cat",)


def test_columns_of_parquet_by_option(tmp_path, toys, run):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"x": [toys.picture(0)], "y": ["a cat"]}), path)
    with pytest.raises(ValueError, match=r"no column with captions .*y: string.*--text-column"):
        run(path)
    with pytest.raises(ValueError, match=r"has no column 'yy' \(--text-column\)"):
        run(path, text_column="yy")
    _, found = run(path, image_column="x", text_column="y")
    assert found["train"][0].texts == ("a cat",)


def test_what_fields_of_a_batch_want_is_kept(tmp_path, toys, run):
    """Tags stay those of their captions, whichever of these are left out."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(toys.picture(0))
    meta = {"hard_negatives": ["a dog"], "boxes": [[0, 0, 0.5, 1]], "teacher": [0.5, 1.5]}
    captions = ["a  cat", " ", "a cat", "un chat"]
    line = {
        "file": "a.png",
        "captions": captions,
        "caption_tags": ["alt", "x", "y", ["fr"]],
        **meta,
    }
    (tmp_path / "in" / "metadata.jsonl").write_text(json.dumps(line))
    _, found = run(tmp_path / "in")
    assert found["train"][0].texts == ("a cat", "un chat")
    assert json.loads(found["train"][0].meta) == {**meta, "caption_tags": ["alt", ["fr"]]}


# --- tars ---------------------------------------------------------------------------------------


def test_torn_and_dotted_tars_name_the_way_out(tmp_path, toys, run):
    files = [(f"{i}.{end}", toys.picture(i)) for end in ("png", "txt") for i in range(3)]
    toys.make_tar(tmp_path / "a.tar", files)
    with pytest.raises(ValueError, match=r"not side by side .*'0'.*`tar --sort=name`"):
        run(tmp_path / "a.tar")
    # Nothing is left that a second try would have to be told to replace.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar"]
    toys.make_tar(tmp_path / "a.tar", [(f"img_1.{name}", data) for name, data in files])
    with pytest.raises(ValueError, match=r"first dot, so img_1.0.png is file '0.png' of sample"):
        run(tmp_path / "a.tar")


def test_a_sample_that_is_there_twice_is_not_torn(tmp_path, toys, run):
    pair = [("a.png", toys.picture(0)), ("a.txt", b"one")]
    lonely = [("b.png", toys.picture(1)), ("c.txt", b"three")]
    toys.make_tar(tmp_path / "a.tar", [*pair, *lonely, *pair])
    summary, _ = run(tmp_path / "a.tar")
    assert summary.splits == {"train": 1}
    assert summary.skipped == {"empty_caption": 1, "missing_image": 1, "duplicate_key": 1}


def test_captions_of_the_json_where_the_text_is_empty(tmp_path, toys, run):
    values = [{"text": None, "caption": "a cat"}, {"texts": [], "title": "a cat"}]
    files = [
        (f"{i}.{end}", data)
        for i, value in enumerate(values)
        for end, data in (
            ("png", toys.picture(i)), ("txt", b" \n"), ("json", json.dumps(value).encode()),
        )
    ]  # fmt: skip
    toys.make_tar(tmp_path / "a.tar", files)
    _, found = run(tmp_path / "a.tar")
    in_place = sources.open(f"webdataset:{tmp_path}/a.tar").source("train").read(range(2))
    assert [r.texts for r in found["train"]] == [r.texts for r in in_place] == [("a cat",)] * 2


def test_classes_without_captions(tmp_path, toys, run):
    files = [
        (f"{i}.{e}", d) for i in range(3) for e, d in (("png", toys.picture(i)), ("cls", b"2"))
    ]
    toys.make_tar(tmp_path / "a.tar", files)
    summary, found = run(tmp_path / "a.tar")
    assert summary.captions == 0 and [r.label for r in found["train"]] == [2] * 3
    assert all(record.texts == () for record in found["train"])


def test_a_shard_that_is_missing(tmp_path, toys, run):
    (tmp_path / "in").mkdir()
    toys.make_tar(tmp_path / "in" / "0.tar", [("a.png", toys.picture(0)), ("a.txt", b"one")])
    (tmp_path / "in" / "sizes.json").write_text('{"0.tar": 1, "1.tar": 1}')
    with pytest.raises(FileNotFoundError, match=r"1.tar is not there, but sizes.json names it"):
        run(tmp_path / "in")
    assert run(tmp_path / "in" / "*.tar")[0].splits == {"train": 1}


def test_a_folder_as_img2dataset_leaves_it(tmp_path, toys, run):
    (tmp_path / "in").mkdir()
    for i in range(2):
        values = json.dumps({"caption": f"cat {i}", "url": "u", "status": "success", "key": "0"})
        files = [("0.jpg", toys.picture(i)), ("0.txt", b"cat"), ("0.json", values.encode())]
        files = [(f"{i:05d}{name}", data) for name, data in files]
        toys.make_tar(tmp_path / "in" / f"{i:05d}.tar", files)
        (tmp_path / "in" / f"{i:05d}.parquet").write_bytes(b"not even looked at")
        (tmp_path / "in" / f"{i:05d}_stats.json").write_text('{"successes": 1}')
    summary, found = run(tmp_path / "in")
    assert summary.splits == {"train": 2} and not summary.skipped
    assert json.loads(found["train"][1].meta) == {"url": "u", "status": "success"}
    in_place = sources.open(f"webdataset:{tmp_path}/in").source("train").read(range(2))
    assert [r.texts for r in in_place] == [r.texts for r in found["train"]] == [("cat",)] * 2


# --- folders ------------------------------------------------------------------------------------


@pytest.mark.parametrize("above", [True, False])
def test_given_splits_are_kept(tmp_path, toys, run, above):
    lines = {"train": [], "test": []}
    for split, i in (("train", 0), ("train", 1), ("test", 0)):
        (tmp_path / "in" / split).mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / split / f"{i}.png").write_bytes(toys.picture(i))
        file = f"{split}/{i}.png" if above else f"{i}.png"
        lines[split].append(json.dumps({"file_name": file, "text": f"{split} {i}"}))
    if above:
        (tmp_path / "in" / "metadata.jsonl").write_text(
            "\n".join([*lines["train"], *lines["test"]])
        )
    for split in () if above else lines:
        (tmp_path / "in" / split / "metadata.jsonl").write_text("\n".join(lines[split]))
    summary, found = run(tmp_path / "in")
    assert summary.splits == {"train": 2, "test": 1} and not summary.skipped
    assert [r.texts[0] for r in found["train"]] == ["train 0", "train 1"]
    assert found["test"][0].key == "test/0.png" and found["test"][0].texts == ("test 0",)


@pytest.mark.parametrize("splits", [("",), ("train/", "val/")])
def test_folders_that_are_classes(tmp_path, toys, run, splits):
    for split in splits:
        for i, name in enumerate(["cats", "big dogs", "cats"]):
            (tmp_path / "in" / f"{split}{name}").mkdir(parents=True, exist_ok=True)
            (tmp_path / "in" / f"{split}{name}" / f"{i}.png").write_bytes(toys.picture(i))
    summary, found = run(tmp_path / "in")
    assert summary.splits == dict.fromkeys([s.strip("/") or "train" for s in splits], 3)
    names = sources.open(tmp_path / "out").class_names()
    assert sorted(names) == ["big dogs", "cats"]
    for records in found.values():
        assert [names[r.label] for r in records] == ["big dogs", "cats", "cats"]
        assert [r.texts for r in records] == [(names[r.label],) for r in records]


def test_captions_beside_pictures_in_folders_are_no_classes(tmp_path, toys, run):
    for name in ("a", "b"):
        (tmp_path / "in" / name).mkdir(parents=True)
        (tmp_path / "in" / name / "0.png").write_bytes(toys.picture(0))
    (tmp_path / "in" / "b" / "0.txt").write_text("a cat")
    summary, found = run(tmp_path / "in")
    assert summary.skipped == {"empty_caption": 1} and found["train"][0].label == -1


def test_classes_of_hugging_face_parquet(tmp_path, toys, run):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    images = [{"bytes": toys.picture(i), "path": f"{i}.png"} for i in range(3)]
    features = {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}
    table = pa.table({"image": images, "label": [1, 0, 1]}).replace_schema_metadata(
        {"huggingface": json.dumps({"info": {"features": features}})}
    )
    pq.write_table(table, tmp_path / "a.parquet")
    _, found = run(tmp_path / "a.parquet")
    assert [record.texts for record in found["train"]] == [("dog",), ("cat",), ("dog",)]


def test_links_to_folders_are_followed(tmp_path, toys, run):
    for folder, name in (("in", "a"), ("real", "b")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"{name}.png").write_bytes(toys.picture(ord(name)))
        (tmp_path / folder / f"{name}.txt").write_text(name)
    (tmp_path / "in" / "link").symlink_to(tmp_path / "real")
    (tmp_path / "in" / "circle").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "nowhere").symlink_to(tmp_path / "gone")
    _, found = run(tmp_path / "in")
    assert [record.key for record in found["train"]] == ["a.png", "link/b.png"]


def test_a_jpeg_with_a_second_picture_stays_as_it_is(tmp_path, run):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 24, 32, 3), np.uint8)
    first, second = (Image.fromarray(each) for each in pixels)
    buffer = io.BytesIO()
    first.save(buffer, format="MPO", save_all=True, append_images=[second])
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jpg").write_bytes(buffer.getvalue())
    (tmp_path / "in" / "a.txt").write_text("two frames")
    _, found = run(tmp_path / "in")
    assert found["train"][0].image == buffer.getvalue()


def test_an_import_from_before_there_were_more_options(tmp_path, toys):
    source, out = toys.photo_folder(tmp_path / "in"), tmp_path / "out"
    import_records(source, out)
    content = json.loads((out / output_folder.SUMMARY_FILE).read_text())
    for name in ("image_column", "text_column"):
        del content["request"][name]
    (out / output_folder.SUMMARY_FILE).write_text(json.dumps(content))
    assert import_records(source, out).was_done
