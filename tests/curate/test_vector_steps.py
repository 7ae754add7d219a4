"""Scores, clusters, semantic duplicates and pruning by vectors, against closed forms."""

import json
import types

import numpy as np
import pytest

from jaxclip.curate import curate, kmeans, numbers, vectors
from jaxclip.curate.rows import Ragged, Rows
from jaxclip.curate.steps import (
    clip_score,
    cluster_labels,
    decontaminate,
    embeddings,
    fuse,
    prompt_score,
    prune_clusters,
    semantic_duplicates,
)


def write_folder(folder, ids, array, shard=50):
    """Vectors as `jaxclip embed` leaves them."""
    folder.mkdir()
    for number, start in enumerate(range(0, len(ids), shard)):
        np.save(folder / f"embeddings_{number:05d}.npy", array[start : start + shard])
        lines = "".join(json.dumps({"id": i}) + "\n" for i in ids[start : start + shard])
        (folder / f"ids_{number:05d}.jsonl").write_text(lines)
    return str(folder)


def sphere(rng, n, d=16):
    return vectors.unit(rng.normal(size=(n, d)))


@pytest.fixture(scope="module")
def pool(pools, tmp_path_factory):
    """120 records around 4 centres; records 100 to 119 are those of 0 to 19 again, nearly."""
    folder, rng = tmp_path_factory.mktemp("vectors"), np.random.default_rng(0)
    centres = sphere(rng, 4)
    points = vectors.unit(centres[np.arange(120) % 4] + 0.05 * rng.normal(size=(120, 16)))
    points[100:] = vectors.unit(points[:20] + 1e-3 * rng.normal(size=(20, 16)))
    source = pools.write(folder / "pool.parquet", pools.rows(120))
    order = rng.permutation(120)
    embedded = write_folder(folder / "emb", [f"key{i}" for i in order], points[order])
    return types.SimpleNamespace(source=source, folder=embedded, points=points)


def test_vectors_are_joined_by_key(pool, pools, tmp_path):
    found, there = vectors.look_up(pool.folder, [[f"key{i}" for i in (5, 700, 3)]])
    np.testing.assert_array_equal(there, [True, False, True])
    np.testing.assert_allclose(found[[0, 2]], pool.points[[5, 3]], atol=1e-6)
    # Ids may begin with the split.
    other = write_folder(tmp_path / "b", ["train/key1", "train/key0"], pool.points[[1, 0]])
    step = embeddings.Embeddings(folder=other, texts="none")
    rows = Rows.of(keys=["key0", "key1", "key2"])
    joined = step.join("", "train", rows)
    assert joined["_state"].tolist() == [0, 0, 1]
    np.testing.assert_allclose(joined["image"][:2], pool.points[:2], atol=1e-3)
    twice = write_folder(tmp_path / "c", ["a", "a"], pool.points[:2])
    with pytest.raises(ValueError, match="there twice"):
        vectors.look_up(twice, [["a"]])


