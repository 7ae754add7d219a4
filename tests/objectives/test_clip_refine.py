"""CLIP-Refine."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip.objectives.clip_refine import ClipRefine
from tests.objectives import fixture_g as g

ROOT = 10.0**0.5


def outputs(image, text, teacher_image=g.I, teacher_text=g.T):
    return {
        "image_raw": ROOT * image,
        "text_raw": ROOT * text,
        "teacher/image_raw": ROOT * teacher_image,
        "teacher/text_raw": ROOT * teacher_text,
    }


@pytest.mark.parametrize(("text", "expected"), [(g.T, 0.0174548), (g.U, 0.0148065)])
def test_distillation_on_fixture_g(text, expected):
    loss, metrics, _ = g.value(ClipRefine(rafa=0.0), outputs(g.I, text))
    assert float(loss) == float(metrics["hycd"]) == pytest.approx(expected, abs=1e-6)


def test_the_target_goes_from_clip_to_the_teacher():
    loss, _, _ = g.value(ClipRefine(alpha=1.0, rafa=0.0), outputs(g.I, g.T))
    assert float(loss) == pytest.approx(0.1081597, rel=1e-5)
    loss, _, _ = g.value(ClipRefine(alpha=0.0, rafa=0.0), outputs(g.I, g.T))
    assert float(loss) == pytest.approx(0.0, abs=1e-6)


def test_alignment_pulls_both_sides_of_a_pair_to_one_normal_draw():
    rows = g.random_rows("image_raw", "text_raw", size=64, dim=32)
    rows |= {f"teacher/{key}": value for key, value in rows.items()}
    ctx = g.context(size=64)

    def alignment(varied):
        return g.value(ClipRefine(hycd=0.0), {**rows, **varied}, ctx)[0]

    keys = ("image_raw", "text_raw")
    gradient = jax.grad(alignment)({k: rows[k] for k in keys})
    # The mean of squares over elements: the draw is x - gradient * elements / 2.
    drawn = [np.asarray(rows[k] - gradient[k] * rows[k].size / 2) for k in keys]
    np.testing.assert_allclose(drawn[0], drawn[1], atol=1e-4)
    assert abs(drawn[0].mean()) < 0.1 and drawn[0].std() == pytest.approx(1.0, abs=0.05)
    assert len(np.unique(drawn[0].round(3)[:, 0])) == 64  # a draw for each row
    expected = sum(((np.asarray(rows[k]) - drawn[0]) ** 2).mean() for k in keys)
    assert float(alignment({})) == pytest.approx(expected, rel=1e-4)


def test_a_rows_draw_does_not_depend_on_how_the_batch_is_cut():
    rows = outputs(g.I, g.T)
    whole = g.value(ClipRefine(), rows)[1]["rafa"]
    parts = []
    for place in range(3):
        ctx = dataclasses.replace(g.context(), row=jnp.array([place], jnp.int32))
        part = {key: value[place : place + 1] for key, value in rows.items()}
        parts.append(float(g.value(ClipRefine(), part, ctx)[1]["rafa"]))
    assert float(whole) == pytest.approx(np.mean(parts), rel=1e-6)


def test_gradient_is_that_of_the_formula():
    def reference(x, _):
        ours = x["image_raw"] @ x["text_raw"].T
        theirs = x["teacher/image_raw"] @ x["teacher/text_raw"].T
        total = 0.0
        for logits, teacher in ((ours, theirs), (ours.T, theirs.T)):
            target = 0.3 * np.eye(6) + 0.7 * g.softmax_rows(teacher)
            logp = logits - g.lse(logits)[:, None]
            total += (target * (np.log(target) - logp)).sum(1).mean() / 2
        return total

    rows = g.random_rows("image_raw", "text_raw", "teacher/image_raw", "teacher/text_raw")
    g.check_gradient(ClipRefine(alpha=0.3, rafa=0.0), rows, reference)


def test_bad_options_are_refused():
    with pytest.raises(ValueError, match=r"clip_refine.alpha=1.5 must be a number in \[0, 1\]"):
        ClipRefine(alpha=1.5)
