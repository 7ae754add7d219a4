"""Columns of reinforced records: replayed pictures, and the vectors of what a batch holds."""

from __future__ import annotations

import os

import numpy as np

from jaxclip.data.column import Candidate, Column, Context, Rows, draws
from jaxclip.data.image_backend import BACKENDS
from jaxclip.data.image_chain import Chain
from jaxclip.data.loader import RecordLoader
from jaxclip.data.record import BadRecord
from jaxclip.data.reinforced import Reinforced, picture_digest
from jaxclip.data.text_columns import CaptionsColumn
from jaxclip.fields import Captions, Embedded, View

_PICTURES_CHECKED = 4


def checked(folder: str | os.PathLike[str], context: Context) -> Reinforced:
    """Reinforced records, which must be of the split that is trained on.

    Raises:
      ValueError: they are not, or not finished, or the pictures would be others.
    """
    reinforced = Reinforced(folder)
    if context.config["mixture"]:
        raise ValueError(f"{folder} is of one split; data.mixture must be empty")
    reinforced.check(context.data_set, context.split)
    made, asked = reinforced.index["image_backend"], context.config["image_backend"]
    if made != asked:
        raise ValueError(
            f"{folder} was made with data.image_backend={made!r}, which has other pixels than "
            f"{asked!r}; set that one"
        )
    return reinforced


def check_pixels(reinforced: Reinforced, chain: Chain, context: Context) -> None:
    """Replay a few pictures, and compare them with what was embedded.

    At another size than they were embedded at there is nothing to compare.

    Raises:
      ValueError: they are others: a library decodes or resizes in another way than it did then.
    """
    if chain.image_size != reinforced.index["image_size"]:
        return
    source = context.data_set.source(context.split)
    found = 0
    with_numbers = RecordLoader(
        source,
        {"image": chain},
        backend=BACKENDS.build(context.config["image_backend"]),
        need_texts=False,
        num_threads=1,
        replays={"image": reinforced.numbers},
    )
    for index in range(min(len(source), 64)):
        if found == _PICTURES_CHECKED:
            break
        if not reinforced.is_good(index):
            continue
        found += 1
        zero = np.zeros((1, 1), np.float32)
        views, _ = with_numbers.batch(np.array([index]), {"image": zero}, None)
        shard, place = reinforced.shard(index)
        if picture_digest(views["image"][0]) != int(shard.digests[place, 0]):
            raise ValueError(
                f"the replayed picture of record {index} is not the one that was embedded in "
                f"{reinforced.folder}: image libraries have changed since, or the records; "
                "reinforce them anew"
            )


class EmbeddedColumn(Column[Embedded]):
    """Vectors of what stands under another key, see :class:`jaxclip.fields.Embedded`."""

    def __init__(self, key: str, field: Embedded, context: Context):
        super().__init__(key, field, context)
        self._reinforced = checked(field.folder, context)
        size = sum(self._reinforced.sizes)
        if field.size != size:
            raise ValueError(f"{field.folder} holds vectors of {size} numbers, not {field.size}")
        other = context.spec.get(field.of)
        if isinstance(other, View):
            if other.replay != field.folder:
                raise ValueError(f"batch[{field.of!r}] does not replay {field.folder!r}")
            self._captions = None
        elif isinstance(other, Captions):
            if other.ops or other.count != 1:
                raise ValueError(
                    f"vectors are of captions as they are, one a row, but batch[{field.of!r}] is "
                    f"{other}"
                )
            self._captions = CaptionsColumn(field.of, other, context)
        else:
            raise ValueError(f"batch[{field.of!r}], whose vector it is, is {other}")

    def check(self) -> None:
        def has(candidate: Candidate) -> bool:
            return not isinstance(self.examine(candidate), BadRecord)

        what = f"no vectors of batch[{self.field.of!r}] in {self.field.folder}"
        self.find(has, f"{what} (were its captions or their language embedded?)")

    def examine(self, candidate: Candidate) -> BadRecord | None:
        number = candidate.index
        if not self._reinforced.is_good(number):
            return candidate.bad("bad_vector", "it could not be embedded when it was reinforced")
        if self._captions is None:
            return None
        texts = self._captions.possible(candidate)
        if isinstance(texts, BadRecord):
            return texts
        for text in texts:
            vector = self._reinforced.text_vector(number, text)
            if vector is None or not np.isfinite(vector).all():
                return candidate.bad("bad_vector", f"caption {text!r} was not embedded")
        return None

    def make(self, rows: Rows) -> np.ndarray:
        result = np.zeros((len(rows.loaded), self.field.size), np.float32)
        if self._captions is None:
            u = draws(rows.seed, self.field.of, rows.places, 1)
            for row, loaded in enumerate(rows.loaded):
                result[row] = self._reinforced.image_vector(loaded.index, u[row])
            return result
        texts = rows.texts[self.field.of]
        for row, (loaded, text) in enumerate(zip(rows.loaded, texts, strict=True)):
            vector = self._reinforced.text_vector(loaded.index, text or "")
            if vector is not None:  # examine has seen that there is one
                result[row] = vector
        return result
