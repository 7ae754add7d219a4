"""Data sets by name: directories, features of other people's data sets, mistakes."""

import dataclasses
import json
import re

import numpy as np
import pytest

from jaxclip.data import info, sources, stored
from jaxclip.data.record import BadRecord, Record, example_class, parse_example


def test_splits_records_and_shards(tmp_path, toys):
    records = toys.records(10)
    folder = toys.write_data_set(tmp_path, {"train": records, "val": records[:3]}, shards=3)
    data_set = sources.open(folder)
    assert data_set.splits == {"train": 10, "val": 3}
    source = data_set.source("train")
    in_order = [records[i] for shard in range(3) for i in range(shard, 10, 3)]
    assert source.read(range(10)) == in_order
    assert source[4] == in_order[4] and data_set.source("train") is source
    assert data_set.class_names() is None and data_set.split_classes("val") is None


def test_class_names_and_classes_of_splits(tmp_path, toys):
    folder = toys.write_data_set(
        tmp_path, {"train": toys.records(3)}, class_names=["cat", "dog", "bird"]
    )
    (folder / "split_classes.json").write_text(json.dumps({"train": [0, 2]}))
    data_set = sources.open(folder)
    assert data_set.class_names("train") == ["cat", "dog", "bird"]
    assert data_set.split_classes("train") == [0, 2]


def test_translations_stand_beside_or_in_place_of_captions(tmp_path, toys):
    import gzip

    folder = toys.write_data_set(tmp_path, {"train": toys.records(3)})
    (folder / "translations").mkdir()
    with gzip.open(folder / "translations" / "de.json.gz", "wt") as file:
        json.dump({"1": ["Ding"]}, file)
    data_set = sources.open(folder)
    record = data_set.source("train")[1]
    assert data_set.texts_of([])(record) == ("thing 1", "item 1")
    assert data_set.texts_of(["de"])(record) == ("Ding",)
    assert data_set.texts_of(["en", "de"])(record) == ("thing 1", "item 1", "Ding")
    assert data_set.texts_of(["de"])(data_set.source("train")[0]) == ()
    with pytest.raises(
        ValueError, match="no captions in language 'fr'; besides its own it has: de"
    ):
        data_set.texts_of(["fr"])


def test_a_classification_data_set_has_class_names_for_captions(tmp_path, toys):
    image = "tensorflow_datasets.core.features.image_feature.Image"
    label = "tensorflow_datasets.core.features.class_label_feature.ClassLabel"
    folder = toys.write_data_set(
        tmp_path,
        {"train": toys.records(3)},
        class_names=["cat", "dog", "bird"],
        features={"image": {"pythonClassName": image}, "label": {"pythonClassName": label}},
    )
    data_set = sources.open(folder)
    assert not data_set.has_texts
    assert [record.texts for record in data_set.source("train").read(range(3))] == [
        ("cat",), ("dog",), ("bird",),
    ]  # fmt: skip


def test_damage_is_reported_by_record(tmp_path, toys):
    folder = toys.write_data_set(tmp_path, {"train": toys.records(4)})
    (shard,) = folder.glob("*.tfrecord-*")
    shard.write_bytes(shard.read_bytes().replace(b"thing 2", b"thinG 2"))
    records = sources.open(folder).source("train").read(range(4))
    assert [isinstance(record, Record) for record in records] == [True, True, False, True]
    assert isinstance(records[2], BadRecord) and records[2].reason == "corrupted"


def test_array_record(tmp_path, toys):
    module = pytest.importorskip("array_record.python.array_record_module")
    from jaxclip.data.record import serialize_record

    records = toys.records(5)
    folder = toys.write_data_set(tmp_path, {"train": records})
    (shard,) = folder.glob("*.tfrecord-*")
    shard.unlink()
    path = folder / shard.name.replace("tfrecord", "array_record")
    writer = module.ArrayRecordWriter(str(path), "group_size:1")
    for record in records:
        writer.write(serialize_record(record))
    writer.close()
    content = json.loads((folder / "dataset_info.json").read_text())
    (folder / "dataset_info.json").write_text(json.dumps({**content, "fileFormat": "array_record"}))
    assert sources.open(folder).source("train").read([3, 0, 4]) == [records[i] for i in (3, 0, 4)]


