"""Low-rank additions that train in place of the kernels they are added to (LoRA).

They are parameters of their own, ``params["low_rank"][tower]``: a tree in which every chosen kernel
is replaced by its factors ``{"a": f32[in, r], "b": f32[r, out]}``. A step adds their product to the
kernel before the tower runs; whoever reads the weights gets the sum.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax

from jaxclip.config import Config
from jaxclip.weights import surgery

Params = Any

KEY = "low_rank"
TOWERS = ("image", "text")


def init(params: Params, section: Mapping[str, Any], rng: jax.Array) -> Params:
    """Factors that change nothing yet, for both towers.

    Args:
      params: the tree of :meth:`jaxclip.models.CLIP.init`.
      section: ``config.low_rank``: ``rank``, and ``patterns`` of kernels.
      rng: a PRNG key.

    Raises:
      ValueError: as :func:`jaxclip.weights.surgery.init_lora`.
    """
    result: dict[str, Any] = {}
    for tower, key in zip(TOWERS, jax.random.split(rng), strict=True):
        found = surgery.init_lora(params[tower], section["rank"], key, patterns=section["patterns"])
        result[tower] = _nested({path: {"a": a, "b": b} for path, (a, b) in found.items()})
    return result


def add_to(params: Params, tower: str, scaling: float) -> Params:
    """Parameters in which a tower's kernels have their additions; without any the same.

    Args:
      params: of a run.
      tower: ``"image"`` or ``"text"``.
      scaling: factor of the products, the paper's alpha / rank.
    """
    if KEY not in params:
        return params
    factors = _pairs(params[KEY][tower])
    return {**params, tower: surgery.merge_lora(params[tower], factors, scale=scaling)}


def merged(params: Params, config: Config) -> Params:
    """Plain parameters of a run's: kernels with their additions, and no factors."""
    if KEY not in params:
        return params
    for tower in TOWERS:
        params = add_to(params, tower, config[KEY]["scaling"])
    return {name: value for name, value in params.items() if name != KEY}


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        *folders, last = path.split("/")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[last] = leaf
    return tree


def _pairs(tree: Mapping[str, Any], at: str = "") -> dict[str, tuple[jax.Array, jax.Array]]:
    if set(tree) == {"a", "b"}:
        return {at: (tree["a"], tree["b"])}
    pairs: dict[str, tuple[jax.Array, jax.Array]] = {}
    for name, node in tree.items():
        pairs |= _pairs(node, f"{at}/{name}" if at else name)
    return pairs
