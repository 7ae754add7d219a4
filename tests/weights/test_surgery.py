"""Surgery: identities, closed forms, and that one table is resized in one way everywhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip import models
from jaxclip.models import presets
from jaxclip.train import init_from
from jaxclip.weights import surgery


def sizes_of(**text):
    base = presets.get("vit_b32").to_dict()
    small = {"width": 16, "depth": 1, "num_heads": 2, "mlp_dim": 24}
    base["image"] |= {**small, "image_size": 16, "patch_size": 4}
    base["text"] |= {**small, "vocab_size": 32, "context_length": 30, **text}
    return presets.CLIPConfig.from_dict({**base, "embed_dim": 12})


@pytest.fixture(scope="module")
def sizes():
    return sizes_of()


@pytest.fixture(scope="module")
def params(sizes):
    return models.build(sizes).init(jax.random.key(0))


def assert_equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


# Positions.


def test_the_same_size_changes_nothing(sizes, params):
    same, new = surgery.resize_image(params, sizes, 16)
    assert new == sizes
    assert_equal(same, params)
    same, new = surgery.stretch_text(params, sizes, 30)
    assert new == sizes
    assert_equal(same, params)


def test_a_model_for_larger_pictures_runs_and_keeps_its_class_token(sizes, params):
    larger, new = surgery.resize_image(params, sizes, 24)
    table = larger["image"]["positions"]
    assert table.shape == (37, 16)
    np.testing.assert_array_equal(table[0], params["image"]["positions"][0])
    embedding = models.build(new).encode_image(larger, jnp.ones((1, 24, 24, 3)))
    assert np.isfinite(embedding).all()
    with pytest.raises(ValueError, match="patch_size=4 does not divide image_size=22"):
        surgery.resize_image(params, sizes, 22)


@pytest.mark.parametrize("prefix", [0, 1])
def test_a_constant_table_stays_constant_and_the_class_row_stays(prefix):
    table = np.ones((16 + prefix, 3), np.float32)
    table[:prefix] = 7
    resized = np.asarray(surgery.resize_table(table, 9 + prefix))
    np.testing.assert_allclose(resized[prefix:], 1, atol=1e-6)
    assert (resized[:prefix] == 7).all()
    assert surgery.resize_table(table, 8 + prefix) is None


@pytest.mark.parametrize(("old", "new"), [(4, 7), (7, 4), (6, 6), (16, 24)])
def test_tables_are_resized_as_by_open_clip(old, new):
    torch = pytest.importorskip("torch")
    table = np.random.default_rng(0).standard_normal((old * old, 5)).astype(np.float32)
    grid = torch.from_numpy(table).reshape(1, old, old, 5).permute(0, 3, 1, 2)
    theirs = torch.nn.functional.interpolate(grid, size=(new, new), mode="bicubic", antialias=True)
    expected = theirs.permute(0, 2, 3, 1).reshape(new * new, 5).numpy()
    np.testing.assert_allclose(surgery.resize_table(table, new * new), expected, atol=1e-5)


def reference_long_clip(table, keep=20):
    """The paper's rule for a factor of four, row by row in float64."""
    table = np.asarray(table, np.float64)
    rows = list(table[:keep])
    for i in range(keep, len(table)):
        step = table[i + 1] - table[i] if i + 1 < len(table) else table[i] - table[i - 1]
        rows += [table[i] + step * quarter / 4 for quarter in range(4)]
    return np.array(rows)


def test_77_positions_become_248_as_in_long_clip():
    table = np.random.default_rng(0).standard_normal((77, 6)).astype(np.float32)
    stretched = surgery.stretch_positions(table, 248)
    assert stretched.shape == (248, 6)
    np.testing.assert_array_equal(stretched[:20], table[:20])
    np.testing.assert_array_equal(stretched[20::4], table[20:])
    np.testing.assert_allclose(stretched, reference_long_clip(table), atol=2e-6)


def test_a_stretched_text_tower_runs(sizes, params):
    longer, new = surgery.stretch_text(params, sizes, 60)
    tokens = jnp.ones((1, 60), jnp.int32)
    assert np.isfinite(models.build(new).encode_text(longer, tokens)).all()


@pytest.mark.parametrize(
    ("rows", "keep", "message"),
    [(20, 20, "context_length=20 is shorter than 30"), (40, 29, "keep=29 of 30 positions")],
)
def test_what_can_not_be_stretched(rows, keep, message):
    with pytest.raises(ValueError, match=message):
        surgery.stretch_positions(np.zeros((30, 2), np.float32), rows, keep=keep)


