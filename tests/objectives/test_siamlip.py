"""Prediction of the other modality's projection, without a teacher."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip import models
from jaxclip.objectives.byolip import BYOLIP
from jaxclip.objectives.siamlip import SiamLIP
from tests.objectives import fixture_g as g

TOWER = {"width": 6, "num_heads": 2}
SIZES = models.CLIPConfig(models.ImageConfig(**TOWER), models.TextConfig(**TOWER), embed_dim=2)
SMALL = {"width": 5, "features": 4, "predict_width": 5, "predict_features": 3}


def test_it_is_byolip_with_itself_as_the_teacher():
    objective = SiamLIP(**SMALL)
    params = g.own_params(objective, SIZES)
    rng = np.random.default_rng(0)
    names = sorted(objective.needs - {"image", "text"})
    made = {name: jnp.asarray(rng.normal(size=(3, 6)), jnp.float32) for name in names}
    made |= {"image": g.I, "text": g.T}
    doubled = made | {f"teacher/{name}": x for name, x in made.items()}

    def siamese(params):
        return g.value(objective, made, g.context(), params)[0]

    def with_teacher(own):
        return g.value(BYOLIP(**SMALL), doubled, g.context(teacher_own=params), own)[0]

    ours, theirs = (jax.value_and_grad(f)(params) for f in (siamese, with_teacher))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), ours, theirs)


def test_bad_options_are_refused():
    with pytest.raises(ValueError, match=r"siamlip\.predict_weight=-1"):
        SiamLIP(predict_weight=-1)
