"""N:M sparsity with masks that come slowly (Bambhaniya et al., 2024, arXiv:2402.04744).

"Progressive Gradient Flow for Robust N:M Sparsity Training in Transformers". Of each M weights in a
row of inputs the N largest stay; SR-STE (Zhou et al., 2021, arXiv:2102.04010) is the baseline.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp

from jaxclip.models.sparsity._base import Sparsity, check_share

_DECAYS = ("linear", "exponential", "none")
_STRUCTURES = ("fixed", "stepwise", "geometric")


@dataclasses.dataclass(frozen=True)
class NM(Sparsity):
    """w * (mask + (1 - mask) b): b falls from 1 to 0, and the whole gradient goes to w.

    Attributes:
      n: weights that stay of each M.
      m: M, along the inputs; what is left of a row at its end is a shorter group.
      decay: of b after ``start``: ``"linear"`` to 0 at ``stop``, ``"exponential"``
        (b = 0.01 at ``stop``, 0 behind it), or ``"none"``: masked from ``start`` on.
      start: share of the run that is dense.
      stop: share of the run from which b = 0.
      structure: ``"fixed"``; or from ``start`` to ``stop`` in equal parts ``"stepwise"``
        M-1:M, M/2:M, M/4:M, … N:M, or ``"geometric"`` 8N:8M, 4N:4M, 2N:2M, N:M.
      weight_pull: lambda of SR-STE: lambda (1 - mask) w is added to the gradient (2e-4 there).
    """

    n: int = 2
    m: int = 4
    decay: str = "linear"
    start: float = 0.0
    stop: float = 0.8
    structure: str = "fixed"
    weight_pull: float = 0.0

    def check(self) -> None:
        if not 1 <= self.n <= self.m:
            raise ValueError(f"n={self.n} must be from 1 to m={self.m}")
        check_share(start=self.start, stop=self.stop)
        for name, known in (("decay", _DECAYS), ("structure", _STRUCTURES)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}={getattr(self, name)!r} is none of {', '.join(known)}")
        if self.start > self.stop:
            raise ValueError(f"start={self.start} is behind stop={self.stop}")

    def __call__(self, weight: jax.Array, progress: jax.Array, own: None) -> jax.Array:
        held = jax.lax.stop_gradient(weight)
        done = self._done(progress)
        stages = self.stages()
        mask = jax.lax.switch(
            jnp.minimum((done * len(stages)).astype(jnp.int32), len(stages) - 1),
            [functools.partial(keep_largest, held, n, m) for n, m in stages],
        )
        # Before it starts nothing is masked, or pulled; the structure counts from there on.
        mask = mask | (progress < self.start)
        kept = jnp.where(mask, 1.0, self.leak(progress)).astype(weight.dtype)
        return _masked(self.weight_pull, weight, kept, mask)

    def leak(self, progress: jax.Array) -> jax.Array:
        """b, float32[]: the factor of masked weights at ``progress`` = t / T from 0 to 1."""
        done = self._done(progress)
        if self.decay == "none":
            value = jnp.zeros_like(done)
        elif self.decay == "linear":
            value = 1 - done
        else:
            value = jnp.where(done < 1, jnp.exp(done * math.log(0.01)), 0.0)
        # At the end of the run nothing leaks, whatever ``stop`` is.
        return jnp.where(progress >= 1, 0.0, jnp.where(progress < self.start, 1.0, value))

    def stages(self) -> list[tuple[int, int]]:
        """``(N, M)`` one after the other."""
        if self.structure == "geometric":
            return [(k * self.n, k * self.m) for k in (8, 4, 2, 1)]
        if self.structure == "stepwise":
            halves = [self.m >> k for k in range(1, self.m.bit_length()) if self.m >> k > self.n]
            first = [self.m - 1] if self.m - 1 > max([*halves, self.n]) else []
            return [(n, self.m) for n in [*first, *halves, self.n]]
        return [(self.n, self.m)]

    def _done(self, progress: jax.Array) -> jax.Array:
        span = max(self.stop - self.start, 1e-9)
        return jnp.where(progress >= 1, 1.0, jnp.clip((progress - self.start) / span, 0.0, 1.0))


def keep_largest(weight: jax.Array, n: int, m: int) -> jax.Array:
    """bool like the weight: the n largest of each m along the inputs, the last axis but one.

    Of equals the first counts as larger. A shorter last group keeps n, too.
    """
    size = weight.shape[-2]
    groups = -(-size // m)
    padding = [(0, 0)] * (weight.ndim - 2) + [(0, groups * m - size), (0, 0)]
    magnitude = jnp.pad(jnp.abs(weight), padding, constant_values=-1.0)
    grouped = magnitude.reshape(*weight.shape[:-2], groups, m, weight.shape[-1])
    rank = jnp.argsort(jnp.argsort(-grouped, axis=-2, stable=True), axis=-2)
    mask = (rank < n).reshape(magnitude.shape)
    return mask[..., :size, :]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _masked(pull: float, weight: jax.Array, kept: jax.Array, mask: jax.Array) -> jax.Array:
    return weight * kept


def _forward(
    pull: float, weight: jax.Array, kept: jax.Array, mask: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return weight * kept, (weight, mask)


def _backward(
    pull: float, kept: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, None, None]:
    weight, mask = kept
    return gradient + pull * jnp.where(mask, 0, weight), None, None


_masked.defvjp(_forward, _backward)
