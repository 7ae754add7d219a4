"""Several data sets trained on at once, each with a weight and caption rules of its own.

``data.mixture`` is a list of ``{"name", "split", "weight", "languages", "captions"}``. The endless
row of training examples is dealt out to the sources in blocks of 4096 places: in each block every
source has its share of them, in a random order. Within a source, records come in epochs as they do
without a mixture. Which record stands where is a function of (seed, place), however often training
stops and on however many hosts.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxclip.data import order, sampling
from jaxclip.data.dataset import OWN_LANGUAGE, DataSet, RecordSource
from jaxclip.data.naming import CAPTION_TAGS
from jaxclip.data.record import BadRecord, Record, meta_object
from jaxclip.registry import check_options

_LOG = logging.getLogger(__name__)

BLOCK = 4096
_KEYS = ("name", "split", "weight", "languages", "captions", "sampling")
_CAPTIONS = ("all", "first", "longest")


@dataclasses.dataclass(frozen=True)
class Part:
    """One source of a mixture.

    Attributes:
      data_set: where its records are.
      split: which of them.
      weight: share of the examples, relative to the others'; None: as many as it has records.
      languages: of its captions, as ``data.languages``.
      captions: which of a record's captions count: ``"all"``, ``"first"`` or ``"longest"``.
      sampling: as ``data.sampling``.
    """

    data_set: DataSet
    split: str
    weight: float | None
    languages: Sequence[str]
    captions: str
    sampling: str = ""

    @property
    def size(self) -> int:
        """Number of records."""
        return self.data_set.splits[self.split]


def parts(config: Sequence[Any], opened: Callable[[str], DataSet], split: str) -> list[Part]:
    """The sources of a mixture, opened and checked.

    Args:
      config: the list ``data.mixture``.
      opened: opens a data set by name.
      split: of those that name none.

    Raises:
      ValueError: not a list of mappings, an unknown key, a weight that is no number above 0, a
        split or language that there is not; says which source.
      FileNotFoundError: a data set that does not exist.
    """
    if not isinstance(config, (list, tuple)):
        raise ValueError(f"data.mixture={config!r} must be a list of {{'name': …, 'weight': …}}")
    made = []
    for number, given in enumerate(config):
        where = f"data.mixture[{number}]"
        if not isinstance(given, Mapping) or not isinstance(given.get("name"), str):
            raise ValueError(f"{where}={given!r} must be a mapping with a 'name'")
        check_options(given, _KEYS, where)
        for key in ("split", "captions", "sampling"):
            if not isinstance(given.get(key) or "", str):
                raise ValueError(f"{where}.{key}={given[key]!r} must be a text")
        languages = given.get("languages") or (OWN_LANGUAGE,)
        if not isinstance(languages, (list, tuple)):
            raise ValueError(f"{where}.languages={languages!r} must be a list, as ['en', 'de']")
        part = Part(
            opened(given["name"]),
            given.get("split") or split,
            given.get("weight"),
            tuple(languages),
            given.get("captions") or "all",
            given.get("sampling") or "",
        )
        weight = part.weight
        if weight is not None and not (
            isinstance(weight, (int, float)) and not isinstance(weight, bool) and 0 < weight < 1e30
        ):
            raise ValueError(f"{where}.weight={weight!r} must be a number above 0")
        if part.captions not in _CAPTIONS:
            raise ValueError(
                f"{where}.captions={part.captions!r} must be one of {', '.join(_CAPTIONS)}"
            )
        try:
            narrowed = sampling.narrowed(part.sampling, part.data_set)
            part = dataclasses.replace(part, data_set=narrowed)
            part.data_set.source(part.split)
            part.data_set.texts_of(part.languages)
            sampling.check(part.sampling)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        made.append(part)
    _say_shares(made)
    return made


def _say_shares(made: Sequence[Part]) -> None:
    """Warn of sources without a weight beside others with one: numbers of records are large."""
    bare = [number for number, part in enumerate(made) if part.weight is None]
    if 0 < len(bare) < len(made):
        total = sum(part.size if part.weight is None else part.weight for part in made)
        part = made[bare[0]]
        _LOG.warning(
            "data.mixture[%d] has no weight, so it counts as its %d records beside the weights of "
            "others: it gets %.3g%% of the examples; give all sources a weight, or none",
            bare[0], part.size, 100 * part.size / total,
        )  # fmt: skip


class Mixture(DataSet):
    """The records of several data sets, one behind the other, as one split.

    Captions are already chosen by each source's rules. Labels are those of the sources if all have
    the same class names, else there are none: one number would stand for several things.

    Args:
      given: the sources.
      split: name of the only split.
    """

    def __init__(self, given: Sequence[Part], split: str):
        self.parts = list(given)
        names = [part.data_set.class_names() for part in self.parts]
        self._same_classes = all(each == names[0] for each in names)
        super().__init__(
            "mixture of " + ", ".join(part.data_set.name for part in self.parts),
            {split: sum(part.size for part in self.parts)},
            lambda split: _Joined(self.parts, self._same_classes),
            class_names=names[0] if self._same_classes else None,
            has_texts=any(part.data_set.has_texts for part in self.parts),
        )

    def order(self, seed: int, window: int, chunk: int) -> MixtureOrder:
        """Which record stands where."""
        return MixtureOrder(
            [part.size for part in self.parts],
            [part.weight for part in self.parts],
            seed,
            window,
            chunk,
            [sampling.weights_of(part.sampling, part.data_set, part.split) for part in self.parts],
        )


class _Joined(RecordSource):
    """The records of the parts, one behind the other."""

    def __init__(self, given: Sequence[Part], keep_labels: bool):
        self._sources = [part.data_set.source(part.split) for part in given]
        self._texts = [part.data_set.texts_of(part.languages) for part in given]
        self._captions = [part.captions for part in given]
        self._ends = np.cumsum([len(source) for source in self._sources])
        self._keep_labels = keep_labels

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Record | BadRecord:
        return self._chosen(index, "__getitem__")

    def picture(self, index: int) -> Record | BadRecord:
        return self._chosen(index, "picture")

    def _chosen(self, index: int, how: str) -> Record | BadRecord:
        number = int(np.searchsorted(self._ends, index, side="right"))
        source = self._sources[number]
        record = getattr(source, how)(index - int(self._ends[number]) + len(source))
        if isinstance(record, BadRecord):
            return record
        texts, meta = self._texts[number](record), record.meta
        if texts != record.texts or self._captions[number] == "longest":
            meta = _without_tags(meta)
        if self._captions[number] == "first":
            texts = texts[:1]
        elif self._captions[number] == "longest":
            texts = (max(texts, key=len),) if texts else ()
        label = record.label if self._keep_labels else -1
        return dataclasses.replace(record, texts=texts, label=label, meta=meta)


def _without_tags(meta: str) -> str:
    """A record's meta without the tags of captions, which are those of captions in their order."""
    values = meta_object(meta) if CAPTION_TAGS in meta else {}
    if CAPTION_TAGS not in values:
        return meta
    return json.dumps({name: value for name, value in values.items() if name != CAPTION_TAGS})


