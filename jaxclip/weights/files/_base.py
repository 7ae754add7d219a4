"""What every file of tensors gives."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

LARGEST_RANK = 8
_LARGEST_SIDE = 2**63 - 1


class FileError(ValueError):
    """A file that can't be read as tensors; says which, and what is wrong with it."""


class Tensor(NamedTuple):
    """One tensor that has not been read yet.

    Attributes:
      shape: its shape.
      dtype: its NumPy dtype.
      read: reads it; the file's memory is mapped where its kind allows it.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    read: Callable[[], np.ndarray]


class Tensors(NamedTuple):
    """The tensors of a file, or of several.

    Attributes:
      path: for errors.
      tensors: by name.
    """

    path: pathlib.Path
    tensors: Mapping[str, Tensor]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes by name."""
        return {name: tensor.shape for name, tensor in self.tensors.items()}


def checked_size(shape: Any, dtype: np.dtype[Any], limit: int, what: str) -> int:
    """Bytes of a tensor of a claimed shape.

    Args:
      shape: what the file says.
      dtype: of the tensor.
      limit: bytes that there are.
      what: for the error.

    Raises:
      FileError: no shape, negative, or larger than what there is.
    """
    if (
        not isinstance(shape, (tuple, list))
        or len(shape) > LARGEST_RANK
        or not all(isinstance(n, int) and not isinstance(n, bool) for n in shape)
        or not all(-_LARGEST_SIDE <= n <= _LARGEST_SIDE for n in shape)
    ):
        # Not shown: what is no number may be of any size.
        raise FileError(f"{what} has a shape which is none")
    if any(n < 0 for n in shape):
        raise FileError(f"{what} has the shape {list(shape)}, which is none")
    size = math.prod(shape) * dtype.itemsize  # Python's integers do not overflow
    if size > limit:
        raise FileError(f"{what} of shape {list(shape)} needs {size} bytes, but there are {limit}")
    return size
