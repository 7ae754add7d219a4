"""Words that find their own patches within the pair."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip import losses, models
from jaxclip.objectives.contrastive import Contrastive
from jaxclip.objectives.sparc import SPARC
from tests.objectives import fixture_g as g

TOWER = {"width": 6, "num_heads": 2}
SIZES = models.CLIPConfig(models.ImageConfig(**TOWER), models.TextConfig(**TOWER), embed_dim=2)
PATCHES = jnp.array([[[1.0, 0], [0.8, 0.6], [0, 1]]])
WORDS = jnp.array([[[1.0, 0], [0, 1]]])


def test_numbers_of_the_specification():
    weights = losses.group_weights(WORDS, PATCHES)
    np.testing.assert_allclose(weights[0], [[5 / 9, 4 / 9, 0], [0, 0.375, 0.625]], rtol=1e-5)
    groups = jnp.einsum("bqp,bpd->bqd", weights, PATCHES)
    np.testing.assert_allclose(groups[0], [[0.9111, 0.2667], [0.3, 0.85]], atol=1e-4)
    sums = losses.group_sums(groups, WORDS, jnp.ones((1, 2), bool), jnp.log(10.0))
    assert float(sums["nll"][0] / sums["tokens"][0]) == pytest.approx(0.0016465, rel=1e-4)


def test_padding_changes_nothing():
    rng = np.random.default_rng(0)
    groups, words = (jnp.asarray(rng.normal(size=(2, 4, 3)), jnp.float32) for _ in range(2))
    real = jnp.array([[True, True, True, False], [True, False, False, False]])
    sums = losses.group_sums(groups, words, real, jnp.log(10.0))
    whole = losses.group_sums(groups[:1, :3], words[:1, :3], real[:1, :3], jnp.log(10.0))
    assert sums["tokens"].tolist() == [3, 1]
    np.testing.assert_allclose(sums["nll"], [whole["nll"][0], 0], rtol=1e-5, atol=1e-6)


def test_equal_patches_are_one_group_with_a_finite_gradient():
    same = jnp.ones((1, 4, 2))
    np.testing.assert_allclose(losses.group_weights(WORDS, same), 0.25)
    gradient = jax.grad(lambda x: jnp.sum(losses.group_weights(WORDS, x)[..., 0]))(same)
    assert jnp.isfinite(gradient).all()


def test_it_is_a_mean_over_all_words_beside_clip():
    objective = SPARC(features=4)
    params = objective.init_params(jax.random.key(0), SIZES)
    rng = np.random.default_rng(0)
    made = {"image": g.I, "text": g.T, "text_mask": jnp.arange(5) < jnp.array([[2], [5], [3]])}
    for tower, count in (("image", 7), ("text", 5)):
        made[f"{tower}_tokens"] = jnp.asarray(rng.normal(size=(3, count, 6)), jnp.float32)
    loss, metrics, _ = g.value(objective, made, params=params)
    rows = objective.rows(params, made, g.context())
    local = float(rows["nll"].sum()) / 10
    assert rows["tokens"].tolist() == [2, 5, 3] and local > 0
    assert float(metrics["local_logit_scale"]) == pytest.approx(1 / 0.07, rel=1e-5)
    assert float(loss) == pytest.approx(0.5 * 0.1081597 + local, rel=1e-5)
    only = SPARC(features=4, contrastive=1.0, local_weight=0.0)
    clip = g.value(Contrastive(), made)[0]
    assert float(g.value(only, made, params=params)[0]) == pytest.approx(float(clip), rel=1e-5)


def test_bad_options_are_refused():
    with pytest.raises(ValueError, match=r"sparc\.features=0"):
        SPARC(features=0)
