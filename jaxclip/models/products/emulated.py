"""Any format of few bits, emulated: both factors are rounded to it and multiplied as they are.

It shows what rounding does to training, on any device, not what a chip with such numbers saves.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from jaxclip.models.products import formats
from jaxclip.models.products._base import Product

_GRADIENTS = ("ste", "clipped", "mad")


@dataclasses.dataclass(frozen=True)
class Emulated(Product):
    """Rows of activations and columns of the kernel, each with its own scale.

    Attributes:
      format: a name of :data:`jaxclip.models.products.formats.PRECISIONS`: ``int8``, ``int4``,
        ``fp8_e4m3``, ``mxfp4``, ``nvfp4``, …; those on ``_octav`` clip for the least square error
        (Sakr et al., 2022, arXiv:2206.06501).
      gradient: what rounding is taken for in the backward pass, of numbers x that a format with
        ``_octav`` clips at s: ``"ste"`` 1, ``"clipped"`` 0, ``"mad"`` s / |x| (ibid.,
        magnitude-aware). Of all others it is 1.
    """

    format: str = "int8"
    gradient: str = "ste"

    def check(self) -> None:
        formats.lookup(self.format)
        if self.gradient not in _GRADIENTS:
            raise ValueError(f"gradient={self.gradient!r} is none of {', '.join(_GRADIENTS)}")
        if self.gradient != "ste" and "_octav" not in self.format:
            raise ValueError(
                f"gradient={self.gradient!r} is for formats that clip, such as 'int4_octav', not "
                f"{self.format!r}"
            )

    def __call__(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        return self.rounded(x, 1) @ self.rounded(kernel, 0)

    def rounded(self, x: jax.Array, axis: int) -> jax.Array:
        """x rounded to the format, with the gradient that rounding is taken to have.

        Args:
          x: float32[...].
          axis: the contracted one.
        """
        quantize = formats.lookup(self.format)
        if quantize is None:
            return x
        if self.gradient == "ste":
            return formats.straight_through(quantize, x, axis)
        held = jax.lax.stop_gradient(x)
        bits = int(self.format.removeprefix("int").partition("_")[0])
        clip = formats.octav_clip(held, None if self.format.endswith("_tensor") else axis, bits)
        size = jnp.abs(held)
        outside = jnp.zeros_like(held) if self.gradient == "clipped" else clip / size
        slope = jnp.where(size > clip, outside, 1.0)
        return quantize(held, axis) + slope * (x - held)  # the bracket is exactly zero
