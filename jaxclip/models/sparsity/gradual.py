"""Gradual magnitude pruning: the smallest weights go, few at first (Zhu & Gupta, 2017)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from jaxclip.models.sparsity._base import Sparsity, check_share


@dataclasses.dataclass(frozen=True)
class Gradual(Sparsity):
    """Weights below a rank are zero: s(t) = sparsity (1 - (1 - t)^3) of each tensor.

    "To prune, or not to prune", arXiv:1710.01878. Pruning step by step comes to minima that are
    sharper and generalise better than pruning once (Tartaglione et al., 2020, arXiv:2004.14765);
    ``jaxclip sharpness`` measures these.

    Attributes:
      sparsity: share of zeros at the end.
      start: share of the run before the first zero.
      stop: share of the run from which it is as sparse as in the end.
      regrow: masked weights have a gradient, too, and may come back (straight-through).
    """

    sparsity: float = 0.8
    start: float = 0.1
    stop: float = 0.8
    regrow: bool = False

    def check(self) -> None:
        check_share(sparsity=self.sparsity, start=self.start, stop=self.stop)
        if self.start > self.stop:
            raise ValueError(f"start={self.start} is behind stop={self.stop}")

    def __call__(self, weight: jax.Array, progress: jax.Array, own: None) -> jax.Array:
        held = jax.lax.stop_gradient(weight)
        zeros = jnp.round(self.share(progress) * weight.size).astype(jnp.int32)
        ordered = jnp.sort(jnp.abs(held).ravel())
        limit = jnp.where(zeros > 0, ordered[jnp.maximum(zeros - 1, 0)], -1.0)
        mask = jnp.abs(held) > limit
        if self.regrow:
            return jnp.where(mask, held, 0.0) + (weight - held)
        return jnp.where(mask, weight, 0.0)

    def share(self, progress: jax.Array) -> jax.Array:
        """s(t), the share of zeros, float32[], at ``progress`` = t / T from 0 to 1."""
        span = max(self.stop - self.start, 1e-9)
        done = jnp.where(progress >= 1, 1.0, jnp.clip((progress - self.start) / span, 0.0, 1.0))
        return self.sparsity * (1 - (1 - done) ** 3)
