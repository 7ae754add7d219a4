"""The columns of a batch: one class for each field of :mod:`jaxclip.fields`, and what makes
a batch of them.

:func:`build` checks a specification against a data set, :class:`BatchMaker` makes the rows of a
step.
"""

from __future__ import annotations

import dataclasses
import hashlib
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxclip import fields
from jaxclip.data import embedded, loader, mixture, order, reading, sampling
from jaxclip.data.column import IMAGE, TEXT, Candidate, Column, Context, Rows, TextColumn
from jaxclip.data.decoded_cache import Loaded
from jaxclip.data.image_chain import Chain
from jaxclip.data.patch_columns import GridColumn, PatchesColumn
from jaxclip.data.record import BadRecord, Record
from jaxclip.data.region_columns import BoxesColumn, RegionTextsColumn
from jaxclip.data.stages import MAKING, TOKENIZING
from jaxclip.data.stored import StoredColumn
from jaxclip.data.text_columns import CaptionsColumn, NegativesColumn
from jaxclip.data.view_column import ViewColumn


class LabelColumn(Column[fields.Label]):
    """The class, see :class:`jaxclip.fields.Label`."""

    def check(self) -> None:
        if self.field.required:
            self.find(lambda each: each.record.label >= 0, "no class labels")
        wanted, data_set = self.field.num_classes, self.context.data_set
        declared = data_set.split_classes(self.context.split)
        if declared is None:
            declared = list(range(len(data_set.class_names() or ())))
        if wanted and declared and max(declared) >= wanted:
            raise ValueError(
                f"{self.context} has labels up to {max(declared)}, but num_classes={wanted}; set "
                f"num_classes={max(declared) + 1}"
            )

    def examine(self, candidate: Candidate) -> BadRecord | None:
        label, classes = candidate.record.label, self.field.num_classes
        if self.field.required and label < 0:
            return candidate.bad("missing_label", f"label {label}")
        if classes and label >= classes:
            return candidate.bad("label_out_of_range", f"label {label} of num_classes={classes}")
        return None

    def make(self, rows: Rows) -> np.ndarray:
        return np.array([max(-1, each.record.label) for each in rows.loaded], np.int32)


class IndexColumn(Column[fields.Index]):
    """The number of the record, see :class:`jaxclip.fields.Index`."""

    def make(self, rows: Rows) -> np.ndarray:
        return np.array([each.index for each in rows.loaded], np.int32)


class CaptionHashColumn(Column[fields.CaptionHash]):
    """A number for each caption, see :class:`jaxclip.fields.CaptionHash`."""

    def __init__(self, key: str, field: fields.CaptionHash, context: Context):
        super().__init__(key, field, context)
        if not isinstance(context.spec.get(TEXT), fields.Captions):
            raise ValueError(f"it is that of batch[{TEXT!r}], which is not asked for")

    def make(self, rows: Rows) -> np.ndarray:
        return np.array([_hash(text) for text in rows.captions], np.int32)


def _hash(text: str) -> int:
    digest = hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=4).digest()
    return int.from_bytes(digest, "little") & 0x7FFFFFFF


COLUMNS: dict[type[fields.Field], type[Column[Any]]] = {
    fields.View: ViewColumn,
    fields.Captions: CaptionsColumn,
    fields.Negatives: NegativesColumn,
    fields.Label: LabelColumn,
    fields.Index: IndexColumn,
    fields.CaptionHash: CaptionHashColumn,
    fields.Stored: StoredColumn,
    fields.Embedded: embedded.EmbeddedColumn,
    fields.Boxes: BoxesColumn,
    fields.RegionTexts: RegionTextsColumn,
    fields.Patches: PatchesColumn,
    fields.Grid: GridColumn,
}


