"""How much a unit tells classes apart: the entropy of being on, by class (PSP-entropy).

Tartaglione et al. (2020, "Pruning artificial neural networks: a way to find well-generalizing,
high-entropy sharp minima", arXiv:2004.14765). Units that are on for all inputs of a class, or for
none, have little; gradual pruning leaves networks of more entropy than pruning at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import numpy as np

from jaxclip.shapes import check_shapes

_LEAST = 1e-4


def psp_entropy(on: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """float64[U]: of each unit sum_c H(p_c), p_c the share of the class's inputs it is on for.

    Args:
      on: [N, U], shares of an input's places at which the pre-activation is above 0 (of inputs
        with one place 0 or 1).
      labels: int[N] of the inputs' classes.

    Raises:
      ValueError: shapes that do not fit.
    """
    check_shapes("psp_entropy", on=(on, "N U"), labels=(labels, "N"))
    on, labels = np.asarray(on, np.float64), np.asarray(labels)
    total = np.zeros(on.shape[1])
    for label in np.unique(labels):
        p = np.clip(on[labels == label].mean(axis=0), _LEAST, 1 - _LEAST)
        total += -p * np.log2(p) - (1 - p) * np.log2(1 - p)
    return total


def units_on(function: Callable[..., Any], *args: Any) -> list[Any]:
    """float32[B, F] of each MLP that a function runs: the share of tokens its units are on for.

    Args:
      function: calls a tower of pre-norm blocks without ``scan_layers``, such as
        ``model.encode_image``.
      args: of it.
    """
    found: list[Any] = []

    def spy(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        out = call(*args, **kwargs)
        if isinstance(context.module, nn.Dense) and context.module.path == ("mlp", "up"):
            found.append((out > 0).mean(axis=1))
        return out

    with nn.intercept_methods(spy):
        function(*args)
    return found
