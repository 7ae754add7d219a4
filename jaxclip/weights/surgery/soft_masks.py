"""Parts of a model that trained masks have at zero are taken out, the others scaled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxclip.models import part_masks
from jaxclip.models.presets import CLIPConfig
from jaxclip.weights.surgery.masks import TOWERS, TowerMasks, check_prunable, remove_masked

Params = dict[str, Any]


def remove_soft(
    params: Params, sizes: CLIPConfig, masks: Mapping[str, Mapping[str, Any]]
) -> tuple[Params, CLIPConfig]:
    """The model that runs as the masked one (TinyCLIP's automatic inheritance, Wu et al., 2023,
    arXiv:2309.12314).

    Blocks whose attention and MLP are both at zero go. In the others as many heads and hidden units
    stay as the fullest block has left; a block with fewer has zeros there. What is left is scaled
    by its mask.

    Args:
      params: the tree of :meth:`jaxclip.models.CLIP.init`.
      sizes: its architecture.
      masks: of each tower as :func:`jaxclip.models.part_masks.shapes` says, such as those of
        :meth:`jaxclip.objectives.tinyclip.TinyCLIP.masks`.

    Returns:
      ``(parameters, sizes)``; with masks that are all 1 the same numbers.

    Raises:
      ValueError: masks of another shape, a tower that can't be cut, or nothing is left of one.
    """
    scaled, chosen = dict(params), {}
    for tower in TOWERS:
        check_prunable(sizes, tower)
        own = {}
        for name, shape in part_masks.shapes(getattr(sizes, tower)).items():
            own[name] = np.asarray(masks[tower][name], np.float32)
            if own[name].shape != shape:
                raise ValueError(
                    f"mask {tower}/{name} of shape {list(own[name].shape)}; this model has "
                    f"{list(shape)}"
                )
        alive = (own["attention"] > 0) | (own["mlp"] > 0)
        if not alive.any():
            raise ValueError(f"the masks leave no block of the {tower} tower")
        chosen[tower] = TowerMasks(
            _fullest(own["attention"][:, None] * own["heads"], alive),
            _fullest(own["mlp"][:, None] * own["units"], alive),
            alive.astype(np.float32),
        )
        scaled[tower] = part_masks.scaled(
            params[tower], {name: jnp.asarray(x) for name, x in own.items()}
        )
    return remove_masked(scaled, sizes, chosen)


def _fullest(masks: np.ndarray, alive: np.ndarray) -> np.ndarray:
    """1 for as many of each row's largest as the fullest of the rows that stay has above 0."""
    count = max(1, int((masks[alive] > 0).sum(axis=1).max()))
    kept = np.zeros_like(masks)
    order = np.argsort(-masks, axis=1, kind="stable")[:, :count]
    np.put_along_axis(kept, order, 1.0, axis=1)
    return kept
