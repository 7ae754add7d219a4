"""Another vocabulary: rows of the table of token embeddings, kept, moved, dropped or made anew."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxclip.models.presets import CLIPConfig

Params = dict[str, Any]
# An old token, or those whose mean a new one starts from.
Row = int | Sequence[int]

_EMBEDDING = ("text", "token_embedding", "embedding")
# Logits of a captioning decoder, [C, V], where there is one.
_LOGITS = ("objective", "coca", "decoder", "logits", "kernel")


def resize_vocabulary(
    params: Params, sizes: CLIPConfig, rows: Sequence[Row]
) -> tuple[Params, CLIPConfig]:
    """A model for another vocabulary.

    New tokens start as the mean of old ones: those that their name is made of
    (:func:`rows_by_name`). Texts of kept tokens are embedded as before, bit for bit. A CoCa
    decoder's logits follow in the same way.

    Other people's code may read the end of a CLIP text at the row's largest id: tokens behind the
    end token are for our own towers, which read the last place that is no padding.

    Args:
      params: the tree of :meth:`jaxclip.models.CLIP.init`.
      sizes: its architecture.
      rows: for each token of the new vocabulary, the old one that it is, or old ones to average.

    Returns:
      ``(params, sizes)``; the same where all rows are as they were.

    Raises:
      ValueError: an old token that there is not, nothing to average, or padding that moves.
    """
    old = sizes.text.vocab_size
    if list(rows) == list(range(old)):
        return params, sizes
    pad = sizes.text.pad_id
    if pad >= len(rows) or rows[pad] != pad:
        raise ValueError(
            f"rows[{pad}] is padding and must stay rows[{pad}]={pad}: texts are filled with it"
        )
    for place, row in enumerate(rows):
        parts = [row] if isinstance(row, (int, np.integer)) else list(row)
        if not parts or not all(0 <= part < old for part in parts):
            raise ValueError(
                f"rows[{place}]={row!r}: name one token or more, 0 to {old - 1}, to start it from"
            )
    new = dataclasses.replace(sizes, text=dataclasses.replace(sizes.text, vocab_size=len(rows)))
    params = _changed(params, _EMBEDDING, lambda table: _rows(table, rows))
    return _changed(params, _LOGITS, lambda kernel: _rows(kernel.T, rows).T), new


def rows_by_name(
    names: Sequence[str], old: Mapping[str, int], pieces: Callable[[str], Sequence[int]]
) -> list[Row]:
    """What the tokens of a new vocabulary start from, by their names.

    Args:
      names: of the new tokens, in the order of their ids.
      old: ids of the old ones by name.
      pieces: the ids that the old tokenizer makes of a text, without start and end.

    Returns:
      ``rows`` of :func:`resize_vocabulary`: a token of the same name, else the pieces of the
      name, else (where there are none) all old tokens.
    """
    everything = sorted(old.values())
    return [old[name] if name in old else list(pieces(name)) or everything for name in names]


def _rows(table: Any, rows: Sequence[Row]) -> np.ndarray:
    array = np.asarray(table)
    made = np.empty((len(rows), array.shape[1]), array.dtype)
    for place, row in enumerate(rows):
        if isinstance(row, (int, np.integer)):
            made[place] = array[row]
        else:
            made[place] = np.mean(array[list(row)], axis=0, dtype=np.float64)
    return made


def _changed(tree: Params, path: Sequence[str], change: Callable[[Any], Any]) -> Params:
    """A tree with one leaf changed; as it is where there is no such leaf."""
    first, *rest = path
    if first not in tree:
        return tree
    return {**tree, first: _changed(tree[first], rest, change) if rest else change(tree[first])}
