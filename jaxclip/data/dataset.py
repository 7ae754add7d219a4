"""What a data set is, whatever it is stored in: named splits of records read by number."""

from __future__ import annotations

import abc
import copy
import pathlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from jaxclip.data import schema
from jaxclip.data.record import BadRecord, Record
from jaxclip.registry import hint

# The language of a data set's own captions; others are kept as translations beside it.
OWN_LANGUAGE = "en"


class RecordSource(abc.ABC):
    """Random access to the records of one split; safe to use from many threads."""

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def __getitem__(self, index: int) -> Record | BadRecord:
        """Record number ``index``, or why it cannot be read. Never raises for bad data."""

    def picture(self, index: int) -> Record | BadRecord:
        """Record number ``index`` for whom its picture is enough; it may lack what goes with it."""
        return self[index]

    def read(self, indices: Sequence[int] | np.ndarray) -> list[Record | BadRecord]:
        """Several records, in the order asked for."""
        return [self[int(index)] for index in indices]


class DataSet:
    """A named data set with its splits.

    Attributes:
      name: as given to :func:`.sources.open`.
      splits: number of records of each split.
      has_texts: whether records carry captions of their own (else class names stand in).
      directory: where it is, None if it is no TFDS directory.
      templates: of prompts for its class names, if it brings any.
    """

    def __init__(
        self,
        name: str,
        splits: Mapping[str, int],
        open_split: Callable[[str], RecordSource],
        class_names: list[str] | None = None,
        has_texts: bool = True,
        directory: pathlib.Path | None = None,
        templates: list[str] | None = None,
    ):
        self.name = name
        self.templates = templates
        self.directory = directory
        self.splits = dict(splits)
        self.has_texts = has_texts
        self._open_split = open_split
        self._class_names = class_names
        self._sources: dict[str, RecordSource] = {}

    @property
    def in_words(self) -> str:
        """What it is called in messages."""
        return f"data set {self.name!r}"

    def class_names(self, split: str | None = None) -> list[str] | None:
        """Names of the classes by label, or None if records have no labels.

        Args:
          split: checked to exist if given; all splits share the names.
        """
        if split is not None:
            self.check_split(split)
        return None if self._class_names is None else list(self._class_names)

    def split_classes(self, split: str) -> list[int] | None:
        """Class ids that can occur in a split, or None if that is not known."""
        self.check_split(split)
        known = schema.split_classes(self.directory) if self.directory is not None else None
        return None if known is None else known.get(split)

    def texts_of(self, languages: Sequence[str]) -> Callable[[Record], tuple[str, ...]]:
        """How captions in the given languages are got from a record.

        Args:
          languages: ``"en"`` stands for the data set's own captions, whatever their language; any
            other must be among its translations. Empty = its own.

        Returns:
          A function from a record to its captions in all of these languages.

        Raises:
          ValueError: the data set has no captions in one of the languages.
        """
        others = [language for language in languages if language != OWN_LANGUAGE]
        if not others:
            return lambda record: record.texts
        if self.directory is None:
            raise ValueError(
                f"data set {self.name!r} has no captions in other languages; data.languages="
                f"{list(languages)} must be ['{OWN_LANGUAGE}'], which stands for its own"
            )
        tables = [schema.translations(self.directory, language) for language in others]
        own = OWN_LANGUAGE in languages

        def texts(record: Record) -> tuple[str, ...]:
            result = list(record.texts) if own else []
            for table in tables:
                result.extend(table.get(record.label, ()))
            return tuple(result)

        return texts

    def source(self, split: str) -> RecordSource:
        """Random access to the records of a split.

        Raises:
          ValueError: there is no such split, or it has no records.
        """
        self.check_split(split)
        if not self.splits[split]:
            raise ValueError(f"split {split!r} of data set {self.name!r} is empty")
        if split not in self._sources:
            self._sources[split] = self._open_split(split)
        return self._sources[split]

    def wrapped(self, wrap: Callable[[str, RecordSource], RecordSource]) -> DataSet:
        """The same data set with other records.

        Args:
          wrap: (split, its records) -> as many records; called when they are first asked for.
        """
        other = copy.copy(self)
        other._open_split = lambda split: wrap(split, self.source(split))
        other._sources = {}
        return other

    def check_split(self, split: str) -> None:
        """Raise ValueError, naming the nearest split, if there is no such split."""
        if split not in self.splits:
            near = hint(split, self.splits)
            if "did you mean" in near:
                near += f" (it has: {', '.join(self.splits)})"
            if split == "val":
                near += "; an import makes one with --val-fraction"
            raise ValueError(f"data set {self.name!r} has no split {split!r}{near}")
