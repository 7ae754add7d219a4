"""AutoSparse: a learned threshold for each tensor (Kundu et al., 2023, arXiv:2304.06941)."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from jaxclip.models.sparsity._base import Sparsity, check_share


@dataclasses.dataclass(frozen=True)
class AutoSparse(Sparsity):
    """sign(w) max(|w| - sigmoid(T), 0), T learned; masked weights have alpha times a gradient.

    Alpha falls to 0 by a cosine: with 0 it is soft thresholding, with 1 a straight-through
    gradient. There is no target: how sparse a tensor becomes is what training makes of T.

    Attributes:
      alpha: at the beginning.
      stop: share of the run from which alpha is 0.
      threshold: sigmoid(T) at the beginning.
    """

    alpha: float = 0.75
    stop: float = 0.8
    threshold: float = 1e-3

    def check(self) -> None:
        check_share(alpha=self.alpha, stop=self.stop)
        if not 0 < self.threshold < 1:
            raise ValueError(f"threshold={self.threshold} must be between 0 and 1")

    def initial(self) -> float:
        return math.log(self.threshold / (1 - self.threshold))

    def __call__(self, weight: jax.Array, progress: jax.Array, own: jax.Array) -> jax.Array:
        done = jnp.clip(progress / max(self.stop, 1e-9), 0.0, 1.0)
        alpha = self.alpha * (1 + jnp.cos(jnp.pi * done)) / 2
        return soft_threshold(weight, own, jnp.where(progress >= 1, 0.0, alpha))


@jax.custom_vjp
def soft_threshold(weight: jax.Array, own: jax.Array, alpha: jax.Array) -> jax.Array:
    """sign(w) max(|w| - sigmoid(T), 0); what is 0 passes alpha times the gradient.

    Args:
      weight: w, of any shape.
      own: T, which broadcasts to it.
      alpha: float32[].
    """
    return jnp.sign(weight) * jnp.maximum(jnp.abs(weight) - jax.nn.sigmoid(own), 0.0)


def _forward(
    weight: jax.Array, own: jax.Array, alpha: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array, jax.Array]]:
    return soft_threshold(weight, own, alpha), (weight, own, alpha)


def _backward(
    kept: tuple[jax.Array, jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    weight, own, alpha = kept
    level = jax.nn.sigmoid(own)
    passed = jnp.where(jnp.abs(weight) > level, 1.0, alpha).astype(weight.dtype) * gradient
    to_own = -jnp.sum(jnp.sign(weight) * passed) * level * (1 - level)
    return passed, to_own.astype(own.dtype), jnp.zeros_like(alpha)


soft_threshold.defvjp(_forward, _backward)