def test_clusters_duplicates_and_quotas_of_a_whole_run(pool, pools, tmp_path):
    steps = [
        {"name": "embeddings", "folder": pool.folder, "texts": "none"},
        {"name": "cluster", "k": 4, "sample": 100},
        {"name": "semantic_duplicates", "eps": 1e-3},
        {"name": "prune_clusters", "share": 0.5},
    ]
    config = {"source": pool.source, "steps": steps, "shard_size": 50}
    outcome = curate(config, tmp_path / "run")
    report = {step["step"][3:]: step for step in outcome.report["steps"]}
    # Of each doubled record exactly one stays, and what is kept is the exact share.
    assert report["semantic_duplicates"]["out"] == 100
    dropped = pools.table(tmp_path / "run", "dropped")
    gone = {int(row["key"][3:]) for row in dropped if row["reason"] == "semantic_duplicate"}
    assert {i % 100 for i in gone} == set(range(20))
    assert outcome.kept == 50
    kept = pools.table(tmp_path / "run", "kept")
    assert {"cluster", "centroid_distance", "max_similarity"} <= set(kept[0])
    # The clusters are the four that the points were made of.
    made = {(int(row["key"][3:]) % 4, row["cluster"]) for row in kept}
    assert len(made) == 4
    # In each cluster the farthest stay.
    pruned = {int(row["key"][3:]) for row in dropped if row["reason"] == "beyond_quota"}
    distance = 1 - (pool.points * vectors.unit(
        np.stack([pool.points[[i for i in range(100) if i % 4 == c]].sum(0) for c in range(4)])
    )[np.arange(120) % 4]).sum(1)  # fmt: skip
    for c in range(4):
        left = [distance[int(r["key"][3:])] for r in kept if int(r["key"][3:]) % 4 == c]
        out = [distance[i] for i in pruned if i % 4 == c]
        assert len(left) >= 6 and min(left) > max(out) - 5e-3
    again = curate({**config, "shard_size": 13}, tmp_path / "again")
    assert again.kept == 50
    assert {row["key"] for row in pools.table(tmp_path / "again", "kept")} == {
        row["key"] for row in kept
    }


def test_quotas_of_the_paper():
    sizes = np.array([100, 50, 30])
    found = prune_clusters.quotas(sizes, np.array([0.2, 0.3, 0.5]), 90)
    np.testing.assert_allclose(found, [25.5, 34.5, 30], atol=1e-6)
    assert prune_clusters.whole(found, 90).tolist() in ([26, 34, 30], [25, 35, 30])
    equal = prune_clusters.quotas(np.array([50, 50, 50]), np.full(3, 1 / 3), 90)
    np.testing.assert_allclose(equal, [30, 30, 30], atol=1e-6)
    assert (
        prune_clusters.whole(prune_clusters.quotas(sizes, np.full(3, 1 / 3), 180), 180).sum() == 180
    )
    # It is the solution of the quadratic programme: no feasible exchange makes it better.
    rng = np.random.default_rng(0)
    for _ in range(20):
        sizes = rng.integers(5, 100, 6)
        p, n = rng.dirichlet(np.ones(6)), int(rng.integers(30, sizes.sum()))
        x = prune_clusters.quotas(sizes, p, n)
        lower = np.minimum(0.5 * n / 6, sizes - 1)
        assert abs(x.sum() - n) < 1e-6 and (x >= lower - 1e-9).all() and (x <= sizes + 1e-9).all()
        slope = x - p * n
        for i in range(6):
            for j in range(6):
                if x[i] < sizes[i] - 1e-6 and x[j] > lower[j] + 1e-6:
                    assert slope[i] >= slope[j] - 1e-6


def test_complexity_and_its_softmax():
    d = np.array([0.1, 0.12, 0.24])
    np.testing.assert_allclose(prune_clusters.softmax(d / 0.5), [0.2973, 0.3094, 0.3933], atol=1e-4)
    np.testing.assert_allclose(prune_clusters.softmax(d / 0.1), [0.1593, 0.1946, 0.6461], atol=1e-4)
    np.testing.assert_allclose(prune_clusters.softmax(d / 1e6), np.full(3, 1 / 3), atol=1e-6)
    centroids = np.array([[1, 0], [0, 1], [-1, 0]], np.float32)
    found = prune_clusters.complexity(np.array([0.1, np.nan, 0.3]), centroids, 1)
    np.testing.assert_allclose(found, [0.1, 0.2, 0.3])
    np.testing.assert_allclose(
        prune_clusters.complexity(np.array([0.1, 0.1, 0.1]), centroids, 20), [0.15, 0.1, 0.15]
    )


