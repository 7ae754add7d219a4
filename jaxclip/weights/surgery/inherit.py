"""A smaller model that begins with a part of a larger one's weights."""

from __future__ import annotations

import re
from typing import Any

import jax

from jaxclip import models
from jaxclip.models.presets import CLIPConfig

Params = dict[str, Any]
_BLOCK = re.compile(r"^(image|text)/blocks_(\d+)/")


def inherit(params: Params, sizes: CLIPConfig, smaller: CLIPConfig) -> Params:
    """Cut a model down (Wu et al., 2023, TinyCLIP's manual inheritance, arXiv:2309.12314).

    Of L blocks a smaller tower of l takes 0, s, 2 s, … with s = L // l; of every tensor it takes
    the first rows and columns; of attention the first heads, whose width must stay.

    Args:
      params: the tree of :meth:`jaxclip.models.CLIP.init`; any arrays.
      sizes: its architecture.
      smaller: one that differs in width, depth, heads, MLP width or the joint space alone.

    Returns:
      Parameters of the smaller model; with equal sizes the same numbers.

    Raises:
      ValueError: heads of another width, other depths of a convolutional tower's stages, or
        something that is larger or not in the model.
    """
    for tower in ("image", "text"):
        ours, theirs = getattr(smaller, tower), getattr(sizes, tower)
        widths = tuple(map(_head_size, (ours, theirs)))
        if widths[0] != widths[1]:
            raise ValueError(
                f"model.{tower}: heads of {widths[0]} channels can't inherit from heads of "
                f"{widths[1]}; use num_heads={max(1, ours.width // widths[1])}"
            )
        stages = tuple(getattr(c, "depths", None) for c in (ours, theirs))
        if stages[0] != stages[1]:
            raise ValueError(
                f"model.{tower}.depths={stages[0]} can't inherit from {stages[1]}: stages keep "
                "their blocks"
            )
        if ours.depth > theirs.depth:
            raise ValueError(f"model.{tower}.depth={ours.depth} is more than {theirs.depth}")
    given = _by_path(params)
    shapes = jax.eval_shape(models.build(smaller).init, jax.random.key(0))
    steps = {t: getattr(sizes, t).depth // getattr(smaller, t).depth for t in ("image", "text")}

    def cut(path: Any, leaf: Any) -> Any:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        source = _BLOCK.sub(lambda m: f"{m[1]}/blocks_{int(m[2]) * steps[m[1]]}/", name)
        found = given.get(source)
        if found is None or found.ndim != leaf.ndim:
            raise ValueError(f"parameter {name} has nothing to inherit from: there is no {source}")
        if any(n > m for n, m in zip(leaf.shape, found.shape, strict=True)):
            raise ValueError(
                f"parameter {name} of shape {list(leaf.shape)} is no part of {list(found.shape)}"
            )
        return found[tuple(slice(0, n) for n in leaf.shape)]

    return jax.tree_util.tree_map_with_path(cut, shapes)


def _head_size(c: Any) -> int:
    """Channels of a head; 0 for a tower without attention."""
    if not hasattr(c, "num_heads"):
        return 0
    return int(getattr(c, "head_size", c.width // c.num_heads))


def _by_path(tree: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
