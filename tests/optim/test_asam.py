"""ASAM: where it climbs to, and what that does not depend on."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxclip import optim


def quadratic(w: jax.Array) -> jax.Array:
    return (w[0] ** 2 + 3 * w[1] ** 2) / 2


def gradient_of(tx: Any, loss: Any, params: Any) -> Any:
    """The gradient that the wrapped optimizer (SGD at rate 1) gets."""
    state = tx.init(params)
    step = jax.jit(lambda g, s, p: tx.update(g, s, p, grad_fn=lambda q, _: jax.grad(loss)(q)))
    updates, state = step(jax.grad(loss)(params), state, params)
    return jax.tree.map(lambda u: -np.asarray(u), updates)


def configured(section: dict[str, Any]) -> Any:
    config = {"name": "sgd", "learning_rate": 1.0, "sam": section}
    return optim.from_config(config, 10)


def test_climbs_in_proportion_to_the_weights() -> None:
    params = jnp.asarray([1.0, 2.0])
    for tx in (
        optim.asam(optax.sgd(1.0), rho=0.5, eta=0.0),
        configured({"rho": 0.5, "adaptive": True, "eta": 0.0}),
    ):
        found = gradient_of(tx, quadratic, params)
        epsilon = found / np.asarray([1.0, 3.0]) - np.asarray(params)
        np.testing.assert_allclose(epsilon, [0.041523, 0.996546], atol=2e-6)


def test_sam_itself_is_as_before() -> None:
    found = gradient_of(configured({"rho": 0.05}), quadratic, jnp.asarray([1.0, 2.0]))
    np.testing.assert_allclose(found, [1.008220, 6.147959], rtol=1e-6)
    same = gradient_of(configured({"rho": 0.05, "adaptive": False}), quadratic, jnp.ones(2))
    np.testing.assert_array_equal(
        same, gradient_of(configured({"rho": 0.05}), quadratic, jnp.ones(2))
    )


def test_is_invariant_to_rescaling_of_layers() -> None:
    """y = a (b x): a times ten and b divided by it is the same network."""

    def loss(params: Any) -> jax.Array:
        return jnp.sum((params["a"] @ params["b"] - 1.0) ** 2)

    rng = np.random.default_rng(0)
    params = {"a": jnp.asarray(rng.normal(size=(2, 3))), "b": jnp.asarray(rng.normal(size=(3, 2)))}
    other = {"a": params["a"] * 8.0, "b": params["b"] / 8.0}
    for tx, equal in (
        (optim.asam(optax.sgd(1.0), eta=0.0), True),
        (configured({"rho": 0.5}), False),
    ):
        one, two = gradient_of(tx, loss, params), gradient_of(tx, loss, other)
        assert np.allclose(one["a"], 8.0 * two["a"], rtol=1e-4) == equal
        assert np.allclose(one["b"], two["b"] / 8.0, rtol=1e-4) == equal


def test_zero_gradients_and_zero_weights_do_not_break_it() -> None:
    tx = optim.asam(optax.sgd(1.0), eta=0.0)
    np.testing.assert_array_equal(gradient_of(tx, quadratic, jnp.zeros(2)), 0.0)
    flat = gradient_of(tx, lambda w: jnp.sum(0.0 * w), jnp.ones(2))
    np.testing.assert_array_equal(flat, 0.0)


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match=r"asam\.rho=-1"):
        optim.asam(optax.sgd(1.0), rho=-1.0)
    with pytest.raises(TypeError, match=r"asam\.rho can't be a schedule"):
        optim.asam(optax.sgd(1.0), rho=optax.constant_schedule(0.5))
    with pytest.raises(ValueError, match=r"optim\.sam\.eta: .*adaptive"):
        configured({"rho": 0.5, "eta": 0.1})
    with pytest.raises(ValueError, match=r"optim\.sam\.adaptive=1 must be True or False"):
        configured({"rho": 0.5, "adaptive": 1})
    with pytest.raises(ValueError, match=r"did you mean 'adaptive'\?"):
        configured({"rho": 0.5, "adaptve": True})
    with pytest.raises(ValueError, match="grad_fn"):
        tx = optim.asam(optax.sgd(1.0))
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)), jnp.ones(2))
