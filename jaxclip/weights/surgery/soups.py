"""Averages of models of one architecture: WiSE-FT, uniform and greedy soups."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

Params = Any


class Soup(NamedTuple):
    """What :func:`greedy_soup` made.

    Attributes:
      params: the average.
      chosen: numbers of the models in it, in the order in which they were added.
      score: of the average.
    """

    params: Params
    chosen: tuple[int, ...]
    score: float


def wise_ft(zero_shot: Params, fine_tuned: Params, alpha: float) -> Params:
    """``(1 - alpha) zero_shot + alpha fine_tuned`` (Wortsman et al., 2022, arXiv:2109.01903).

    Between a model before and after it was fine-tuned lie models that are better on both the new
    task and shifted data; the paper takes 0.5 without a held-out set.

    Args:
      zero_shot: parameters before; any arrays.
      fine_tuned: parameters after, of the same tree.
      alpha: from 0 (before) to 1 (after), both exact.

    Returns:
      A tree of NumPy arrays of the dtypes of ``zero_shot``.

    Raises:
      ValueError: alpha out of range, or other trees or shapes.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha={alpha} must be from 0 (before) to 1 (after)")
    return _weighted([zero_shot, fine_tuned], [1 - alpha, alpha])


def uniform_soup(models: Sequence[Params]) -> Params:
    """The mean of all (Wortsman et al., 2022, Model soups, arXiv:2203.05482).

    Args:
      models: parameters of runs from the same initial weights.

    Returns:
      A tree of NumPy arrays; of equal models the model itself.

    Raises:
      ValueError: none, or other trees or shapes.
    """
    return _weighted(models, [1 / len(models)] * len(models) if models else [])


def greedy_soup(models: Sequence[Params], score: Callable[[Params], float]) -> Soup:
    """Add models, the best first, as long as the average gets no worse (ibid., recipe 1).

    Args:
      models: parameters of runs from the same initial weights.
      score: of parameters, on held-out data; larger is better.

    Returns:
      :class:`Soup`; its score is at least that of the best model.

    Raises:
      ValueError: none, or other trees or shapes.
    """
    if not models:
        raise ValueError("a soup needs at least one model")
    scores = [float(score(params)) for params in models]
    order = sorted(range(len(models)), key=lambda i: (-scores[i], i))
    chosen, best = [order[0]], scores[order[0]]
    for candidate in order[1:]:
        tried = float(score(uniform_soup([models[i] for i in [*chosen, candidate]])))
        if tried >= best:
            chosen, best = [*chosen, candidate], tried
    return Soup(uniform_soup([models[i] for i in chosen]), tuple(chosen), best)


def _weighted(models: Sequence[Params], weights: Sequence[float]) -> Params:
    """The weighted sum, in float64 so that equal numbers stay what they are."""
    if not models:
        raise ValueError("a soup needs at least one model")
    first: Any = jax.tree.structure(models[0])
    for number, params in enumerate(models[1:], start=1):
        if jax.tree.structure(params) != first:
            raise ValueError(f"model {number} has other parameters than model 0")

    def mix(path: Any, *leaves: Any) -> np.ndarray:
        if len({np.shape(leaf) for leaf in leaves}) > 1:
            shapes = ", ".join(str(list(np.shape(leaf))) for leaf in leaves)
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise ValueError(f"{name} has different shapes: {shapes}")
        total: Any = 0.0
        for leaf, weight in zip(leaves, weights, strict=True):
            total = total + weight * np.asarray(leaf, np.float64)
        return np.asarray(total, np.asarray(leaves[0]).dtype)

    return jax.tree_util.tree_map_with_path(mix, *models)
