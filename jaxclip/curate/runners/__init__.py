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


class Runner(Protocol):
    """See the module docstring. All functions can be pickled."""

    def each(self, function: Callable[[int], None], items: Sequence[int]) -> None:
        """Call a function for each item."""

    def reduce(
        self,
        function: Callable[[int], Arrays],
        merge: Callable[[list[Arrays]], Arrays],
        save: Callable[[Arrays], None],
        items: Sequence[int],
    ) -> None:
        """Merge what a function returns for each item, and save it.

        ``merge`` is associative and does not depend on the order.
        """

    def shuffle(
        self,
        emit: Callable[[int], Iterable[Parcel]],
        settle: Callable[[int, list[Arrays]], Iterable[Parcel]],
        finish: Callable[[int, list[Arrays]], None],
        items: Sequence[int],
        parts: int,
        folder: str,
    ) -> None:
        """Bring arrays together by part, and what is made of them back by item.

        ``emit`` gives parcels for parts, ``settle`` is called once for each part that has any and
        gives parcels for items, ``finish`` is called for every item. ``folder`` is for what lies
        between.
        """

    def close(self) -> None:
        """Let go of workers."""
