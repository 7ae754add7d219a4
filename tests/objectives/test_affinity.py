"""TinyCLIP's affinity mimicking."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip import models
from jaxclip.objectives.affinity import Affinity
from tests.objectives import fixture_g as g


def test_published_value_of_two_matrices_of_logits():
    # The rows of the identity as images make the texts' transpose the matrix of logits.
    student, teacher = jnp.array([[2.0, 1], [0, 1]]), jnp.array([[3.0, 0], [1, 2]])
    rows = g.with_teacher(jnp.eye(2), student, jnp.eye(2), teacher)
    loss, _, _ = g.value(Affinity(scale=1.0, teacher_scale=1.0), rows, g.context(size=2))
    assert float(loss) == pytest.approx(0.500343, abs=1e-6)


def test_its_share_goes_from_clip_to_mimicking():
    rows = g.with_teacher(g.I, g.T, g.I, g.U)
    loss, metrics, _ = g.value(Affinity(alpha=0.0, scale=10.0), rows)
    assert float(loss) == float(metrics["clip"]) == pytest.approx(0.1081597, rel=1e-5)
    half, metrics, _ = g.value(Affinity(alpha=0.5, scale=None), rows)
    expected = (0.1081597 + float(metrics["affinity"])) / 2
    assert float(half) == pytest.approx(expected, rel=1e-5)


def test_none_is_the_models_own_scale():
    rows = g.with_teacher(g.I, g.T, g.I, g.U)
    own = Affinity(scale=None, teacher_scale=None)
    loss, _, _ = g.value(own, rows, g.context(20.0, teacher_logit_scale=jnp.log(30.0)))
    expected, _, _ = g.value(Affinity(scale=20.0, teacher_scale=30.0), rows)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    with pytest.raises(ValueError, match=r"affinity.teacher_scale=None .* set it to a number"):
        own.check(models.CLIPConfig(), None)
    own.check(models.CLIPConfig(), models.CLIPConfig())


def test_gradient_is_that_of_the_formula_for_a_teacher_of_another_size():
    def reference(x, _):
        ours, theirs = 5 * x["image"] @ x["text"].T, 8 * x["teacher/image"] @ x["teacher/text"].T
        total = 0.0
        for logits, teacher in ((ours, theirs), (ours.T, theirs.T)):
            logp = logits - g.lse(logits)[:, None]
            total -= (g.softmax_rows(teacher) * logp).sum(1).mean() / 2
        return 0.7 * total + 0.3 * g.clip(x["image"], x["text"], 5.0)

    rows = g.random_rows("image", "text") | g.random_rows("teacher/image", "teacher/text", dim=9)
    g.check_gradient(Affinity(0.7, scale=5.0, teacher_scale=8.0), rows, reference)


def test_bad_options_are_refused():
    with pytest.raises(ValueError, match=r"affinity.alpha=2 must be a number in \[0, 1\]"):
        Affinity(alpha=2)
    with pytest.raises(ValueError, match=r"affinity.scale=0 must be a positive number"):
        Affinity(scale=0)
