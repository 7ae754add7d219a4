"""Nested embedding sizes."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip import losses, models
from jaxclip.objectives.matryoshka import Matryoshka
from tests.objectives import fixture_g as g

SCALE = jnp.log(10.0)


def test_the_whole_size_alone_is_the_loss():
    loss, _, _ = g.value(Matryoshka((2,)), {"image": g.I, "text": g.T})
    assert float(loss) == pytest.approx(0.1081597, rel=1e-5)
    loss, _, _ = g.value(Matryoshka(kind="sigmoid"), {"image": g.I, "text": g.T})
    assert float(loss) == pytest.approx(5.1293707, rel=1e-5)


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
@pytest.mark.parametrize("implementation", ["plain", "blockwise"])
def test_each_size_has_the_loss_of_its_unit_prefixes(kind, implementation):
    rows = g.random_rows("image", "text", size=8, dim=16)
    objective = Matryoshka([4, 16], [2.0, 0.5], kind=kind, implementation=implementation)
    loss, metrics, _ = g.value(objective, rows)
    loss_of = losses.get(kind)
    short = {key: models.unit(value[:, :4]) for key, value in rows.items()}
    small, _ = loss_of(short["image"], short["text"], logit_scale=SCALE)
    large, _ = loss_of(rows["image"], rows["text"], logit_scale=SCALE)
    np.testing.assert_allclose(metrics["loss_4"], small, rtol=1e-5)
    np.testing.assert_allclose(loss, 2.0 * small + 0.5 * large, rtol=1e-5)


def test_gradient_is_that_of_the_formula():
    def reference(x, _):
        total = 0.0
        for dim in (2, 5):
            cut = [x[key][:, :dim] for key in ("image", "text")]
            unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in cut]
            total += g.clip(*unit, 10.0)
        return total

    g.check_gradient(Matryoshka((2, 5)), g.random_rows("image", "text"), reference)


def test_sizes_are_halves_down_to_64_unless_given():
    rows = g.random_rows("image", "text", dim=300)
    _, metrics, _ = g.value(Matryoshka(), rows)
    assert {key for key in metrics if key.startswith("loss")} == {"loss_300", "loss_150", "loss_75"}


def test_bad_options_are_refused():
    with pytest.raises(ValueError, match=r"matryoshka.dims=\(4, 32\) must not exceed .*=16"):
        Matryoshka((4, 32)).check(models.CLIPConfig(embed_dim=16), None)
    with pytest.raises(ValueError, match=r"matryoshka.weights=.* one for each of dims"):
        Matryoshka((4, 8), (1.0,))
    with pytest.raises(ValueError, match=r"matryoshka.dims=8 must be a list of whole numbers"):
        Matryoshka(8)
    with pytest.raises(ValueError, match=r"did you mean 'softmax'"):
        Matryoshka(kind="sofmax")
