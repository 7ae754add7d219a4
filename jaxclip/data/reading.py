"""Where the records and views of a batch come from: this process, or data workers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np

from jaxclip.data.column import draws
from jaxclip.data.decoded_cache import Loaded
from jaxclip.data.loader import RecordLoader, Replacement
from jaxclip.data.record import BadRecord
from jaxclip.data.record_stats import RecordStats
from jaxclip.data.stages import Board


class Reader(Protocol):
    """Makes views and records of places: a function of (seed, place, record).

    Attributes:
      stats: counts of bad records.
      board: what threads of this process are doing.
    """

    stats: RecordStats
    board: Board

    def load(
        self, places: np.ndarray, indices: np.ndarray, replacement: Replacement
    ) -> tuple[dict[str, np.ndarray], list[Loaded]]:
        """The views and records of some places.

        Args:
          places: int64[n] of the endless row of training examples.
          indices: int64[n], the record at each.
          replacement: (row, attempt) -> number of the record that stands in for a bad one.

        Returns:
          uint8[n, S, S, 3] of each view, and the n records.

        Raises:
          RuntimeError: so many replacements were bad as well that nothing usable is to be found.
          Closed: :meth:`close` was called, or the program ends.
        """
        ...

    def busy(self) -> list[str]:
        """What is under way, the longest first, in words."""
        ...

    def close(self) -> None:
        """Stop; what is under way is given up."""
        ...


class InProcess:
    """Reads with threads of this process.

    Args:
      record_loader: reads records and makes views.
      num_draws: random numbers of a row, by the key of the view.
      seed: of the run.
    """

    def __init__(self, record_loader: RecordLoader, num_draws: Mapping[str, int], seed: int):
        self.stats = record_loader.stats
        self.board = record_loader.board
        self._record_loader = record_loader
        self._num_draws = dict(num_draws)
        self._seed = seed

    def draws(self, places: np.ndarray) -> dict[str, np.ndarray]:
        """Uniform numbers float32[n, num_draws] of each view."""
        return {
            key: draws(self._seed, key, places, count) for key, count in self._num_draws.items()
        }

    def load(
        self, places: np.ndarray, indices: np.ndarray, replacement: Replacement
    ) -> tuple[dict[str, np.ndarray], list[Loaded]]:
        """See :meth:`Reader.load`."""
        views, loaded = self._record_loader.batch(indices, self.draws(places), replacement)
        # With replacements on, every row has a record.
        return views, [each for each in loaded if each is not None]

    def outcomes(
        self,
        places: np.ndarray,
        indices: np.ndarray,
        views: Mapping[str, np.ndarray],
        *,
        singly: bool,
    ) -> list[Loaded | BadRecord]:
        """Records at places, or what is wrong with them, see :meth:`.RecordLoader.outcomes`."""
        return self._record_loader.outcomes(indices, self.draws(places), views, singly=singly)

    def busy(self) -> list[str]:
        """See :meth:`Reader.busy`."""
        return self.board.in_words()

    def close(self) -> None:
        """See :meth:`Reader.close`."""
        self._record_loader.close()
