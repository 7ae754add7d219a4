"""CLIP's loss on sentences of class names."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip import fields, losses
from jaxclip.objectives.flyp import FLYP
from tests.objectives import fixture_g as g


@pytest.mark.parametrize("implementation", ["plain", "blockwise"])
def test_it_is_clips_loss(implementation):
    outputs = {"image": g.I, "text": g.T}
    value, _, _ = g.value(FLYP(implementation=implementation), outputs)
    assert float(value) == pytest.approx(0.1081597, rel=1e-5)
    scale = jnp.log(jnp.float32(10.0))
    expected, _ = losses.softmax(g.I, g.T, logit_scale=scale)
    np.testing.assert_allclose(value, expected, rtol=1e-6)


def test_its_texts_are_sentences_of_the_class():
    ops = 'template("a photo of a {}.;an icon of {}")'
    term = FLYP(templates="a photo of a {}.;an icon of {}")
    assert term.fields == {"text": fields.Captions(ops=ops)}


@pytest.mark.parametrize("templates", ["", "no place", "{} and {}", 'a "{}"'])
def test_templates_without_a_place_are_refused(templates):
    with pytest.raises(ValueError, match=r"flyp\.templates=.*one \{\} each"):
        FLYP(templates=templates)
