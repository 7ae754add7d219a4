"""One tower, several teachers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip import fields, models
from jaxclip.objectives.sam_clip import SAMCLIP, smooth_l1
from tests.objectives import fixture_g as g

SIZES = models.CLIPConfig(models.ImageConfig(width=6, num_heads=2), embed_dim=2)
TEACHERS = [
    {"key": "a", "size": 6},
    {"key": "b", "size": 4, "weight": 2.0, "distance": "smooth_l1"},
]
RNG = np.random.default_rng(0)
MADE = {
    "image": g.I,
    "text": g.T,
    "image_tokens": jnp.asarray(RNG.normal(size=(3, 4, 6)), jnp.float32),
    "stored/a": jnp.asarray(RNG.normal(size=(3, 6)), jnp.float32),
    "stored/b": jnp.asarray(RNG.normal(size=(3, 4)), jnp.float32).at[1].set(0.0),
}


def test_smooth_l1():
    np.testing.assert_allclose(smooth_l1(jnp.asarray([0.5, -2.0, 0.0])), [0.125, 1.5, 0.0])


def test_both_teachers_in_float64_and_a_record_that_one_of_them_has_not():
    objective = SAMCLIP(teachers=TEACHERS)
    params = g.own_params(objective, SIZES)

    def reference(arrays, base):
        total = 0.0
        for each in TEACHERS:
            p = jax.tree.map(lambda x: np.asarray(x, np.float64), params[each["key"]]["out"])
            ours = (arrays["image_tokens"] @ p["kernel"] + p["bias"]).max(1)
            theirs = arrays[f"stored/{each['key']}"]
            if each["key"] == "a":
                cosine = (ours * theirs).sum(1) / np.linalg.norm(ours, axis=1)
                total += (1 - cosine / np.linalg.norm(theirs, axis=1)).mean()
            else:
                d = np.abs(ours - theirs)
                each_row = np.where(d < 1, d**2 / 2, d - 0.5).mean(1)
                total += 2.0 * each_row[[0, 2]].mean()
        return total

    made = {"image_tokens_raw": MADE["image_tokens"]}
    loss, metrics, _ = g.value(objective, MADE, params=params)
    base = {key: np.asarray(x, np.float64) for key, x in MADE.items()}
    assert float(loss) == pytest.approx(reference(base, base), rel=1e-5)
    assert float(metrics["b_share"]) == pytest.approx(2 / 3) and float(metrics["a_share"]) == 1.0
    run = jax.jit(lambda x: g.value(objective, {**MADE, "image_tokens": x}, params=params)[0])
    direction = RNG.normal(size=MADE["image_tokens"].shape)
    ahead, behind = (
        reference({**base, "image_tokens": base["image_tokens"] + s * 1e-5 * direction}, base)
        for s in (1, -1)
    )
    found = jnp.sum(jax.grad(run)(made["image_tokens_raw"]) * direction)
    assert float(found) == pytest.approx((ahead - behind) / 2e-5, rel=1e-3)


def test_a_student_that_is_its_teacher_has_no_loss():
    objective = SAMCLIP(teachers=[{"key": "a", "size": 6}], contrastive=1.0)
    params = {"a": {"out": {"kernel": jnp.eye(6), "bias": jnp.zeros(6)}}}
    made = {**MADE, "stored/a": 3.0 * jnp.max(MADE["image_tokens"], axis=1)}
    loss, _, _ = g.value(objective, made, params=params)
    assert float(loss) == pytest.approx(0.1081597, rel=1e-4)
    dense = objective.dense(params, "a", MADE["image_tokens"])
    np.testing.assert_allclose(np.linalg.norm(dense, axis=-1), 1.0, rtol=1e-5)


def test_what_it_asks_for():
    spec = SAMCLIP(teachers=TEACHERS).fields
    assert spec["stored/b"] == fields.Stored("b", 4, required=False)


@pytest.mark.parametrize(
    ("teachers", "message"),
    [
        ([], "must be a list of dicts of key, size, weight, distance"),
        (["clip"], "must be a list of dicts"),
        ([{"key": "a"}], "size=0 must be a whole number of at least 1"),
        ([{"size": 3}], "needs a 'key'"),
        (
            [{"key": "a", "size": 3, "wieght": 1}],
            "unknown option 'wieght' of sam_clip.teachers; did you mean 'weight'",
        ),
        ([{"key": "a", "size": 3, "distance": "l2"}], "use 'cosine' or 'smooth_l1'"),
        ([{"key": "a", "size": 3}] * 2, "must differ"),
    ],
)
def test_bad_teachers_are_refused(teachers, message):
    with pytest.raises(ValueError, match=message):
        SAMCLIP(teachers=teachers)
