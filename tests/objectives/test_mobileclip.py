"""MobileCLIP's stored ensemble."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip import config as config_lib
from jaxclip import fields, models
from jaxclip.objectives.mobileclip import MobileCLIP
from jaxclip.train import setup
from tests.objectives import fixture_g as g
from tests.objectives.battery import configuration

ONE = MobileCLIP((2,), (1.0,))
SIDES = (lambda x: x, lambda x: x.T)


def outputs(logits, *teachers):
    """Student and concatenated teachers whose products are given matrices, as far as unit rows
    allow: images are rows of the identity."""
    return {
        "image": jnp.eye(2),
        "text": jnp.asarray(logits).T,
        "teacher/image": jnp.concatenate([jnp.eye(2)] * len(teachers), 1),
        "teacher/text": jnp.concatenate(teachers, 1),
    }


def test_teachers_are_averaged_after_the_softmax():
    ctx = g.context(1.0, size=2)
    first, second = g.unit_vectors(20, 70), g.unit_vectors(0, 90)
    student = jnp.array([[2.0, 0.0], [1.0, 1.0]])
    loss, _, _ = g.value(MobileCLIP((2, 2), (3.0, 1.0)), outputs(student, first, second), ctx)
    after = [jax.nn.softmax(s * t.T) for s, t in ((3.0, first), (1.0, second))]
    after_columns = [jax.nn.softmax(s * t) for s, t in ((3.0, first), (1.0, second))]
    expected = 0.0
    for targets, logits in ((after, student), (after_columns, student.T)):
        mean = (targets[0] + targets[1]) / 2
        expected -= float((mean * jax.nn.log_softmax(logits)).sum(1).mean()) / 2
    assert float(loss) == pytest.approx(expected, rel=1e-6)


def test_a_student_that_is_its_teacher_has_gradient_zero():
    rows = {"image": g.I, "text": g.T, "teacher/image": g.I, "teacher/text": g.T}
    objective = MobileCLIP((2,), (10.0,))
    gradient = jax.grad(lambda x: g.value(objective, {**rows, "image": x})[0])(g.I)
    np.testing.assert_allclose(gradient, 0.0, atol=1e-5)


def test_it_reduces_to_clip():
    rows = {"image": g.I, "text": g.T, "teacher/image": g.I, "teacher/text": g.U}
    loss, _, _ = g.value(MobileCLIP((2,), (10.0,), contrastive=1.0, distill=0.0), rows)
    assert float(loss) == pytest.approx(0.1081597, rel=1e-5)


def test_gradient_is_that_of_the_formula_with_a_synthetic_caption():
    sizes, scales = (4, 3), (6.0, 2.0)

    def reference(x, _):
        total = 0.0
        for name in ("text", "texts1/text"):
            logits = 10 * x["image"] @ x[name].T
            parts = []
            for part, scale in zip((slice(0, 4), slice(4, 7)), scales, strict=True):
                cut = (x["teacher/image"][:, part], x[f"teacher/{name}"][:, part])
                a, b = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in cut)
                parts.append(scale * a @ b.T)
            for side in SIDES:
                target = sum(g.softmax_rows(side(part)) for part in parts) / 2
                logp = side(logits) - g.lse(side(logits))[:, None]
                total -= 0.75 * (target * logp).sum(1).mean() / 2
            total += 0.25 * g.clip(x["image"], x[name], 10.0)
        return total

    objective = MobileCLIP(sizes, scales, 0.25, 0.75, synthetic="blip")
    student = g.random_rows("image", "text", "texts1/text")
    teacher = g.random_rows("teacher/image", "teacher/text", "teacher/texts1/text", dim=7, seed=2)
    g.check_gradient(objective, student | teacher, reference)


def test_a_vector_belongs_to_one_caption():
    assert ONE.fields == {"text": fields.Captions(policy="first")}
    assert MobileCLIP(synthetic="blip").fields["texts1/text"] == fields.Captions(
        policy="first", source="blip"
    )


def test_stored_vectors_of_both_captions_come_from_the_records():
    config = configuration(["mobileclip"])
    config["teacher"] = {**config["teacher"], "kind": "stored", "size": 16}
    spec = setup.build(config_lib.resolve(config), devices=jax.devices()[:1]).batch_spec
    assert spec["teacher/image"] == fields.Stored("teacher_image", 16)
    assert spec["teacher/text"] == fields.Stored("teacher_text", 16)
    assert spec["teacher/texts1/text"] == fields.Stored("teacher_text_texts1", 16)


def test_a_teacher_that_runs_along_brings_its_scale_and_any_caption():
    objective = MobileCLIP((2,), (None,), captions="random")
    assert objective.fields == {"text": fields.Captions(policy="random")}
    rows = {"image": g.I, "text": g.T, "teacher/image": g.I, "teacher/text": g.U}
    ctx = dataclasses.replace(g.context(10.0, size=2), teacher_logit_scale=jnp.log(7.0))
    found, _, _ = g.value(objective, rows, ctx)
    expected, _, _ = g.value(MobileCLIP((2,), (7.0,)), rows, ctx)
    assert float(found) == pytest.approx(float(expected), rel=1e-6)


def test_stored_vectors_have_no_scale():
    with pytest.raises(ValueError, match=r"scales=\(None,\): None is the teacher's own scale"):
        MobileCLIP((2,), (None,)).check(models.CLIPConfig(), None)


def test_bad_options_are_refused():
    with pytest.raises(ValueError, match=r"mobileclip.scales=.* one for each of sizes=\(4, 4\)"):
        MobileCLIP((4, 4), (1.0,))
    message = r"mobileclip.sizes=\(2,\) sum to 2, but the teacher's vectors have 512"
    with pytest.raises(ValueError, match=message):
        ONE.check(models.CLIPConfig(), models.CLIPConfig())
    rows = {"image": g.I, "text": g.T, "teacher/image": g.I, "teacher/text": g.U}
    with pytest.raises(ValueError, match=r"sum to 3, but the teacher's vectors have 2"):
        g.value(MobileCLIP((3,), (1.0,)), rows)