def test_init_from_resizes_and_stretches_alike(sizes, params):
    larger = sizes_of(context_length=50)
    larger, _ = surgery.resize_image(params, larger, 24)[1], None
    initial = models.build(larger).init(jax.random.key(1))
    started, report = init_from.merge(initial, params)
    assert set(report.resized) == {"image/positions", "text/positions"}
    expected = surgery.resize_table(params["image"]["positions"], 37)
    np.testing.assert_array_equal(started["image"]["positions"], expected)
    expected = surgery.stretch_positions(params["text"]["positions"], 50)
    np.testing.assert_array_equal(started["text"]["positions"], expected)


# Averages.


def other(params, seed):
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    moved = [x + 0.1 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(tree, moved)


def test_wise_ft_is_exact_at_both_ends_and_linear_between(params):
    tuned = other(params, 1)
    assert_equal(surgery.wise_ft(params, tuned, 0.0), params)
    assert_equal(surgery.wise_ft(params, tuned, 1.0), tuned)
    middle = surgery.wise_ft(params, tuned, 0.25)
    jax.tree.map(
        lambda m, a, b: np.testing.assert_allclose(m, 0.75 * a + 0.25 * b, atol=1e-6),
        middle, params, tuned,
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"alpha=1\.5 must be from 0"):
        surgery.wise_ft(params, tuned, 1.5)


def test_a_soup_of_equal_models_is_the_model(params):
    for count in (1, 2, 3, 7):
        assert_equal(surgery.uniform_soup([params] * count), params)


def test_soups_of_other_trees_are_refused(params):
    with pytest.raises(ValueError, match="at least one model"):
        surgery.uniform_soup([])
    with pytest.raises(ValueError, match="model 1 has other parameters"):
        surgery.uniform_soup([params, {"x": np.zeros(2)}])
    with pytest.raises(ValueError, match=r"a/x has different shapes: \[2\], \[3\]"):
        surgery.uniform_soup([{"a": {"x": np.zeros(2)}}, {"a": {"x": np.zeros(3)}}])


def test_a_greedy_soup_takes_what_helps():
    """The score is highest at 1: 0.8 alone scores best, 1.2 with it better, 3 spoils it."""
    models_ = [{"x": np.float64(value)} for value in (3.0, 0.8, 1.2, -5.0)]
    soup = surgery.greedy_soup(models_, lambda p: -abs(float(p["x"]) - 1.0))
    assert set(soup.chosen) == {1, 2}
    assert soup.params["x"] == pytest.approx(1.0) and soup.score == pytest.approx(0.0)
    alone = surgery.greedy_soup(models_[:1], lambda p: 5.0)
    assert alone == surgery.soups.Soup({"x": 3.0}, (0,), 5.0)
    with pytest.raises(ValueError, match="at least one model"):
        surgery.greedy_soup([], lambda p: 0.0)


# Low rank.


def test_lora_changes_nothing_at_first_and_merges_to_what_it_computed(sizes, params):
    tower = params["image"]
    low_rank = surgery.init_lora(tower, 3, jax.random.key(0))
    assert set(low_rank) == {"blocks_0/attention/query/kernel", "blocks_0/attention/value/kernel"}
    assert_equal(surgery.merge_lora(tower, low_rank), tower)
    trained = {
        path: (a, jax.random.normal(jax.random.key(1), b.shape))
        for path, (a, b) in low_rank.items()
    }
    model, images = models.build(sizes), jax.random.normal(jax.random.key(2), (2, 16, 16, 3))
    beside = model.image_features(params, images, low_rank=trained).embedding
    merged = {**params, "image": surgery.merge_lora(tower, trained)}
    np.testing.assert_allclose(model.encode_image(merged, images), beside, atol=1e-6)
    assert np.abs(beside - model.encode_image(params, images)).max() > 1e-3
    half = surgery.merge_lora(tower, trained, scale=0.5)["blocks_0"]["attention"]["query"]
    a, b = (np.asarray(x, np.float64) for x in trained["blocks_0/attention/query/kernel"])
    expected = tower["blocks_0"]["attention"]["query"]["kernel"] + 0.5 * a @ b
    np.testing.assert_allclose(half["kernel"], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("rank", "patterns", "message"),
    [(0, ("query",), "rank=0 must be from 1 to 16"), (17, ("query",), "rank=17"),
     (2, ("nothing",), "no kernel of the tower has a pattern")],
)  # fmt: skip
def test_lora_that_can_not_be(params, rank, patterns, message):
    with pytest.raises(ValueError, match=message):
        surgery.init_lora(params["image"], rank, jax.random.key(0), patterns=patterns)