def test_who_goes_in_a_chain():
    # Cosines 12 = .96, 23 = .96, 13 about .85.
    angles = np.array([0, np.arccos(0.96), 2 * np.arccos(0.96)])
    points = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    most, drop = semantic_duplicates.compare(points, 0.05, greedy=False)
    np.testing.assert_allclose(most, [-1, 0.96, 0.96], atol=1e-5)
    assert drop.tolist() == [False, True, True]
    most, drop = semantic_duplicates.compare(points, 0.05, greedy=True)
    assert drop.tolist() == [False, True, False]
    np.testing.assert_allclose(most[2], 2 * 0.96**2 - 1, atol=1e-5)


@pytest.mark.parametrize("greedy", [False, True])
def test_tiles_are_those_of_the_plain_rule(monkeypatch, greedy):
    rng = np.random.default_rng(1)
    points = vectors.unit(
        sphere(rng, 5, 3)[rng.integers(0, 5, 40)] + 0.1 * rng.normal(size=(40, 3))
    )
    drop = np.zeros(40, bool)
    for j in range(40):
        before = [i for i in range(j) if not (greedy and drop[i])]
        drop[j] = max((points[i] @ points[j] for i in before), default=-1) > 0.97
    monkeypatch.setattr(semantic_duplicates, "_TILE", 7)
    np.testing.assert_array_equal(semantic_duplicates.compare(points, 0.03, greedy)[1], drop)
    assert 5 < drop.sum() < 39


def test_a_large_cluster_is_split_without_the_accelerator(monkeypatch):
    # Workers compare: they must not take a device that is another process's.
    monkeypatch.setattr(kmeans, "_nearest", lambda: pytest.fail("a worker asks for JAX's device"))
    rng = np.random.default_rng(3)
    points = vectors.unit(sphere(rng, 4)[rng.integers(0, 4, 90)] + 0.02 * rng.normal(size=(90, 16)))
    step = semantic_duplicates.SemanticDuplicates(largest=60)
    parts = step._split(points)
    assert len(parts) > 1 and sorted(np.concatenate(parts)) == list(range(90))
    said = {"index": np.arange(90), "hash": np.arange(90, dtype=np.uint64),
            "distance": np.zeros(90, np.float32), "vector": points}  # fmt: skip
    found = step.settle(np.array([0], np.uint64), np.array([0, 90]), said)
    for part in parts:
        most, drop = semantic_duplicates.compare(points[part], step.eps, greedy=False)
        np.testing.assert_allclose(found["max_similarity"][part], most, atol=1e-6)
        np.testing.assert_array_equal(found["_is_near"][part], drop)


def test_kmeans_finds_clusters_and_leaves_none_empty():
    rng = np.random.default_rng(2)
    centres = sphere(rng, 6, 8)
    points = vectors.unit(centres[rng.integers(0, 6, 300)] + 0.05 * rng.normal(size=(300, 8)))
    found = kmeans.fit(points, 6, seed=3)
    assert (found @ centres.T).max(axis=0).min() > 0.99
    np.testing.assert_array_equal(found, kmeans.fit(points, 6, seed=3))
    many = kmeans.fit(points, 40, seed=0)
    cluster, cosine = kmeans.assign(points, many)
    on_device = kmeans.assign_on_device(points, many)
    np.testing.assert_allclose(on_device[1], cosine, atol=1e-6)
    assert (on_device[0] == cluster).mean() > 0.98
    assert len(np.unique(cluster)) >= 39
    best = (points @ many.T).max(axis=1)
    np.testing.assert_allclose(cosine, best, atol=1e-6)
    same = np.repeat(points[:1], 9, axis=0)
    assert np.isfinite(kmeans.fit(same, 3)).all()
    with pytest.raises(ValueError, match="k=10 centroids need"):
        kmeans.fit(same, 10)


