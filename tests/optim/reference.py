"""Following a slow float64 NumPy version of a published rule through gradients with spikes.

A test writes the rule as a function of a gradient and the parameters that returns a :class:`Step`
(and keeps what it must remember between calls in a closure), and hands a factory of it to
:func:`assert_follows`, which runs the transformation beside it in float32 and in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxclip import optim

Tree = dict[str, np.ndarray]

# In the order of `jax.tree.leaves`: sorted by name.
SHAPES = {"bias": (6,), "embedding": (9, 4), "kernel": (5, 6), "logit_scale": ()}
SIZES = {"bias": 0.05, "embedding": 0.01, "kernel": 0.2, "logit_scale": 0.02}

ZERO_STEP = 20


class Step(NamedTuple):
    """What a rule says of one update.

    Attributes:
      update: what comes out, a tree like the gradient (for an optimizer what is to be added to the
        parameters, sign and learning rate included).
      norm, threshold, clipped: the report; scalars, or one entry a tensor in the order of
        ``SHAPES``. ``None`` for what is not to be compared.
    """

    update: Tree
    norm: Any = None
    threshold: Any = None
    clipped: Any = None


Rule = Callable[[Tree, Tree], Step]


def initial_params() -> Tree:
    """Parameters between 0.5 and 1.5 in absolute value."""
    rng = np.random.default_rng(7)
    return {
        name: _single(rng.uniform(0.5, 1.5, shape) * rng.choice([-1.0, 1.0], shape))
        for name, shape in SHAPES.items()
    }


def spiky_gradients(steps: int = 160, seed: int = 0) -> list[Tree]:
    """Gradients with every kind of spike that training knows; exact in float32.

    Gaussian noise about a mean, every tensor of another size, all slowly swelling and ebbing. In
    between: spikes of the whole tree of 10, 100 and 1000 times, of one element, of one tensor, of
    the scalar, runs of spikes, and one step with no gradient at all (``ZERO_STEP``).
    """
    rng = np.random.default_rng(seed)
    mean = {name: rng.normal(size=shape) for name, shape in SHAPES.items()}
    gradients = []
    for step in range(steps):
        swell = 1.0 + 0.5 * np.sin(step / 17.0)
        gradient = {
            name: np.asarray(SIZES[name] * swell * (0.5 * mean[name] + rng.normal(size=shape)))
            for name, shape in SHAPES.items()
        }
        _add_spikes(gradient, step)
        gradients.append({name: _single(value) for name, value in gradient.items()})
    return gradients


def _add_spikes(gradient: Tree, step: int) -> None:
    """Spikes of a step, in place."""
    whole_tree = {ZERO_STEP: 0.0, 31: 10.0, 47: 1000.0, 121: 100.0}
    whole_tree |= dict.fromkeys(range(80, 86), 30.0) | dict.fromkeys(range(140, 150, 2), 50.0)
    single_tensors = {66: ("embedding", 100.0), 97: ("logit_scale", 1000.0)}
    single_elements = {58: 300.0, 110: 1000.0}
    for value in gradient.values():
        value *= whole_tree.get(step, 1.0)
    if step in single_tensors:
        name, factor = single_tensors[step]
        gradient[name] *= factor
    if step in single_elements:
        gradient["kernel"][2, 3] *= single_elements[step]


def _single(value: Any) -> np.ndarray:
    """Float64 values that float32 holds exactly."""
    return np.asarray(value, np.float32).astype(np.float64)


def assert_follows(
    tx: optax.GradientTransformation,
    make_rule: Callable[[], Rule],
    gradients: Sequence[Tree] | None = None,
    *,
    step_size: float | None = None,
    slack: float = 0.0,
    float32: float = 1e-5,
    float64: float = 1e-10,
) -> list[Step]:
    """Asserts that a transformation does what a rule says, in both precisions.

    Compared are the parameters after every step and every step's norm, threshold and decision.

    Args:
      tx: with one report in its state.
      make_rule: gives the rule afresh, remembering nothing.
      gradients: default :func:`spiky_gradients`.
      step_size: for what is no optimizer: updates are multiplied by minus this.
      slack: how much norms and thresholds may be off in absolute terms, in units of the tolerance;
        for those of differences.
      float32, float64: relative tolerances; the parameters, which begin at about one, may be off by
        as much in absolute terms where they pass through zero.

    Returns:
      What the rule said of every step, for tests that the gradients make it act.
    """
    gradients = spiky_gradients() if gradients is None else gradients
    if step_size is not None:
        tx = optax.chain(tx, optax.scale(-step_size))
    rule = make_rule()
    params, expected, steps = initial_params(), [], []
    for gradient in gradients:
        step = rule(gradient, params)
        scale = 1.0 if step_size is None else -step_size
        params = {name: params[name] + scale * step.update[name] for name in params}
        expected.append(params)
        steps.append(step)

    _compare(*_run(tx, gradients, jnp.float32), expected, steps, float32, slack)
    with jax.enable_x64(True):
        found = _run(tx, gradients, jnp.float64)
    _compare(*found, expected, steps, float64, slack)
    return steps


def _run(tx: optax.GradientTransformation, gradients: Sequence[Tree], dtype: Any) -> Any:
    """Parameters and reports of all steps, stacked."""
    stacked = {
        name: jnp.asarray(np.stack([gradient[name] for gradient in gradients]), dtype)
        for name in SHAPES
    }
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), initial_params())

    def step(carry: Any, gradient: Any) -> Any:
        params, state = carry
        updates, state = tx.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        metrics = optim.read_metrics(state)
        report = {name.rpartition("/")[2]: value for name, value in metrics.items()}
        assert len(report) == len(metrics), "more than one report"
        return (params, state), (params, report)

    run = jax.jit(lambda carry: jax.lax.scan(step, carry, stacked)[1])
    return jax.tree.map(np.asarray, run((params, tx.init(params))))


def _compare(
    params: Any,
    report: Any,
    expected: list[Tree],
    steps: list[Step],
    tolerance: float,
    slack: float,
) -> None:
    for name in SHAPES:
        np.testing.assert_allclose(
            params[name],
            np.stack([tree[name] for tree in expected]),
            rtol=tolerance,
            atol=tolerance,
            err_msg=f"{name} {params[name].dtype}",
        )
    for number, step in enumerate(steps):
        for field in ("norm", "threshold"):
            if (wanted := getattr(step, field)) is not None:
                np.testing.assert_allclose(
                    report[field][number],
                    wanted,
                    rtol=tolerance,
                    atol=tolerance * slack,
                    err_msg=f"{field}, step {number}",
                )
        if step.clipped is not None:
            # Rounding decides where the norm equals the threshold.
            norm, threshold = report["norm"][number], report["threshold"][number]
            tie = np.abs(norm - threshold) <= tolerance * np.abs(threshold)
            wrong = (report["clipped"][number] != step.clipped) & ~tie
            assert not wrong.any(), (number, report["clipped"][number], step.clipped)
    assert not report["nonfinite_count"][-1].any()


def per_tensor(function: Callable[[str], Any]) -> np.ndarray:
    """A value for each tensor, in the order of the report."""
    return np.asarray([function(name) for name in SHAPES])
