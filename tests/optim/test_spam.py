"""SPAM against its published rule, and its sampling of elements."""

from __future__ import annotations

import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxclip import optim
from jaxclip.optim._sample import Sampling, scrambled
from tests.optim import reference
from tests.optim.reference import SHAPES, Rule, Step, Tree
from tests.optim.test_battery import collective_sizes

EVERYTHING: Tree = {name: np.ones(shape, bool) for name, shape in SHAPES.items()}


def published_rule(
    learning_rate: float,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-6,
    weight_decay: float = 0.0,
    theta: float = 5000.0,
    reset_interval: int = 500,
    warmup_steps: int = 150,
    grace_steps: int = 20,
    masks: list[Tree] | None = None,
) -> Rule:
    """The authors' code (Huang et al., 2025).

    Args:
      masks: for every update the elements that have moments; the others are left alone.
    """
    m = {name: np.zeros(shape) for name, shape in SHAPES.items()}
    v = {name: np.zeros(shape) for name, shape in SHAPES.items()}
    t = 0

    def rule(gradient: Tree, params: Tree) -> Step:
        nonlocal t
        t += 1
        since = t % reset_interval
        warmup = 1.0
        if t >= reset_interval and since < warmup_steps:
            warmup = 1 - 0.99 * (1 + math.cos(math.pi * since / (warmup_steps + 1))) / 2
        clips = since >= grace_steps
        update, norm = {}, {}
        for name, g in gradient.items():
            mask = EVERYTHING[name] if masks is None else masks[t - 1][name]
            if since == 0:
                m[name], v[name] = np.zeros(SHAPES[name]), np.zeros(SHAPES[name])
            known = mask & (v[name] > 0)
            ratio = np.where(known, g**2 / np.where(known, v[name], 1), 0)
            norm[name] = ratio.max()
            spike = (g**2 > theta * v[name]) & known & clips
            g = np.where(spike, np.sign(g) * np.sqrt(theta * v[name]), g)
            m[name] = b1 * m[name] + (1 - b1) * np.where(mask, g, 0)
            v[name] = b2 * v[name] + (1 - b2) * np.where(mask, g, 0) ** 2
            adam = m[name] / (np.sqrt(v[name]) + eps) * math.sqrt(1 - b2**t) / (1 - b1**t)
            decay = weight_decay * params[name]
            update[name] = np.where(mask, -learning_rate * (warmup * adam + decay), 0)
        return Step(
            update,
            norm=reference.per_tensor(norm.get),
            threshold=reference.per_tensor(lambda name: theta if clips else norm[name]),
            clipped=reference.per_tensor(lambda name: clips and norm[name] > theta),
        )

    return rule


SHORT = {"reset_interval": 40, "warmup_steps": 15, "grace_steps": 5}


def test_follows_the_published_rule_with_its_own_numbers() -> None:
    """No reset in so few steps, but spikes beyond the published threshold."""
    steps = reference.assert_follows(optim.spam(1e-2), lambda: published_rule(1e-2))
    assert sum(step.clipped.any() for step in steps) >= 3


@pytest.mark.parametrize("theta", [5000.0, 30.0])
def test_follows_the_published_rule_through_resets(theta: float) -> None:
    steps = reference.assert_follows(
        optim.spam(1e-2, weight_decay=0.1, threshold=theta, **SHORT),
        lambda: published_rule(1e-2, weight_decay=0.1, theta=theta, **SHORT),
    )
    assert sum(step.clipped.any() for step in steps) >= 5


def test_follows_the_published_rule_with_other_numbers() -> None:
    options = {"b1": 0.8, "b2": 0.95, "eps": 1e-3, "reset_interval": 7, "warmup_steps": 0}
    reference.assert_follows(
        optim.spam(1e-2, threshold=3.0, grace_steps=0, **options),
        lambda: published_rule(1e-2, theta=3.0, grace_steps=0, **options),
    )
    # A warm-up longer than the interval never ends; a grace period as long never clips.
    options = {"reset_interval": 7, "warmup_steps": 50, "grace_steps": 7}
    steps = reference.assert_follows(
        optim.spam(1e-2, **options), lambda: published_rule(1e-2, **options)
    )
    assert not any(step.clipped.any() for step in steps)


