"""Number formats, emulated: what is rounded to them is kept in the dtype that it came in."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxclip.registry import hint

_FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # E2M1

# (array, contracted axis) -> array
Format = Callable[[jax.Array, int], jax.Array]


def integers(bits: int, *, whole: bool = False) -> Format:
    """Symmetric integers: clip(round(x / s)), s = max|x| / (2^(bits-1) - 1).

    Args:
      bits: of the format.
      whole: one scale for the tensor; else one for each row of activations and output channel.
    """
    top = 2 ** (bits - 1) - 1

    def quantize(x: jax.Array, axis: int) -> jax.Array:
        scale = _safe(_largest(x, None if whole else axis) / top)
        return jnp.clip(jnp.round(x / scale), -top - 1, top) * scale

    return quantize


def octav_clip(x: jax.Array, axis: int | None, bits: int, steps: int = 10) -> jax.Array:
    """Where to clip numbers that are rounded to integers, for the least square error (OCTAV).

    Newton's steps s <- sum |x| [|x| > s] / (4^-B / 3 #[0 < |x| <= s] + #[|x| > s]) from the mean of
    |x| (Sakr et al., 2022, "Optimal Clipping and Magnitude-aware Differentiation for Improved
    Quantization-aware Training", arXiv:2206.06501).

    Args:
      x: numbers.
      axis: one s along it; None for one of all.
      bits: B, of signed integers.
      steps: of Newton.

    Returns:
      s with the axes of x, 0 where all are zero.
    """
    size = jnp.abs(x)
    constant = 4.0**-bits / 3

    def total(values: jax.Array) -> jax.Array:
        return jnp.sum(values, axis=axis, keepdims=True, dtype=jnp.float32)

    def step(s: jax.Array, _: None) -> tuple[jax.Array, None]:
        outside = size > s
        inside = (size > 0) & ~outside
        count = constant * total(inside) + total(outside)
        clipped = total(jnp.where(outside, size, 0.0))
        # All inside: s is the largest magnitude, from which rounding moves it down again.
        return jnp.where(clipped > 0, clipped / jnp.where(count > 0, count, 1.0), s), None

    start = total(size) / (x.size if axis is None else x.shape[axis])
    s, _ = jax.lax.scan(step, start, None, length=steps)
    return s.astype(x.dtype)


def clipped_integers(bits: int, *, whole: bool = False) -> Format:
    """Symmetric integers on [-s, s] with s of :func:`octav_clip`; what is beyond is cut."""
    top = 2 ** (bits - 1) - 1

    def quantize(x: jax.Array, axis: int) -> jax.Array:
        scale = _safe(octav_clip(x, None if whole else axis, bits) / top)
        return jnp.clip(jnp.round(x / scale), -top, top) * scale

    return quantize


def floats(dtype: Any, *, whole: bool = False) -> Format:
    """An 8-bit float of JAX, the largest number of each row (or tensor) brought to its largest."""
    top = float(jnp.finfo(dtype).max)

    def quantize(x: jax.Array, axis: int) -> jax.Array:
        scale = _safe(_largest(x, None if whole else axis) / top)
        scaled = jnp.clip(x / scale, -top, top)  # a quotient may round to above the largest
        return scaled.astype(dtype).astype(x.dtype) * scale

    return quantize


def blocks(size: int, scale_of: Callable[[jax.Array], jax.Array]) -> Format:
    """4-bit floats (E2M1) with a scale for each block of ``size`` along the contracted axis.

    Args:
      size: 32 for MXFP4, 16 for NVFP4; a shorter last block is filled up with zeros.
      scale_of: largest magnitude of each block -> its scale.
    """

    def quantize(x: jax.Array, axis: int) -> jax.Array:
        y = jnp.moveaxis(x, axis, -1)
        length = y.shape[-1]
        padded = jnp.pad(y, [(0, 0)] * (y.ndim - 1) + [(0, -length % size)])
        grouped = padded.reshape(*y.shape[:-1], -1, size)
        scale = _safe(scale_of(jnp.max(jnp.abs(grouped), axis=-1, keepdims=True)))
        rounded = _nearest(grouped / scale) * scale
        return jnp.moveaxis(rounded.reshape(padded.shape)[..., :length], -1, axis)

    return quantize


def power_of_two(largest: jax.Array) -> jax.Array:
    """MXFP4's scale: 2^(floor(log2 largest) - 2), as 4 = 2^2 is the largest power in the grid.

    Args:
      largest: float32, of each group of numbers; any shape.
    """
    return jnp.exp2(jnp.floor(jnp.log2(_safe(largest))) - 2.0)


def e4m3(largest: jax.Array) -> jax.Array:
    """NVFP4's scale: largest / 6, rounded to E4M3 (without its second scale of the tensor)."""
    return (largest / 6.0).astype(jnp.float8_e4m3fn).astype(largest.dtype)


def _bfloat16(x: jax.Array, axis: int) -> jax.Array:
    del axis
    # Not astype twice, which XLA may take for nothing at all.
    return jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)


PRECISIONS: dict[str, Format | None] = {
    "float32": None,
    "bfloat16": _bfloat16,
    "fp8_e4m3": floats(jnp.float8_e4m3fn),
    "fp8_e5m2": floats(jnp.float8_e5m2),
    "fp8_e4m3_tensor": floats(jnp.float8_e4m3fn, whole=True),
    "mxfp4": blocks(32, power_of_two),
    "nvfp4": blocks(16, e4m3),
    **{f"int{bits}": integers(bits) for bits in (8, 4, 3, 2)},
    **{f"int{bits}_tensor": integers(bits, whole=True) for bits in (8, 4, 3)},
    **{f"int{bits}_octav": clipped_integers(bits) for bits in (8, 4, 3, 2)},
    **{f"int{bits}_octav_tensor": clipped_integers(bits, whole=True) for bits in (8, 4, 3)},
}


def lookup(name: str) -> Format | None:
    """The format of a name; None for float32.

    Raises:
      ValueError: there is none; the message names the nearest.
    """
    if name not in PRECISIONS:
        raise ValueError(f"unknown precision {name!r}{hint(name, PRECISIONS)}")
    return PRECISIONS[name]


def straight_through(quantize: Format, x: jax.Array, axis: int) -> jax.Array:
    """quantize(x, axis), whose gradient is that of x itself."""
    held = jax.lax.stop_gradient(x)
    return quantize(held, axis) + (x - held)  # the bracket is exactly zero


def _largest(x: jax.Array, axis: int | None) -> jax.Array:
    return jnp.max(jnp.abs(x), axis=axis, keepdims=True)


def _safe(scale: jax.Array) -> jax.Array:
    """The scale, or 1 where all numbers are zero."""
    return jnp.where(scale > 0, scale, 1.0)


def _nearest(x: jax.Array) -> jax.Array:
    """The grid's number nearest to x; of two that are as near the one with an even mantissa."""
    grid = jnp.asarray(_FP4, x.dtype)
    size = jnp.minimum(jnp.abs(x), grid[-1])
    index = jnp.zeros(x.shape, jnp.int32)
    for place, (low, high) in enumerate(itertools.pairwise(_FP4)):
        middle = (low + high) / 2
        # The number at an even place has mantissa 0: ties go to it.
        above = size >= middle if place % 2 else size > middle
        index = index + above.astype(jnp.int32)
    return jnp.sign(x) * grid[index]
