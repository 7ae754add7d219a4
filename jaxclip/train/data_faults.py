"""Records that can't be used: some of them are written down, and their share has a limit."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import jax

from jaxclip.errors import RunError
from jaxclip.train import multihost

FILE_NAME = "skipped.jsonl"
# Lines of the file; all are counted.
_MOST = 1000
# Draws before a share says anything.
_ENOUGH = 1000


class DataFaults:
    """Watches what the input pipeline could not use.

    Args:
      workdir: where ``skipped.jsonl`` is written, by process 0 of what it met itself: a line
        ``{"index", "key", "reason", "detail"}`` for each of the first thousand bad records.
      limit: share of the records drawn that may be unusable (``data.max_unusable``).
    """

    def __init__(self, workdir: pathlib.Path, limit: float):
        self._path = workdir / FILE_NAME
        self._limit = limit
        self._known = _known(self._path)

    def note(self, bad: Iterable[tuple[int, Any]]) -> None:
        """Write down bad records, given as (number, :class:`.BadRecord`), that are new.

        A disk that is full must not end a run for this: the line is lost, the count is not.
        """
        if jax.process_index() != 0:
            return
        lines = []
        for index, record in bad:
            if len(self._known) >= _MOST:
                break
            if index not in self._known:
                self._known.add(index)
                values = {"index": index, "key": record.key, "reason": record.reason}
                lines.append(json.dumps({**values, "detail": record.detail}) + "\n")
        if lines:
            try:
                with open(self._path, "a", encoding="utf-8") as file:
                    file.writelines(lines)
            except OSError:
                pass

    def check(self, uses: Mapping[str, int], drawn: int) -> None:
        """End the run if too many records that were drawn could not be used.

        All processes must call it together, and decide alike.

        Args:
          uses: how often a bad record was drawn here, by reason.
          drawn: how many good ones were.

        Raises:
          RunError: their share is above the limit; the message has the reasons.
        """
        bad, good = multihost.total(sum(uses.values())), multihost.total(drawn)
        share = bad / max(1, bad + good)
        if bad + good < _ENOUGH or share <= self._limit:
            return
        table = "\n".join(
            f"  {count:>9,}  {reason}"
            for reason, count in sorted(uses.items(), key=lambda e: -e[1])
        )
        raise RunError(
            f"{share:.1%} of the records drawn can't be used (data.max_unusable={self._limit}); "
            f"on this host, by reason:\n{table}\n{self._path} names some of them; mend the data, "
            "or go on with a higher data.max_unusable"
        )


def _known(path: pathlib.Path) -> set[int]:
    """Numbers of the records in the file already."""
    found: set[int] = set()
    if not os.path.isfile(path):
        return found
    try:
        with open(path, encoding="utf-8") as file:
            for line in file:
                found.add(int(json.loads(line)["index"]))
    except (OSError, ValueError, KeyError, TypeError):
        pass  # a line that was cut off: what was read counts
    return found
