"""``jaxclip data info``: what a data set holds, in a few lines."""

from __future__ import annotations

import os
from collections import Counter

from jaxclip.data import sources
from jaxclip.data.dataset import DataSet

_SAMPLE = 200


def describe(name: str | os.PathLike[str]) -> str:
    """Splits, sizes, classes, captions and a few examples of a data set.

    Args:
      name: as :func:`jaxclip.data.sources.open` takes it.

    Returns:
      Text of several lines. Captions are counted on the first 200 records of each split.

    Raises:
      FileNotFoundError: it does not exist.
      ValueError: it is no data set.
    """
    data_set = sources.open(name)
    classes = data_set.class_names()
    lines = [f"{data_set.name}: {len(data_set.splits)} split(s)"]
    if classes is not None:
        lines[0] += f", {len(classes)} class names"
    for split, size in sorted(data_set.splits.items()):
        lines.append(f"  {split:<16} {size:>10,} records{_sampled(data_set, split, size)}")
    return "\n".join(lines)


def _sampled(data_set: DataSet, split: str, size: int) -> str:
    if not size:
        return ""
    records = data_set.source(split).read(list(range(min(size, _SAMPLE))))
    good = [record for record in records if hasattr(record, "texts")]
    counts = Counter(len(record.texts) for record in good)
    captions = sum(count * number for count, number in counts.items())
    text = f", {captions / max(len(good), 1):.1f} captions each"
    if len(good) < len(records):
        text += f", {len(records) - len(good)} of {len(records)} looked at are unusable"
    for record in good[:2]:
        text += f"\n      {record.key}: {'; '.join(record.texts[:3])}"
    return text
