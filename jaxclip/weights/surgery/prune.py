"""Parts of a model that masks have at zero are taken out."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxclip.models import part_masks
from jaxclip.models.presets import CLIPConfig

Params = dict[str, Any]


def prune(
    params: Params, sizes: CLIPConfig, masks: Mapping[str, Mapping[str, Any]]
) -> tuple[Params, CLIPConfig]:
    """The model that runs as the masked one (TinyCLIP's automatic inheritance, Wu et al., 2023,
    arXiv:2309.12314).

    Blocks whose attention and MLP are both at zero go. MLPs are cut to the hidden units that the
    fullest block has left; a block with fewer has zeros there. What is left is scaled by its mask.
    Heads at zero stay, without effect: a tower's heads and its width go together.

    Args:
      params: the tree of :meth:`jaxclip.models.CLIP.init`.
      sizes: its architecture, with plain MLPs.
      masks: of each tower as :func:`jaxclip.models.part_masks.shapes` says, such as those of
        :meth:`jaxclip.objectives.tinyclip.TinyCLIP.masks`.

    Returns:
      ``(parameters, sizes)``; with masks that are all 1 the same numbers.

    Raises:
      ValueError: masks of another shape, or nothing is left of a tower.
    """
    result, changed = dict(params), {}
    for tower in ("image", "text"):
        config, own = getattr(sizes, tower), {}
        for name, shape in part_masks.shapes(config).items():
            own[name] = np.asarray(masks[tower][name], np.float32)
            if own[name].shape != shape:
                raise ValueError(
                    f"mask {tower}/{name} of shape {list(own[name].shape)}; this model has "
                    f"{list(shape)}"
                )
        alive = (own["attention"] > 0) | (own["mlp"] > 0)
        if not alive.any():
            raise ValueError(f"the masks leave no block of the {tower} tower")
        left = (own["mlp"][:, None] * own["units"])[alive]
        count = max(1, int((left > 0).sum(axis=1).max()))
        scaled = part_masks.scaled(params[tower], {k: jnp.asarray(v) for k, v in own.items()})
        tree = {k: v for k, v in scaled.items() if not k.startswith("blocks_")}
        for place, index in enumerate(np.flatnonzero(alive)):
            block = dict(scaled[f"blocks_{index}"])
            # The units with the largest masks, in their order.
            kept = np.sort(np.argsort(-left[place], kind="stable")[:count])
            up, down = block["mlp"]["up"], block["mlp"]["down"]
            block["mlp"] = {
                **block["mlp"],
                "up": {**up, "kernel": up["kernel"][:, kept]},
                "down": {**down, "kernel": down["kernel"][kept]},
            }
            for layer in ("up", "gate"):
                if "bias" in block["mlp"].get(layer, {}):
                    whole = block["mlp"][layer]
                    block["mlp"][layer] = {**whole, "bias": whole["bias"][kept]}
            tree[f"blocks_{place}"] = block
        result[tower] = tree
        changed[tower] = dataclasses.replace(config, depth=int(alive.sum()), mlp_dim=count)
    return result, dataclasses.replace(sizes, **changed)
