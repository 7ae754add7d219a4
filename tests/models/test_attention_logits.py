"""The largest attention logits, and QK-Clip by them, on our towers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip import models, optim
from jaxclip.models.attention_logits import largest_attention_logits
from tests.models import small

SIGLIP = small.change(small.SIGLIP, text={"mask_padding": True})


def tower_of(config, name):
    model = models.build(config)
    inputs = dict(zip(("image", "text"), small.batch(config), strict=True))[name]
    params = small.params_for(model)[name]
    # Larger queries, so that there is something to clip.
    for block in range(getattr(config, name).depth):
        query = params[f"blocks_{block}"]["attention"]["query"]
        query["kernel"] = 8.0 * query["kernel"]
    return getattr(model, name), params, inputs


@pytest.mark.parametrize(
    ("config", "name"), [(small.CLIP, "image"), (small.CLIP, "text"), (SIGLIP, "text")]
)
def test_are_those_that_the_attention_weights_were_made_of(config, name):
    tower, params, inputs = tower_of(config, name)
    depth = tower.config.depth

    @jax.jit
    def run(params):
        features = tower.features(params, inputs, attention=range(depth), hidden=range(depth))
        parts = [tower.qkv(params, features.hidden[block], block) for block in range(depth)]
        return largest_attention_logits(tower, params, inputs), features, parts

    largest, features, parts = run(params)
    for block, (query, key, _) in enumerate(parts):
        weights = np.asarray(features.attention[block], np.float64)
        scores = np.einsum("bhqd,bhkd->bhqk", query, key) / np.sqrt(query.shape[-1])
        seen = np.where(weights > 0, scores, -np.inf)
        np.testing.assert_allclose(largest[block], seen.max(axis=(0, 2, 3)), rtol=1e-4)
        # And these scores are what was seen: their softmax is the weights.
        exponents = np.exp(seen - seen.max(axis=-1, keepdims=True))
        soft = exponents / exponents.sum(axis=-1, keepdims=True)
        np.testing.assert_allclose(soft, weights, atol=1e-4)


@pytest.mark.parametrize("name", ["image", "text"])
def test_the_same_inputs_then_give_the_threshold_exactly(name):
    tower, params, inputs = tower_of(small.CLIP, name)
    measure = jax.jit(lambda p: largest_attention_logits(tower, p, inputs))
    before = np.asarray(measure(params))
    # Only the first block's heads but one: blocks behind a changed one see other inputs.
    threshold = float(np.sort(before[0])[0] * 1.001)
    assert threshold > 0
    new, scaled = jax.jit(optim.qk_clip)(params, before, threshold)
    after = np.asarray(measure(new))
    np.testing.assert_array_equal(scaled, before > threshold)
    assert scaled[0].sum() == before.shape[1] - 1
    np.testing.assert_allclose(after[0][scaled[0]], threshold, rtol=1e-4)
    np.testing.assert_allclose(after[0][~scaled[0]], before[0][~scaled[0]], rtol=1e-6)
    nothing, none = optim.qk_clip(params, before, 1e6)
    assert not none.any()
    jax.tree.map(np.testing.assert_array_equal, nothing, params)


def test_factors_and_what_is_left_alone():
    linear = {"kernel": jnp.ones((4, 4)), "bias": jnp.ones(4)}
    attention = {"query": linear, "key": linear, "value": linear, "out": linear}
    params = {"blocks_0": {"attention": attention, "mlp": linear}, "projection": linear}
    new, scaled = optim.qk_clip(params, jnp.asarray([[250.0, jnp.inf]]))
    wanted = [0.632456, 0.632456, 1.0, 1.0]
    for part in ("query", "key"):
        np.testing.assert_allclose(new["blocks_0"]["attention"][part]["bias"], wanted, rtol=1e-6)
        np.testing.assert_allclose(new["blocks_0"]["attention"][part]["kernel"][2], wanted, 1e-6)
    for part in ("value", "out"):
        np.testing.assert_array_equal(new["blocks_0"]["attention"][part]["kernel"], 1.0)
    assert scaled.tolist() == [[True, False]]


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match=r"the tower has 0 blocks, but largest is of shape \(2, 3"):
        optim.qk_clip({"image": {}}, jnp.ones((2, 3)))
    with pytest.raises(ValueError, match=r"qk_clip\.threshold=0"):
        optim.qk_clip({}, jnp.ones((0, 3)), 0.0)
