"""Cautious updates: which elements move, and by how much."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxclip import optim
from jaxclip.optim import _direction

NO_DECAY = ("adabelief", "adam", "adopt", "amsgrad", "radam", "rmsprop", "yogi")


def direction(values: Any) -> optax.GradientTransformation:
    """What makes the same of any gradient."""
    return optax.stateless(lambda updates, params: jnp.asarray(values))


def masked(u: Any, g: Any, **options: float) -> np.ndarray:
    tx = optim.cautious(direction(u), **options)
    return np.asarray(jax.jit(tx.update)(jnp.asarray(g), tx.init(None))[0])


def test_elements_of_other_sign_stay_and_the_others_make_up_for_them() -> None:
    found = masked([0.5, -0.2, 0.1, 0.3], [1.0, 1.0, -1.0, 2.0])
    np.testing.assert_allclose(found, [1.0, 0.0, 0.0, 0.6], rtol=1e-6)


def test_hard_cases_of_the_mask() -> None:
    np.testing.assert_array_equal(masked([0.5, 0.5], [-1.0, -1.0]), 0.0)  # nothing agrees
    np.testing.assert_array_equal(masked([0.5, 0.5], [0.0, 0.0]), 0.0)
    np.testing.assert_allclose(masked([1e-30, 1.0], [1e-30, 1.0]), [1e-30, 1.0])
    one = np.zeros(10_000, np.float32)
    one[0] = 1.0  # a ten-thousandth agrees; the floor is a thousandth
    np.testing.assert_allclose(masked(one, np.ones(10_000))[0], 1000.0)
    np.testing.assert_array_equal(masked([1.0, 1.0], [np.nan, 1.0]), [0.0, 2.0])


def test_the_mask_is_of_the_gradient_and_each_tensor_s_own() -> None:
    params = {"a": jnp.zeros(2), "b": jnp.zeros(2), "none": None}
    tx, plain = optim.cautious(optax.scale_by_adam()), optax.scale_by_adam()
    state, other = tx.init(params), plain.init(params)
    first = {"a": jnp.ones(2), "b": jnp.ones(2), "none": None}
    second = {"a": jnp.asarray([1.0, -0.1]), "b": jnp.ones(2), "none": None}
    for gradient in (first, second):
        update, state = tx.update(gradient, state, params)
        adam, other = plain.update(gradient, other, params)
    np.testing.assert_allclose(update["a"], [2 * float(adam["a"][0]), 0.0], rtol=1e-6)
    np.testing.assert_allclose(update["b"], adam["b"], rtol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, state, other)


def follow(config: dict[str, Any], steps: int = 4) -> Any:
    """Updates of a few steps on gradients that change sign."""
    rng = np.random.default_rng(0)
    params = {"kernel": jnp.asarray(rng.normal(size=(3, 4)), jnp.float32), "bias": jnp.ones(4)}
    tx = optim.from_config({"learning_rate": 0.1, **config}, 10)
    state, step = tx.init(params), jax.jit(tx.update)
    found = []
    for _ in range(steps):
        gradient = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), p.dtype), params)
        updates, state = step(gradient, state, params)
        found.append(updates)
    return found, state


@pytest.mark.parametrize("name", sorted(_direction.SEPARABLE))
def test_taking_an_optimizer_apart_changes_nothing(name: str) -> None:
    """For each that ``direction`` is offered for: with nothing between its parts, it is itself."""
    config: dict[str, Any] = {"name": name, "schedule": {"name": "linear", "warmup_steps": 3}}
    if name not in NO_DECAY:
        config["weight_decay"] = 0.3
    whole, _ = follow(config)
    parts, _ = follow({**config, "direction": "none"})
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_cautious_and_clippers_work_on_the_direction_of_a_configuration() -> None:
    config = {"name": "adamw", "weight_decay": 0.3}
    found, _ = follow({**config, "direction": "cautious"})
    tx = optax.chain(
        optim.cautious(optax.scale_by_adam()),
        optax.add_decayed_weights(0.3, {"kernel": True, "bias": False}),
        optax.scale_by_learning_rate(0.1),
    )
    rng = np.random.default_rng(0)
    params = {"kernel": jnp.asarray(rng.normal(size=(3, 4)), jnp.float32), "bias": jnp.ones(4)}
    state = tx.init(params)
    for wanted in found:
        gradient = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), p.dtype), params)
        updates, state = tx.update(gradient, state, params)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), updates, wanted)
    # The threshold is in units of the direction, not of the learning rate.
    sections = ["cautious", {"name": "spectra_clip", "threshold": 0.5}]
    found, state = follow({"name": "adam", "direction": sections}, steps=1)
    values = np.linalg.svd(np.asarray(found[0]["kernel"]), compute_uv=False)
    assert 0.03 < values.max() < 0.1 * 0.5
    assert optim.read_metrics(state)["spectra_clip/threshold"].tolist() == [0.5, 0.5]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "lamb"}, r"optim.direction: 'lamb' can't be taken apart; use one of .*adamw"),
        (
            {"direction": "cautous"},
            "unknown optim.direction.name='cautous'; did you mean 'cautious'",
        ),
        (
            {"direction": {"name": "cautious", "flor": 0.1}},
            "optim.direction.flor: .*did you mean 'floor'",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(change: dict[str, Any], message: str) -> None:
    config = {"name": "adamw", "learning_rate": 0.1, "direction": "cautious", **change}
    with pytest.raises(ValueError, match=message):
        optim.from_config(config, 10)
    with pytest.raises(ValueError, match=r"cautious\.floor=0"):
        optim.cautious(optax.scale_by_adam(), floor=0.0)
