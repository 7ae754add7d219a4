"""Checks of arrays that callers give to functions: one clear error in place of a wrong number.

Arrays of sizes that do not fit may still broadcast, and a loss or a score comes out that means
nothing. Shapes are known while tracing, so that a check costs nothing in a compiled program.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def check_shapes(what: str, **arrays: tuple[Any, str]) -> dict[str, int]:
    """Refuse arrays whose axes do not fit each other.

    Args:
      what: the function, to begin the error with.
      **arrays: of each argument, by its name, the array (None for one that was not given) and its
        axes, such as ``"B L D"``: axes of one letter are of one length.

    Returns:
      The lengths by letter.

    Raises:
      ValueError: another number of axes, another length, or none of the rows B; names the argument,
        its shape and what is wanted.
    """
    lengths: dict[str, int] = {}
    first: dict[str, str] = {}
    for name, (array, axes) in arrays.items():
        if array is None:
            continue
        letters, shape = axes.split(), np.shape(array)
        for letter, length in zip(letters, shape, strict=False):
            first.setdefault(letter, name)
            lengths.setdefault(letter, length)
        if len(shape) != len(letters) or any(
            lengths[letter] != n for letter, n in zip(letters, shape, strict=True)
        ):
            told = [
                f"{letter}={lengths[letter]} as {first[letter]} has"
                for letter in letters
                if first.get(letter, name) != name
            ]
            raise ValueError(
                f"{what}: {name} has shape {list(shape)}, where [{', '.join(letters)}] is wanted"
                + (f" with {', '.join(told)}" if told else "")
            )
    if lengths.get("B") == 0:
        raise ValueError(f"{what}: {first['B']} has no rows; a batch holds one at least")
    return lengths