def test_captions_in_a_sequence_of_dicts(toys, tmp_path):
    """As TFDS's coco_captions has them."""
    kind = "tensorflow_datasets.core.features."
    inner = {"text": {"pythonClassName": kind + "text_feature.Text"}, "id": {}}
    features = {
        "image": {"pythonClassName": kind + "image_feature.Image"},
        "image/filename": {"pythonClassName": kind + "text_feature.Text"},
        "captions": {
            "pythonClassName": kind + "sequence_feature.Sequence",
            "sequence": {"feature": {"featuresDict": {"features": inner}}},
        },
    }
    names = sources.field_names({"featuresDict": {"features": features}}, "coco")
    assert (names.texts, names.key) == ("captions/text", "image/filename")
    message = example_class()()
    feature = message.features.feature
    feature["image"].bytes_list.value.append(toys.picture(0))
    feature["image/filename"].bytes_list.value.append(b"0.jpg")
    feature["captions/text"].bytes_list.value.extend([b"one", b"two"])
    feature["captions/id"].int64_list.value.extend([7, 8])
    record = parse_example(message.SerializeToString(), names)
    assert (record.texts, record.key) == (("one", "two"), "0.jpg")


def test_mistakes_are_named(tmp_path, toys):
    folder = toys.write_data_set(tmp_path / "toys", {"train": toys.records(3), "none": []})
    with pytest.raises(FileNotFoundError, match=r"no such directory.*did you mean '.*/toys'"):
        sources.open(tmp_path / "toyz")
    (tmp_path / "toyz.txt").touch()  # what is no data set is not offered
    (tmp_path / "toyz2").mkdir()
    with pytest.raises(FileNotFoundError, match=r"did you mean '.*/toys'"):
        sources.open(tmp_path / "toyz")
    for name, said in (
        ("parqet:x/*", r"did you mean 'parquet:x/\*'"),
        ("emoji:train", "did you mean 'emoji'. A split is no part of the name"),
        ("gs:/bucket/x", "an address has two slashes, 'gs://bucket/x'"),
    ):
        with pytest.raises(FileNotFoundError, match=said):
            sources.open(name)
    with pytest.raises(ValueError, match=r"no split 'val'.*with --val-fraction"):
        sources.open(folder).source("val")
    with pytest.raises(FileNotFoundError, match=r"known: toys$"):
        sources.open(tmp_path / "quite_other")
    with pytest.raises(ValueError, match=r"has no dataset_info.json; did you mean .*toys'"):
        sources.open(tmp_path)
    data_set = sources.open(folder)
    with pytest.raises(
        ValueError, match=r"no split 'trian'; did you mean 'train'\? \(it has: train"
    ):
        data_set.source("trian")
    with pytest.raises(ValueError, match=r"split 'none' of data set .* is empty"):
        data_set.source("none")
    (shard,) = folder.glob("*.tfrecord-*")
    shard.rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match="lacks 1 of 1 shards"):
        sources.open(folder).source("train")
    content = json.loads((folder / "dataset_info.json").read_text())
    (folder / "dataset_info.json").write_text(json.dumps({**content, "fileFormat": "riegeli"}))
    (tmp_path / "elsewhere").rename(folder / "toy-train.riegeli-00000-of-00001")
    with pytest.raises(ValueError, match="stored as 'riegeli'"):
        sources.open(folder).source("train")
    (folder / "features.json").write_text("{")
    with pytest.raises(ValueError, match=r"features.json is damaged"):
        sources.open(folder)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ({"sound": "Audio"}, "has no image feature .*sound: Audio"),
        ({"image": "Image", "label": "Scalar"}, "neither captions nor class labels"),
        ({"image": "Image", "text": "Tensor"}, "neither captions nor class labels"),
    ],
)
def test_features_that_do_not_fit(features, message):
    content = {name: {"pythonClassName": f"x.{kind}"} for name, kind in features.items()}
    with pytest.raises(ValueError, match=message):
        sources.field_names({"featuresDict": {"features": content}}, "name")


def test_other_names_of_features():
    kinds = {"photo": "Image", "caption": "Text", "labels": "ClassLabel", "id": "Text"}
    content = {name: {"pythonClassName": f"x.{kind}"} for name, kind in kinds.items()}
    names = sources.field_names({"featuresDict": {"features": content}}, "name")
    assert (names.image, names.texts, names.label, names.key, names.meta) == (
        "photo", "caption", "labels", "id", "",
    )  # fmt: skip


