"""Gates on captions: a record keeps the captions that pass, and goes when none is left."""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxclip.curate.rows import CAPTIONS, Ragged, Rows
from jaxclip.curate.store import REASON


def gate(rows: Rows, codes: np.ndarray) -> dict[str, Any]:
    """Columns of a verdict out of one for each caption.

    Args:
      rows: the records.
      codes: int[e]: for each caption that is left (record by record) 0 if it passes, else the
        number of the reason why not.

    Returns:
      ``reason`` int[n], that of its first caption for a record of whose captions none passes,
      and ``captions``.
    """
    captions = rows.captions()
    passed = codes == 0
    first = np.searchsorted(captions.row, np.arange(len(rows)))
    had, left = (
        np.bincount(row, minlength=len(rows)) for row in (captions.row, captions.row[passed])
    )
    reason = np.zeros(len(rows), np.int64)
    gone = (had > 0) & (left == 0)
    reason[gone] = codes[first[gone]]
    return {
        REASON: reason,
        CAPTIONS: Ragged(captions.row[passed], captions.value[passed]),
    }
