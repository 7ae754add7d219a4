"""What methods on regions share: pools, boxes, and the contrast of regions and texts."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip import config as config_lib
from jaxclip import objectives
from jaxclip.objectives import _regions
from jaxclip.train import loop
from tests.objectives import fixture_g as g
from tests.objectives.test_cloc import MODEL


def test_a_box_is_the_mean_of_what_it_covers():
    tokens = jnp.arange(16.0).reshape(1, 16, 1)  # a grid of 4 x 4
    boxes = [[0, 0, 1, 1], [0, 0, 0.25, 0.25], [0.25, 0.5, 0.75, 0.75], [0.125, 0, 0.5, 0.25],
             [0, 0, 0, 0], [0.4, 0.9, 0.3, 1.0]]  # fmt: skip
    found = _regions.box_pool(tokens, jnp.array([boxes]))[0, :, 0]
    # The fourth covers half of patch 0 and all of patch 1; the last two have no area.
    np.testing.assert_allclose(found, [7.5, 0, 9.5, 2 / 3, 0, 0], atol=1e-5)
    gradient = jax.grad(lambda b: _regions.box_pool(tokens, b).sum())(jnp.array([[boxes[3]]]))
    assert jnp.isfinite(gradient).all() and float(gradient[0, 0, 0]) > 0
    with pytest.raises(ValueError, match="15 patches are no square grid"):
        _regions.box_pool(tokens[:, :15], jnp.array([boxes]))


def test_giou_of_known_boxes():
    a, b = jnp.array([0, 0, 0.5, 0.5]), jnp.array([0.25, 0.25, 0.75, 0.75])
    assert float(_regions.giou(a, b)) == pytest.approx(-0.079365, abs=1e-6)
    assert float(_regions.giou(a, a)) == pytest.approx(1.0)
    far = jnp.array([0.9, 0.9, 1.0, 1.0])
    assert float(_regions.giou(a, far)) == pytest.approx(-(1 - 0.26) / 1, abs=1e-6)


def test_a_perfect_box_costs_nothing_and_padding_neither():
    boxes = jnp.array([[[0, 0, 0.5, 0.5], [0.1, 0.1, 0.9, 0.9]]])
    valid = jnp.array([[True, False]])
    assert float(_regions.box_loss(boxes, boxes, valid)) == pytest.approx(0.0, abs=1e-6)
    other = boxes.at[0, 1].set(jnp.array([0.3, 0.3, 0.4, 0.4]))
    assert float(_regions.box_loss(other, boxes, valid)) == pytest.approx(0.0, abs=1e-6)
    assert float(_regions.box_loss(boxes, boxes, ~valid & False)) == 0.0


def test_without_equal_texts_and_padding_it_is_clip():
    numbers = jnp.arange(3, dtype=jnp.uint32)
    loss, metrics = _regions.region_contrast(g.I, g.T, jnp.ones(3, bool), numbers, jnp.float32(10))
    assert float(loss) == pytest.approx(0.1081597, rel=1e-5)
    assert float(metrics["regions"]) == 3
    # Rows alone, by hand.
    rows, _ = _regions.region_contrast(
        g.I, g.T, jnp.ones(3, bool), numbers, jnp.float32(10), both=False
    )
    logits = 10 * np.asarray(g.I) @ np.asarray(g.T).T
    assert float(rows) == pytest.approx((g.lse(logits) - np.diagonal(logits)).mean(), rel=1e-5)


def test_padding_and_equal_texts_are_no_negatives():
    padded = [jnp.concatenate([x, g.U[:2]]) for x in (g.I, g.T)]
    valid = jnp.array([True] * 3 + [False] * 2)
    numbers = jnp.array([0, 1, 2, 7, 7], jnp.uint32)
    loss, _ = _regions.region_contrast(*padded, valid, numbers, jnp.float32(10))
    assert float(loss) == pytest.approx(0.1081597, rel=1e-5)
    # Row 2 says what row 0 says: each goes without the other.
    equal = jnp.array([0, 1, 0], jnp.uint32)
    loss, _ = _regions.region_contrast(g.I, g.T, jnp.ones(3, bool), equal, jnp.float32(10))
    logits = 10 * np.asarray(g.I, np.float64) @ np.asarray(g.T, np.float64).T
    logits[0, 2] = logits[2, 0] = -np.inf
    expected = (g.lse(logits) + g.lse(logits.T) - 2 * np.diagonal(logits)).mean() / 2
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_no_region_at_all_is_zero_with_a_finite_gradient():
    def loss(x):
        return _regions.region_contrast(
            x, g.T, jnp.zeros(3, bool), jnp.zeros(3, jnp.uint32), jnp.float32(10)
        )[0]

    value, gradient = jax.value_and_grad(loss)(g.I)
    assert float(value) == 0.0 and not jnp.any(gradient)


def test_numbers_tell_texts_apart():
    rows = jnp.array([[1, 2, 0], [2, 1, 0], [1, 2, 0], [1, 2, 3], [0, 0, 0]])
    numbers = _regions.text_numbers(rows).tolist()
    assert numbers[0] == numbers[2] and len(set(numbers)) == 4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cloc", "grain", "villa", "mammo_clip"])
def test_a_run_on_scenes(name, tmp_path):
    term = {"name": name, **objectives.REGISTRY.get(name).small}
    config = {
        "total_steps": 4,
        "global_batch_size": 16,
        "num_micro_batches": 2,
        "log_every_steps": 2,
        "data": {
            "mixture": [{"name": "scenes:emoji"}],
            "image_size": 16,
            "image_ops": "random_resized_crop(0.2)|flip",
        },
        "model": {**MODEL, "embed_dim": 16},
        "objective": [term],
        "optim": {"schedule": {"name": "constant", "warmup_steps": 0}},
        "evaluate": {"zero_shot": ["test_concept"]},
    }
    assert loop.train(config_lib.resolve(config), tmp_path / "run").finished
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    logged = {key: value for line in lines for key, value in json.loads(line).items()}
    assert np.isfinite(logged[f"{name}/loss"])
    if name in ("cloc", "grain"):
        assert logged["boxes_outside"] > 0 and logged[f"{name}/regions"] > 0
