"""Tables that are parts of one, such as ``part-00000.csv`` and ``part-00001.csv``."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Iterable, Sequence

from jaxclip.data.importer.items import names_apart
from jaxclip.data.importer.table import SplitReader, TableReader
from jaxclip.data.naming import splits_of_files

# What differs in the names of parts: numbers, but those of versions (captions_v2.csv), and what
# Spark puts behind them.
_VARYING = re.compile(
    r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f-]{22}|(?<!\d)(?<![^a-z]v)(?<!version)\d+", re.IGNORECASE
)
# RedCaps' annotations, by subreddit and year.
_REDCAPS = re.compile(r"\w+_20\d\d\w*\.json")


def series(tables: Iterable[pathlib.Path]) -> list[list[pathlib.Path]]:
    """Tables that may be parts of one together: their names differ by numbers alone."""
    found: dict[str, list[pathlib.Path]] = {}
    for table in tables:
        found.setdefault(_VARYING.sub("0", table.name), []).append(table)
    return list(found.values())


def splits_of_parts(tables: Sequence[pathlib.Path]) -> list[str] | None:
    """The split of each of several tables that are parts of one, or of one for each split; None if
    they are something else, such as the same captions in several wordings."""
    splits = splits_of_files(tables)
    for split in dict.fromkeys(splits):
        same = [table for table, each in zip(tables, splits, strict=True) if each == split]
        if len(series(same)) > 1 and not all(_REDCAPS.fullmatch(each.name) for each in same):
            return None
    return splits


def reader_of(
    tables: Sequence[pathlib.Path],
    columns: tuple[str, str],
    encoding: str,
    splits: Sequence[str],
) -> SplitReader:
    """The reader of several tables, one after the other.

    A picture that another of them names, too, is another record.

    Args:
      tables: the files.
      columns: names of those with files and captions; empty to find them.
      encoding: of what is not JSON.
      splits: the split of each; empty for none.
    """
    return SplitReader(
        [
            TableReader(table, *columns, split=split, encoding=encoding, part=part)
            for table, split, part in zip(tables, splits, names_apart(tables), strict=True)
        ]
    )
