"""Small crops that match the whole picture by a moving average."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip import models
from jaxclip.objectives import _self_distill
from jaxclip.objectives.silc import SILC
from tests.objectives import fixture_g as g

SIZES = models.CLIPConfig(models.ImageConfig(width=6, num_heads=2), embed_dim=2)
SMALL = {"num_local": 2, "local_size": 32, "prototypes": 5, "width": 4, "features": 3}


@functools.cache
def setting(**options):
    objective = SILC(**SMALL, **options)
    own, theirs = (g.own_params(objective, SIZES, seed) for seed in (0, 1))
    return objective, own, theirs


def outputs(seed=0):
    rng = np.random.default_rng(seed)
    views = ("teacher/image_pooled", "local1/image_pooled", "local2/image_pooled")
    return {"image": g.I, "text": g.T} | {k: jnp.asarray(rng.normal(size=(3, 6))) for k in views}


def head(params, x):
    """In float64."""
    mlp = jax.tree.map(lambda a: np.asarray(a, np.float64), params["mlp"])
    for index in range(2):
        x = x @ mlp[f"linear_{index}"]["kernel"] + mlp[f"linear_{index}"]["bias"]
        x = np.asarray(jax.nn.gelu(x, approximate=False), np.float64)
    x = x @ mlp["out"]["kernel"] + mlp["out"]["bias"]
    x /= np.linalg.norm(x, axis=-1, keepdims=True)
    k = np.asarray(params["prototypes"], np.float64)
    return x @ (k / np.linalg.norm(k, axis=1, keepdims=True)).T


def test_equal_student_and_teacher_cost_the_entropy():
    z = jnp.asarray([[1.0, 0.0, -1.0], [0.2, 0.1, 0.0]])
    result = _self_distill.distillation(z, z, jnp.zeros(3), 0.5, 0.5)
    p = g.softmax_rows(np.asarray(z, np.float64) / 0.5)
    np.testing.assert_allclose(result, -(p * np.log(p)).sum(1), rtol=1e-5)


def test_the_centre_pulls_a_constant_teacher_to_equal_shares():
    z, centre = jnp.tile(jnp.asarray([3.0, 0.0, 1.0]), (4, 1)), jnp.zeros(3)
    for _ in range(200):
        centre = _self_distill.moved(centre, z, 0.9)
    target = jax.nn.softmax((z[0] - centre) / 0.04)
    np.testing.assert_allclose(target, 1 / 3, atol=1e-4)


def test_the_loss_in_float64_and_the_centre():
    objective, params, theirs = setting(distill=0.5)
    state = {"centre": jnp.linspace(-0.3, 0.3, 5)}
    ctx, made = g.context(teacher_own=theirs), outputs()
    loss, metrics, after = g.value(objective, made, ctx, params, state)
    centre = np.asarray(state["centre"], np.float64)
    teacher = head(theirs["head"], np.asarray(made["teacher/image_pooled"], np.float64))
    target = g.softmax_rows((teacher - centre) / 0.04)
    total = 0.0
    for view in ("local1/image_pooled", "local2/image_pooled"):
        logits = head(params["head"], np.asarray(made[view], np.float64)) / 0.1
        total += (g.lse(logits) - (target * logits).sum(1)).mean() / 2
    assert float(metrics["distill"]) == pytest.approx(total, rel=1e-4)
    assert float(loss) == pytest.approx(0.1081597 + 0.5 * total, rel=1e-4)
    np.testing.assert_allclose(after["centre"], 0.9 * centre + 0.1 * teacher.mean(0), atol=1e-6)


def test_no_gradient_goes_to_the_teacher():
    objective, params, theirs = setting()
    state, made = objective.init_state(SIZES), outputs()

    @jax.jit
    def gradient(theirs, pooled):
        def value(theirs, pooled):
            varied = {**made, "teacher/image_pooled": pooled}
            return g.value(objective, varied, g.context(teacher_own=theirs), params, state)[0]

        return jax.grad(value, argnums=(0, 1))(theirs, pooled)

    for leaf in jax.tree.leaves(gradient(theirs, made["teacher/image_pooled"])):
        assert not np.any(leaf)


def test_a_teacher_that_does_not_follow_is_refused():
    SILC().check_run(8, "ema")
    for kind in ("none", "frozen", "stored"):
        message = rf"silc needs a teacher that follows the run.*kind='{kind}'; set .*='ema'"
        with pytest.raises(ValueError, match=message):
            SILC().check_run(8, kind)


def test_crops_that_patches_do_not_fill_are_refused():
    with pytest.raises(ValueError, match=r"silc\.local_size=90 is no multiple .*=16; use 96"):
        SILC(local_size=90).check(SIZES, SIZES)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_local": 0}, r"silc\.num_local=0 must be a whole number of at least 1"),
        ({"teacher_temperature": 0}, r"silc\.teacher_temperature=0 must be a positive number"),
        ({"centre_momentum": 1.5}, r"silc\.centre_momentum=1.5 must be a number in \[0, 1\]"),
        ({"distill": -1}, r"silc\.distill=-1 must be a number of at least 0"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SILC(**options)
