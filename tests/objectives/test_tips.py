"""Masked patches that match the teacher's, and a second caption."""

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip import models
from jaxclip.objectives.tips import TIPS
from tests.objectives import fixture_g as g
from tests.objectives.test_silc import SMALL, head

IMAGE = models.ImageConfig(image_size=8, patch_size=4, width=6, num_heads=2, depth=1, mlp_dim=8)
SIZES = models.CLIPConfig(dataclasses.replace(IMAGE, num_registers=1), embed_dim=2)
TIP = {**SMALL, "local_size": 4, "patch_prototypes": 4}


@functools.cache
def setting(**options):
    objective = TIPS(**TIP, **options)
    own, theirs = (g.own_params(objective, SIZES, seed) for seed in (0, 1))
    return objective, own, theirs


def outputs(seed=0):
    rng = np.random.default_rng(seed)
    pooled = ("teacher/global/image_pooled", "local1/image_pooled", "local2/image_pooled")
    tokens = ("global/image_tokens", "teacher/global/image_tokens")
    return {
        "image": g.I,
        "text": g.T,
        "texts1/text": g.U,
        "image_prefix": jnp.asarray(rng.normal(size=(3, 2, 6)), jnp.float32),
        **{key: jnp.asarray(rng.normal(size=(3, 6)), jnp.float32) for key in pooled},
        **{key: jnp.asarray(rng.normal(size=(3, 4, 6)), jnp.float32) for key in tokens},
    }


def run(objective, params, theirs, made, state=None):
    state = objective.init_state(SIZES) if state is None else state
    ctx = g.context(sizes=SIZES, teacher_own=theirs, own=params, state=state)
    return ctx, g.value(objective, made, ctx, params, state)


def test_masked_patches_in_float64_and_their_centre():
    objective, params, theirs = setting(distill=0.0, masked=2.0)
    made = outputs()
    state = {"centre": jnp.zeros(5), "patch_centre": jnp.asarray([0.1, -0.1, 0.2, 0.0])}
    ctx, (loss, metrics, after) = run(objective, params, theirs, made, state)
    at = np.asarray(objective._places(ctx))
    assert at.shape == (3, 2) and all(len(set(row)) == 2 for row in at.tolist())
    total, teachers = 0.0, []
    for row in range(3):
        for place in at[row]:
            z = head(params["patch_head"], np.asarray(made["global/image_tokens"][row, place]))
            t = head(
                theirs["patch_head"], np.asarray(made["teacher/global/image_tokens"][row, place])
            )
            target = g.softmax_rows((t - np.asarray(state["patch_centre"])) / 0.04)
            total += (g.lse(z / 0.1) - (target * z / 0.1).sum()) / 6
            teachers.append(t)
    assert float(metrics["masked"]) == pytest.approx(total, rel=1e-4)
    assert float(loss) == pytest.approx(0.1081597 + 2 * total, rel=1e-4)
    expected = 0.9 * np.asarray(state["patch_centre"]) + 0.1 * np.mean(teachers, 0)
    np.testing.assert_allclose(after["patch_centre"], expected, atol=1e-6)
    assert after["centre"].shape == (5,)


def test_ratio_0_masks_nothing_and_costs_nothing():
    objective, params, theirs = setting(mask_ratio=0.0, distill=0.0)
    ctx, (loss, metrics, state) = run(objective, params, theirs, outputs())
    assert float(loss) == pytest.approx(0.1081597, rel=1e-5) and "masked" not in metrics
    assert objective.tower_options("global/image", {}, ctx) == {} and not objective.row_needs
    assert "patch_centre" not in state and "mask_token" not in params


def test_the_mask_token_goes_where_the_loss_is():
    objective, params, _ = setting(distill=0.0, masked=2.0)
    ctx = g.context(sizes=SIZES, own=params)
    insert = objective.tower_options("global/image", {}, ctx)["insert"]
    np.testing.assert_array_equal(insert.at, objective._places(ctx))
    np.testing.assert_array_equal(insert.layers[0], np.tile(params["mask_token"], (2, 1)))
    assert objective.tower_options("image", {}, ctx) == {}
    part = dataclasses.replace(ctx, row=jnp.asarray([2, 0]))  # a row's mask is its own
    np.testing.assert_array_equal(objective._places(part), insert.at[np.array([2, 0])])


def test_a_second_caption_meets_a_register():
    objective, params, theirs = setting(distill=0.0, masked=0.0, synthetic="made")
    made = outputs()
    _, (loss, metrics, _) = run(objective, params, theirs, made)
    second = np.asarray(made["image_prefix"][:, 1] @ params["second"], np.float64)
    second /= np.linalg.norm(second, axis=1, keepdims=True)
    other = g.clip(second, np.asarray(g.U, np.float64), 10.0)
    assert float(loss) == pytest.approx((0.1081597 + other) / 2, rel=1e-4)
    assert float(metrics["synthetic_clip"]) == pytest.approx(other, rel=1e-4)
    assert objective.fields["texts1/text"].source == "made"
    with pytest.raises(ValueError, match=r"set model\.image\.num_registers to 1 or more"):
        objective.check(models.CLIPConfig(IMAGE, embed_dim=2), None)


def test_masks_want_a_square_grid():
    queries = dataclasses.replace(IMAGE, pool="queries")
    with pytest.raises(ValueError, match=r"tips\.mask_ratio finds patches by their place"):
        TIPS(**TIP).check(models.CLIPConfig(queries, embed_dim=2), None)
    TIPS(**TIP, mask_ratio=0.0).check(models.CLIPConfig(queries, embed_dim=2), None)


def test_bad_options_are_refused():
    with pytest.raises(ValueError, match=r"tips\.mask_ratio=1 must be a number in \[0, 0.99\]"):
        TIPS(mask_ratio=1)
    with pytest.raises(ValueError, match=r"tips\.masked=-1"):
        TIPS(masked=-1)
    with pytest.raises(ValueError, match=r"tips\.num_local=0"):
        TIPS(num_local=0)