def test_scores_of_several_captions():
    image = np.array([[1, 0], [0, 1], [1, 0]], np.float16)
    text = Ragged(np.array([0, 0, 1]), np.array([[0.6, 0.8], [1, 0], [0, 0]], np.float16))
    rows = Rows.of(keys=list("abc"), texts=[("x", "y"), ("12",), ()], image=image, text=text)
    for how, expected in (("max", 1), ("mean", 0.8), ("first", 0.6)):
        found = clip_score.ClipScore(reduce=how).verdict(rows)
        # A caption of which nothing is left has the lowest score; so has a record without one.
        np.testing.assert_allclose(found["clip_score"], [expected, -1, -1], atol=1e-3)
        assert found["reason"].tolist() == [0, 0, 0]
    found = clip_score.ClipScore(min_caption=0.7).verdict(rows)
    assert found["reason"].tolist() == [0, 1, 0]
    assert found["captions"].row.tolist() == [0] and found["captions"].value.tolist() == [1]


def test_numbers_go_and_nothing_else():
    assert numbers.without_numbers("IMG_2041.JPG") == "IMG_.JPG"
    assert numbers.without_numbers("route 66 at 5 ٣", "mask") == "route # at # #"
    assert numbers.without_numbers("2041") == "" and numbers.without_numbers("a dog") == "a dog"


def test_text_in_pictures_is_painted_over():
    pixels = np.full((20, 40, 3), 90, np.uint8)
    pixels[5:10, 10:20] = 255
    filled = numbers.fill_boxes(pixels, numbers.boxes_of({"b": [[0.25, 0.25, 0.5, 0.5]]}, "b"))
    np.testing.assert_array_equal(filled, np.full((20, 40, 3), 90))
    assert numbers.fill_boxes(pixels, []) is pixels
    polygon = numbers.boxes_of({"b": [[[0.2, 0.1], [0.4, 0.3], [0.3, 0.5]], "x", [1, 2]]}, "b")
    np.testing.assert_allclose(polygon, [[0.2, 0.1, 0.4, 0.5]])
    everything = numbers.fill_boxes(pixels, [[0, 0, 1, 1]])
    assert len(np.unique(everything.reshape(-1, 3), axis=0)) == 1


class Model:
    """Stands for a CLIP: a picture is its bytes' mean colour, a text a vector by its length."""

    sizes = types.SimpleNamespace(embed_dim=4)

    def prepare(self, data):
        from jaxclip.data import decode
        from jaxclip.data.record import BadRecord

        image = decode.decode(data)
        return image if isinstance(image, BadRecord) else np.asarray(image).mean(axis=(0, 1))

    def batch(self, prepared, rows):
        return np.concatenate([np.array(prepared), np.zeros((rows - len(prepared), 3))])

    def encode_image(self, batch):
        return vectors.unit(np.concatenate([batch, np.ones((len(batch), 1))], axis=1))

    def tokenize(self, texts):
        return np.array([len(text) for text in texts])

    def encode_text(self, tokens):
        return vectors.unit(np.stack([np.ones(len(tokens)), *3 * [tokens]], axis=1))