def test_is_adam_before_the_first_reset_without_clipping() -> None:
    ours = optim.spam(1e-2, threshold=np.inf, eps=1e-20, weight_decay=0.1)
    adam = optax.adamw(1e-2, eps=1e-20, weight_decay=0.1)
    params = jnp.asarray([1.0, -2.0, 3.0])
    states = ours.init(params), adam.init(params)
    step = jax.jit(
        lambda g, states: (ours.update(g, states[0], params), adam.update(g, states[1], params))
    )
    for size in (1.0, -3.0, 1000.0, 0.0, 0.2):
        (mine, first), (theirs, second) = step(size * jnp.asarray([1.0, 0.3, -2.0]), states)
        states = first, second
        # optax's bias corrections are rounded more coarsely.
        np.testing.assert_allclose(mine, theirs, rtol=1e-4)


def test_an_element_without_a_second_moment_is_not_held_down() -> None:
    """Published: clipped to zero for good. A rare token's first gradient comes late."""
    tx = optim.scale_by_spam(grace_steps=2)
    params = jnp.ones(2)
    state = tx.init(params)
    step = jax.jit(tx.update)
    for _ in range(5):
        _, state = step(jnp.asarray([1.0, 0.0]), state)
    update, state = step(jnp.asarray([1.0, 1.0]), state)
    assert update[1] > 0.5
    assert not state.clipped


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_tensor_that_is_skipped_at_a_reset_stays_as_it_was(bad: float) -> None:
    """No bound on elements, and a reset that waits: nothing to fall back on but weights of zero."""
    tx = optim.scale_by_spam(threshold=np.inf, reset_interval=3, grace_steps=0)
    gradient = jnp.asarray([1.0, -2.0, 0.0])
    state = tx.init(gradient)
    step = jax.jit(tx.update)
    for _ in range(2):
        _, state = step(gradient, state)
    update, after = step(gradient.at[1].set(bad), state)
    assert not update.any() and after.nonfinite_count.tolist() == [1]
    np.testing.assert_array_equal(after.mu, state.mu)
    np.testing.assert_array_equal(after.nu, state.nu)
    _, after = step(gradient, after)  # the reset
    np.testing.assert_allclose(after.mu, 0.1 * gradient, rtol=1e-6)
    assert after.norm.tolist() == [0]


# --- Density -------------------------------------------------------------------------------------


def masks_of(tx: optax.GradientTransformation, steps: int) -> list[Tree]:
    """Which elements a transformation moves: all that are chosen, given a gradient of ones."""
    params = {name: jnp.ones(shape) for name, shape in SHAPES.items()}

    def step(state: Any, _: Any) -> Any:
        updates, state = tx.update(params, state, params)
        return state, updates

    _, updates = jax.jit(lambda state: jax.lax.scan(step, state, None, steps))(tx.init(params))
    moved = jax.tree.map(lambda leaf: np.asarray(leaf) != 0, updates)
    return [{name: moved[name][t] for name in SHAPES} for t in range(steps)]


@pytest.mark.parametrize("density", [0.25, 0.4])
def test_density_follows_the_rule_on_a_choice_drawn_at_every_reset(density: float) -> None:
    tx = optim.spam(1e-2, weight_decay=0.1, threshold=30.0, density=density, **SHORT)
    masks = masks_of(tx, 160)
    for step, (before, after) in enumerate(itertools.pairwise(masks), start=2):
        same = all(np.array_equal(before[name], after[name]) for name in SHAPES)
        # Update number `step` is at a reset if it is a multiple of the interval.
        assert same == (step % SHORT["reset_interval"] != 0)
    assert masks[0]["bias"].all() and masks[0]["logit_scale"].all()
    assert 0 < masks[0]["kernel"].mean() < 0.7
    steps = reference.assert_follows(
        tx, lambda: published_rule(1e-2, weight_decay=0.1, theta=30.0, masks=masks, **SHORT)
    )
    assert sum(step.clipped.any() for step in steps) >= 5


