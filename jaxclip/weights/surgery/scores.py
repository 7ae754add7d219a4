"""What a head, a unit or a layer is worth: its magnitude, the Hessian (HAP), what its loss costs
(MoPE-CLIP)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxclip.models.presets import CLIPConfig
from jaxclip.weights.surgery.masks import Masks, Params, TowerMasks, apply_masks, sums_by_module


def magnitude_scores(params: Params, tower: str, sizes: CLIPConfig) -> TowerMasks:
    """The squared length of each module's weights."""
    squares: Any = jax.tree.map(lambda w: np.asarray(w, np.float64) ** 2, params[tower])
    return sums_by_module({tower: squares}, tower, sizes)


def hap_scores(params: Params, diagonal: Params, tower: str, sizes: CLIPConfig) -> TowerMasks:
    """tr(H_pp) / (2 p) |w_p|^2 of each module of p weights (Yu et al., 2022, arXiv:2101.08940).

    How much the loss would rise to second order if a module's weights were zero, with its block of
    the Hessian taken for a multiple of the identity. "Hessian-Aware Pruning and Optimal Neural
    Implant"; the implants are left out.

    Args:
      params: of the model.
      diagonal: the Hessian's, a tree like ``params`` (``sharpness.hessian_diagonal``).
      tower: its name.
      sizes: of the model.
    """
    ones: Any = jax.tree.map(lambda w: np.ones(np.shape(w)), params[tower])
    counts = sums_by_module({tower: ones}, tower, sizes)
    traces = sums_by_module(diagonal, tower, sizes)
    lengths = magnitude_scores(params, tower, sizes)
    return TowerMasks(*(t / (2 * n) * w for t, n, w in zip(traces, counts, lengths, strict=True)))


def mope_scores(
    score: Callable[[Params], float],
    params: Params,
    masks: Masks,
    sizes: CLIPConfig,
    tower: str,
    groups: Mapping[str, Sequence[Any]],
) -> dict[str, np.ndarray]:
    """How much worse the whole model is without each of some modules (Lin et al., 2024).

    "MoPE-CLIP: Structured Pruning for Efficient Vision-Language Models with Module-wise Pruning
    Error Metric", arXiv:2403.07839: what counts is the task of both encoders together.

    Args:
      score: of parameters, on held-out data; larger is better.
      params: of the model.
      masks: what is masked already.
      sizes: of the model.
      tower: whose modules.
      groups: places in ``heads``, ``units`` or ``layers``, each an index that is set to 0 at once.

    Returns:
      score(all) - score(without) of each, as ``groups``.
    """
    base = float(score(apply_masks(params, masks, sizes)))
    drops: dict[str, np.ndarray] = {}
    for kind, places in groups.items():
        found = []
        for place in places:
            changed = np.array(getattr(masks[tower], kind))
            changed[place] = 0
            without = {**masks, tower: masks[tower]._replace(**{kind: changed})}
            found.append(base - float(score(apply_masks(params, without, sizes))))
        drops[kind] = np.array(found)
    return drops


def keep_best(scores: np.ndarray, count: int) -> np.ndarray:
    """float32 mask of the ``count`` largest scores along the last axis; of equals the first.

    Raises:
      ValueError: none or more than there are.
    """
    total = scores.shape[-1]
    if not 1 <= count <= total:
        raise ValueError(f"{count} can't be kept of {total}")
    order = np.argsort(-np.asarray(scores, np.float64), axis=-1, kind="stable")[..., :count]
    mask = np.zeros(scores.shape, np.float32)
    np.put_along_axis(mask, order, 1.0, axis=-1)
    return mask
