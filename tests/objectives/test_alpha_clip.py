"""Regions by a fourth channel."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip import models
from jaxclip.objectives.alpha_clip import AlphaCLIP, box_mask
from jaxclip.train import towers as towers_lib
from tests.objectives import fixture_g as g

BOXES = jnp.asarray([[[0, 0, 0.5, 1]], [[0.25, 0.25, 0.75, 0.5]], [[0, 0, 0, 0]]], jnp.float32)
PIXELS = jnp.asarray(np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3)), jnp.uint8)
IMAGE = models.ImageConfig(
    image_size=8, patch_size=4, width=8, depth=1, num_heads=2, mlp_dim=8, alpha=True
)
SIZES = models.CLIPConfig(IMAGE, models.TextConfig(width=8, depth=1, num_heads=2, mlp_dim=8))


def options(objective, ctx=None):
    batch = {"boxes": BOXES, "image": PIXELS}
    return objective.tower_options("image", batch, ctx or g.context())


def test_pixels_in_a_box():
    mask = np.asarray(box_mask(BOXES, 8))
    assert mask[0, :, :4].all() and not mask[0, :, 4:].any()
    assert mask[1].sum() == 4 * 2 and mask[1, 2:4, 2:6].all()
    assert not mask[2].any()
    both = box_mask(jnp.concatenate([BOXES[:1], BOXES[1:2]], axis=1), 8)
    np.testing.assert_array_equal(both[0], np.maximum(mask[0], mask[1]))


def test_rows_without_a_region_are_whole():
    alpha = np.asarray(options(AlphaCLIP(whole=0.0))["alpha"])
    np.testing.assert_array_equal(alpha[:2], box_mask(BOXES, 8)[:2])
    assert (alpha[2] == 1).all()
    assert (np.asarray(options(AlphaCLIP(whole=1.0))["alpha"]) == 1).all()
    assert AlphaCLIP().tower_options("text", {}, g.context()) == {}


def test_the_loss_is_clip_with_smoothing():
    made = {"image": g.I, "text": g.T, "boxes": BOXES}
    loss, metrics, _ = g.value(AlphaCLIP(whole=0.0, label_smoothing=0.0), made)
    assert float(loss) == pytest.approx(0.1081597, rel=1e-5)
    assert float(metrics["regions"]) == pytest.approx(2 / 3)
    logits = np.array([[2.0, 0.0], [1.0, 1.0]])  # 0.411650 with smoothing 0.1
    made = {"image": jnp.asarray(logits, jnp.float32), "text": jnp.eye(2), "boxes": BOXES[:2]}
    loss, _, _ = g.value(AlphaCLIP(), made, g.context(1.0, size=2))
    assert float(loss) == pytest.approx(0.411650, rel=1e-5)


@pytest.mark.parametrize(
    "stem", [{}, {"stem": "conv", "stem_widths": (4, 6), "stem_depth": 0}], ids=["patch", "conv"]
)
def test_the_channel_changes_nothing_until_it_is_trained(stem):
    model = models.build(dataclasses.replace(SIZES, image=dataclasses.replace(IMAGE, **stem)))
    params = g.drawn(model.init)
    towers = towers_lib.ModelTowers(model, (0.5,) * 3, (0.25,) * 3, "float32")
    run = jax.jit(lambda params, alpha: towers.features(params, "image", PIXELS, alpha=alpha).raw)
    alpha = options(AlphaCLIP(whole=0.0))["alpha"]
    kernel = params["image"]["alpha_embedding"]["kernel"]
    start = jax.jit(lambda key: model.init(key)["image"]["alpha_embedding"]["kernel"])
    params["image"]["alpha_embedding"]["kernel"] = start(jax.random.key(0))
    whole = run(params, jnp.ones_like(alpha))
    np.testing.assert_array_equal(run(params, alpha), whole)
    plain = jax.jit(lambda params: towers.features(params, "image", PIXELS).raw)(params)
    np.testing.assert_allclose(plain, whole, atol=1e-6)
    params["image"]["alpha_embedding"]["kernel"] = jnp.full_like(kernel, 0.1).at[0, 0].set(0.5)
    moved = np.abs(run(params, alpha) - run(params, jnp.ones_like(alpha))).max(axis=1)
    assert (moved[:2] > 1e-4).all() and moved[2] == 0


def test_what_it_refuses():
    with pytest.raises(ValueError, match=r"set model\.image\.alpha=True"):
        AlphaCLIP().check(models.CLIPConfig(), None)
    AlphaCLIP().check(SIZES, None)
    with pytest.raises(ValueError, match=r"alpha_clip\.whole=2 must be a number in \[0, 1\]"):
        AlphaCLIP(whole=2)
    with pytest.raises(ValueError, match=r"alpha_clip\.count=0"):
        AlphaCLIP(count=0)
