"""Data sets in files, opened by name, as evaluators see them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxclip import parallel
from jaxclip.evaluate import encoding
from jaxclip.evaluate.base import Data, Model
from jaxclip.evaluate.encoding import EncodedSplit

# So many records are read to learn whether there are labels and captions.
_SAMPLE = 16


class StoredData(Data):
    """A data set that :func:`jaxclip.data.sources.open` knows.

    Args:
      data_config: section ``data`` of a configuration; read for evaluation are ``name``,
        ``image_size``, ``eval_image_ops`` and ``languages``.
      split: the split that the task names.
      cache: where encoded splits are kept; tasks on the same data share one.

    Raises:
      FileNotFoundError: the data set does not exist.
      ValueError: it is none, or has no captions in these languages.
    """

    def __init__(
        self,
        data_config: Mapping[str, Any],
        split: str,
        cache: dict[str, EncodedSplit] | None = None,
    ):
        from jaxclip.data import sources

        self.name = str(data_config["name"])
        self.split = split
        self._config = data_config
        self._data_set = sources.open(data_config["name"])
        self._cache = {} if cache is None else cache

    def splits(self) -> list[str]:
        """Names of all splits."""
        return list(self._data_set.splits)

    def check_split(self, split: str) -> None:
        self._data_set.source(split)

    def class_names(self) -> list[str] | None:
        return self._data_set.class_names(self.split) or None

    def split_classes(self, split: str) -> list[int] | None:
        return self._data_set.split_classes(split)

    def templates(self) -> list[str] | None:
        return self._data_set.templates

    def sample(self, split: str) -> list[tuple[int, int]]:
        from jaxclip.data.record import Record

        source = self._data_set.source(split)
        texts_of = self._data_set.texts_of(self._config.get("languages") or ["en"])
        count = len(source)
        # The last one, too: of pictures in the order of their classes it has another label.
        numbers = sorted({*range(min(_SAMPLE, count)), *range(count)[-1:]})
        records = (source[i] for i in numbers)
        return [(r.label, len(texts_of(r))) for r in records if isinstance(r, Record)]

    def images(self, model: Model, split: str = "", *, tokens: bool = False) -> EncodedSplit:
        split = split or self.split
        encode = model.encode_tokens if tokens else model.encode_image
        if encode is None:
            raise ValueError("this model gives no tokens of its pictures, only embeddings")
        key = f"{split} (tokens)" if tokens else split
        if key not in self._cache:
            share, count = parallel.process_share(model.mesh)
            rows = encoding.global_rows(model.batch_size, model.mesh)
            self._cache[key] = encoding.encode_split(
                encode,
                model.params,
                self._batches(split, rows, share, count),
                batch_size=model.batch_size,
                mesh=model.mesh,
            )
        return self._cache[key]

    def pictures(self, numbers: Sequence[int], split: str = "") -> dict[int, np.ndarray]:
        split = split or self.split
        positions = self._cache[split].positions
        wanted = {int(positions[number]): int(number) for number in numbers}
        found: dict[int, np.ndarray] = {}
        for batch in self._batches(split, 64, 0, 1):
            for row in np.flatnonzero(np.asarray(batch["mask"], bool)):
                number = wanted.get(int(batch["index"][row]))
                if number is not None:
                    found[number] = np.array(batch["image"][row])
            if len(found) == len(wanted):
                break
        return {number: found[number] for number in sorted(found)}

    def _batches(self, split: str, batch_size: int, share: int, count: int) -> Any:
        from jaxclip.data import pipeline

        return pipeline.eval_batches(
            self._config, split, batch_size=batch_size, process_index=share, process_count=count
        )
