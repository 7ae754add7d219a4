"""CLIP with alignment and uniformity."""

import jax
import numpy as np
import pytest

from jaxclip.objectives.align_uniform import AlignUniform
from tests.objectives import fixture_g as g

PAIR = {"image": g.I, "text": g.T}


@pytest.mark.parametrize("implementation", ["plain", "blockwise"])
def test_values_on_fixture_g(implementation):
    objective = AlignUniform(implementation=implementation)
    loss, metrics, _ = g.value(objective, PAIR, g.context(100.0))
    assert float(loss) == pytest.approx(-4.0524384, abs=1e-5)
    assert float(metrics["align"]) == pytest.approx(0.1206148, abs=1e-6)
    assert float(metrics["uniform"]) == pytest.approx(-2.1526466, abs=1e-5)
    assert float(metrics["cross_uniform"]) == pytest.approx(-2.0204066, abs=1e-5)


def test_without_the_terms_it_is_clip():
    loss, _, _ = g.value(AlignUniform(align=0.0, uniform=0.0, cross_uniform=0.0), PAIR)
    assert float(loss) == pytest.approx(0.1081597, rel=1e-5)


def test_without_clip_the_logit_scale_has_no_part():
    objective = AlignUniform(contrastive=0.0)
    losses = [float(g.value(objective, PAIR, g.context(s))[0]) for s in (1.0, 100.0)]
    assert "clip" not in g.value(objective, PAIR)[1]
    assert losses[0] == losses[1] == pytest.approx(0.1206148 - 2.1526466 - 2.0204066, abs=1e-5)


def test_gradient_is_that_of_the_formula():
    def reference(x, _):
        image, text = x["image"], x["text"]

        def spread(a, b, pairs):
            distances = ((a[:, None] - b) ** 2).sum(-1)
            return np.log(np.exp(-2 * distances)[pairs].mean())

        upper, off = np.triu_indices(len(image), 1), ~np.eye(len(image), dtype=bool)
        align = ((image - text) ** 2).sum(1).mean()
        within = (spread(image, image, upper) + spread(text, text, upper)) / 2
        across = spread(image, text, off)
        return 0.5 * g.clip(image, text, 10.0) + 2 * align + within + 3 * across

    objective = AlignUniform(contrastive=0.5, align=2.0, cross_uniform=3.0)
    g.check_gradient(objective, g.random_rows("image", "text"), reference)


def test_equal_rows_have_a_finite_gradient():
    same = g.unit_vectors(30, 30, 30)
    gradient = jax.grad(lambda x: g.value(AlignUniform(), {"image": x, "text": x})[0])(same)
    assert np.isfinite(gradient).all()


def test_bad_options_are_refused():
    with pytest.raises(ValueError, match=r"align_uniform.align=-1 must be a number of at least 0"):
        AlignUniform(align=-1)
    with pytest.raises(ValueError, match=r"align_uniform.implementation='fast'; use 'plain' or"):
        AlignUniform(implementation="fast")
