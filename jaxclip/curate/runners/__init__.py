"""What carries out the passes of steps: one runner a file, found by its name.

A runner has three operations on items (numbers of shards), all of whose results are files: it calls
what it is given in any order, anywhere, perhaps twice. Data between workers go as whole arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from jaxclip.registry import Registry

RUNNERS = Registry("runner", "jaxclip.curate.runners")

Arrays = dict[str, Any]
# Arrays for a place: a part of a shuffle, or a shard.
Parcel = tuple[int, Arrays]

# What passes are made of: functions of items or parts, which can be pickled.
Function = Callable[[int], Arrays]
Merge = Callable[[list[Arrays]], Arrays]
Save = Callable[[Arrays], None]
Emit = Callable[[int], Iterable[Parcel]]
Settle = Callable[[int, list[Arrays]], Iterable[Parcel]]
Finish = Callable[[int, list[Arrays]], None]


class Runner(Protocol):
    """See the module docstring."""

    def each(self, function: Callable[[int], None], items: Sequence[int]) -> None:
        """Call a function for each item."""

    def reduce(self, function: Function, merge: Merge, save: Save, items: Sequence[int]) -> None:
        """Merge what a function returns for each item, and save it.

        ``merge`` is associative and does not depend on the order.
        """

    def shuffle(
        self, emit: Emit, settle: Settle, finish: Finish, items: Sequence[int], parts: int,
        folder: str,
    ) -> None:  # fmt: skip
        """Bring arrays together by part, and what is made of them back by item.

        ``emit`` gives parcels for parts, ``settle`` is called once for each part that has any and
        gives parcels for items, ``finish`` is called for every item. ``folder`` is for what lies
        between.
        """

    def close(self) -> None:
        """Let go of workers."""
