"""CLIP beside SimCLR."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip import losses, models, parallel
from jaxclip.data import image_ops
from jaxclip.objectives.contrastive import Contrastive
from jaxclip.objectives.slip import SLIP
from tests.objectives import fixture_g as g

SIZES = models.CLIPConfig(models.ImageConfig(width=6, num_heads=2), embed_dim=2)
SMALL = {"width": 5, "features": 4}


def outputs(seed=0):
    rng = np.random.default_rng(seed)
    views = {f"view{k}/image_pooled": jnp.asarray(rng.normal(size=(3, 6))) for k in (1, 2)}
    return {"image": g.I, "text": g.T, **views}


@pytest.mark.parametrize("implementation", ["plain", "blockwise"])
def test_simclr_on_fixture_g(implementation):
    loss, metrics = losses.simclr(
        g.I, g.T, logit_scale=jnp.log(10.0), implementation=implementation
    )
    assert float(loss) == pytest.approx(0.3167622, rel=1e-6)
    assert float(metrics["accuracy"]) == pytest.approx(4 / 6)  # 20 and 40 degrees tie


def test_simclr_without_its_matrices_on_eight_devices():
    rng = np.random.default_rng(0)
    views = [rng.normal(size=(16, 4)).astype(np.float32) for _ in range(2)]
    views = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in views]
    mesh = parallel.make_mesh()

    def value(views, **options):
        return losses.simclr(*views, logit_scale=jnp.log(5.0), **options)[0]

    expected = jax.jit(jax.value_and_grad(value))(views)
    options = {"implementation": "blockwise", "tile_size": 2, "mesh": mesh}
    sharded = jax.device_put(views, parallel.batch_sharding(mesh))
    result = jax.jit(jax.value_and_grad(lambda x: value(x, **options)))(sharded)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), result, expected
    )


def test_weight_0_is_clip():
    objective = SLIP(ssl_weight=0.0, **SMALL)
    params = g.own_params(objective, SIZES)
    loss, metrics, _ = g.value(objective, outputs(), params=params)
    expected, _, _ = g.value(Contrastive(), outputs())
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)
    assert metrics["simclr"] > 0


def test_the_head_in_float64_and_the_sum():
    objective = SLIP(ssl_weight=0.5, temperature=0.2, **SMALL)
    params = g.own_params(objective, SIZES)
    loss, _, _ = g.value(objective, outputs(), params=params)
    head = jax.tree.map(lambda x: np.asarray(x, np.float64), params["head"])

    def project(x):
        for index in range(2):
            x = x @ head[f"linear_{index}"]["kernel"]
            x = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)
            x = np.maximum(x * head[f"norm_{index}"]["scale"] + head[f"norm_{index}"]["bias"], 0)
        x = x @ head["out"]["kernel"] + head["out"]["bias"]
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    a, b = (project(np.asarray(outputs()[f"view{k}/image_pooled"], np.float64)) for k in (1, 2))
    every = np.concatenate([a, b])
    logits = every @ every.T / 0.2
    np.fill_diagonal(logits, -np.inf)
    positive = np.concatenate([(a * b).sum(1)] * 2) / 0.2
    ssl = (np.log(np.exp(logits).sum(1)) - positive).mean()
    assert float(loss) == pytest.approx(0.1081597 + 0.5 * ssl, rel=1e-4)


def test_the_views_ops_parse():
    chain = image_ops.build(SLIP().image_ops, 16)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 20, 24, 3), dtype=np.uint8)
    views = chain(pixels, np.random.default_rng(1).random((2, chain.num_draws), np.float32))
    assert views.shape == (2, 16, 16, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0}, r"slip\.temperature=0 must be a positive number"),
        ({"ssl_weight": -1}, r"slip\.ssl_weight=-1 must be a number of at least 0"),
        ({"width": 0}, r"slip\.width=0"),
        ({"implementation": "fast"}, r"slip\.implementation='fast'; use 'plain' or 'blockwise'"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SLIP(**options)
