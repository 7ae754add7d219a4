"""Small results from one kernel are those of the function itself."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip.optim._together import together


def settle(inputs: tuple[jax.Array, jax.Array, jax.Array]) -> dict[str, Any]:
    """A dozen results of several dtypes which share most of their work."""
    norm, average, count = inputs
    number = count.astype(jnp.float32)
    average = average + 0.1 * (norm - average)
    usual = average * (1 / (1 - 0.9 ** (number + 1)))
    clipped = norm > usual
    return {
        "average": average,
        "clipped": clipped,
        "count": jnp.where(jnp.isfinite(norm), count + 1, count),
        "factors": [jnp.where(clipped, usual / norm, 1.0) * k for k in range(1, 8)],
        "constant": jnp.ones(()),
        "norm": norm,
    }


@pytest.mark.parametrize("shape", [(), (1,), (7,)])
def test_results_are_those_of_the_function(shape: tuple[int, ...]) -> None:
    norms = np.resize([3.0, 0.5, np.nan, np.inf, 1e30, 0.0, -0.0], shape).astype(np.float32)
    inputs = (jnp.asarray(norms), jnp.ones(shape), jnp.int32(3))  # the last is one for all
    found = jax.jit(lambda given: together(settle, given, shape))(inputs)
    expected = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, shape), settle(inputs))
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert one.shape == shape and one.dtype == other.dtype and not one.weak_type
        np.testing.assert_allclose(one, other, rtol=1e-6)


def test_they_come_from_one_kernel() -> None:
    inputs = (jnp.ones(60), jnp.ones(60), jnp.zeros(60, jnp.int32))
    compiled = jax.jit(lambda given: together(settle, given, (60,))).lower(inputs).compile()
    assert compiled.as_text().count(" fusion(") == 1


def test_outside_of_jit_and_without_tensors() -> None:
    found = together(settle, (jnp.ones(0), jnp.ones(0), jnp.zeros(0, jnp.int32)), (0,))
    assert all(leaf.shape == (0,) for leaf in jax.tree.leaves(found))
    assert together(lambda given: {}, jnp.ones(3), (3,)) == {}
    assert jax.jit(lambda x: together(lambda given: (), x, (3,)))(jnp.ones(3)) == ()


def test_it_maps_and_shards() -> None:
    def rule(norm: jax.Array) -> jax.Array:
        return together(lambda n: {"double": 2 * n}, norm, ())["double"]

    np.testing.assert_array_equal(jax.jit(jax.vmap(rule))(jnp.arange(5.0)), 2 * np.arange(5.0))
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("x")
    local = jax.shard_map(lambda x: rule(x[0])[None], mesh=mesh, in_specs=spec, out_specs=spec)
    np.testing.assert_array_equal(jax.jit(local)(jnp.arange(8.0)), 2 * np.arange(8.0))
