"""The report of a curation: counts in and out per reason, histograms, pictures."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from jaxclip.curate import source, store
from jaxclip.curate.done import Done
from jaxclip.curate.flow import add
from jaxclip.curate.hashing import key_hashes
from jaxclip.curate.rows import OWN, READ
from jaxclip.curate.runners import Arrays, Runner
from jaxclip.curate.store import GONE, INDEX, STAYS, View

BINS = 40
# Pictures shown of each reason and of those that are kept.
_SHOWN, _SHOWN_KEPT = 6, 48


def collect(
    config: Mapping[str, Any],
    split: str,
    start: View,
    done: Sequence[Done],
    place: str,
    identity: str,
    runner: Runner,
) -> dict[str, Any]:
    """All that the report says, as JSON but for ``examples``.

    Args:
      config: of the curation.
      split: of the source.
      start: all records.
      done: the steps.
      place: folder for what is counted.
      identity: of the outcome.
      runner: counts.
    """
    folder = f"{place}/report-{identity}"
    stages = [("00_read", source.REASONS, start, start)]
    stages += [(each.label, each.step.reasons, each.before, each.after) for each in done]
    views = [(len(reasons), before, after) for _, reasons, before, after in stages]
    counts = _reduced(f"{folder}/counts.npz", _counts, add, views, start, runner)
    ranges = _reduced(f"{folder}/ranges.npz", _ranges, _widest, views, start, runner)
    shapes = _reduced(
        f"{folder}/histograms.npz",
        functools.partial(_histograms, ranges),
        add,
        views,
        start,
        runner,
    )
    examples = _reduced(f"{folder}/examples.npz", _examples, _least, views, start, runner)
    steps = [
        _of_stage(number, label, reasons, counts)
        for number, (label, reasons, *_) in enumerate(stages)
    ]
    for number, each in enumerate(done, 1):
        steps[number]["options"] = each.step.options()
        steps[number]["notes"] = each.notes
        steps[number]["histograms"] = _of_step(number, ranges, shapes)
    return {
        "source": config["source"],
        "split": split,
        "seed": config["seed"],
        "records": int(start.bounds[-1]),
        "kept": steps[-1]["out"],
        "captions": steps[-1]["captions"],
        "steps": steps,
        "examples": [
            (*_named(stages, stage, reason), index)
            for stage, reason, index in zip(
                *(examples[name].tolist() for name in ("stage", "reason", INDEX)), strict=True
            )
        ],
    }


def _of_stage(number: int, label: str, reasons: Sequence[str], counts: Arrays) -> dict[str, Any]:
    """Counts of a step; of the reasons for which a record can't be read those that occur."""
    dropped = zip(reasons, counts[f"{number}/dropped"].tolist(), strict=True)
    return {
        "step": label,
        "in": int(counts[f"{number}/in"]),
        "out": int(counts[f"{number}/out"]),
        "captions": int(counts[f"{number}/captions"]),
        "dropped": {reason: count for reason, count in dropped if count or number},
    }


def _named(stages: Sequence[Any], stage: int, reason: int) -> tuple[str, str]:
    """Step and reason of an example; what is kept has none."""
    if not reason:
        return "kept", ""
    label, reasons, *_ = stages[stage]
    return label, reasons[reason - 1]


def lines(content: Mapping[str, Any]) -> list[str]:
    """The counts as lines of text."""
    result = [
        f"{content['source']}, split {content['split']!r}: {content['records']:,} records, "
        f"{content['kept']:,} kept ({_share(content['kept'], content['records'])}), with "
        f"{content['captions']:,} captions"
    ]
    for step in content["steps"]:
        result.append(
            f"{step['step']:<24} {step['in']:>12,} -> {step['out']:>12,}  "
            f"{_share(step['out'], step['in'])}"
        )
        for reason, count in sorted(step["dropped"].items(), key=lambda pair: -pair[1]):
            if count:
                result.append(f"  {reason:<22} {count:>12,}  {_share(count, step['in'])}")
        if step["in"] and step["dropped"].get("missing") == step["in"]:
            result.append("  no record has the value that this step asks for: is its name right?")
        for title, value in step.get("notes", {}).items():
            if not isinstance(value, Mapping):
                result.append(f"  {title}: {value:,}" if isinstance(value, int) else
                              f"  {title}: {value}")  # fmt: skip
    return result


def _share(count: int, total: int) -> str:
    return f"{count / max(1, total):.1%}"


def page(content: Mapping[str, Any], view: View) -> str:
    """The report as a page that needs no other file."""
    from jaxclip.curate import report_page

    return report_page.page(content, lines(content), view)


def _reduced(
    path: str,
    function: Any,
    merge: Any,
    views: Sequence[tuple[int, View, View]],
    start: View,
    runner: Runner,
) -> Arrays:
    if not epath.Path(path).exists():
        task = functools.partial(function, views)
        runner.reduce(task, merge, functools.partial(store.write_arrays, path), start.shards)
    with store.read_arrays(path) as file:
        return {name: file[name] for name in file.files}


