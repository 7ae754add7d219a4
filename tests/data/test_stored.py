"""Vectors kept with records: beside the data set or in the records."""

import dataclasses
import json

import numpy as np
import pytest

from jaxclip import fields
from jaxclip.data import pipeline, stored


@pytest.fixture
def folder(toys, tmp_path):
    return toys.write_data_set(tmp_path / "d", {"train": toys.records(12), "val": toys.records(5)})


def batch(folder, tokenize, spec, **options):
    pytest.importorskip("tensorflow")
    config = {"name": str(folder), "image_size": 8, **options}
    spec = {**spec, "index": fields.Index()}
    iterator = pipeline.train_iterator(
        config, tokenizer=tokenize, global_batch_size=12, seed=0, spec=spec
    )
    try:
        return next(iterator), iterator.stats()["records"]
    finally:
        iterator.close()


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_vectors_beside_the_data_set(folder, tokenize, dtype):
    vectors = np.random.default_rng(0).normal(size=(12, 6)).astype(dtype)
    path = pipeline.write_stored(folder, "train", "teacher/image", vectors)
    assert path.parent == folder / "embeddings"
    other = pipeline.write_stored(folder, "train", "teacher_image", 2 * vectors)
    pipeline.write_stored(folder, "val", "teacher/image", vectors[:5])
    assert path != other
    spec = {"teacher/image": fields.Stored("teacher/image", 6)}
    made, bad = batch(folder, tokenize, spec)
    assert made["teacher/image"].dtype == np.float32 and not bad
    np.testing.assert_array_equal(made["teacher/image"], vectors[made["index"]].astype(np.float32))
    # Written again, it is the new one.
    pipeline.write_stored(folder, "train", "teacher/image", -vectors)
    made, _ = batch(folder, tokenize, spec)
    np.testing.assert_array_equal(made["teacher/image"], -vectors[made["index"]].astype(np.float32))


def test_a_vector_that_is_not_finite_is_replaced(folder, tokenize):
    vectors = np.ones((12, 3), np.float32)
    vectors[4, 1], vectors[9, 0] = np.nan, np.inf
    pipeline.write_stored(folder, "train", "t", vectors)
    made, bad = batch(folder, tokenize, {"t": fields.Stored("t", 3)})
    assert bad == {"bad_vector": 2} and not {4, 9} & set(made["index"])
    assert np.isfinite(made["t"]).all()


def test_vectors_in_the_records(toys, tmp_path, tokenize):
    records = [
        dataclasses.replace(record, meta=json.dumps({"t": [i, 0.5, -i]}))
        for i, record in enumerate(toys.records(12))
    ]
    wrong = [{}, {"t": [1.0]}, {"t": [1.0, None, 2.0]}, {"t": "no"}, {"t": [1, 2, float("nan")]}]
    for i, meta in enumerate(wrong):
        records[i] = dataclasses.replace(records[i], meta=json.dumps(meta))
    records[5] = dataclasses.replace(records[5], meta="no JSON")
    folder = toys.write_data_set(tmp_path / "m", {"train": records})
    made, bad = batch(folder, tokenize, {"t": fields.Stored("t", 3)})
    assert bad == {"bad_vector": 6}
    index = made["index"].astype(np.float32)
    np.testing.assert_array_equal(made["t"], np.stack([index, 0 * index + 0.5, -index], 1))


@pytest.mark.parametrize(
    ("field", "message"),
    [
        (fields.Stored("t", 4), r"holds \[12, 3\], \[12, 4\] is asked for"),
        (fields.Stored("tt", 3), "no stored vector 'tt' of size 3.*did you mean 't'"),
        (fields.Stored("t", 0), "size=0 must be at least 1"),
    ],
)
def test_what_the_data_set_has_not(folder, field, message):
    pipeline.write_stored(folder, "train", "t", np.zeros((12, 3), np.float32))
    spec = {**fields.PAIR, "teacher": field}
    with pytest.raises(ValueError, match=message) as error:
        pipeline.check_spec({"name": str(folder)}, spec, owners={"teacher": "objective 'x'"})
    assert "batch['teacher'], which objective 'x' wants" in str(error.value)


def test_vectors_of_a_data_set_that_changed(folder, toys):
    pipeline.write_stored(folder, "train", "t", np.zeros((12, 3), np.float32))
    toys.write_data_set(folder, {"train": toys.records(12), "val": []})
    with pytest.raises(ValueError, match="was made for other records"):
        pipeline.check_spec({"name": str(folder)}, {"t": fields.Stored("t", 3)})


def test_damaged_files(folder):
    path = pipeline.write_stored(folder, "train", "t", np.zeros((12, 3), np.float32))
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ValueError, match=r"can't be read"):
        pipeline.check_spec({"name": str(folder)}, {"t": fields.Stored("t", 3)})
    (folder / "embeddings" / "index.json").write_text("[")
    with pytest.raises(ValueError, match=r"index.json is damaged"):
        stored.read_index(folder)


def test_writing_refuses_what_does_not_fit(folder):
    good = np.zeros((12, 3), np.float32)
    for split, array, message in [
        ("trian", good, "did you mean 'train'"),
        ("train", good[:11], r"they must be \[12, size\]"),
        ("train", good[0], r"they must be \[12, size\]"),
        ("train", good.astype(np.float64), "must be float16 or float32"),
    ]:
        with pytest.raises(ValueError, match=message):
            pipeline.write_stored(folder, split, "t", array)
    assert not (folder / "embeddings").exists()


def test_a_record_without_a_vector_that_need_not_have_one(toys, tmp_path, tokenize):
    records = toys.records(12)
    metas = [{"t": [1.0, 2.0]}, {}, {"t": [1.0]}] + [{"t": [3.0, 4.0]}] * 9
    records = [
        dataclasses.replace(record, meta=json.dumps(meta))
        for record, meta in zip(records, metas, strict=True)
    ]
    folder = toys.write_data_set(tmp_path / "m", {"train": records})
    made, bad = batch(folder, tokenize, {"t": fields.Stored("t", 2, required=False)})
    assert bad == {"bad_vector": 1}
    expected = {0: [1.0, 2.0], 1: [0.0, 0.0]}
    for index, vector in zip(made["index"].tolist(), made["t"].tolist(), strict=True):
        assert vector == expected.get(index, [3.0, 4.0])


def test_vectors_in_place_of_captions(folder, tokenize):
    vectors = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)
    pipeline.write_stored(folder, "train", "t", vectors)
    made, bad = batch(folder, tokenize, {"text": fields.Stored("t", 3)})
    assert not bad and set(made) == {"text", "index"}
    np.testing.assert_array_equal(made["text"], vectors[made["index"]])
