"""Every transformation finds the minimum of a parabola and of Rosenbrock's function."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxclip import optim
from tests.optim import registry

STEPS = 20_000
RATE = optax.cosine_decay_schedule(2e-2, STEPS)
SGD_RATE = 1e-3

Make = Callable[[], optax.GradientTransformation]


def before_adam(clipper: optax.GradientTransformation) -> Make:
    return lambda: optax.chain(clipper, optax.adam(RATE))


MAKE: dict[str, Make] = {
    "zclip": before_adam(optim.zclip()),
    "autoclip": before_adam(optim.autoclip(history_size=100)),
    "adagc": before_adam(optim.adagc()),
    "adaclip": before_adam(optim.adaclip()),
    "adagn": before_adam(optim.adagn()),
    "clip_by_coordinate": before_adam(optim.clip_by_coordinate()),
    # With SGD: it lags behind the steep walls' changes of sign, and Adam makes whole steps of that.
    "median_clip": lambda: optax.chain(optim.median_clip(0.1), optax.sgd(SGD_RATE)),
    "stable_adamw": lambda: optim.stable_adamw(RATE, weight_decay=0.0),
    "spam": lambda: optim.spam(RATE),
    "stable_spam": lambda: optim.stable_spam(RATE),
    "clip_radagrad_d": lambda: optim.clip_radagrad_d(0.1),
    "gradient_stabilizer": before_adam(optim.gradient_stabilizer()),
    "spectra_clip": before_adam(optim.spectra_clip(1.0)),
    "aggc": before_adam(optim.aggc()),
    # Its steps are as long as the gradient, as those of SGD.
    "acclip": lambda: optim.acclip(SGD_RATE),
    "skip_nonfinite": lambda: optim.skip_nonfinite(optax.adam(RATE)),
    "skip_on_spike": lambda: optim.skip_on_spike(optax.adam(RATE)),
    "dicesgd": lambda: optim.dicesgd(SGD_RATE, 10.0, 10.0, 0.0, seed=0),
    "track_clipping_quantile": lambda: optax.chain(
        optim.track_clipping_quantile(seed=0), optax.adam(RATE)
    ),
}
PER_EXAMPLE = {"dicesgd", "track_clipping_quantile"}

START = np.asarray([-1.0, 2.0, 5.0], np.float32)
PARABOLA = np.asarray([1.0, -1.0, 3.0], np.float32)
ROSENBROCK = np.asarray([1.0, 1.0, 3.0], np.float32)


def objective(params: jax.Array, valley: jax.Array) -> jax.Array:
    """Rosenbrock's function of two of three numbers if ``valley``, else a parabola."""
    x, y, z = params
    rosenbrock = (1 - x) ** 2 + 100 * (y - x**2) ** 2 + (z - ROSENBROCK[2]) ** 2
    return jnp.where(valley, rosenbrock, jnp.sum((params - PARABOLA) ** 2))


def descend(name: str) -> Callable[[bool], np.ndarray]:
    """Where the transformation of this name ends, compiled once for both functions."""
    tx = MAKE[name]()

    def step(carry, _, valley):
        params, state = carry
        gradient = jax.grad(objective)(params, valley)
        given = gradient[None] if name in PER_EXAMPLE else gradient
        updates, state = tx.update(given, state, params)
        return (optax.apply_updates(params, updates), state), None

    @jax.jit
    def run(valley):
        start = jnp.asarray(START)
        body = functools.partial(step, valley=valley)
        return jax.lax.scan(body, (start, tx.init(start)), length=STEPS)[0][0]

    return lambda valley: np.asarray(run(valley))


def test_all_transformations_are_here() -> None:
    assert {case.name for case in registry.CASES} | {"skip_nonfinite"} == set(MAKE)


@pytest.mark.parametrize("name", MAKE)
def test_converges(name: str) -> None:
    run = descend(name)
    np.testing.assert_allclose(run(False), PARABOLA, atol=3e-2)
    np.testing.assert_allclose(run(True), ROSENBROCK, atol=3e-2)
