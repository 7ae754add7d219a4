"""Products of Google's library qwix: real int8 and fp8 ones, with calibrated scales."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax

from jaxclip.models.products._base import Product
from jaxclip.registry import hint

_INSTALL = "in a clone of jaxclip: pip install '.[quantize]'"
_TYPES = (
    "int8",
    "float8_e4m3fn",
    "float8_e5m2",
    "int4",
    "float4_e2m1fn",
    "mxfp8",
    "mxfp4",
    "nvfp4",
)
_FOUR_BITS = ("int4", "float4_e2m1fn", "mxfp4", "nvfp4")


@dataclasses.dataclass(frozen=True)
class Qwix(Product):
    """A product under a rule of qwix (``QtRule``).

    Attributes:
      weight: type of the kernel.
      activation: type of the activations; empty to leave them.
      backward: type of the gradients in both backward products; empty for products of the
        original factors there.
      tile_size: numbers along the contracted axis that share a scale; 0 for all.
      calibration: of weights, ``"absmax"``, ``"minmax"``, ``"rms,<factor>"``.
    """

    weight: str = "int8"
    activation: str = "int8"
    backward: str = ""
    tile_size: int = 0
    calibration: str = "absmax"

    def check(self) -> None:
        for name in ("weight", "activation", "backward"):
            value = getattr(self, name)
            if (value or name == "weight") and value not in _TYPES:
                raise ValueError(f"{name}={value!r} is no type of qwix{hint(str(value), _TYPES)}")
            if value in _FOUR_BITS and jax.default_backend() == "cpu":
                raise ValueError(
                    f"{name}={value!r}: qwix has no products of 4 bits on CPUs; use "
                    "{'name': 'emulated', 'format': 'int4'} (or 'mxfp4', 'nvfp4')"
                )
        try:
            import qwix as library
        except ImportError as error:
            raise ImportError(f"the product 'qwix' needs qwix; {_INSTALL}") from error
        del library

    def __call__(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        out: jax.Array = _layer(self, kernel.shape[-1]).apply({"params": {"kernel": kernel}}, x)
        return out


@functools.lru_cache(maxsize=256)
def _layer(product: Qwix, features: int) -> Any:
    """A linear layer whose product qwix replaces; this one knows no path but its own."""
    import qwix as library

    rule = library.QtRule(
        module_path=".*",
        weight_qtype=product.weight,
        act_qtype=product.activation or None,
        bwd_qtype=product.backward or None,
        tile_size=product.tile_size or None,
        weight_calibration_method=product.calibration,
    )
    layer = nn.Dense(features, use_bias=False, parent=None)
    return library.quantize_model(layer, library.QtProvider([rule]))
