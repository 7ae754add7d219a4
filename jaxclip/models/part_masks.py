"""Heads, hidden units of MLPs and whole branches of a tower, scaled by masks of its parameters.

What a head or a hidden unit adds to the residual stream goes through its rows of an output map, so
that a mask on those rows is one on the head or the unit itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

# Of a tower: heads [depth, H], units [depth, mlp_dim], attention [depth], mlp [depth].
Masks = Mapping[str, jax.Array]


def shapes(tower: Any) -> dict[str, tuple[int, ...]]:
    """Shapes of the masks of a tower, by its sizes."""
    depth = tower.depth
    return {
        "heads": (depth, tower.num_heads),
        "units": (depth, tower.mlp_dim),
        "attention": (depth,),
        "mlp": (depth,),
    }


def scaled(params: Mapping[str, Any], masks: Masks) -> dict[str, Any]:
    """A tower whose parts count as much as their masks say; all 1 changes nothing.

    Args:
      params: of the tower, with plain MLPs.
      masks: see :func:`shapes`; a head counts as its own mask times that of its block's attention.
    """
    result = dict(params)
    for index in range(len(masks["attention"])):
        block = dict(params[f"blocks_{index}"])
        for part, last, rows in (("attention", "out", "heads"), ("mlp", "down", "units")):
            whole, each = masks[part][index], masks[rows][index]
            layer = dict(block[part][last])
            kernel = layer["kernel"]
            factor = jnp.repeat(whole * each, kernel.shape[0] // each.shape[0])
            layer["kernel"] = kernel * factor[:, None].astype(kernel.dtype)
            if "bias" in layer:
                layer["bias"] = layer["bias"] * whole.astype(kernel.dtype)
            block[part] = {**block[part], last: layer}
        result[f"blocks_{index}"] = block
    return result
