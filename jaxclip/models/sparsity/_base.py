"""What a map from dense to sparse weights is."""

from __future__ import annotations

import abc
from typing import Any

import jax


class Sparsity(abc.ABC):
    """Base of all of them: frozen dataclasses whose fields are their options.

    Those that learn something of their own, a number for each tensor, say where it starts.
    """

    @abc.abstractmethod
    def __call__(self, weight: jax.Array, progress: jax.Array, own: Any) -> jax.Array:
        """The weight that the forward pass sees.

        Args:
          weight: [..., K, N], a kernel with inputs along the last axis but one.
          progress: float32[], share of the run that is done, 0 to 1; at 1 it is as sparse as it
            will be.
          own: float32[], what is learned beside the tensor; None where :meth:`initial` is None.
        """

    def initial(self) -> float | None:
        """Where a tensor's own number starts; None without."""
        return None

    def check(self) -> None:  # noqa: B027 (most have nothing to refuse)
        """Refuse options that can't be.

        Raises:
          ValueError: says which.
        """


def check_share(**values: float) -> None:
    """Refuse numbers that are no shares.

    Raises:
      ValueError: names the option.
    """
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name}={value} must be from 0 to 1")
