"""Kahan summation and stochastic rounding: bfloat16 parameters that do not stall."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxclip import optim
from jaxclip.optim import _bfloat16

WRAPPERS = (optim.kahan_summation, optim.stochastic_rounding)


def train(tx: optax.GradientTransformation, dtype: Any, steps: int, size: int = 64) -> Any:
    """Parameters after steps towards a target, with gradients in the parameters' dtype."""
    rng = np.random.default_rng(0)
    target = jnp.asarray(rng.normal(size=size), jnp.float32)
    params = {"w": jnp.asarray(rng.normal(size=size), dtype), "scale": jnp.asarray(0.5, "float32")}

    def step(carry: Any, _: None) -> Any:
        params, state = carry
        gradient = {"w": (params["w"].astype("float32") - target).astype(dtype)}
        updates, state = tx.update({**gradient, "scale": params["scale"]}, state, params)
        return (optax.apply_updates(params, updates), state), None

    run = jax.jit(lambda carry: jax.lax.scan(step, carry, None, length=steps)[0])
    return run((params, tx.init(params)))


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_small_steps_arrive_where_plain_bfloat16_stalls(wrapper: Any) -> None:
    """The learning rate makes every step less than half of what bfloat16 can tell apart."""
    exact = np.asarray(train(optax.sgd(1e-3), jnp.float32, 400)[0]["w"])
    plain = np.asarray(train(optax.sgd(1e-3), jnp.bfloat16, 400)[0]["w"], np.float32)
    found = np.asarray(train(wrapper(optax.sgd(1e-3)), jnp.bfloat16, 400)[0]["w"], np.float32)
    lost, error = np.abs(plain - exact), np.abs(found - exact)
    assert error.mean() < (0.1 if wrapper is optim.kahan_summation else 0.25) * lost.mean()


