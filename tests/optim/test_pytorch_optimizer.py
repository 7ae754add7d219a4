"""Against an independent implementation: the PyPI package ``pytorch_optimizer`` (4.1), in float64.

Where the two disagree the test removes the cause, and says what it is:

* SPAM: the package adds ε before the bias correction, decays weights after the step, and begins the
  warm-up one update further on than the authors' code (its factor at s is ours at s + 1).
* Stable-SPAM: the package skips a tensor whose gradient is zero altogether, moments and all; ours
  lets them decay, as Adam does.
* AdaGC: a gradient of zero in the warm-up makes the package's thresholds zero, as published; ours
  leaves it out. The package adds its ε to norms, too, and takes the global one in float32.
* AGC, which is optax's: PyTorch's layers are the transpose of Flax's.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxclip import optim
from tests.optim import reference
from tests.optim.reference import SHAPES, Tree

torch = pytest.importorskip("torch")
pytorch_optimizer = pytest.importorskip("pytorch_optimizer")

pytestmark = pytest.mark.slow

# Far below the gradients, for it to make no difference where it is added.
TINY = 1e-30


def without_zeros() -> list[Tree]:
    """The spiky gradients without the step that has none."""
    gradients = reference.spiky_gradients(200)
    gradients[reference.ZERO_STEP] = gradients[0]
    return gradients


def follow_theirs(optimizer: Any, gradients: list[Tree], **options: Any) -> list[Tree]:
    """Parameters after every step of a class of the package."""
    params = {
        name: torch.nn.Parameter(torch.tensor(value, dtype=torch.float64))
        for name, value in reference.initial_params().items()
    }
    stepper = getattr(pytorch_optimizer, optimizer)(list(params.values()), **options)
    trajectory = []
    for gradient in gradients:
        for name, param in params.items():
            param.grad = torch.tensor(gradient[name], dtype=torch.float64)
        stepper.step()
        trajectory.append({name: param.detach().numpy().copy() for name, param in params.items()})
    return trajectory


def follow_ours(tx: optax.GradientTransformation, gradients: list[Tree]) -> Tree:
    """Parameters after every step, stacked."""
    with jax.enable_x64(True):
        stacked = {name: jnp.asarray(np.stack([g[name] for g in gradients])) for name in SHAPES}
        params = jax.tree.map(jnp.asarray, reference.initial_params())

        def step(carry: Any, gradient: Any) -> Any:
            params, state = carry
            updates, state = tx.update(gradient, state, params)
            params = optax.apply_updates(params, updates)
            return (params, state), params

        run = jax.jit(lambda carry: jax.lax.scan(step, carry, stacked)[1])
        return jax.tree.map(np.asarray, run((params, tx.init(params))))


def assert_same(ours: Tree, theirs: list[Tree], tolerance: float = 1e-9) -> None:
    for name in SHAPES:
        expected = np.stack([params[name] for params in theirs])
        np.testing.assert_allclose(
            ours[name], expected, rtol=tolerance, atol=tolerance, err_msg=name
        )


@pytest.mark.parametrize("eps", [1e-8, 1e-2])
def test_stable_adamw(eps: float) -> None:
    gradients = reference.spiky_gradients(200)
    assert_same(
        follow_ours(optim.stable_adamw(1e-2, 0.9, 0.98, eps, weight_decay=0.2), gradients),
        follow_theirs(
            "StableAdamW", gradients, lr=1e-2, betas=(0.9, 0.98), eps=eps, weight_decay=0.2
        ),
    )


@pytest.mark.parametrize("threshold", [5000, 30])
def test_spam(threshold: int) -> None:
    gradients = without_zeros()
    ours = optim.spam(
        1e-2, eps=TINY, threshold=threshold, reset_interval=40, warmup_steps=0, grace_steps=5
    )
    theirs = follow_theirs(
        "SPAM",
        gradients,
        lr=1e-2,
        eps=TINY,
        threshold=threshold,
        update_proj_gap=40,
        warmup_epoch=0,
        grad_accu_steps=5,
    )
    assert_same(follow_ours(ours, gradients), theirs)


def test_spam_warms_up_one_update_behind_the_package() -> None:
    gradients, interval, length = without_zeros(), 40, 15

    def their_factor(count: Any) -> Any:
        t = count + 1
        since = t % interval
        rising = 1 - 0.99 * (1 + jnp.cos(math.pi * (since + 1.0) / (length + 1))) / 2
        return jnp.where((t >= interval) & (since < length), 1e-2 * rising, 1e-2)

    ours = optim.spam(
        their_factor, eps=TINY, reset_interval=interval, warmup_steps=0, grace_steps=5
    )
    theirs = follow_theirs(
        "SPAM",
        gradients,
        lr=1e-2,
        eps=TINY,
        update_proj_gap=interval,
        warmup_epoch=length,
        grad_accu_steps=5,
    )
    assert_same(follow_ours(ours, gradients), theirs)


def test_spam_decays_before_the_step_and_the_package_after() -> None:
    gradients = without_zeros()
    theirs = follow_theirs("SPAM", gradients, lr=1e-3, eps=TINY, weight_decay=0.1)
    ours = follow_ours(optim.spam(1e-3, eps=TINY, weight_decay=0.1), gradients)
    # 200 steps of at most about 3e-3, each multiplied by 1 - 1e-4 once more.
    assert_same(ours, theirs, 200 * 3e-3 * 1e-4)
    assert any(np.abs(ours[name][-1] - theirs[-1][name]).max() > 1e-7 for name in SHAPES)


def test_stable_spam() -> None:
    gradients = without_zeros()
    ours = optim.stable_spam(1e-2, weight_decay=0.1, reset_interval=60)
    theirs = follow_theirs(
        "StableSPAM", gradients, lr=1e-2, weight_decay=0.1, update_proj_gap=60, eps=1e-8
    )
    assert_same(follow_ours(ours, gradients), theirs)


def test_adagc() -> None:
    gradients = without_zeros()
    ours = optax.chain(optim.adagc(warmup_steps=30), optax.adamw(1e-2, eps=TINY, weight_decay=0.1))
    theirs = follow_theirs("AdaGC", gradients, lr=1e-2, warmup_steps=30, eps=TINY, weight_decay=0.1)
    assert_same(follow_ours(ours, gradients), theirs, 1e-6)


@pytest.mark.parametrize("clipping", [1e-2, 0.3])
def test_agc_is_optax_adaptive_grad_clip(clipping: float) -> None:
    from pytorch_optimizer.optimizer.agc import agc

    params = reference.initial_params()
    tx = optax.adaptive_grad_clip(clipping)
    with jax.enable_x64(True):
        wide = jax.tree.map(jnp.asarray, params)
        state = tx.init(wide)
        for gradient in reference.spiky_gradients(60):
            clipped, state = tx.update(jax.tree.map(jnp.asarray, gradient), state, wide)
            for name in SHAPES:
                theirs = agc(
                    torch.tensor(params[name].T), torch.tensor(gradient[name].T), 1e-3, clipping
                )
                np.testing.assert_allclose(
                    np.asarray(clipped[name]).T, theirs.numpy(), rtol=1e-10, atol=0
                )
