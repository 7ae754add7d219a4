"""EuCLIP's geometries."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip.objectives.euclip import EuCLIP
from tests.objectives import fixture_g as g

ROWS = {
    "image_raw": g.I * jnp.array([[1.0], [2.0], [3.0]]),
    "text_raw": g.T * jnp.array([[1.5], [2.5], [3.5]]),
}


def test_values_on_fixture_g():
    loss, metrics, _ = g.value(EuCLIP(), ROWS, g.context(1.0))
    assert float(loss) == pytest.approx(0.2323836, abs=1e-6)
    assert float(metrics["entailment"]) == pytest.approx(2.2888077, abs=1e-5)
    both, _, _ = g.value(EuCLIP(entailment=0.2), ROWS, g.context(1.0))
    assert float(both) == pytest.approx(0.2323836 + 0.2 * 2.2888077, abs=1e-5)


@pytest.mark.parametrize(("geometry", "scale"), [("squared", 5.0), ("inner", 10.0)])
def test_unit_rows_are_clip(geometry, scale):
    unit = {"image_raw": 2**0.5 * g.I, "text_raw": 2**0.5 * g.T}
    loss, _, _ = g.value(EuCLIP(geometry), unit, g.context(scale))
    assert float(loss) == pytest.approx(0.1081597, rel=1e-5)


@pytest.mark.parametrize("geometry", ["squared", "euclidean", "inner", "elliptic"])
def test_gradient_is_that_of_the_formula(geometry):
    entailment = 0.0 if geometry == "elliptic" else 0.3

    def reference(x, _):
        a, b = (x[key] / 5**0.5 for key in ("image_raw", "text_raw"))
        distance = np.sqrt(((a[:, None] - b) ** 2).sum(-1))
        lengths = [np.linalg.norm(rows, axis=1) for rows in (a, b)]
        angles = np.arccos(a @ b.T / np.outer(*lengths))
        by_name = {"squared": -(distance**2), "euclidean": -distance, "inner": a @ b.T}
        logits = 3 * by_name.get(geometry, -angles)
        clip = (g.lse(logits) + g.lse(logits.T) - 2 * np.diagonal(logits)).mean() / 2
        gap = a - b
        cosines = (gap * b).sum(1) / np.linalg.norm(gap, axis=1) / lengths[1]
        cone = np.arcsin(np.minimum(1, 0.1 / lengths[1]))
        return clip + entailment * np.maximum(np.arccos(cosines) - cone, 0).mean()

    rows = g.random_rows("image_raw", "text_raw")
    g.check_gradient(
        EuCLIP(geometry, entailment=entailment), rows, reference, g.context(3.0, size=6)
    )


@pytest.mark.parametrize("geometry", ["squared", "euclidean", "elliptic"])
def test_an_image_on_its_text_has_a_finite_gradient(geometry):
    same = {"image_raw": g.I, "text_raw": g.I}
    objective = EuCLIP(geometry, entailment=0.0 if geometry == "elliptic" else 1.0)
    gradient = jax.grad(lambda rows: g.value(objective, rows)[0])(same)
    assert all(np.isfinite(x).all() for x in gradient.values())


def test_bad_options_are_refused():
    with pytest.raises(ValueError, match=r"euclip.geometry='lorentz'; use 'squared', 'euclidean'"):
        EuCLIP("lorentz")
    with pytest.raises(ValueError, match=r"'elliptic' has no lengths for entailment"):
        EuCLIP("elliptic", entailment=0.1)