def test_parameter_and_compensation_together_are_nearly_float32() -> None:
    exact = train(optax.sgd(1e-3), jnp.float32, 1)[0]["w"]
    params, state = train(optim.kahan_summation(optax.sgd(1e-3)), jnp.bfloat16, 1)
    start = train(optax.sgd(0.0), jnp.bfloat16, 1)[0]["w"].astype(jnp.float32)
    del exact
    together = params["w"].astype(jnp.float32) + state.compensation["w"].astype(jnp.float32)
    rng = np.random.default_rng(0)
    target = rng.normal(size=64).astype(np.float32)
    gradient = (start - target).astype(jnp.bfloat16).astype(jnp.float32)
    np.testing.assert_allclose(together, start - 1e-3 * gradient, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_apply_updates_gives_what_was_decided_and_other_dtypes_are_passed_by(wrapper: Any) -> None:
    params = {
        "narrow": jnp.asarray(np.random.default_rng(1).normal(size=1000), jnp.bfloat16),
        "wide": jnp.ones(3),
        "none": None,
    }
    gradient = jax.tree.map(lambda p: jnp.full_like(p, 0.37), params)
    tx = wrapper(optax.adam(1e-3))
    updates, state = jax.jit(tx.update)(gradient, tx.init(params), params)
    assert updates["narrow"].dtype == jnp.float32
    np.testing.assert_allclose(updates["wide"], -1e-3, rtol=1e-5)
    new = optax.apply_updates(params, updates)
    assert new["narrow"].dtype == jnp.bfloat16
    wanted = params["narrow"].astype(jnp.float32) + updates["narrow"]
    np.testing.assert_array_equal(new["narrow"].astype(jnp.float32), wanted)
    # The wrapped optimizer works in float32.
    assert {leaf.dtype for leaf in jax.tree.leaves(state.inner_state) if leaf.ndim} == {
        jnp.dtype(jnp.float32)
    }
    with pytest.raises(ValueError, match=r"needs the parameters: call `update\(grads, state, par"):
        tx.update(gradient, state)


def test_rounding_at_random_has_no_bias_and_only_neighbours() -> None:
    value = jnp.full((200_000,), 1.0 + 0.3 * 2**-7, jnp.float32)
    found = np.asarray(_bfloat16.round_at_random(value, jnp.uint32(3)))
    assert set(np.unique(found)) == {1.0, 1.0 + 2**-7}
    share = np.mean(found > 1.0)
    assert abs(share - 0.3) < 4 * np.sqrt(0.3 * 0.7 / value.size)
    for sign in (1.0, -1.0):
        exact = jnp.asarray([sign * x for x in (0.0, 0.5, 1.5, 3e38, np.inf)], jnp.float32)
        exact = exact.astype(jnp.bfloat16).astype(jnp.float32)
        np.testing.assert_array_equal(_bfloat16.round_at_random(exact, jnp.uint32(0)), exact)
    assert np.isnan(_bfloat16.round_at_random(jnp.asarray([jnp.nan]), jnp.uint32(0))).all()


def test_random_numbers_follow_seed_step_and_tensor() -> None:
    params = {"a": jnp.ones(256, jnp.bfloat16), "b": jnp.ones(256, jnp.bfloat16)}
    gradient = jax.tree.map(lambda p: jnp.full_like(p, -3e-3), params)

    def one(seed: int) -> Any:
        tx = optim.stochastic_rounding(optax.sgd(1.0), seed=seed)
        first, state = tx.update(gradient, tx.init(params), params)
        return first, tx.update(gradient, state, params)[0]

    (first, second), (again, _), (other, _) = one(0), one(0), one(1)
    jax.tree.map(np.testing.assert_array_equal, first, again)
    for a, b in ((first["a"], first["b"]), (first["a"], second["a"]), (first["a"], other["a"])):
        assert np.any(np.asarray(a) != np.asarray(b))


def test_random_numbers_of_tensors_and_steps_have_nothing_to_do_with_each_other() -> None:
    """Rounded up with probability 0.3 each; both by chance as often as chance has it."""
    size = 100_000
    value = jnp.full((size,), 1.0 + 0.3 * 2**-7, jnp.float32)
    seeds = [_bfloat16.seeds(0, jnp.int32(count), 3) for count in range(3)]
    seeds += [_bfloat16.seeds(1, jnp.int32(0), 3), _bfloat16.seeds(2**32, jnp.int32(0), 3)]
    each = jnp.concatenate(seeds)
    assert len(set(each.tolist())) == 15
    up = np.asarray(jax.vmap(_bfloat16.round_at_random, (None, 0))(value, each)) > 1.0
    both = up.astype(np.float64) @ up.T / size
    np.testing.assert_allclose(np.diag(both), 0.3, atol=5 * np.sqrt(0.21 / size))
    off = both[~np.eye(15, dtype=bool)]
    np.testing.assert_allclose(off, 0.09, atol=5 * np.sqrt(0.09 * 0.91 / size))
    # Nor have neighbours.
    for shift in (1, 2, 64):
        share = np.mean(up[:, :-shift] & up[:, shift:], axis=1)
        np.testing.assert_allclose(share, 0.09, atol=6 * np.sqrt(0.09 * 0.91 / size))


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_sharded_parameters_give_the_same(wrapper: Any) -> None:
    params = jnp.asarray(np.random.default_rng(2).normal(size=(64, 8)), jnp.bfloat16)
    gradient = jnp.full_like(params, 1.0)
    tx = wrapper(optax.sgd(1e-3))
    wanted, _ = jax.jit(tx.update)(gradient, tx.init(params), params)
    sharding = NamedSharding(jax.make_mesh((8,), ("x",)), PartitionSpec("x"))
    params, gradient = jax.device_put((params, gradient), sharding)
    found, _ = jax.jit(tx.update)(gradient, tx.init(params), params)
    np.testing.assert_array_equal(found, wanted)


def test_a_state_of_an_old_version_goes_on() -> None:
    """It holds an array of size zero where there is None now."""
    params = {"wide": jnp.ones(2), "narrow": jnp.ones(2, jnp.bfloat16)}
    tx = optim.kahan_summation(optax.sgd(0.1))
    new = tx.init(params)
    old = new._replace(compensation={**new.compensation, "wide": jnp.zeros(0)})
    (wanted, after), (found, went_on) = (tx.update(params, s, params) for s in (new, old))
    jax.tree.map(np.testing.assert_array_equal, wanted, found)
    assert jax.tree.structure(went_on) == jax.tree.structure(old)
    assert after.compensation["wide"] is None