def test_density_of_the_layers_that_the_authors_choose() -> None:
    layer = {"kernel": jnp.ones((8, 16)), "bias": jnp.ones(16)}
    params = {
        "blocks_0": {"attention": {"query": layer}, "mlp": {"up": layer}},
        "patch_embedding": layer,
        "vocabulary": jnp.ones((32, 16)),
    }
    tx = optim.spam(1e-2, density=0.25, density_layers=r"(attention|attn|mlp)/.*kernel")
    state = tx.init(params)
    shapes = jax.tree.map(jnp.shape, state[0].mu, is_leaf=lambda node: isinstance(node, jax.Array))
    assert shapes["blocks_0"]["mlp"]["up"] == {"kernel": (8, 4), "bias": (16,)}
    assert shapes["blocks_0"]["attention"]["query"]["kernel"] == (8, 4)
    assert shapes["patch_embedding"]["kernel"] == (8, 16) and shapes["vocabulary"] == (32, 16)
    updates, _ = jax.jit(tx.update)(params, state, params)
    moved = jax.tree.map(lambda leaf: float(np.mean(np.asarray(leaf) != 0)), updates)
    assert moved["blocks_0"]["mlp"]["up"] == {"kernel": 0.25, "bias": 1.0}
    assert moved["vocabulary"] == moved["patch_embedding"]["kernel"] == 1.0
    with pytest.raises(ValueError, match=r"spam\.density_layers='atention' matches no tensor"):
        optim.spam(1e-2, density=0.25, density_layers="atention").init(params)
    with pytest.raises(ValueError, match=r"scale_by_spam\.density_layers=.*no regular expression"):
        optim.scale_by_spam(density=0.25, density_layers="(").init(params)


def test_epsilon_is_added_before_the_bias_correction() -> None:
    """The authors' 1e-6 is worth 3e-5 at the first update."""
    gradient = jnp.asarray([1e-4, -1.0])
    tx = optim.scale_by_spam()
    update, _ = tx.update(gradient, tx.init(gradient))
    root = math.sqrt(0.001)
    expected = [1e-4 * root / (1e-4 * root + 1e-6), -root / (root + 1e-6)]
    np.testing.assert_allclose(update, expected, rtol=1e-5)


def test_density_keeps_that_part_of_the_moments() -> None:
    params = {"stack": jnp.ones((2, 8, 64)), "bias": jnp.ones(64), "narrow": jnp.ones((64, 2))}
    state = optim.scale_by_spam(density=0.25).init(params)
    assert state.mu["stack"].shape == state.nu["stack"].shape == (2, 8, 16)
    assert state.mu["bias"].shape == (64,)
    # One of four of every two elements is still one.
    assert state.mu["narrow"].shape == (64, 1)
    assert optim.scale_by_spam(density=0.999).init(params).mu["stack"].shape == (2, 8, 64)


@pytest.mark.parametrize(
    ("density", "kept", "group"),
    [(1.0, 1, 1), (0.5, 1, 2), (0.3, 3, 10), (0.75, 3, 4), (1e-9, 1, 32), (1 / 3, 1, 3)],
)
def test_density_as_a_fraction(density: float, kept: int, group: int) -> None:
    assert Sampling.of(density) == Sampling(kept, group)


@pytest.mark.parametrize("density", [0.25, 0.3, 0.75])
def test_every_element_is_chosen_as_often(density: float) -> None:
    sampling, shape, draws = Sampling.of(density), (3, 20), 4000
    seeds = scrambled(jnp.arange(draws, dtype=jnp.uint32))

    def choice(seed: jax.Array) -> jax.Array:
        places = sampling.draw(seed, sampling.hashes(shape))
        return sampling.put(jnp.ones(sampling.shape(shape)), places, shape[-1])

    choices = np.asarray(jax.jit(jax.vmap(choice))(seeds))
    # Five standard deviations.
    deviation = math.sqrt(density * (1 - density) / draws)
    assert np.abs(choices.mean(0) - density).max() < 5 * deviation
    # Groups have nothing to do with each other, nor has a choice with the next seed's.
    firsts = choices[:, :, :: sampling.group].reshape(draws, -1)
    pairs = np.concatenate([firsts, np.roll(firsts[:, :1], 1, axis=0)], axis=1)
    correlations = np.corrcoef(pairs.T) - np.eye(pairs.shape[1])
    assert np.abs(correlations).max() < 5 / math.sqrt(draws)


