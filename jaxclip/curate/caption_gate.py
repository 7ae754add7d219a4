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
      ``reason`` int[n], that of its first caption for a record without any that passes, and
      ``captions``.
    """
    captions = rows.captions()
    passed = codes == 0
    first = np.searchsorted(captions.row, np.arange(len(rows)))
    any_left = np.bincount(captions.row[passed], minlength=len(rows)) > 0
    reason = np.zeros(len(rows), np.int64)
    if len(codes):
        reason = np.where(any_left, 0, codes[np.minimum(first, len(codes) - 1)])
    return {
        REASON: reason,
        CAPTIONS: Ragged(captions.row[passed], captions.value[passed]),
    }
