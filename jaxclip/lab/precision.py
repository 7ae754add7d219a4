"""Emulated precisions: linear layers of the blocks multiply quantised numbers, kept in float32.

Both operands of ``query key value out up down`` are rounded to what a format can hold (quantise and
dequantise); gradients go straight through. Patch embedding, projections, norms and logits stay as
they are, and so do the parameters that the optimizer sees. It shows what rounding does to training,
not what a chip with such numbers saves. Formats that clip (``…_octav``) may end in ``_clipped`` or
``_mad``, which is what their gradient is beyond the clip (:class:`.Emulated`).
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import flax.linen as nn
import jax

from jaxclip.models.products import formats
from jaxclip.models.products.emulated import Emulated
from jaxclip.models.products.formats import Format

LAYERS = ("query", "key", "value", "out", "up", "down")
_GRADIENTS = ("clipped", "mad")
_KERNEL = re.compile(rf"/({'|'.join(LAYERS)})/kernel$")


def lookup(name: str) -> Format | None:
    """The rounding of a name, gradient included; None for float32.

    Raises:
      ValueError: there is none; the message names the nearest.
    """
    base, _, last = name.rpartition("_")
    product = Emulated(base, last) if last in _GRADIENTS else Emulated(name)
    product.check()
    return None if formats.lookup(product.format) is None else product.rounded


@dataclasses.dataclass(frozen=True)
class QuantizedTowers:
    """Towers whose blocks multiply quantised numbers; all else is that of ``towers``.

    Attributes:
      towers: as of :mod:`jaxclip.train.towers`.
      quantize: rounds to the format, with the gradient that this is to have.
    """

    towers: Any
    quantize: Format

    @property
    def sizes(self) -> Any:
        """Architecture of the model."""
        return self.towers.sizes

    def encode(self, params: Any, tower: str, array: jax.Array) -> jax.Array:
        """float32[B, D] of unit length."""
        with nn.intercept_methods(self._inputs):
            result: jax.Array = self.towers.encode(self._kernels(params), tower, array)
        return result

    def features(self, params: Any, tower: str, array: jax.Array, **options: Any) -> Any:
        """:class:`jaxclip.models.Features`."""
        with nn.intercept_methods(self._inputs):
            return self.towers.features(self._kernels(params), tower, array, **options)

    def train_options(self, tower: str, keys: jax.Array) -> dict[str, Any]:
        """As of ``towers``."""
        options: dict[str, Any] = self.towers.train_options(tower, keys)
        return options

    def _inputs(self, call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        module = context.module
        if isinstance(module, nn.Dense) and module.name in LAYERS:
            args = (self.quantize(args[0], -1), *args[1:])
        return call(*args, **kwargs)

    def _kernels(self, params: Any) -> Any:
        def quantize(path: Any, leaf: jax.Array) -> jax.Array:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            return self.quantize(leaf, 0) if _KERNEL.search(name) else leaf

        return jax.tree_util.tree_map_with_path(quantize, params)
