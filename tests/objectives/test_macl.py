"""Model-aware contrastive learning."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip.objectives.dcl import DCL
from jaxclip.objectives.macl import MACL
from tests.objectives import fixture_g as g

PAIR = {"image": g.I, "text": g.T}


@pytest.mark.parametrize("implementation", ["plain", "blockwise"])
def test_value_on_fixture_g(implementation):
    loss, metrics, _ = g.value(MACL(implementation=implementation), PAIR)
    assert float(loss) == pytest.approx(1.0932335, abs=1e-5)
    assert float(metrics["alignment"]) == pytest.approx(0.9396926, abs=1e-6)
    assert float(metrics["temperature"]) == pytest.approx(0.1469846, abs=1e-6)


def test_without_weight_and_alpha_it_is_clip_at_a_fixed_scale():
    objective = MACL(alpha=0.0, reweight=False)
    loss, _, _ = g.value(objective, PAIR, g.context(3.0))
    assert float(loss) == pytest.approx(0.1081597, rel=1e-5)


@pytest.mark.parametrize("temperature", [0.1, 0.002])
def test_its_gradient_is_dcls_even_where_a_pair_is_sure(temperature):
    # At 0.002 the probability of a pair is 1 in float32, and 1 - P is 0.
    def gradient(objective, ctx):
        return jax.grad(lambda x: g.value(objective, {"image": x, "text": g.T}, ctx)[0])(g.I)

    ours = gradient(MACL(temperature, alpha=0.0), g.context())
    theirs = gradient(DCL(), g.context(1 / temperature))
    assert float(jnp.abs(ours).max()) > 1
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_value_and_gradient_are_those_of_the_formula():
    def reference(x, base):
        alignment = (base["image"] * base["text"]).sum(1).mean()
        temperature = 0.2 * (1 + 0.5 * (alignment - 0.1))
        total = 0.0
        for a, b in (("image", "text"), ("text", "image")):
            logp, fixed = (
                np.diagonal(v[a] @ v[b].T) / temperature - g.lse(v[a] @ v[b].T / temperature)
                for v in (x, base)
            )
            total += (-logp / (1 - np.exp(fixed))).mean() / 2
        return total

    objective = MACL(0.2, alpha=0.5, start=0.1)
    g.check_gradient(objective, g.random_rows("image", "text"), reference)


def test_sure_and_hopeless_pairs_have_finite_values():
    for text, expected in ((g.I, 1.0), (-g.I, None)):
        loss, _, _ = g.value(MACL(0.002, alpha=0.0), {"image": g.I, "text": text})
        assert np.isfinite(loss)
        if expected is not None:
            assert float(loss) == pytest.approx(expected, abs=1e-3)


def test_bad_options_are_refused():
    with pytest.raises(ValueError, match=r"macl.temperature=0 must be a positive number"):
        MACL(0)
    with pytest.raises(
        ValueError, match=r"would make the temperature .* negative; use alpha below"
    ):
        MACL(alpha=1.0)
