"""``jaxclip data info``: what a data set holds, in a few lines."""

from __future__ import annotations

import os
import statistics
from collections import Counter
from collections.abc import Sequence

from jaxclip.data import sources, stored
from jaxclip.data.column import Candidate
from jaxclip.data.dataset import DataSet
from jaxclip.data.naming import CAPTION_TAGS
from jaxclip.data.record import Record

_SAMPLE = 200
_MAX_NAMES = 12


def describe(name: str | os.PathLike[str]) -> str:
    """Splits, sizes, classes, captions and a few examples of a data set.

    Args:
      name: as :func:`jaxclip.data.sources.open` takes it.

    Returns:
      Text of several lines. What records hold is that of the first 200 of each split.

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
    good = [record for record in records if isinstance(record, Record)]
    captions = [text for record in good for text in record.texts]
    text = f", {len(captions) / max(len(good), 1):.1f} captions each"
    if len(good) < len(records):
        bad = Counter(record.reason for record in records if not isinstance(record, Record))
        reasons = ", ".join(f"{count} {reason}" for reason, count in bad.most_common())
        text += f", {len(records) - len(good)} of {len(records)} looked at are unusable: {reasons}"
    about = [_lengths(captions), _labels(good), _meta(good), _stored(data_set, split)]
    examples = [_shown(f"{record.key}: {'; '.join(record.texts[:3])}") for record in good[:2]]
    return "\n      ".join([text, *filter(None, about), *examples])


def _shown(text: str) -> str:
    """A text in one line, without what a terminal would carry out."""
    return "".join(each if each.isprintable() else " " for each in " ".join(text.split()))


def _lengths(captions: Sequence[str]) -> str:
    """How long captions are, and how many are not the only ones of their wording."""
    if not captions:
        return ""
    words = sorted(len(caption.split()) for caption in captions)
    long = words[min(len(words) - 1, int(0.95 * len(words)))]
    counts = Counter(captions)
    equal = sum(count for count in counts.values() if count > 1) / len(captions)
    return (
        f"words in a caption: {statistics.median(words):g} (median), {long} (95%), "
        f"{words[-1]} (longest); {equal:.0%} of captions occur more than once"
    )


def _labels(records: Sequence[Record]) -> str:
    labels = [record.label for record in records if record.label >= 0]
    if not labels:
        return ""
    return f"labels: {len(labels) / len(records):.0%} of records, {len(set(labels))} classes seen"


def _meta(records: Sequence[Record]) -> str:
    """Names in the records' meta, and the tags of captions."""
    names: Counter[str] = Counter()
    tags: Counter[str] = Counter()
    for index, record in enumerate(records):
        meta = Candidate(index, record).meta
        names.update(map(str, meta))
        found = meta.get(CAPTION_TAGS)
        for tag in found if isinstance(found, list) else ():
            tags.update([tag] if isinstance(tag, str) else map(str, tag or ()))
    if not names:
        return ""
    text = "meta: " + ", ".join(name for name, _ in names.most_common(_MAX_NAMES))
    return text + (
        f" ({CAPTION_TAGS}: {', '.join(tag for tag, _ in tags.most_common(_MAX_NAMES))})"
        if tags
        else ""
    )


def _stored(data_set: DataSet, split: str) -> str:
    """Vectors that are kept beside the data set."""
    if data_set.directory is None:
        return ""
    entries = stored.read_index(data_set.directory).get(split, {})
    found = [f"{key} [{entry.get('size')}] {entry.get('dtype')}" for key, entry in entries.items()]
    return f"stored vectors: {', '.join(sorted(found))}" if found else ""