def test_describe(tmp_path, toys):
    records = toys.records(4)
    records[1] = Record(b"", ("nothing to see",), key="bad")
    folder = toys.write_data_set(tmp_path, {"train": records, "none": []}, class_names=["a", "b"])
    text = info.describe(folder)
    assert "2 split(s), 2 class names" in text
    assert "4 records, 2.0 captions each, 1 of 4 looked at are unusable" in text
    assert "key0: thing 0; item 0" in text
    assert info._shown("a\n\x1b[2Jb\u202e c\x00") == "a  [2Jb  c "
    assert "none                      0 records" in text
    assert "1 of 4 looked at are unusable: 1 zero_bytes" in text


def test_describe_what_records_hold(tmp_path, toys):
    meta = [{"caption_tags": ["alt", ["made", "long"]], "boxes": []}, {"boxes": []}, {}, {}]
    texts = [("a cat", "a very long caption of a cat"), ("a cat",), ("a dog",), ("the dog there",)]
    records = [
        dataclasses.replace(r, texts=t, meta=json.dumps(m), label=i - 1)
        for i, (r, t, m) in enumerate(zip(toys.records(4), texts, meta, strict=True))
    ]
    folder = toys.write_data_set(tmp_path, {"train": records})
    stored.write_stored(folder, "train", "teacher/image", np.zeros((4, 6), np.float16))
    lines = [line.strip() for line in info.describe(folder).splitlines()]
    assert lines[2:6] == [
        "words in a caption: 2 (median), 7 (95%), 7 (longest); "
        "40% of captions occur more than once",
        "labels: 75% of records, 3 classes seen",
        "meta: boxes, caption_tags (caption_tags: alt, made, long)",
        "stored vectors: teacher/image [6] float16",
    ]


def test_describe_from_the_command_line(capsys):
    from jaxclip import cli

    assert cli.main(["data", "info", "emoji"]) == 0
    assert "1906 class names" in capsys.readouterr().out
    assert cli.main(["data", "info", "emojis"]) == 2
    assert "did you mean 'emoji'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "way"),
    [
        ("a.tar", "read in place as webdataset:"),
        ("a.parquet", "read in place as parquet:"),
        ("captions.csv", "`jaxclip data import --from "),
    ],
)
def test_a_file_is_no_folder(tmp_path, name, way):
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(ValueError, match=f"is a file, not a folder; .*{way}"):
        sources.open(tmp_path / name)


@pytest.mark.parametrize(
    ("file", "change", "told"),
    [
        ("dataset_info.json", lambda info: [], "'list' object has no attribute 'get'"),
        ("dataset_info.json", lambda info: {**info, "splits": 3}, "'int' object is not iterable"),
        ("dataset_info.json", lambda info: {**info, "splits": [{}]}, "KeyError: 'name'"),
        ("dataset_info.json", lambda info: lengths(info, ["-6"]), "a shard of -6 records"),
        ("dataset_info.json", lambda info: lengths(info, ["6x"]), "a shard of 6x records"),
        ("dataset_info.json", lambda info: lengths(info, ["9" * 30]), "a shard of 9999"),
        ("dataset_info.json", lambda info: template(info, "{FIDEFORMAT}"), "'FIDEFORMAT'"),
        ("dataset_info.json", lambda info: template(info, "{SPLIT"), "no name of a file: {SPLIT"),
        ("features.json", lambda features: 7, "'int' object has no attribute 'get'"),
        ("features.json", lambda features: {"featuresDict": []}, "has no attribute 'get'"),
    ],
)
def test_damaged_metadata_are_told_in_one_line(tmp_path, toys, file, change, told):
    toys.write_data_set(tmp_path, {"train": toys.records(6)})
    content = json.loads((tmp_path / file).read_text())
    (tmp_path / file).write_text(json.dumps(change(content)))
    with pytest.raises(ValueError, match=rf"{file} is damaged: [^\n]*{re.escape(told)}"):
        sources.open(tmp_path).source("train")


def lengths(info, given):
    return {**info, "splits": [{**info["splits"][0], "shardLengths": given}]}


def template(info, given):
    return {**info, "splits": [{**info["splits"][0], "filepathTemplate": given}]}


