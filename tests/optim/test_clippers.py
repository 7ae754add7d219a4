"""What all clippers owe beside their rules: derivatives, extra arguments, hard arguments."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxclip import optim

CLIPPERS = {
    "adaclip": optim.adaclip(0.9),
    "adagc": optim.adagc(warmup_steps=2),
    "adagn": optim.adagn(),
    "autoclip": optim.autoclip(50.0, history_size=5),
    "clip_by_coordinate": optim.clip_by_coordinate(0.3),
    "median_clip": optim.median_clip(0.5),
    "median_clip-vector": optim.median_clip(0.5, kind="vector"),
    "zclip": optim.zclip(max_norm=0.5, warmup_steps=2),
}
every_clipper = pytest.mark.parametrize("name", CLIPPERS)
GRADIENTS = {"a": jnp.asarray([3.0, -0.1, 0.02, 1.0]), "b": jnp.asarray(0.4)}


@every_clipper
def test_derivatives_are_those_with_the_factor_fixed(name: str) -> None:
    """As in meta-learning: a loss of what comes out, by what goes in; the first steps included."""
    tx = CLIPPERS[name]

    def after_steps(scale: Any, number: int) -> Any:
        state = tx.init(GRADIENTS)
        for _ in range(number):
            scaled = jax.tree.map(jnp.multiply, GRADIENTS, scale)
            updates, state = tx.update(scaled, state)
        return updates

    def loss(scale: Any, number: int) -> jax.Array:
        return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(after_steps(scale, number)))

    ones = jax.tree.map(jnp.ones_like, GRADIENTS)
    for number in (1, 2, 4):
        derivative = jax.jit(jax.grad(loss), static_argnums=1)(ones, number)
        updates = after_steps(ones, number)
        for key, leaf in derivative.items():
            assert np.all(np.isfinite(leaf))
            if not name.startswith(("median_clip", "clip_by_coordinate")):
                # The update is linear in the gradient, so the derivative by its scale is itself.
                np.testing.assert_allclose(leaf, updates[key], rtol=1e-5)
        if name == "clip_by_coordinate":
            inside = np.asarray(updates["a"]) == np.asarray(GRADIENTS["a"])
            np.testing.assert_array_equal(
                np.asarray(derivative["a"])[inside], np.asarray(GRADIENTS["a"])[inside]
            )
    zero = jax.jit(jax.grad(loss), static_argnums=1)(jax.tree.map(jnp.zeros_like, ones), 1)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(zero))


@every_clipper
def test_extra_arguments_are_accepted_and_ignored(name: str) -> None:
    tx = CLIPPERS[name]
    assert isinstance(tx, optax.GradientTransformationExtraArgs)
    state = tx.init(GRADIENTS)
    plain = tx.update(GRADIENTS, state)
    extra = tx.update(GRADIENTS, state, GRADIENTS, value=jnp.ones(()), grad_fn=None)
    jax.tree.map(np.testing.assert_array_equal, plain, extra)


@every_clipper
def test_count_is_the_number_of_updates(name: str) -> None:
    tx = CLIPPERS[name]
    state = tx.init(GRADIENTS)
    for gradients in (GRADIENTS, jax.tree.map(lambda leaf: leaf * jnp.nan, GRADIENTS), GRADIENTS):
        _, state = tx.update(gradients, state)
    assert state.count == 3 and np.all(state.nonfinite_count == 1)


@every_clipper
def test_complex_gradients(name: str) -> None:
    """Turned by any angle, the same comes out, turned."""
    tx = CLIPPERS[name]
    turn = np.exp(0.7j)
    gradients = jax.tree.map(lambda leaf: jnp.asarray(leaf * turn, jnp.complex64), GRADIENTS)
    state, plain_state = tx.init(gradients), tx.init(GRADIENTS)
    for _ in range(3):
        updates, state = jax.jit(tx.update)(gradients, state)
        plain, plain_state = jax.jit(tx.update)(GRADIENTS, plain_state)
    for key in GRADIENTS:
        assert updates[key].dtype == jnp.complex64
        np.testing.assert_allclose(updates[key], plain[key] * turn, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(state.norm, plain_state.norm, rtol=1e-5)
    assert state.norm.dtype == jnp.float32


@pytest.mark.parametrize(
    ("name", "option"),
    [("zclip", "warmup_steps"), ("zclip", "release_after"), ("adagc", "warmup_steps")],
)
def test_numbers_of_steps_are_no_schedules(name: str, option: str) -> None:
    with pytest.raises(TypeError, match=rf"{name}\.{option} .* can't be a schedule"):
        getattr(optim, name)(**{option: optax.constant_schedule(10)})
    # A traced one, as of inject_hyperparams, will do.
    tx = optax.inject_hyperparams(getattr(optim, name))(**{option: 3})
    _, state = jax.jit(tx.update)(GRADIENTS, tx.init(GRADIENTS))
    assert np.all(np.isfinite(state.inner_state.norm))


@pytest.mark.parametrize("size", [1e-35, 1e-20, 1e-19, 1e-10, 1.0, 1e20])
def test_adagn_normalises_gradients_of_any_size(size: float) -> None:
    """Without an epsilon the scale is of no account."""
    tx = optim.adagn(eps=0.0)
    gradient = jnp.float32([3.0, 4.0]) * jnp.float32(size)
    state = tx.init(gradient)
    for _ in range(3):
        updates, state = jax.jit(tx.update)(gradient, state)
        # The squares of 1e-19 are subnormal numbers, of which few digits are left.
        np.testing.assert_allclose(updates, [0.6, 0.8], rtol=1e-5 if size != 1e-19 else 0.2)
    assert not state.nonfinite_count.any()


def test_adagc_as_the_authors_released_it() -> None:
    """Defaults 1.04 and 0.99, an inclusive warm-up, 1e-6 on the norms."""
    tx = optim.adagc(lambda_rel=1.04, beta=0.99, warmup_steps=2, eps=1e-6, inclusive_warmup=True)
    norms, gamma, expected = [3.0, 2.0, 5.0, 0.5], np.inf, []
    for step, norm in enumerate(norms, start=1):
        if step <= 2:
            factor = min(1.0, 1.0 / (norm + 1e-6))
            gamma = min(gamma, factor * norm)
        else:
            factor = min(1.0, 1.04 * gamma / (norm + 1e-6))
            gamma = 0.99 * gamma + 0.01 * factor * norm
        expected.append(factor * norm)
    state = tx.init(jnp.zeros(1))
    for norm, wanted in zip(norms, expected, strict=True):
        update, state = tx.update(jnp.full(1, norm), state)
        np.testing.assert_allclose(update[0], wanted, rtol=1e-6)
    np.testing.assert_allclose(state.gamma[0], gamma, rtol=1e-6)
