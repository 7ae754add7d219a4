"""Groups of records that are nearly the same, by bands of their signatures, without an index.

Records that share a band are candidates; those whose signatures agree are joined; of every
connected component one record stays. All of it is grouping by key: no part needs the whole in
memory.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np

from jaxclip.curate.flow import Flow
from jaxclip.curate.rows import Rows
from jaxclip.curate.steps.exact_duplicates import rank
from jaxclip.curate.store import INDEX

# Groups up to this size are compared all with all, larger ones with their least record.
_ALL_PAIRS = 16
_ROUNDS = 10
SIGNATURE = "_signature"

Arrays = dict[str, np.ndarray]
# rows -> (uint64[n, b], bool[n]: which have a signature at all)
Bands = Callable[[Rows], tuple[np.ndarray, np.ndarray]]
# signatures [m, ...], [m, ...] -> bool[m]
Agree = Callable[[np.ndarray, np.ndarray], np.ndarray]


def find(flow: Flow, bands: Bands, agree: Agree, largest: int) -> None:
    """Add ``_is_near_duplicate``: bool[n], False for the record of a component that stays.

    Args:
      flow: of a step that has made the column ``_signature``.
      bands: keys of which two records that are alike share one, very likely.
      agree: whether signatures are alike.
      largest: components of more records are only counted: so many alike are no duplicates but
        something that signatures do not see.
    """
    partial = functools.partial
    flow.columns("rank", _labels)
    flow.group(
        "candidates", partial(_emit_bands, bands), _pairs, fill={"_is_centre": False},
        ragged=("_candidate",),
    )  # fmt: skip
    flow.group("edges", _emit_candidates, partial(_verify, agree), ragged=("_edge",))
    for number in range(_ROUNDS):
        flow.group(
            f"round{number}", _emit_labels, _least_label,
            fill={"_label_rank": np.uint64(0), "_label": -1, "_changed": False},
        )  # fmt: skip
        changed = int(flow.total(f"changed{number}", _count_changed).arrays()["changed"])
        if not changed:
            break
    flow.group("sizes", _emit_sizes, _sizes, fill={"component_size": 1})
    flow.columns("choice", partial(_choose, largest))
    found = flow.total("found", partial(_count_found, largest)).arrays()
    flow.note("records in components", int(found["members"]))
    flow.note("components", int(found["components"]))
    flow.note(f"records in components of more than {largest}, which stay", int(found["oversized"]))
    if changed:
        flow.note(f"labels that still changed after {_ROUNDS} rounds", changed)


def _labels(rows: Rows) -> Arrays:
    ranks = rank(rows)
    return {"_rank": ranks, "_label_rank": ranks, "_label": rows.index}


def _emit_bands(bands: Bands, rows: Rows) -> tuple[np.ndarray, Arrays]:
    keys, has = bands(rows)
    chosen = np.flatnonzero(has)
    count = keys.shape[1]
    said = {INDEX: rows.index, "rank": rows["_rank"]}
    return (
        keys[chosen].reshape(-1),
        {name: np.repeat(array[chosen], count) for name, array in said.items()},
    )


def _pairs(keys: np.ndarray, starts: np.ndarray, said: Arrays) -> Arrays:
    """Candidates: line ``index`` is to be compared with record ``candidate``, a centre."""
    left, right = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for group in np.flatnonzero(np.diff(starts) > 1):
        part = slice(starts[group], starts[group + 1])
        order = np.lexsort((said[INDEX][part], said["rank"][part]))
        index = said[INDEX][part][order]
        if len(index) <= _ALL_PAIRS:
            low, high = np.triu_indices(len(index), 1)
        else:
            low, high = np.zeros(len(index) - 1, np.int64), np.arange(1, len(index))
        left.append(index[high])
        right.append(index[low])
    pairs = np.stack([np.concatenate(left), np.concatenate(right)])
    pairs = np.unique(pairs[:, pairs[0] != pairs[1]], axis=1)
    centres = np.unique(pairs[1])
    return {
        INDEX: np.concatenate([pairs[0], centres]),
        # A centre's line names itself, which is no edge.
        "_candidate": np.concatenate([pairs[1], centres]),
        "_is_centre": np.repeat([False, True], [pairs.shape[1], len(centres)]),
    }


def _emit_candidates(rows: Rows) -> tuple[np.ndarray, Arrays]:
    candidates = rows["_candidate"]
    said = {
        INDEX: rows.index[candidates.row],
        SIGNATURE: rows[SIGNATURE][candidates.row],
    }
    return candidates.value.astype(np.uint64), said


def _verify(agree: Agree, keys: np.ndarray, starts: np.ndarray, said: Arrays) -> Arrays:
    """Edges in both directions."""
    centre = np.repeat(keys.astype(np.int64), np.diff(starts))
    own = np.flatnonzero(said[INDEX] == centre)  # one line for each key, in the order of keys
    place = np.repeat(own, np.diff(starts))
    alike = agree(said[SIGNATURE], said[SIGNATURE][place]) & (said[INDEX] != centre)
    one, other = said[INDEX][alike], centre[alike]
    return {INDEX: np.concatenate([one, other]), "_edge": np.concatenate([other, one])}


def _emit_labels(rows: Rows) -> tuple[np.ndarray, Arrays]:
    """Each record tells its neighbours, and itself, its label."""
    edges = rows["_edge"]
    with_edges = np.unique(edges.row)
    to = np.concatenate([edges.value, rows.index[with_edges]])
    sender = np.concatenate([edges.row, with_edges])
    said = {
        INDEX: rows.index[sender],
        "_label_rank": rows["_label_rank"][sender],
        "_label": rows["_label"][sender],
    }
    return to.astype(np.uint64), said


def _least_label(keys: np.ndarray, starts: np.ndarray, said: Arrays) -> Arrays:
    key = np.repeat(keys, np.diff(starts))
    order = np.lexsort((said["_label"], said["_label_rank"], key))
    first = order[starts[:-1]]
    own = said["_label"][said[INDEX] == key.astype(np.int64)]
    return {
        INDEX: keys.astype(np.int64),
        "_label_rank": said["_label_rank"][first],
        "_label": said["_label"][first],
        "_changed": said["_label"][first] != own,
    }


def _count_changed(rows: Rows) -> Arrays:
    return {"changed": np.sum(rows["_changed"])}


def _emit_sizes(rows: Rows) -> tuple[np.ndarray, Arrays]:
    members = rows["_label"] >= 0
    return rows["_label"][members].astype(np.uint64), {INDEX: rows.index[members]}


def _sizes(keys: np.ndarray, starts: np.ndarray, said: Arrays) -> Arrays:
    sizes = np.diff(starts)
    return {INDEX: said[INDEX], "component_size": np.repeat(sizes, sizes)}


def _choose(largest: int, rows: Rows) -> Arrays:
    label = rows["_label"]
    again = (label >= 0) & (label != rows.index)
    return {"_is_near_duplicate": again & (rows["component_size"] <= largest)}


def _count_found(largest: int, rows: Rows) -> Arrays:
    member, size = rows["_label"] >= 0, rows["component_size"]
    return {
        "members": np.sum(member),
        "components": np.sum(member & (rows["_label"] == rows.index)),
        "oversized": np.sum(member & (size > largest)),
    }
