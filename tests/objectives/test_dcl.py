"""Decoupled contrastive learning."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip import losses
from jaxclip.objectives.dcl import DCL
from tests.objectives import fixture_g as g


@pytest.mark.parametrize("implementation", ["plain", "blockwise"])
def test_value_on_fixture_g(implementation):
    loss, _, _ = g.value(DCL(implementation), {"image": g.I, "text": g.T})
    assert float(loss) == pytest.approx(-5.4217186, rel=1e-6)


def test_clips_row_loss_is_softplus_of_it():
    one = g.unit_vectors(5)
    for text in (g.unit_vectors(30), g.unit_vectors(80)):
        images, texts = jnp.concatenate([one, g.I[2:]]), jnp.concatenate([text, g.T[2:]])
        logits = 10.0 * images @ texts.T
        rows = jnp.array([logits[0, 1] - logits[0, 0], logits[1, 0] - logits[1, 1]])
        columns = jnp.array([logits[1, 0] - logits[0, 0], logits[0, 1] - logits[1, 1]])
        clip = (jax.nn.softplus(rows) + jax.nn.softplus(columns)).mean() / 2
        expected, _ = losses.softmax(images, texts, logit_scale=jnp.log(10.0))
        np.testing.assert_allclose(clip, expected, rtol=1e-5, atol=1e-6)
        loss, _, _ = g.value(DCL(), {"image": images, "text": texts}, g.context(size=2))
        np.testing.assert_allclose(loss, (rows + columns).mean() / 2, rtol=1e-5, atol=1e-6)


def test_an_unknown_implementation_is_refused():
    with pytest.raises(ValueError, match=r"dcl\.implementation='fast'; use 'plain' or 'blockwise'"):
        DCL("fast")