def test_a_model_embeds_what_is_left(pools, tmp_path, monkeypatch):
    monkeypatch.setattr(embeddings, "load_model", lambda *_: Model())
    rows = pools.rows(30, [[f"thing {i}", "x" * (i % 3 + 1)] for i in range(30)])
    rows[7]["image"] = rows[7]["image"][:60]
    source = pools.write(tmp_path / "pool.parquet", rows)
    (tmp_path / "weights").mkdir()
    steps = [
        {"name": "captions", "min_characters": 3},
        {"name": "embeddings", "weights": str(tmp_path / "weights"), "batch_size": 8,
         "texts": "without_numbers"},
        {"name": "clip_score"},
        {"name": "top", "column": "clip_score", "count": 5},
    ]  # fmt: skip
    outcome = curate({"source": source, "steps": steps, "shard_size": 12}, tmp_path / "run")
    assert outcome.report["steps"][2]["dropped"] == {"no_embedding": 0, "undecodable": 1}
    kept = pools.table(tmp_path / "run", "kept")
    model, expected = Model(), {}
    for i, row in enumerate(rows):
        if i != 7:
            text = [len("thing")] + [3] * (i % 3 == 2)
            image = model.encode_image(model.batch([model.prepare(row["image"])], 1))[0]
            expected[f"key{i}"] = max(model.encode_text(np.array(text)) @ image)
    for row in kept:
        assert row["clip_score"] == pytest.approx(expected[row["key"]], abs=1e-3)
    monkeypatch.setattr(prompt_score, "load_model", lambda *_: Model())
    prompts = {"name": "prompt_score", "weights": str(tmp_path / "weights"),
               "prompts": ["a", "twenty letters or so"]}  # fmt: skip
    config = {"source": source, "steps": [*steps[:2], prompts], "shard_size": 12}
    curate(config, tmp_path / "run")
    for row in pools.table(tmp_path / "run", "kept"):
        image = model.batch([model.prepare(rows[row["index"]]["image"])], 1)
        cosines = model.encode_text(np.array([1, 20])) @ model.encode_image(image)[0]
        assert row["prompt_score"] == pytest.approx(cosines.max(), abs=1e-3)
        assert row["prompt_score_prompt"] == cosines.argmax()
    best = sorted(expected.values())[-5:]
    assert min(row["clip_score"] for row in kept) == pytest.approx(min(best), abs=1e-3)


def test_the_best_caption_tells_the_prompt(tmp_path):
    prompts = types.SimpleNamespace(arrays=lambda: {"vectors": np.eye(2, dtype=np.float32)})
    text = Ragged(np.array([0, 0, 2]), np.array([[1, 0.2], [0, 1], [1, 0.5]], np.float16))
    rows = Rows.of(keys=list("abc"), text=text)
    found = prompt_score.PromptScore(on="text").scores(prompts, rows)
    np.testing.assert_allclose(found["prompt_score"], [1, -1, 0.8944], atol=1e-3)
    assert found["prompt_score_prompt"].tolist() == [1, -1, 0]
    (tmp_path / "findings.txt").write_text("a mitosis\n\nnecrosis\n")
    step = prompt_score.PromptScore(prompts=(str(tmp_path / "findings.txt"),))
    assert step.texts() == ["a mitosis", "necrosis"]


def test_scores_are_fused_as_in_the_paper():
    rows = Rows.of(a=np.array([0.1, 0.3, 0.2, 0.5]), b=np.array([0.9, 0.1, 0.5, 0.7]))
    step = fuse.Fuse(columns=("a", "b"))
    stored = types.SimpleNamespace(arrays=lambda: step.ranges(rows))
    found = step.verdict(stored, rows)
    np.testing.assert_allclose(found["fused_score"], [0.5, 0.25, 0.375, 0.875], atol=1e-6)
    assert not found["reason"].any()


def test_evaluation_pictures_are_found(pools, pool, tmp_path):
    rows = pools.rows(20)
    for row in rows[:3]:
        row["image"] = pools.picture(int(row["key"][3:]), (64, 64), "JPEG", quality=85)
    evaluation = pools.write(tmp_path / "test.parquet", rows[:3])
    source = pools.write(
        tmp_path / "pool.parquet",
        [{**row, "image": pools.picture(i, (48, 48))} for i, row in enumerate(rows)],
    )
    step = {"name": "decontaminate", "data": evaluation, "split": "train", "distance": 4}
    curate({"source": source, "steps": [step]}, tmp_path / "run")
    gone = {row["key"] for row in pools.table(tmp_path / "run", "dropped")}
    assert gone == {"key0", "key1", "key2"}
    near = decontaminate.nearest(pool.points[100:102], pool.folder)
    np.testing.assert_allclose(near, 1, atol=1e-5)