def feature(kind):
    module = {"Sequence": "sequence_feature", "FeaturesDict": "features_dict"}.get(kind, "x")
    return {"pythonClassName": f"tensorflow_datasets.core.features.{module}.{kind}"}


def many(inner):
    return {**feature("Sequence"), "sequence": {"feature": inner}}


def members(**inner):
    return {**feature("FeaturesDict"), "featuresDict": {"features": inner}}


def bare(dtype, shape=()):
    return {**feature("Tensor"), "tensor": {"dtype": dtype, "shape": dict(shape)}}


IMAGE, TEXT, CLASS = feature("Image"), feature("Text"), feature("ClassLabel")
FEATURES = {
    "letter case": ({"image": IMAGE, "TEXT": TEXT}, "image", "TEXT", ""),
    "another usual name": ({"image": IMAGE, "description": TEXT}, "image", "description", ""),
    "sentences": ({"image": IMAGE, "sentences": many(TEXT)}, "image", "sentences", ""),
    "members": ({"data": members(image=IMAGE, caption=TEXT)}, "data/image", "data/caption", ""),
    "objects": ({"image": IMAGE, "captions": many(members(text=TEXT, id=feature("Scalar")))},
                "image", "captions/text", ""),
    "lists of lists": ({"image": IMAGE, "captions": many(many(TEXT))},
                       "image", "captions/ragged_flat_values", ""),
    "a list of pictures": ({"images": many(IMAGE), "text": TEXT}, "images", "text", ""),
    "one of two pictures": ({"depth": IMAGE, "image": IMAGE, "text": TEXT}, "image", "text", ""),
    "bare types": ({"image": IMAGE, "caption": bare("string"), "label": bare("int64")},
                   "image", "caption", "label"),
    "lists of a bare type": ({"image": IMAGE, "captions": many(members(text=bare("string")))},
                             "image", "captions/text", ""),
    "no bare types": ({"image": IMAGE, "text": TEXT, "label": bare("float32"),
                       "title": bare("string", {"dimensions": ["2"]})}, "image", "text", ""),
    "translations": ({"image": IMAGE, "caption": {**feature("Translation"),
                                                  "translation": {"languages": ["de", "en"]}}},
                     "image", "caption/en", ""),
    "another class": ({"image": IMAGE, "fine_label": CLASS}, "image", "", "fine_label"),
    "a class and a title": ({"image": IMAGE, "label": CLASS, "title": TEXT}, "image", "", "label"),
    "texts of parts": ({"image": IMAGE, "label": CLASS, "objects": many(members(name=TEXT))},
                       "image", "", "label"),
}  # fmt: skip


@pytest.mark.parametrize("kind", FEATURES)
def test_features_of_tfds_data_sets(kind):
    content, *expected = FEATURES[kind]
    names = sources.field_names(members(**content), "name")
    assert [names.image, names.texts, names.label] == expected


def test_features_that_must_be_named():
    content = members(data=members(photo=IMAGE, words=TEXT))
    with pytest.raises(ValueError, match=r"neither captions.*tfds:DIR\?image=NAME&texts=NAME"):
        sources.field_names(content, "name")
    names = sources.field_names(content, "name", {"texts": "data/words"})
    assert (names.image, names.texts) == ("data/photo", "data/words")
    with pytest.raises(ValueError, match="has no feature 'data/word'; did you mean 'data/words'"):
        sources.field_names(content, "name", {"texts": "data/word"})


def test_nested_features_and_other_formats_on_disk(tmp_path, toys):
    """The names in a record are those of features.json with slashes."""
    folder = toys.write_data_set(tmp_path / "toys", {"train": toys.records(1)}, features={
        "image": IMAGE, "texts": many(TEXT), "label": feature("Scalar"),
    })  # fmt: skip
    assert sources.open(folder).source("train")[0].texts == ("thing 0", "item 0")
    info = json.loads((folder / "dataset_info.json").read_text())
    for change, said in (
        ({"fileFormat": "riegeli"}, "is stored as 'riegeli'; jaxclip reads 'tfrecord' and"),
        ({"splits": [{"name": "train", "statistics": {"numExamples": "1"}}]},
         "does not say how many records each shard of split 'train' has"),
    ):  # fmt: skip
        (folder / "dataset_info.json").write_text(json.dumps({**info, **change}))
        with pytest.raises(ValueError, match=said):
            sources.open(folder)