class MixtureOrder:
    """Which record of which source stands at which place.

    Args:
      sizes: records of each source.
      weights: shares of the sources; None: the number of records.
      seed: any non-negative integer.
      window: see :class:`.order.ShuffledOrder`.
      chunk: see there.
      record_weights: of the records of each source, see :mod:`.sampling`; None: all alike.

    Raises:
      ValueError: a share that is less than one example in a block.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        weights: Sequence[float | None],
        seed: int,
        window: int = order.DEFAULT_WINDOW,
        chunk: int = order.DEFAULT_CHUNK,
        record_weights: Sequence[np.ndarray | None] = (),
    ):
        shares = np.array(
            [size if w is None else w for size, w in zip(sizes, weights, strict=True)], np.float64
        )
        self.counts = _whole(shares / shares.sum() * BLOCK)
        if not self.counts.all():
            number = int(np.argmin(self.counts))
            raise ValueError(
                f"data.mixture[{number}] would have less than one of {BLOCK} examples "
                f"({shares[number] / shares.sum():.1e} of them); give it a larger weight or leave "
                "it out"
            )
        self.num_records = int(sum(sizes))
        self._sizes = list(sizes)
        self._starts = np.cumsum([0, *sizes[:-1]])
        self._seed = seed
        self._dealt = np.repeat(np.arange(len(sizes)), self.counts)
        self._orders: list[order.ShuffledOrder | sampling.SampledOrder] = []
        given_weights = record_weights or [None] * len(sizes)
        for number, (size, given) in enumerate(zip(sizes, given_weights, strict=True)):
            own = order.seed_of(seed, number)
            self._orders.append(
                order.ShuffledOrder(size, own, window, chunk)
                if given is None
                else sampling.SampledOrder(given, own, window, chunk)
            )

    def __call__(self, places: np.ndarray) -> np.ndarray:
        """Record indices at places of the endless row, in the row of all sources.

        Args:
          places: int64[n], each at least 0.

        Returns:
          int64[n].
        """
        places = np.asarray(places, np.int64)
        result = np.empty_like(places)
        blocks, offsets = np.divmod(places, BLOCK)
        for block in np.unique(blocks):
            chosen = blocks == block
            sources, ranks = self._block(int(block))
            own, rank = sources[offsets[chosen]], ranks[offsets[chosen]]
            within = np.empty(len(own), np.int64)
            for number in np.unique(own):
                mine = own == number
                inner = int(block) * int(self.counts[number]) + rank[mine]
                within[mine] = self._starts[number] + self._orders[number](inner)
            result[chosen] = within
        return result

    def replacement(self, place: int, attempt: int) -> int:
        """Record that stands in for one that can't be used: of the same source, see
        :meth:`.order.ShuffledOrder.replacement`."""
        block, offset = divmod(place, BLOCK)
        number = int(self._block(block)[0][offset])
        return int(self._starts[number]) + self._orders[number].replacement(place, attempt)

    def _block(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """Source at each place of a block, and how many places of it come before in the block."""
        sources = self._dealt[order.permutation_of(self._seed, block, BLOCK)]
        ranks = np.empty(BLOCK, np.int64)
        for number, count in enumerate(self.counts):
            ranks[sources == number] = np.arange(count)
        return sources, ranks


def _whole(shares: np.ndarray) -> np.ndarray:
    """Whole numbers next to the shares, of the same sum: the largest remainders are rounded up."""
    counts = np.floor(shares).astype(np.int64)
    rest = round(float(shares.sum())) - int(counts.sum())
    counts[np.argsort(counts - shares, kind="stable")[:rest]] += 1
    return counts
