"""Record linkage on pooled vectors."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip.objectives.clippings import CLIPPINGS
from tests.objectives import fixture_g as g


def made(*labels):
    return {"image": g.I, "text": g.T, "label": jnp.asarray(labels, jnp.int32)}


@pytest.mark.parametrize("implementation", ["plain", "blockwise"])
def test_on_fixture_g(implementation):
    loss, metrics, _ = g.value(CLIPPINGS(implementation=implementation), made(0, 0, 1))
    # A difference of float32 near 8; in float64 below.
    assert float(loss) == pytest.approx(7.7446e-6, abs=2e-6)
    assert float(metrics["anchors"]) == pytest.approx(2 / 3)


def reference(arrays, labels, share, temperature):
    z = share * arrays["image"] + (1 - share) * arrays["text"]
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    logits = g.off_diagonal(z @ z.T / temperature)
    total = []
    for i, label in enumerate(labels):
        own = [j for j, other in enumerate(labels) if j != i and other == label >= 0]
        if own:
            total.append(g.lse(logits)[i] - logits[i, own].mean())
    return np.mean(total)


def test_the_number_of_the_specification_in_float64():
    arrays = {"image": np.asarray(g.I, np.float64), "text": np.asarray(g.T, np.float64)}
    assert reference(arrays, [0, 0, 1], 0.5, 0.1) == pytest.approx(7.7446e-6, rel=1e-4)


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_value_and_gradient(share):
    labels = [2, 2, 0, 0, 0, -1]
    rows = {**g.random_rows("image", "text"), "label": jnp.asarray(labels, jnp.int32)}
    objective = CLIPPINGS(image_share=share, temperature=0.5)
    g.check_gradient(objective, rows, lambda a, _: reference(a, labels, share, 0.5))


def test_without_a_partner_there_is_no_anchor():
    for labels in ((0, 1, 2), (-1, -1, -1)):
        loss, metrics, _ = g.value(CLIPPINGS(), made(*labels))
        assert float(loss) == 0.0 == float(metrics["anchors"])


def test_bad_options_are_refused():
    with pytest.raises(ValueError, match=r"clippings\.image_share=2 must be a number in \[0, 1\]"):
        CLIPPINGS(image_share=2)
    with pytest.raises(ValueError, match=r"clippings\.temperature=0 must be a positive number"):
        CLIPPINGS(temperature=0)
