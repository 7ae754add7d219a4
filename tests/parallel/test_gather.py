"""Parameters that are sharded over fsdp are sent round; activations are not."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from jaxclip import parallel
from jaxclip.plan import cost, hlo

WIDTH, HIDDEN, BATCH = 16, 256, 512
SHAPES = {"up": {"kernel": (WIDTH, HIDDEN)}, "down": {"kernel": (HIDDEN, WIDTH)}, "scale": (WIDTH,)}


def is_shape(x):
    return isinstance(x, tuple)


def setting():
    mesh = parallel.make_mesh({"data": 2, "fsdp": 4}, devices=jax.devices()[:8])
    shapes = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s, jnp.float32), SHAPES, is_leaf=is_shape)
    shardings = parallel.specs_for(shapes, parallel.sharding_rules("fsdp"), mesh)
    assert shardings["up"]["kernel"].spec == PartitionSpec(None, "fsdp")
    assert shardings["scale"].spec == PartitionSpec()
    return mesh, shapes, shardings


def test_only_parameters_travel():
    mesh, shapes, shardings = setting()

    def loss(params, x):
        params = parallel.gather(params, shardings, jnp.bfloat16)
        assert params["up"]["kernel"].dtype == jnp.bfloat16
        assert params["scale"].dtype == jnp.float32
        x = jnp.tanh(x.astype(jnp.bfloat16) @ params["up"]["kernel"]) @ params["down"]["kernel"]
        return jnp.sum((x * params["scale"]) ** 2)

    args = jax.tree.map(
        lambda s, sharding: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding),
        (shapes, jax.ShapeDtypeStruct((BATCH, WIDTH), jnp.float32)),
        (shardings, parallel.batch_sharding(mesh)),
    )
    compiled = jax.jit(jax.grad(loss), out_shardings=shardings).lower(*args).compile()
    found = cost.analyse(hlo.parse(compiled.as_text()), 8)
    # Float32 at most, gathered once or twice and summed once: never as much as one activation.
    parameters = (2 * WIDTH * HIDDEN + WIDTH) * 4
    assert found.sent <= 5 * parameters
    assert max(c.bytes for c in found.collectives) <= parameters < BATCH // 8 * HIDDEN * 2 * 8


def test_values_and_gradients_are_those_of_the_parameters():
    _, shapes, shardings = setting()
    params = jax.tree.map(lambda s: jnp.arange(s.size, dtype=jnp.float32).reshape(s.shape), shapes)
    placed = jax.tree.map(jax.device_put, params, shardings)
    whole = jax.jit(lambda p: parallel.gather(p, shardings, jnp.float32))(placed)
    jax.tree.map(np.testing.assert_array_equal, whole, params)

    def square(p):
        return sum(jnp.sum(x**2) for x in jax.tree.leaves(parallel.gather(p, shardings, "float32")))

    grads = jax.jit(jax.grad(square), out_shardings=shardings)(placed)
    jax.tree.map(lambda g, p: np.testing.assert_array_equal(g, 2 * p), grads, params)
    assert grads["up"]["kernel"].sharding.spec == PartitionSpec(None, "fsdp")