def build(
    context: Context, owners: Mapping[str, str] | None = None, *, look: bool = True
) -> dict[str, Column[Any]]:
    """The columns of a specification, checked against the data set.

    Args:
      context: what they are made from.
      owners: who wants a key, for errors.
      look: whether to look for records that have what is wanted.

    Raises:
      ValueError: an option that can't be, or something that the data set does not have; one line
        that names the key and its owner.
    """
    columns: dict[str, Column[Any]] = {}
    for key, field in context.spec.items():
        owner = (owners or {}).get(key, "")
        where = f"batch[{key!r}]" + (f", which {owner} wants" if owner else "")
        if type(field) not in COLUMNS:
            raise ValueError(f"{where}: {field!r} is no field of jaxclip.fields")
        try:
            column = columns[key] = COLUMNS[type(field)](key, field, context)
            if look:
                column.check()
        except ValueError as error:
            plain = not owner and fields.PAIR.get(key) == field
            raise ValueError(str(error) if plain else f"{where}: {error}") from error
    return columns


@dataclasses.dataclass
class BatchMaker:
    """Makes this process's rows of a step.

    Attributes:
      columns: by key.
      reader: reads records and makes views.
      order: which record stands at which place.
      seed: of the run.
      first_row: of this process within a batch.
      rows: of this process.
      global_batch_size: rows of all.
      tokenizer: captions -> int32[n, L].
    """

    columns: Mapping[str, Column[Any]]
    reader: reading.Reader
    order: order.ShuffledOrder | mixture.MixtureOrder | sampling.SampledOrder
    seed: int
    first_row: int
    rows: int
    global_batch_size: int
    tokenizer: Callable[[list[str]], np.ndarray]

    def __post_init__(self) -> None:
        texts = [each for each in self.columns.values() if isinstance(each, TextColumn)]
        lengths = {each.length for each in texts} - {0}
        self._tokenizers = {0: self.tokenizer}
        self._lock = threading.Lock()
        self._counts = Counter[str](drawn=0, fill=0, equal=0)
        for length in lengths:
            if getattr(self.tokenizer, "context_length", None) == length:
                self._tokenizers[length] = self.tokenizer
            elif not hasattr(self.tokenizer, "with_length"):
                raise ValueError(f"this tokenizer makes no rows of {length} tokens (with_length)")
            else:
                self._tokenizers[length] = self.tokenizer.with_length(length)
        # The captions of "text" are drawn first: others are made of them.
        self._texts = sorted(texts, key=lambda column: column.key != TEXT)

    def __call__(self, step: int) -> dict[str, np.ndarray]:
        """The arrays of a step, by key."""
        first = int(step) * self.global_batch_size + self.first_row
        places = np.arange(first, first + self.rows, dtype=np.int64)
        views, loaded = self._load(places)
        rows = Rows(self.seed, places, loaded, views, [], batch=int(step))
        board = self.reader.board
        board.note(TOKENIZING, step)
        arrays = self._tokenized(rows)
        board.note(MAKING, step)
        for key, column in self.columns.items():
            if not isinstance(column, TextColumn):
                arrays[key] = column.make(rows)
        if rows.captions:  # else batch["text"] is no caption, but a stored vector say
            self._count(rows.captions, arrays[TEXT])
        board.clear()
        return {key: arrays[key] for key in self.columns}

    def _load(self, places: np.ndarray) -> tuple[dict[str, np.ndarray], list[Loaded]]:
        """Views and records of places."""
        return self.reader.load(
            places,
            self.order(places),
            lambda row, attempt: self.order.replacement(int(places[row]), attempt),
        )

    def examples(self, batch: int, rows: Sequence[int]) -> list[tuple[Loaded, str, np.ndarray]]:
        """Some rows of a batch as training sees them: record, caption and image.

        Args:
          batch: its number.
          rows: places within the global batch.

        Returns:
          Of each row the record, its caption of ``text`` (empty without that column) and
          uint8[S, S, 3] of ``image`` (of patches the whole picture; no pixels without either).
        """
        places = np.asarray(rows, np.int64) + int(batch) * self.global_batch_size
        views, found = self._load(places)
        captions = [""] * len(found)
        for column in self._texts:
            if column.key == TEXT:
                texts = column.texts(Rows(self.seed, places, found, views, []))
                captions = [text or "" for text in texts[:: len(texts) // len(found)]]
        whole = [np.zeros((0, 0, 3), np.uint8) if x.pixels is None else x.pixels for x in found]
        images = views.get(IMAGE, whole)
        return list(zip(found, captions, images, strict=True))

    def _count(self, captions: list[str], ids: np.ndarray) -> None:
        rows = ids.reshape(len(captions), -1, ids.shape[-1])[:, 0]
        pad = getattr(self.tokenizer, "pad_id", 0)
        # Where padding is the end-of-text, the last token is one in any row.
        last = -2 if pad == getattr(self.tokenizer, "end_id", None) else -1
        equal = sum(count for count in Counter(captions).values() if count > 1)
        with self._lock:
            self._counts.update(
                drawn=len(captions), fill=int((rows[:, last] != pad).sum()), equal=equal
            )

    def caption_counts(self) -> dict[str, int]:
        """What captions of ``text`` were like so far.

        Returns:
          How many were ``drawn``, how many of them ``fill`` their row to the last token (and are
          cut, unless they fit exactly), and how many were ``equal`` to another one of their batch,
          as far as it was made here.
        """
        with self._lock:
            return dict(self._counts)

    def box_counts(self) -> dict[str, int]:
        """Boxes met so far: how many, and how many of them fell out of the picture; empty where no
        boxes are asked for."""
        counts = Counter[str]()
        for column in self.columns.values():
            if isinstance(column, BoxesColumn):
                counts.update(column.counts())
        return dict(counts)

    def _tokenized(self, rows: Rows) -> dict[str, np.ndarray]:
        """The columns of token ids; the tokenizer is called once for each length."""
        drawn: dict[str, list[str | None]] = {}
        for column in self._texts:
            texts = drawn[column.key] = rows.texts[column.key] = column.texts(rows)
            if column.key == TEXT:
                rows.captions = [text or "" for text in texts[:: len(texts) // len(rows.loaded)]]
        arrays = {}
        for length, tokenizer in self._tokenizers.items():
            keys = [column.key for column in self._texts if column.length == length]
            if not keys:
                continue
            texts = [text for key in keys for text in drawn[key]]
            ids = np.asarray(tokenizer([text or "" for text in texts]), np.int32)
            if None in texts:
                ids = np.where([[text is None] for text in texts], np.int32(0), ids)
            start = 0
            for key in keys:
                end = start + len(drawn[key])
                count = getattr(self.columns[key].field, "count", 1)
                lists = (NegativesColumn, RegionTextsColumn)
                several = isinstance(self.columns[key], lists) or count > 1
                shape = (self.rows, count, -1) if several else (self.rows, -1)
                arrays[key] = ids[start:end].reshape(shape)
                start = end
        return arrays


def chains(columns: Mapping[str, Column[Any]]) -> dict[str, Chain]:
    """The chain of image ops of each view."""
    return {key: each.chain for key, each in columns.items() if isinstance(each, ViewColumn)}


def num_draws(columns: Mapping[str, Column[Any]]) -> dict[str, int]:
    """Random numbers that a row draws for each view."""
    return {key: each.num_draws for key, each in columns.items() if isinstance(each, ViewColumn)}


def replays(columns: Mapping[str, Column[Any]]) -> dict[str, loader.Numbers]:
    """Where the numbers of a view's ops come from, for views that replay them."""
    return {
        key: each.numbers
        for key, each in columns.items()
        if isinstance(each, ViewColumn) and each.numbers is not None
    }


def examiner(columns: Mapping[str, Column[Any]]) -> loader.Examine:
    """Looks at a record for all columns; the first that finds it bad says why."""

    def examine(index: int, record: Record) -> dict[str, Any] | BadRecord:
        candidate = Candidate(index, record)
        kept = {}
        for key, column in columns.items():
            found = column.examine(candidate)
            if isinstance(found, BadRecord):
                return found
            if found is not None:
                kept[key] = found
        return kept

    return examine