def test_clusters_go_by_the_label_that_they_were_given(tmp_path):
    (tmp_path / "labels.csv").write_text("cluster,panel\n0,photo\n1,plot\n3,photo\n")
    step = cluster_labels.ClusterLabels(
        table=str(tmp_path / "labels.csv"), column="panel", keep=("photo",)
    )
    labels = cluster_labels.read_labels(step.table, step.column)
    found = step.verdict(labels, Rows.of(cluster=np.array([0, 1, 2, 3])))
    assert [0, *(np.array(step.reasons)[found["reason"][1:3] - 1]), 0] == [
        0, "other_label", "unlabelled", 0,
    ]  # fmt: skip
    with pytest.raises(ValueError, match="no column 'pannel'; did you mean 'panel'"):
        cluster_labels.read_labels(step.table, "pannel")


@pytest.mark.parametrize(
    "step, said",
    [
        ({"name": "embeddings"}, "give weights"),
        ({"name": "embeddings", "folder": "/none"}, "'/none': no such folder"),
        ({"name": "embeddings", "weights": "/none"}, "'/none': no such file"),
        ({"name": "clip_score"}, "needs the column 'image', which no step before it makes; put"),
        ({"name": "cluster"}, "k=0: give a number"),
        ({"name": "semantic_duplicates"}, "put a step 'cluster' before it"),
        ({"name": "score_by", "function": "no.such:thing", "columns": ["x"]}, "can't be imported"),
        ({"name": "decontaminate"}, "give data"),
        ({"name": "cluster", "k": 2, "on": "text"}, "on='text' must be a column with one vector"),
        ({"name": "semantic_duplicates", "on": "text"}, "on='text' must be a column with one"),
        ({"name": "fuse", "columns": ["a", "b"], "weights": [1, -1]}, "must have a sum above 0"),
        ({"name": "where", "column": "a", "one_of": ["x"], "at_least": 1.0}, "for both, two steps"),
        (
            {"name": "prompt_score", "prompts": ["a"], "weights": ".", "tokenizer": "/none"},
            "tokenizer '/none': no such file",
        ),
    ],
)
def test_mistakes_are_said_before_anything_runs(pool, tmp_path, step, said):
    with pytest.raises((ValueError, FileNotFoundError), match=None) as error:
        curate({"source": pool.source, "steps": [step]}, tmp_path / "run")
    assert said in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_the_step_that_makes_a_missing_column_is_found_by_what_it_makes(pool, tmp_path):
    for column, maker in (("weight_of_mine", ""), ("fused_score", "fuse"), ("image", "embeddings")):
        step = {"name": "cluster", "k": 2, "on": column}
        with pytest.raises(ValueError, match=f"needs the column '{column}'") as error:
            curate({"source": pool.source, "steps": [step]}, tmp_path / "run")
        assert (f"put a step '{maker}' before it" in str(error.value)) == bool(maker)


def test_what_a_step_reads_is_part_of_its_identity(pool, pools, tmp_path):
    """Changed in place, so that the folder itself has the same time of change."""
    folder = write_folder(tmp_path / "eval", ["a", "b"], pool.points[:2])
    (tmp_path / "vocabulary.txt").write_text("a")
    embedded = embeddings.Embeddings(
        folder=folder, weights=folder, tokenizer=str(tmp_path / "vocabulary.txt")
    )
    compared = decontaminate.Decontaminate(folder=folder)
    before = embedded.identity(), compared.identity()
    assert before == (embedded.identity(), compared.identity())
    np.save(tmp_path / "eval" / "embeddings_00000.npy", pool.points[2:5])
    changed = embedded.identity(), compared.identity()
    assert before[0] != changed[0] and before[1] != changed[1]
    (tmp_path / "vocabulary.txt").write_text("ab")
    assert embedded.identity() != changed[0] and compared.identity() == changed[1]


def test_vectors_of_other_pictures_are_refused(pool, tmp_path):
    other = write_folder(tmp_path / "other", ["a", "b"], pool.points[:2])
    step = {"name": "embeddings", "folder": other, "texts": "none"}
    with pytest.raises(ValueError, match="they are of other pictures"):
        curate({"source": pool.source, "steps": [step]}, tmp_path / "run")
