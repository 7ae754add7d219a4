"""Parts that objectives share, against their formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip.models import heads


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def test_an_mlp_head_is_its_formula():
    head = heads.MLPHead(features=3, depth=2, width=5, norm="batch", final_norm="batch", unit=True)
    x = draw(6, 4)
    params = head.init(jax.random.key(0), x)["params"]
    params["norm_0"]["bias"] = draw(5, seed=1)

    def norm(y):
        return (y - y.mean(0)) / np.sqrt(y.var(0) + 1e-5)

    y = norm(np.asarray(x, np.float64) @ params["linear_0"]["kernel"])
    y = np.maximum(y * params["norm_0"]["scale"] + params["norm_0"]["bias"], 0)
    y = norm(y @ params["out"]["kernel"])
    expected = y / np.linalg.norm(y, axis=1, keepdims=True)
    got = head.apply({"params": params}, x)
    np.testing.assert_allclose(got, expected, atol=2e-5)
    assert got.dtype == jnp.float32
    assert jax.tree.map(jnp.shape, params) == {
        "linear_0": {"kernel": (4, 5)},
        "norm_0": {"scale": (5,), "bias": (5,)},
        "out": {"kernel": (5, 3)},
    }


def test_an_mlp_head_of_one_layer_is_linear():
    head = heads.MLPHead(features=3, depth=1)
    x = draw(2, 7, 4)
    params = head.init(jax.random.key(0), x)["params"]
    assert set(params) == {"out"} and set(params["out"]) == {"kernel", "bias"}
    got = head.apply({"params": params}, x)
    np.testing.assert_allclose(got, x @ params["out"]["kernel"], atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 0}, "depth=0; an MLP head has at least 1"),
        ({"norm": "bach"}, "norm='bach'; use 'none', 'batch', 'layer'"),
        ({"activation": "tanh"}, "activation='tanh'; use 'relu'"),
    ],
)
def test_options_of_an_mlp_head_are_checked(options, message):
    head = heads.MLPHead(features=3, **options)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(head.init, jax.random.key(0), draw(2, 4))


def decoder(**options):
    return heads.CrossAttentionDecoder(width=8, depth=2, num_heads=2, mlp_dim=12, **options)


def test_a_decoder_is_causal_and_looks_at_the_image():
    module = decoder(vocab_size=11)
    text, image = draw(2, 5, 6), draw(2, 3, 10, seed=1)
    params = jax.jit(module.init)(jax.random.key(0), text, image)
    run = jax.jit(module.apply)
    logits = run(params, text, image)
    assert logits.shape == (2, 5, 11) and logits.dtype == jnp.float32
    changed = run(params, text.at[:, 3].add(1.0), image)
    np.testing.assert_allclose(changed[:, :3], logits[:, :3], atol=1e-6)
    assert np.abs(changed[:, 3:] - logits[:, 3:]).max(axis=(0, 2)).min() > 1e-3
    other = run(params, text, image.at[0].add(draw(10, seed=2)))
    assert np.abs(other[0] - logits[0]).max(axis=1).min() > 1e-4
    np.testing.assert_allclose(other[1], logits[1], atol=1e-6)
    # Image tokens that are not valid, and texts' padding, are not seen.
    valid = jnp.array([[True, True, False]] * 2)
    masked = run(params, text, image, image_valid=valid)
    np.testing.assert_allclose(masked, run(params, text, image[:, :2]), atol=1e-5)
    valid = jnp.arange(5) != 1
    hidden = run(params, text, image, text_valid=jnp.stack([valid] * 2))
    again = run(params, text.at[:, 1].add(3.0), image, text_valid=jnp.stack([valid] * 2))
    np.testing.assert_allclose(hidden[:, 2:], again[:, 2:], atol=1e-5)


def test_a_decoder_s_logits_may_be_tied_to_a_table():
    module = decoder()
    text, image, table = draw(2, 5, 8), draw(2, 3, 8, seed=1), draw(11, 8, seed=2)
    params = jax.jit(module.init)(jax.random.key(0), text, image)
    assert "logits" not in params["params"] and "text_in" not in params["params"]
    states = module.apply(params, text, image)
    logits = module.apply(params, text, image, embedding=table)
    assert states.shape == (2, 5, 8)
    np.testing.assert_allclose(logits, states @ table.T, atol=1e-5)
    with pytest.raises(ValueError, match=r"\(11, 7\) with vocab_size=0; use \[V, 8\]"):
        module.apply(params, text, image, embedding=table[:, :7])
    with pytest.raises(ValueError, match="vocab_size=11"):
        decoder(vocab_size=11).init(jax.random.key(0), text, image, embedding=table)


def test_a_pooler_gives_so_many_vectors_of_the_valid_tokens():
    pooler = heads.AttentionPooler(num_queries=3, width=8, num_heads=2)
    x = draw(2, 5, 6)
    params = pooler.init(jax.random.key(0), x)
    out = pooler.apply(params, x)
    assert out.shape == (2, 3, 8)
    assert np.abs(out[:, 0] - out[:, 1]).max() > 1e-4  # queries differ
    order = np.array([3, 1, 4, 0, 2])
    np.testing.assert_allclose(pooler.apply(params, x[:, order]), out, atol=1e-5)
    valid = jnp.array([[True, True, True, False, False]] * 2)
    np.testing.assert_allclose(
        pooler.apply(params, x, valid), pooler.apply(params, x[:, :3]), atol=1e-5
    )
