"""Masked patches that tell a teacher's tokens."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip import models
from jaxclip.objectives.eva import EVA
from tests.objectives import fixture_g as g

IMAGE = models.ImageConfig(image_size=8, patch_size=4, width=6, num_heads=2)
SIZES = models.CLIPConfig(IMAGE, embed_dim=2)
RNG = np.random.default_rng(0)
MADE = {
    "masked/image_tokens": jnp.asarray(RNG.normal(size=(3, 4, 6)), jnp.float32),
    "teacher/masked/image_tokens": jnp.asarray(RNG.normal(size=(3, 4, 5)), jnp.float32),
}


def test_value_and_gradient():
    objective = EVA(mask_ratio=0.5, teacher_width=5)
    params = g.own_params(objective, SIZES)
    ctx = g.context(sizes=SIZES, own=params)
    at = np.asarray(objective._places(ctx))
    head = jax.tree.map(lambda x: np.asarray(x, np.float64), params["head"]["out"])

    def reference(tokens):
        total = 0.0
        for row in range(3):
            told = tokens[row, at[row]] @ head["kernel"] + head["bias"]
            truth = np.asarray(MADE["teacher/masked/image_tokens"], np.float64)[row, at[row]]
            cosine = (told * truth).sum(1) / np.linalg.norm(told, axis=1)
            total += (1 - cosine / np.linalg.norm(truth, axis=1)).mean() / 3
        return total

    def value(tokens):
        return g.value(objective, {**MADE, "masked/image_tokens": tokens}, ctx, params)[0]

    loss, gradient = jax.jit(jax.value_and_grad(value))(MADE["masked/image_tokens"])
    base = np.asarray(MADE["masked/image_tokens"], np.float64)
    assert float(loss) == pytest.approx(reference(base), rel=1e-5)
    direction = RNG.normal(size=base.shape)
    ahead, behind = (reference(base + s * 1e-5 * direction) for s in (1, -1))
    found = float(jnp.sum(gradient * direction))
    assert found == pytest.approx((ahead - behind) / 2e-5, rel=1e-3)
    # Only masked patches count, and the mask token stands there.
    masked = np.zeros((3, 4), bool)
    np.put_along_axis(masked, at, True, axis=1)
    np.testing.assert_array_equal(np.abs(gradient).max(-1) > 0, masked)
    insert = objective.tower_options("masked/image", {}, ctx)["insert"]
    np.testing.assert_array_equal(insert.at, at)
    np.testing.assert_array_equal(insert.layers[0], np.tile(params["mask_token"], (2, 1)))


def test_a_student_that_is_its_teacher_has_no_loss():
    params = {"head": {"out": {"kernel": jnp.eye(6), "bias": jnp.zeros(6)}}}
    made = {**MADE, "teacher/masked/image_tokens": 2.0 * MADE["masked/image_tokens"]}
    loss, _, _ = g.value(EVA(), made, g.context(sizes=SIZES), params)
    assert float(loss) == pytest.approx(0.0, abs=1e-6)


def test_what_it_refuses():
    EVA().check(SIZES, SIZES)
    with pytest.raises(ValueError, match=r"set teacher\.kind='frozen'"):
        EVA().check(SIZES, None)
    queries = dataclasses.replace(SIZES, image=dataclasses.replace(IMAGE, pool="queries"))
    with pytest.raises(ValueError, match=r"eva finds patches by their place .* got 'queries'"):
        EVA().check(queries, queries)
    finer = dataclasses.replace(SIZES, image=dataclasses.replace(IMAGE, patch_size=2))
    with pytest.raises(ValueError, match="the model has 2 patches along a side, the teacher 4"):
        EVA().check(SIZES, finer)
    wider = dataclasses.replace(SIZES, image=dataclasses.replace(IMAGE, width=8))
    with pytest.raises(ValueError, match=r"set eva\.teacher_width=8"):
        EVA().check(SIZES, wider)
    EVA(teacher_width=8).check(SIZES, wider)
    with pytest.raises(ValueError, match=r"eva\.mask_ratio=0 must be a number in \(0, 0.99\]"):
        EVA(mask_ratio=0)
