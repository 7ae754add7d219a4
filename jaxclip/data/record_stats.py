"""Counts of records that can't be used."""

from __future__ import annotations

import logging
import threading
from collections import Counter

from jaxclip.data.record import BadRecord

_LOG = logging.getLogger(__name__)

# So many records that can't be used may follow each other at one place.
MAX_ATTEMPTS = 100
# How many bad records are remembered (so as not to read them again) and named in the log.
_MAX_REMEMBERED = 100_000
_MAX_LOGGED = 5


class RecordStats:
    """Counts of bad records met, by reason; safe to use from many threads."""

    def __init__(self, what: str):
        self._what = what
        self._lock = threading.Lock()
        self._bad: dict[int, BadRecord] = {}
        self._records: Counter[str] = Counter()
        self._uses: Counter[str] = Counter()
        self._drawn = 0

    def add(self, index: int, bad: BadRecord) -> None:
        """Count one use of bad record ``index``; the first few are logged."""
        with self._lock:
            self._uses[bad.reason] += 1
            if index in self._bad:
                return
            self._records[bad.reason] += 1
            # A store that did not answer may do so next time.
            if len(self._bad) < _MAX_REMEMBERED and bad.reason != "unreachable":
                self._bad[index] = bad
            count = sum(self._records.values())
        if count <= _MAX_LOGGED:
            last = "; further ones are only counted" if count == _MAX_LOGGED else ""
            name = f"record {index}" + (f" ({bad.key})" if bad.key else "")
            _LOG.warning("%s: %s is %s: %s%s", self._what, name, bad.reason, bad.detail, last)

    def remember(self, index: int, bad: BadRecord) -> None:
        """Record ``index`` is not to be read; no use of it is counted."""
        with self._lock:
            self._bad[index] = bad

    def add_drawn(self, count: int) -> None:
        """Count records that were drawn and could be used."""
        with self._lock:
            self._drawn += count

    @property
    def drawn(self) -> int:
        """How often a record was drawn that could be used."""
        return self._drawn

    def bad(self) -> list[tuple[int, BadRecord]]:
        """The bad records that are remembered, with their numbers."""
        with self._lock:
            return list(self._bad.items())

    def known(self, index: int) -> BadRecord | None:
        """What is known to be wrong with record ``index``."""
        return self._bad.get(index)

    def hopeless(self, last: object) -> RuntimeError:
        """The error for a place at which one record after the other can't be used."""
        return RuntimeError(
            f"{MAX_ATTEMPTS} records drawn one after the other cannot be used, the last one "
            f"because: {getattr(last, 'reason', '')} {getattr(last, 'detail', '')}; all counts: "
            f"{self.as_dict()['records']}"
        )

    def as_dict(self) -> dict[str, dict[str, int]]:
        """``{"records": {reason: distinct records}, "uses": {reason: times one was drawn}}``."""
        with self._lock:
            return {"records": dict(self._records), "uses": dict(self._uses)}
