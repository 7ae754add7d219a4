"""StableAdamW against its published rule, and against optax where the two agree."""

from __future__ import annotations

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxclip import optim
from tests.optim import reference
from tests.optim.reference import SHAPES, Rule, Step, Tree


def published_rule(
    learning_rate: Any,
    b1: float = 0.9,
    b2: float = 0.99,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    decays: tuple[str, ...] = tuple(SHAPES),
) -> Rule:
    """Algorithm 2 of Wortsman et al. (2023)."""
    m = {name: np.zeros(shape) for name, shape in SHAPES.items()}
    v = {name: np.zeros(shape) for name, shape in SHAPES.items()}
    t = 0

    def rule(gradient: Tree, params: Tree) -> Step:
        nonlocal t
        t += 1
        beta1 = b1 * (1 - b1 ** (t - 1)) / (1 - b1**t)
        beta2 = b2 * (1 - b2 ** (t - 1)) / (1 - b2**t)
        rate = learning_rate(t - 1) if callable(learning_rate) else learning_rate
        update, rms = {}, {}
        for name, g in gradient.items():
            m[name] = beta1 * m[name] + (1 - beta1) * g
            v[name] = beta2 * v[name] + (1 - beta2) * g**2
            rms[name] = np.sqrt(np.mean(g**2 / np.maximum(v[name], eps**2)))
            eta = rate / max(1.0, rms[name])
            decay = weight_decay if name in decays else 0.0
            update[name] = -eta * (m[name] / (np.sqrt(v[name]) + eps) + decay * params[name])
        return Step(
            update,
            norm=reference.per_tensor(rms.get),
            threshold=np.ones(len(SHAPES)),
            clipped=reference.per_tensor(lambda name: rms[name] > 1),
        )

    return rule


def test_follows_the_published_rule() -> None:
    steps = reference.assert_follows(
        optim.stable_adamw(1e-2, weight_decay=0.1), lambda: published_rule(1e-2, weight_decay=0.1)
    )
    # Every tensor was both shortened and not, and the spikes much.
    clipped = np.stack([step.clipped for step in steps])
    assert clipped.any(0).all() and (~clipped).any(0).all()
    assert max(step.norm.max() for step in steps) > 5


def test_follows_the_published_rule_with_other_numbers_a_mask_and_a_schedule() -> None:
    def schedule(count: Any) -> Any:
        return 1e-2 * (1 - 0.005 * count)

    options = {"b1": 0.8, "b2": 0.9, "eps": 1e-3, "weight_decay": 0.3}
    mask = {"bias": False, "embedding": True, "kernel": True, "logit_scale": False}
    reference.assert_follows(
        optim.stable_adamw(schedule, mask=mask, **options),
        lambda: published_rule(schedule, decays=("embedding", "kernel"), **options),
    )


def test_masks_of_weight_decay() -> None:
    params = {"a": {"kernel": jnp.ones(2), "bias": jnp.ones(2)}, "b": jnp.ones(2)}
    zeros = jax.tree.map(jnp.zeros_like, params)
    wanted = {"a": {"kernel": [-0.5, -0.5], "bias": [0, 0]}, "b": [0, 0]}
    whole = {"a": {"kernel": True, "bias": False}, "b": False}
    for mask in (
        whole,
        lambda params: jax.tree.map(lambda leaf: leaf is params["a"]["kernel"], params),
    ):
        tx = optim.stable_adamw(1.0, weight_decay=0.5, mask=mask)
        updates, _ = tx.update(zeros, tx.init(params), params)
        jax.tree.map(
            np.testing.assert_array_equal,
            updates,
            jax.tree.map(np.asarray, wanted, is_leaf=lambda n: isinstance(n, list)),
        )
    # A prefix of a tree.
    tx = optim.stable_adamw(1.0, weight_decay=0.5, mask={"a": True, "b": False})
    updates, _ = tx.update(zeros, tx.init(params), params)
    np.testing.assert_array_equal(updates["a"]["bias"], [-0.5, -0.5])
    np.testing.assert_array_equal(updates["b"], [0, 0])


def test_is_adamw_where_no_step_is_shortened() -> None:
    """With β2 = 0 the RMS is one and Adam's bias corrections are the debiased betas'."""
    ours = optim.stable_adamw(1e-2, b2=0.0, weight_decay=0.1)
    adam = optax.adamw(1e-2, b2=0.0, weight_decay=0.1)
    params = jnp.asarray([1.0, -2.0, 3.0])
    states = ours.init(params), adam.init(params)
    step = jax.jit(
        lambda g, states: (ours.update(g, states[0], params), adam.update(g, states[1], params))
    )
    for gradient in ([1.0, 2.0, -3.0], [-0.1, 5.0, 0.3], [2.0, 1.0, 1.0]):
        (mine, first), (theirs, second) = step(jnp.asarray(gradient), states)
        states = first, second
        np.testing.assert_allclose(mine, theirs, rtol=1e-5)


