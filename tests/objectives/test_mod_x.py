"""Mod-X."""

import numpy as np
import pytest

from jaxclip.objectives.mod_x import ModX
from tests.objectives import fixture_g as g


def test_values_on_fixture_g():
    only = ModX(alpha=1.0, contrastive=0.0)
    loss, metrics, _ = g.value(only, g.with_teacher(g.I, g.U, g.I, g.T))
    assert float(loss) == float(metrics["divergence"]) == pytest.approx(0.0111114, abs=1e-6)
    assert float(metrics["kept_rows"]) == 1.0
    # This teacher matches images 1 and 2 to each other's text: only row 3 counts.
    loss, metrics, _ = g.value(only, g.with_teacher(g.I, g.T, g.I, g.unit_vectors(65, 5, 170)))
    assert float(loss) == pytest.approx(0.0341169, abs=1e-6)
    assert float(metrics["kept_rows"]) == pytest.approx(1 / 3)


def test_a_student_that_is_the_teacher_is_trained_by_clip():
    loss, _, _ = g.value(ModX(), g.with_teacher(g.I, g.T, g.I, g.T))
    assert float(loss) == pytest.approx(0.1081597, rel=1e-4)
    loss, _, _ = g.value(ModX(alpha=0.0), g.with_teacher(g.I, g.T, g.I, g.U))
    assert float(loss) == pytest.approx(0.1081597, rel=1e-5)


def test_gradient_is_that_of_the_formula():
    def reference(x, _):
        new, old = x["image"] @ x["text"].T, x["teacher/image"] @ x["teacher/text"].T
        total = 0.0
        for logits, teacher in ((new, old), (new.T, old.T)):
            for i in range(6):
                if teacher[i].argmax() == i:
                    p, q = g.softmax_rows(teacher[i]), g.softmax_rows(logits[i])
                    total += (p * np.log(p / q)).sum() / 2
        return 0.5 * g.clip(x["image"], x["text"], 10.0) + 3.0 * total

    rows = g.random_rows("image", "text", "teacher/image")
    rows["teacher/text"] = rows["teacher/image"][np.array([0, 2, 1, 3, 4, 5])]
    g.check_gradient(ModX(alpha=3.0, contrastive=0.5), rows, reference)


def test_bad_options_are_refused():
    with pytest.raises(ValueError, match=r"mod_x.alpha=-2 must be a number of at least 0"):
        ModX(alpha=-2)
