"""The fused attention kernel against plain attention."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxclip import models
from jaxclip.models import fused_attention, presets

NUM_HEADS = 2


def arrays(shape=(4, 5, 6), count=3, dtype=np.float32):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=shape), dtype) for _ in range(count)]


def plain(q, k, v, causal):
    heads = (x.reshape(*x.shape[:2], NUM_HEADS, -1) for x in (q, k, v))
    return jax.nn.dot_product_attention(*heads, is_causal=causal).reshape(q.shape)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("shape", [(4, 5, 6), (1, 330, 4)])
def test_kernel_equals_plain_attention(causal, shape):
    *qkv, weight = arrays(shape, 4)

    def fused(q, k, v):
        return fused_attention.fused_attention(
            q, k, v, num_heads=NUM_HEADS, causal=causal, interpret=True
        )

    np.testing.assert_allclose(fused(*qkv), plain(*qkv, causal), atol=2e-6)
    got = jax.grad(lambda *a: jnp.sum(weight * fused(*a)), argnums=(0, 1, 2))(*qkv)
    want = jax.grad(lambda *a: jnp.sum(weight * plain(*a, causal)), argnums=(0, 1, 2))(*qkv)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, atol=5e-6)


def test_kernel_in_half_precision_is_as_good_as_plain():
    qkv = arrays((2, 17, 16), dtype=jnp.bfloat16)
    exact = plain(*(x.astype(jnp.float32) for x in qkv), False)
    fused = fused_attention.fused_attention(*qkv, num_heads=NUM_HEADS, interpret=True)
    assert fused.dtype == jnp.bfloat16
    error = jnp.max(jnp.abs(fused.astype(jnp.float32) - exact))
    error_plain = jnp.max(jnp.abs(plain(*qkv, False).astype(jnp.float32) - exact))
    assert error <= 1.5 * error_plain


def test_sharded_over_examples_and_heads():
    mesh = Mesh(np.array(jax.devices()[:8]).reshape(2, 2, 2), ("data", "fsdp", "tensor"))
    attention = fused_attention.sharded(mesh, ("data", "fsdp"), "tensor")
    qkv = arrays((4, 5, 8))
    spec = PartitionSpec(("data", "fsdp"), None, "tensor")
    placed = [jax.device_put(x, NamedSharding(mesh, spec)) for x in qkv]
    run = jax.jit(lambda q, k, v: attention(q, k, v, num_heads=NUM_HEADS, interpret=True))
    np.testing.assert_allclose(run(*placed), plain(*qkv, False), atol=2e-6)
    assert run(*placed).sharding.is_equivalent_to(placed[0].sharding, 3)
    compiled = run.lower(*placed).compile().as_text()
    assert "all-gather" not in compiled and "all-reduce" not in compiled
    with pytest.raises(ValueError, match=r"num_heads=3 do not divide over mesh\.tensor=2"):
        attention(*arrays((4, 5, 6)), num_heads=3)


def test_encoders_take_it_where_there_is_no_mask():
    config = presets.get("tiny")
    calls = []

    def spy(q, k, v, *, num_heads, causal):
        calls.append((q.shape[1], num_heads, causal))
        return plain_heads(q, k, v, num_heads, causal)

    def plain_heads(q, k, v, num_heads, causal):
        heads = (x.reshape(*x.shape[:2], num_heads, -1) for x in (q, k, v))
        return jax.nn.dot_product_attention(*heads, is_causal=causal).reshape(q.shape)

    model = models.build(config, attention_implementation=spy)
    params = model.init(jax.random.key(0))
    assert not calls, "one example divides over no devices"
    tokens = jnp.asarray([[5, 6, 0, 0]], jnp.int32)
    model.encode_text(params, tokens)
    assert not calls, "tiny masks its padding"
    size = config.image.image_size
    images = jax.random.normal(jax.random.key(1), (2, size, size, 3))
    model.encode_image(params, images)
    assert calls == [(config.image.grid**2, config.image.num_heads, False)] * config.image.depth
    want = models.build(config).encode_image(params, images)
    got = models.build(config, attention_implementation="fused").encode_image(params, images)
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_errors():
    q, k, v = arrays()
    with pytest.raises(ValueError, match="one shape"):
        fused_attention.fused_attention(q, k[:, :3], v, num_heads=2)
    with pytest.raises(ValueError, match="num_heads=4 does not divide the 6 channels"):
        fused_attention.fused_attention(q, k, v, num_heads=4)
    with pytest.raises(ValueError, match="'cudnn' or 'fused'"):
        models.build(presets.get("tiny"), attention_implementation="flash")