def test_scale_by_stable_adam_is_the_direction() -> None:
    gradients = reference.spiky_gradients(40)
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), reference.initial_params())
    whole = optim.stable_adamw(0.5, weight_decay=0.0)
    part = optim.scale_by_stable_adam()
    state, direction_state = whole.init(params), part.init(params)
    whole_update, part_update = jax.jit(whole.update), jax.jit(part.update)
    for gradient in gradients:
        gradient = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), gradient)
        updates, state = whole_update(gradient, state, params)
        # No parameters needed.
        direction, direction_state = part_update(gradient, direction_state)
        for name in SHAPES:
            np.testing.assert_allclose(updates[name], -0.5 * direction[name], rtol=1e-6)


def test_moments_have_the_dtypes_asked_for() -> None:
    params = {"a": jnp.ones((3, 2), jnp.bfloat16)}
    for mu_dtype, wanted in ((None, jnp.float32), (jnp.bfloat16, jnp.bfloat16)):
        state = optim.scale_by_stable_adam(mu_dtype=mu_dtype).init(params)
        assert (state.mu["a"].dtype, state.nu["a"].dtype) == (wanted, jnp.float32)
    with jax.enable_x64(True):
        state = optim.scale_by_stable_adam().init({"a": np.ones(3)})
        assert state.mu["a"].dtype == state.nu["a"].dtype == jnp.float64


def test_weight_decay_is_not_rounded_to_the_dtype_of_the_gradients() -> None:
    """optax.adamw: -5e-7 beside a step of 1e-3; 0 in bfloat16, whose neighbours are 8e-6 apart."""
    params, gradient = jnp.full(2, 0.005), jnp.asarray([1.0, -1.0], jnp.bfloat16)
    steps = []
    for weight_decay in (0.1, 0.0):
        tx = optim.stable_adamw(1e-3, weight_decay=weight_decay)
        steps.append(tx.update(gradient, tx.init(params), params)[0])
    np.testing.assert_allclose(steps[0] - steps[1], [-5e-7, -5e-7], rtol=1e-3)


def test_a_skipped_tensor_does_not_decay() -> None:
    tx = optim.stable_adamw(1.0, weight_decay=0.5)
    params = {"a": jnp.ones(2), "b": jnp.ones(2)}
    gradients = {"a": jnp.asarray([jnp.nan, 1.0]), "b": jnp.ones(2)}
    updates, _ = tx.update(gradients, tx.init(params), params)
    np.testing.assert_array_equal(updates["a"], [0.0, 0.0])
    np.testing.assert_allclose(updates["b"], [-1.5, -1.5], rtol=1e-6)


@pytest.mark.parametrize(
    "options",
    [{"b1": 1.0}, {"b2": -0.1}, {"eps": -1.0}, {"weight_decay": -0.1}],
    ids=str,
)
def test_refuses_numbers_out_of_range(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=rf"stable_adamw\.{next(iter(options))}="):
        optim.stable_adamw(1e-3, **options)


def test_says_what_it_lacks() -> None:
    params = jnp.ones(2)
    tx = optim.stable_adamw(1e-3, weight_decay=0.1)
    with pytest.raises(ValueError, match="weight decay needs the parameters"):
        tx.update(params, tx.init(params))
    with pytest.raises(TypeError, match="complex"):
        tx.init(jnp.ones(2, jnp.complex64))


def test_arguments_stand_where_optax_has_them() -> None:
    """The fifth is ``mu_dtype``; who gives weight decay there, as before, is told."""
    ours = list(inspect.signature(optim.stable_adamw).parameters)
    adamw = [p for p in inspect.signature(optax.adamw).parameters if p not in ("eps_root",)]
    assert ours == adamw[: len(ours)]
    with pytest.raises(TypeError, match=r"stable_adamw\.mu_dtype=0\.2 must be a float dtype"):
        optim.stable_adamw(1e-3, 0.9, 0.99, 1e-8, 0.2)
    with pytest.raises(TypeError, match=r"stable_spam\.mu_dtype='int8' must be"):
        optim.stable_spam(1e-3, mu_dtype="int8")
    with pytest.raises(TypeError, match=r"stable_spam\.reset_interval is a number of updates"):
        optim.stable_spam(1e-3, reset_interval=optax.constant_schedule(5))
