"""Group-wise clipping against optax's DP-SGD and closed forms; its noise; what it refuses."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxclip import optim

EXAMPLES = 6
GROUPS = ["lora", ""]


@pytest.fixture(scope="module")
def gradients() -> dict[str, Any]:
    rng = np.random.default_rng(0)

    def tensor(*shape: int) -> jax.Array:
        sizes = np.arange(1, EXAMPLES + 1).reshape(-1, *[1] * len(shape))
        return jnp.asarray(sizes * rng.normal(size=(EXAMPLES, *shape)), jnp.float32)

    return {"lora_a": tensor(3, 2), "lora_b": tensor(2), "head": tensor(5)}


def params_of(gradients: dict[str, Any]) -> dict[str, Any]:
    return jax.tree.map(lambda leaf: leaf[0], gradients)


def update(gradients: dict[str, Any], *arguments: Any, **options: Any) -> Any:
    tx = optim.private_mean_by_group(*arguments, **options)
    return jax.jit(tx.update)(gradients, tx.init(params_of(gradients)))


def test_one_group_is_dp_sgd(gradients: dict[str, Any]) -> None:
    own, _ = update(gradients, [""], [2.5], 0.0)
    theirs = optax.contrib.differentially_private_aggregate(2.5, 0.0, key=jax.random.key(0))
    expected, _ = theirs.update(gradients, theirs.init(params_of(gradients)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), own, expected)


def test_groups_are_clipped_each_by_itself(gradients: dict[str, Any]) -> None:
    found, state = update(gradients, GROUPS, [4.0, 3.0], 0.0)
    wide = {name: np.asarray(leaf, np.float64) for name, leaf in gradients.items()}
    members = {"lora_a": 0, "lora_b": 0, "head": 1}
    norms = np.zeros((2, EXAMPLES))
    for name, leaf in wide.items():
        norms[members[name]] += np.square(leaf).reshape(EXAMPLES, -1).sum(1)
    norms = np.sqrt(norms)
    factors = np.minimum(1, np.asarray([[4.0], [3.0]]) / norms)
    assert (factors < 1).any(axis=1).all() and (factors == 1).any(axis=1).all()
    for name, leaf in wide.items():
        expected = np.tensordot(factors[members[name]], leaf, axes=1) / EXAMPLES
        np.testing.assert_allclose(found[name], expected, rtol=1e-5)
    np.testing.assert_allclose(state.norm, norms.max(1), rtol=1e-6)
    np.testing.assert_array_equal(state.threshold, [4.0, 3.0])
    assert state.clipped.all() and not state.fraction.any()


@pytest.mark.parametrize("noise", ["equal", "proportional"])
def test_noise_keeps_the_multiplier_whatever_the_bounds(noise: str) -> None:
    """The sum over groups of (C / s)² is 1 / σ², and equal noise is σ times the sensitivity."""
    sigma, bounds = 1.5, np.asarray([0.5, 2.0])
    zeros = {"lora": jnp.zeros((EXAMPLES, 40_000)), "head": jnp.zeros((EXAMPLES, 40_000))}
    found, _ = update(zeros, GROUPS, bounds, sigma, noise=noise, seed=3)
    deviations = np.asarray([np.std(found["lora"]), np.std(found["head"])]) * EXAMPLES
    np.testing.assert_allclose(np.sum((bounds / deviations) ** 2), sigma**-2, rtol=0.03)
    expected = sigma * np.sqrt(4.25) if noise == "equal" else sigma * np.sqrt(2) * bounds
    np.testing.assert_allclose(deviations, np.broadcast_to(expected, 2), rtol=0.02)


def test_counts_have_noise_and_the_gradient_pays_for_them() -> None:
    sigma, counts = 1.0, 2.0
    tree = {"lora": jnp.zeros((EXAMPLES, 40_000)), "head": 9 * jnp.ones((EXAMPLES, 4))}
    options: dict[str, Any] = {"count_noise": counts, "seed": 3}
    tx = optim.private_mean_by_group(GROUPS, [1.0, 1.0], sigma, **options)
    start = tx.init(params_of(tree))
    found, _ = jax.jit(tx.update)(tree, start)
    raised = (sigma**-2 - 2 / (2 * counts) ** 2) ** -0.5
    np.testing.assert_allclose(np.std(found["lora"]) * EXAMPLES, raised * np.sqrt(2), rtol=0.02)

    small = {"lora": tree["lora"][:, :1], "head": tree["head"]}
    run = jax.jit(
        lambda s: jax.lax.scan(lambda s, _: (tx.update(small, s)[1], s.fraction), s, length=2000)
    )
    fractions = np.asarray(run(start)[1])[1:]
    # All within their bound in the first group, none in the second.
    np.testing.assert_allclose(fractions.mean(0), [1.0, 0.0], atol=0.03)
    np.testing.assert_allclose(fractions.std(0), counts / EXAMPLES, rtol=0.06)


def test_bounds_may_change_with_the_step_or_be_injected(gradients: dict[str, Any]) -> None:
    start = params_of(gradients)
    scheduled = optim.private_mean_by_group(
        GROUPS, lambda count: jnp.asarray([1.0, 2.0]) * (count + 1), 0.0
    )
    state = scheduled.init(start)
    for step in (1, 2):
        _, state = jax.jit(scheduled.update)(gradients, state)
        np.testing.assert_array_equal(state.threshold, [1.0 * step, 2.0 * step])
    injected = optax.inject_hyperparams(
        optim.private_mean_by_group,
        static_args=("groups", "noise", "count_noise", "noise_multiplier"),
    )(groups=GROUPS, clip_norms=jnp.asarray([1.0, 2.0]), noise_multiplier=0.0)
    state = injected.init(start)
    state.hyperparams["clip_norms"] = jnp.asarray([3.0, 4.0])
    _, state = injected.update(gradients, state)
    np.testing.assert_array_equal(state.inner_state.threshold, [3.0, 4.0])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_bad_example_gives_no_step(gradients: dict[str, Any], bad: float) -> None:
    spoilt = {**gradients, "head": gradients["head"].at[2, 1].set(bad)}
    found, state = update(spoilt, GROUPS, [1.0, 1.0], 1.0, seed=0)
    assert not any(leaf.any() for leaf in found.values())
    np.testing.assert_array_equal(state.nonfinite_count, [1, 1])


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((GROUPS, [1.0], 0.0), {}, r"clip_norms has shape \(1,\); give one for each of 2 groups"),
        ((GROUPS, [1.0, 0.0], 0.0), {}, r"clip_norms\[1\]=0.0 must be > 0"),
        (("lora", [1.0], 0.0), {}, "must be a list of patterns"),
        (([], [], 0.0), {}, "must be a list of patterns"),
        ((["("], [1.0], 0.0), {}, "is no regular expression"),
        ((GROUPS, [1.0, 1.0], 1.0), {}, r"seed is required"),
        ((GROUPS, [1.0, 1.0], -1.0), {}, r"noise_multiplier=-1.0 must be >= 0"),
        ((GROUPS, [1.0, 1.0], 0.0), {"noise": "equl"}, "did you mean 'equal'"),
        ((GROUPS, [1.0, 1.0], 4.0), {"count_noise": 2.0, "seed": 0}, r"must be > 2\.828"),
    ],
)
def test_refuses_what_makes_no_sense(arguments: Any, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=rf"private_mean_by_group.*{message}"):
        optim.private_mean_by_group(*arguments, **options)


def test_every_tensor_has_a_group_and_every_group_a_tensor(gradients: dict[str, Any]) -> None:
    start = params_of(gradients)
    with pytest.raises(ValueError, match="none matches 'head'"):
        optim.private_mean_by_group(["lora"], [1.0], 0.0).init(start)
    with pytest.raises(ValueError, match=r"groups\[1\]: 'lora_b' is the first to match of no"):
        optim.private_mean_by_group(["lora", "lora_b", ""], [1.0] * 3, 0.0).init(start)