def _counts(views: Sequence[tuple[int, View, View]], shard: int) -> Arrays:
    found: Arrays = {}
    before = np.zeros(views[0][1].bounds[shard + 1] - views[0][1].bounds[shard], np.uint8)
    for number, (reasons, _, after) in enumerate(views):
        verdict = after.reasons(shard)
        found[f"{number}/in"] = np.sum(before == STAYS)
        found[f"{number}/out"] = np.sum(verdict == STAYS)
        # A step without reasons has no verdict of its own, but that of the one before.
        own = verdict[(verdict != STAYS) & (verdict != GONE)] if reasons else verdict[:0]
        found[f"{number}/dropped"] = np.bincount(own, minlength=reasons + 1)[1:].astype(np.int64)
        rows = after.rows(shard)
        found[f"{number}/captions"] = np.array(len(rows.captions().row))
        before = verdict
    return found


def _scalars(
    views: Sequence[tuple[int, View, View]], shard: int
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """What the passes of each step say: ``NUMBER/COLUMN``, records int64[n], values [n]."""
    for number, (_, before, after) in enumerate(views):
        for path in after.passes[len(before.passes) :]:
            with store.read_arrays(store.file_of(path, shard)) as file:
                for name in file.files:
                    if name in (INDEX, store.REASON, *READ) or name.startswith(OWN):
                        continue
                    if name.endswith(store.ROW) or name + store.ROW in file.files:
                        continue
                    array = file[name]
                    if array.ndim == 1 and array.dtype.kind in "iuf":
                        yield f"{number}/{name}", file[INDEX], array


def _ranges(views: Sequence[tuple[int, View, View]], shard: int) -> Arrays:
    found: Arrays = {"none": np.array([np.inf, -np.inf])}
    for name, _, values in _scalars(views, shard):
        finite = values[np.isfinite(values)].astype(np.float64)
        least, most = (finite.min(), finite.max()) if len(finite) else (np.inf, -np.inf)
        found[name] = np.array([least, most])
    return found


def _widest(found: list[Arrays]) -> Arrays:
    names = {name for each in found for name in each}
    there = {name: [each[name] for each in found if name in each] for name in sorted(names)}
    return {
        name: np.array([min(v[0] for v in values), max(v[1] for v in values)])
        for name, values in there.items()
    }


def _histograms(ranges: Arrays, views: Sequence[tuple[int, View, View]], shard: int) -> Arrays:
    found: Arrays = {"none": np.zeros((2, BINS), np.int64)}
    for name, index, values in _scalars(views, shard):
        after = views[int(name.partition("/")[0])][2]
        left = after.reasons(shard)[index - after.bounds[shard]] == STAYS
        least, most = ranges[name]
        if not least <= most:
            found[name] = np.zeros((2, BINS), np.int64)
            continue
        # A single value, or nearly, has a bin all the same.
        edges = (least, max(most, least + max(1e-6, 1e-6 * abs(least))))
        found[name] = np.stack(
            [np.histogram(v[np.isfinite(v)].astype(np.float64), BINS, edges)[0]
             for v in (values, values[left])]
        )  # fmt: skip
    return found


def _of_step(number: int, ranges: Arrays, shapes: Arrays) -> dict[str, Any]:
    found = {}
    for name, counts in shapes.items():
        own, _, column = name.partition("/")
        if own != str(number) or not ranges[name][0] <= ranges[name][1]:
            continue
        found[column] = {
            "least": float(ranges[name][0]),
            "most": float(ranges[name][1]),
            "before": counts[0].tolist(),
            "after": counts[1].tolist(),
        }
    return found


def _examples(views: Sequence[tuple[int, View, View]], shard: int) -> Arrays:
    """A few records of each reason, and of those that are left, by the hash of their keys."""
    start = views[0][1]
    hashes = key_hashes(store.all_keys(start.base, shard), "report")
    found: list[tuple[int, int, np.ndarray]] = []
    for number, (reasons, _, after) in enumerate(views):
        verdict = after.reasons(shard)
        found += [(number, r, np.flatnonzero(verdict == r)) for r in range(1, reasons + 1)]
    found.append((0, 0, np.flatnonzero(views[-1][2].reasons(shard) == STAYS)))
    rows = np.concatenate([rows for *_, rows in found])
    return _least(
        [
            {
                "stage": np.concatenate([np.full(len(r), s) for s, _, r in found]),
                "reason": np.concatenate([np.full(len(r), n) for _, n, r in found]),
                "hash": hashes[rows],
                INDEX: rows + start.bounds[shard],
            }
        ]
    )


def _least(found: list[Arrays]) -> Arrays:
    arrays = {name: np.concatenate([each[name] for each in found]) for name in found[0]}
    order = np.lexsort((arrays[INDEX], arrays["hash"], arrays["reason"], arrays["stage"]))
    arrays = {name: array[order] for name, array in arrays.items()}
    group = arrays["stage"] * 1000 + arrays["reason"]
    firsts = np.searchsorted(group, group)
    limit = np.where(group == 0, _SHOWN_KEPT, _SHOWN)
    few = np.arange(len(group)) - firsts < limit
    return {name: array[few] for name, array in arrays.items()}
