"""Geodesic mixup of pairs."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip.objectives.m2_mix import M2Mix
from jaxclip.objectives.m3_mix import M3Mix
from tests.objectives import fixture_g as g

RATIOS = [jnp.float32(ratio) for ratio in (0.3, 0.6, 0.8)]


def arc(rows, ratio):
    """Rows mixed with the batch in reverse, float64; a row that is its own partner stays."""
    partner = rows[::-1]
    angle = np.arccos(np.clip((rows * partner).sum(1), -1, 1))[:, None]
    mixed = np.sin(ratio * angle) * rows + np.sin((1 - ratio) * angle) * partner
    return np.where(angle > 1e-4, mixed / np.where(angle > 1e-4, np.sin(angle), 1.0), rows)


def cross_entropy(logits, targets):
    """Mean of both directions, as the authors define it: targets need not add up to 1."""
    by_row = -(targets * (logits - g.lse(logits)[:, None])).sum(1)
    by_column = -(targets.T * (logits.T - g.lse(logits.T)[:, None])).sum(1)
    return (by_row.mean() + by_column.mean()) / 2


def reference(image, text, ratios, scale):
    """V-Mix, L-Mix and VL-Mix with the matrices of their targets, float64."""
    own, flipped = np.eye(len(image)), np.eye(len(image))[::-1]
    first, second, third = (float(ratio) for ratio in ratios)
    return (
        cross_entropy(scale * arc(image, first) @ text.T, first * own + (1 - first) * flipped),
        cross_entropy(scale * image @ arc(text, second).T, second * own + (1 - second) * flipped),
        cross_entropy(scale * arc(image, third) @ arc(text, third).T, own + flipped),
    )


def test_vision_mix_on_fixture_g():
    vision, _, _ = M3Mix().mixed_pairs(g.I[:2], g.T[:2], RATIOS, g.context(size=2))
    assert float(vision) == pytest.approx(2.1669402, rel=1e-5)


@pytest.mark.parametrize("size", [6, 5], ids=["even", "odd: one row is its own partner"])
def test_all_three_are_cross_entropies_with_two_targets(size):
    pair = g.random_rows("image", "text", size=size)
    got = M3Mix(scale=20.0).mixed_pairs(pair["image"], pair["text"], RATIOS, g.context(size=size))
    image, text = (np.asarray(pair[name], np.float64) for name in ("image", "text"))
    np.testing.assert_allclose(got, reference(image, text, RATIOS, 20.0), rtol=1e-5)


def test_the_loss_is_m2_mix_and_the_weighted_three_less_by_epoch():
    pair = g.random_rows("image", "text")
    options = {"mix": 0.3, "beta": 0.2, "scale": 10.0, "epoch_steps": 10}
    ctx = g.context(size=6, step=20)
    base, _, _ = g.value(M2Mix(**options), pair, ctx)
    total, metrics, _ = g.value(M3Mix(unimodal=0.5, joint=0.2, **options), pair, ctx)
    added = 0.5 * (metrics["vision"] + metrics["language"]) + 0.2 * metrics["joint"]
    np.testing.assert_allclose(total, base + added / 3, rtol=1e-6)


def test_bad_options_are_refused():
    with pytest.raises(ValueError, match=r"m3_mix.joint=-1 must"):
        M3Mix(joint=-1)
    with pytest.raises(ValueError, match=r"m3_mix.beta=0 must be a positive number"):
        M3Mix(beta=0)
