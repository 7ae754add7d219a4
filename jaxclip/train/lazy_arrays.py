"""Arrays that a checkpoint is written of one after the other, so that one at a time is in memory.

A state with :class:`LazyArray` in place of arrays is saved like any other
(:class:`jaxclip.train.checkpoint.Checkpointer`): each is made when its turn comes and let go of
once it is on the disk. What is written is what the array itself would have written.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp


@dataclasses.dataclass(frozen=True, eq=False)
class LazyArray:
    """An array that is made when it is written.

    Attributes:
      shape: its shape.
      dtype: its NumPy dtype.
      make: makes it; called once a save.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    make: Callable[[], np.ndarray]

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


class _Handler(ocp.type_handlers.NumpyHandler):
    """Writes one array after the other, and waits for each."""

    async def serialize(
        self, values: Sequence[Any], infos: Sequence[Any], args: Sequence[Any] | None = None
    ) -> list[Any]:
        """Start writing, in the background."""
        options = list(args or [ocp.SaveArgs()] * len(values))
        write = super().serialize

        async def one_by_one() -> None:
            for value, info, option in zip(values, infos, options, strict=True):
                for written in await write([_made(value)], [info], [option]):
                    written.result()

        return [ocp.future.CommitFutureAwaitingContractedSignals(one_by_one(), name="lazy_arrays")]


def _made(value: Any) -> np.ndarray:
    if not isinstance(value, LazyArray):
        return np.asarray(value)
    array = value.make()
    if array.shape != value.shape or array.dtype != value.dtype:
        raise ValueError(
            f"an array of {array.dtype}{list(array.shape)} was made where {value.dtype}"
            f"{list(value.shape)} had been said"
        )
    return array


def registry() -> Any:
    """orbax's table of what it can write, for trees of lazy and other arrays."""
    arrays = ocp.type_handlers.ArrayHandler()  # without it orbax warns
    made = ocp.type_handlers.create_type_handler_registry((jax.Array, arrays))
    # Nobody changes an array that was made for this; an older orbax copies it all the same.
    known = inspect.signature(ocp.type_handlers.NumpyHandler).parameters
    options = {"deepcopy_host_arrays": False} if "deepcopy_host_arrays" in known else {}
    made.add(
        np.ndarray, _Handler(**options), func=lambda kind: issubclass(kind, (np.ndarray, LazyArray))
    )
    return made
