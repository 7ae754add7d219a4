"""Features of image and text that correlate one to one."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip import models
from jaxclip.objectives import barlip
from jaxclip.objectives.clip_rocket import ClipRocket
from tests.objectives import fixture_g as g

TOWER = {"width": 6, "num_heads": 2}
SIZES = models.CLIPConfig(models.ImageConfig(**TOWER), models.TextConfig(**TOWER), embed_dim=2)
SMALL = {"width": 5, "features": 4, "bar_width": 5, "bar_features": 3}


def test_the_number_of_the_specification():
    matrix = jnp.array([[0.5, 0.2], [0.1, 1]])
    assert 0.025 * float(barlip.barlow(matrix, 5e-3)) == pytest.approx(0.00625625, rel=1e-5)


def test_it_is_added_for_one_weak_and_four_strong_pairs():
    objective = barlip.BarLIP(**SMALL)
    params = g.own_params(objective, SIZES)
    rng = np.random.default_rng(0)
    names = sorted(objective.needs - {"image", "text"})
    made = {name: jnp.asarray(rng.normal(size=(3, 6)), jnp.float32) for name in names}
    made |= {"image": g.I, "text": g.T}

    def features(view, tower):
        head = {"params": params["bar"][tower]}
        return np.asarray(objective.bar_head.apply(head, made[f"{view}_pooled"]), np.float64)

    expected = []
    for image, text in [("image", "text")] + [
        (f"view{a}/image", f"texts{b}/text") for a in (1, 2) for b in (1, 2)
    ]:
        matrix = features(image, "image").T @ features(text, "text") / 3
        off = matrix[~np.eye(3, dtype=bool)]
        expected.append(((np.diag(matrix) - 1) ** 2).sum() + 5e-3 * (off**2).sum())
    loss, metrics, _ = g.value(objective, made, params=params)
    rocket, _, _ = g.value(ClipRocket(width=5, features=4), made, params=params)
    assert float(metrics["barlow"]) == pytest.approx(np.mean(expected), rel=1e-4)
    assert float(loss - rocket) == pytest.approx(0.025 * np.mean(expected), rel=1e-3)


def test_features_that_agree_cost_nothing_but_redundancy():
    z = jnp.array([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])
    assert float(barlip.barlow(barlip.correlation(z, z), 1.0)) == 0.0


def test_bad_options_are_refused():
    with pytest.raises(ValueError, match=r"barlip\.redundancy=-1"):
        barlip.BarLIP(redundancy=-1)
