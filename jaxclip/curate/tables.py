"""What a curation hands out: Parquet tables of the records that are kept and dropped."""

from __future__ import annotations

import functools
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from jaxclip.curate import source, store
from jaxclip.curate.done import Done
from jaxclip.curate.rows import CAPTIONS, OWN, Ragged, Rows
from jaxclip.curate.runners import Runner
from jaxclip.curate.store import GONE, STAYS, View

WEIGHT = "weight"
_ID_FILE = "identity"


def write(place: str, identity: str, start: View, done: Sequence[Done], runner: Runner) -> None:
    """Write ``kept/`` and ``dropped/`` anew, each whole or not at all.

    Args:
      place: the work folder.
      identity: of the outcome; tables of the same outcome stay.
      start: all records.
      done: the steps.
      runner: carries it out.
    """
    folder = epath.Path(place)
    mark = folder / "kept" / _ID_FILE
    if mark.exists() and mark.read_text() == identity and (folder / "dropped").exists():
        return
    views = [(each.label, each.step.reasons, each.after) for each in done if each.step.reasons]
    end = done[-1].after if done else start
    for name in ("kept", "dropped"):
        new = folder / f"{name}.writing"
        if new.exists():
            new.rmtree()
        new.mkdir(parents=True)
    task = functools.partial(_write_shard, place, start, views, end)
    runner.each(task, start.shards)
    for name in ("dropped", "kept"):
        if (folder / name).exists():
            (folder / name).rmtree()
        if name == "kept":
            (folder / f"{name}.writing" / _ID_FILE).write_text(identity)
        (folder / f"{name}.writing").rename(folder / name)


def _write_shard(
    place: str,
    start: View,
    views: Sequence[tuple[str, Sequence[str], View]],
    end: View,
    shard: int,
) -> None:
    _save(f"{place}/kept.writing/{shard:05d}.parquet", kept_table(end.rows(shard)))
    _save(f"{place}/dropped.writing/{shard:05d}.parquet", _dropped(start, views, shard))


def scalar_columns(rows: Rows, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Those columns that have one number for each record."""
    found = {}
    for name in names:
        value = rows[name]
        if isinstance(value, np.ndarray) and value.ndim == 1 and value.dtype.kind in "buif":
            found[name] = value
    return found


def kept_table(rows: Rows) -> dict[str, Any]:
    """Columns ``key``, ``index``, ``captions`` (numbers), ``weight`` and all scores of records."""
    made = [name for name in rows.made() if name != CAPTIONS and not name.startswith(OWN)]
    scores = scalar_columns(rows, [name for name in made if not isinstance(rows[name], Ragged)])
    weight = scores.pop(WEIGHT, np.ones(len(rows)))
    captions = [each.tolist() for each in rows.captions().lists(len(rows))]
    return {
        "key": rows.keys,
        "index": rows.index,
        "captions": captions,
        WEIGHT: np.asarray(weight, np.float32),
        **scores,
    }


def _dropped(
    start: View, views: Sequence[tuple[str, Sequence[str], View]], shard: int
) -> dict[str, Any]:
    steps = [("00_read", source.REASONS, start), *views]
    index: list[np.ndarray] = []
    step_of: list[str] = []
    reason_of: list[str] = []
    for label, reasons, view in steps:
        found = view.reasons(shard)
        rows = np.flatnonzero((found != STAYS) & (found != GONE))
        index.append(rows)
        step_of += [label] * len(rows)
        reason_of += [reasons[number - 1] for number in found[rows]]
    places = np.concatenate(index)
    keys = store.all_keys(start.base, shard)
    return {
        "key": [keys[place] for place in places],
        "index": places + start.bounds[shard],
        "step": step_of,
        "reason": reason_of,
    }


def _save(path: str, columns: dict[str, Any]) -> None:
    import pyarrow as pa
    import pyarrow.parquet

    kinds = {
        "key": pa.string(), "step": pa.string(), "reason": pa.string(),
        "captions": pa.list_(pa.int32()), "index": pa.int64(),
    }  # fmt: skip
    table = pa.table({name: pa.array(v, kinds.get(name)) for name, v in columns.items()})
    stream = io.BytesIO()
    pyarrow.parquet.write_table(table, stream, compression="zstd")
    store.write_bytes(path, stream.getvalue())