@pytest.mark.parametrize("length", [4, 7, 20, 33])
def test_what_is_taken_is_put_back_in_place(length: int) -> None:
    sampling, shape = Sampling.of(0.3), (2, length)
    tensor = jnp.arange(1.0, 1.0 + 2 * length).reshape(shape)
    places = sampling.draw(jnp.uint32(3), sampling.hashes(shape))
    taken = sampling.take(tensor, places)
    back = sampling.put(taken, places, length)
    assert taken.shape == sampling.shape(shape) and back.shape == shape
    np.testing.assert_array_equal(np.where(back != 0, tensor, 0), back)
    np.testing.assert_array_equal(np.sort(taken[taken != 0]), np.sort(back[back != 0]))


@pytest.mark.parametrize("density", [0.5, 0.75])
def test_taken_elements_are_not_finite_if_any_of_their_group_is_not(density: float) -> None:
    sampling, shape = Sampling.of(density), (2, 7)  # the last group is cut short
    tensor = jnp.arange(14.0).reshape(shape)
    places = sampling.draw(jnp.uint32(5), sampling.hashes(shape))
    wanted = np.array(sampling.take(tensor, places)).reshape(2, -1, sampling.kept)
    wanted[1, 2 // sampling.group] = wanted[0, -1] = np.inf
    spoilt = tensor.at[1, 2].set(jnp.nan).at[0, 6].set(-jnp.inf)
    taken, same = jax.jit(sampling.take_finite)(spoilt, places)
    np.testing.assert_array_equal(same, places)
    np.testing.assert_array_equal(
        np.where(np.isfinite(taken), taken, np.inf).ravel(), wanted.ravel()
    )


def test_density_sees_a_nan_in_what_it_leaves_out() -> None:
    tx = optim.scale_by_spam(density=0.25)
    gradient = jnp.ones((1, 4))
    update, _ = tx.update(gradient, tx.init(gradient))
    (left_out, *_) = np.flatnonzero(np.asarray(update)[0] == 0)
    _, state = tx.update(gradient.at[0, left_out].set(jnp.inf), tx.init(gradient))
    assert state.nonfinite_count.tolist() == [1]


def test_density_gathers_no_sharded_tensor() -> None:
    params = {"columns": jnp.ones((40, 64)), "rows": jnp.ones((64, 32))}
    gradients = {"columns": jnp.ones((40, 64)), "rows": -jnp.ones((64, 32))}
    specs = {"columns": PartitionSpec(None, "x"), "rows": PartitionSpec("x")}
    mesh = jax.make_mesh((8,), ("x",))
    shardings = {name: NamedSharding(mesh, spec) for name, spec in specs.items()}
    tx = optim.scale_by_spam(density=0.25)
    state = tx.init(params)
    # The compact moments have the parameters' axes, so their shardings fit.
    of_state = optax.tree_utils.tree_map_params(
        tx,
        lambda _, sharding: sharding,
        state,
        shardings,
        transform_non_params=lambda _: NamedSharding(mesh, PartitionSpec()),
    )
    step = jax.jit(
        tx.update, in_shardings=(shardings, of_state), out_shardings=(shardings, of_state)
    )
    program = step.lower(gradients, state).compile()
    assert max(collective_sizes(program.as_text()), default=0) <= 8
    expected, _ = jax.jit(tx.update)(gradients, state)
    updates, _ = program(jax.device_put(gradients, shardings), jax.device_put(state, of_state))
    for name in params:
        np.testing.assert_allclose(updates[name], expected[name], rtol=1e-6)


# --- Errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"b1": 1.0},
        {"b2": 1.5},
        {"eps": -1.0},
        {"weight_decay": -0.1},
        {"threshold": 0.0},
        {"reset_interval": 0},
        {"warmup_steps": -1},
        {"grace_steps": -1},
        {"density": 0.0},
        {"density": 1.1},
    ],
    ids=str,
)
def test_refuses_numbers_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"spam\.{next(iter(options))}="):
        optim.spam(1e-3, **options)


def test_density_must_be_known_when_tracing() -> None:
    with pytest.raises(TypeError, match="static_args='density'"):
        jax.jit(lambda density: optim.scale_by_spam(density=density).init(jnp.ones(2)))(0.5)


@pytest.mark.parametrize("argument", ["reset_interval", "warmup_steps", "grace_steps"])
def test_numbers_of_updates_are_no_schedules(argument: str) -> None:
    with pytest.raises(TypeError, match=rf"spam\.{argument} is a number of updates.*schedule"):
        optim.spam(1e-3, **{argument: lambda count: 10})
