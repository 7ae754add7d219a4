"""Vectors kept with the records of a data set, such as a teacher's embeddings.

They are in a record's meta (a list of numbers under the vector's name), or for a whole split in
``embeddings/`` beside a TFDS data set: ``embeddings/index.json`` says which file has which vectors,
each an array [num_records, size] of float16 or float32 in the order of the records. Such files are
read in place, a row at a time.
"""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import re
from typing import Any

import numpy as np

from jaxclip.data.column import Candidate, Column, Context, Rows
from jaxclip.data.dataset import DataSet
from jaxclip.data.record import BadRecord
from jaxclip.data.tfds_directory import open_directory
from jaxclip.fields import Captions, Stored
from jaxclip.registry import hint

FOLDER, INDEX = "embeddings", "index.json"


def write_stored(
    directory: str | os.PathLike[str], split: str, key: str, array: np.ndarray
) -> pathlib.Path:
    """Keep a vector for each record of a split beside a TFDS data set.

    What was there under this name is replaced.

    Args:
      directory: of the data set.
      split: name of the split.
      key: name of the vectors, as :class:`jaxclip.fields.Stored` asks for it.
      array: float16 or float32 [num_records, size], in the order of the records.

    Returns:
      The file that was written.

    Raises:
      FileNotFoundError: there is no such data set.
      ValueError: no such split, or an array of another shape or dtype.
    """
    folder = pathlib.Path(directory)
    data_set = open_directory(folder)
    data_set.check_split(split)
    array = np.asarray(array)
    count = data_set.splits[split]
    if array.dtype not in (np.float16, np.float32):
        raise ValueError(f"vectors {key!r} are {array.dtype}; they must be float16 or float32")
    if array.ndim != 2 or len(array) != count:
        raise ValueError(
            f"vectors {key!r} are {list(array.shape)}; split {split!r} of {str(folder)!r} has "
            f"{count} records, so they must be [{count}, size]"
        )
    (folder / FOLDER).mkdir(exist_ok=True)
    # The digest tells names apart that look alike once they are file names.
    digest = hashlib.sha256(key.encode("utf-8")).hexdigest()[:8]
    name = f"{split}.{re.sub(r'[^A-Za-z0-9_-]+', '_', key)}.{digest}.npy"
    path = folder / FOLDER / name
    temporary = path.with_name(f".{name}.{os.getpid()}")
    with open(temporary, "wb") as file:
        np.save(file, array, allow_pickle=False)
    os.replace(temporary, path)
    index = read_index(folder)
    index.setdefault(split, {})[key] = {
        "file": name, "size": array.shape[1], "dtype": str(array.dtype), "data": _stamp(folder),
    }  # fmt: skip
    temporary.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    os.replace(temporary, folder / FOLDER / INDEX)
    return path


def read_index(directory: pathlib.Path) -> dict[str, dict[str, Any]]:
    """What :func:`write_stored` has written: {split: {key: {"file", "size", "dtype", …}}}.

    Raises:
      ValueError: the index is damaged.
    """
    path = directory / FOLDER / INDEX
    if not path.is_file():
        return {}
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        return {split: dict(entries) for split, entries in index.items()}
    except (ValueError, AttributeError, TypeError) as error:
        raise ValueError(f"{path} is damaged: {error}; write the vectors again") from error


def _stamp(directory: pathlib.Path) -> str:
    """Changes if the data set is made anew with other records."""
    content = (directory / "dataset_info.json").read_bytes()
    return hashlib.sha256(content).hexdigest()[:16]


def open_stored(data_set: DataSet, split: str, key: str) -> np.ndarray | None:
    """The vectors [num_records, size] that :func:`write_stored` has kept; None if it has not.

    They are mapped into memory.

    Raises:
      ValueError: they are damaged, or were made for other records.
    """
    directory = data_set.directory
    entry = None if directory is None else read_index(directory).get(split, {}).get(key)
    if directory is None or entry is None:
        return None
    path = directory / FOLDER / str(entry.get("file"))
    if entry.get("data") != _stamp(directory):
        raise ValueError(
            f"{path} was made for other records: {directory} has changed since; write the "
            "vectors again"
        )
    try:
        array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{path} can't be read: {error}; write the vectors again") from error
    if array.ndim != 2 or len(array) != data_set.splits[split]:
        raise ValueError(f"{path} holds {list(array.shape)}; write the vectors again")
    return array


class StoredColumn(Column[Stored]):
    """A stored vector, see :class:`jaxclip.fields.Stored`."""

    def __init__(self, key: str, field: Stored, context: Context):
        super().__init__(key, field, context)
        if field.size < 1:
            raise ValueError(f"size={field.size} must be at least 1")
        self._known: list[str] = []
        self._file = self._open()

    def _open(self) -> np.ndarray | None:
        """The file beside the data set, if there is one with these vectors."""
        directory = self.context.data_set.directory
        if directory is None:
            return None
        self._known = sorted(read_index(directory).get(self.context.split, {}))
        array = open_stored(self.context.data_set, self.context.split, self.field.key)
        if array is not None and array.shape[1] != self.field.size:
            size, wanted = list(array.shape), [len(array), self.field.size]
            raise ValueError(f"the file beside {directory} holds {size}, {wanted} is asked for")
        return array

    def check(self) -> None:
        self._check_captions()
        if self._file is not None:
            return
        sizes: set[int] = set()

        def has(candidate: Candidate) -> bool:
            value = candidate.meta.get(self.field.key)
            if isinstance(value, list):
                sizes.add(len(value))
            return isinstance(value, list) and len(value) == self.field.size

        try:
            self.find(has, f"no stored vector {self.field.key!r} of size {self.field.size}")
        except ValueError as error:
            more = hint(self.field.key, self._known) if self._known else ""
            if sizes:
                more = f", but vectors of size {', '.join(map(str, sorted(sizes)))}"
            raise ValueError(f"{error}{more} (pipeline.write_stored keeps some)") from None

    def _check_captions(self) -> None:
        """Refuse the vector of one caption where any of several is drawn."""
        view = self.key.removeprefix("teacher/")
        captions = self.context.spec.get(view)
        if view == self.key or not isinstance(captions, Captions):
            return
        several = any(len(self.context.texts_of(each.record)) > 1 for each in self.context.sample())
        if several and not captions.source and captions.policy in ("random", "distinct"):
            raise ValueError(
                f"a stored vector is that of one caption, but records have several and "
                f"batch[{view!r}] draws one of them; use captions='first' where the objective has "
                "that option, or teacher.kind='reinforced' or 'frozen'"
            )

    def examine(self, candidate: Candidate) -> np.ndarray | BadRecord | None:
        if self._file is not None:
            vector = np.asarray(self._file[candidate.index], np.float32)
        else:
            if not self.field.required and self.field.key not in candidate.meta:
                return np.zeros(self.field.size, np.float32)
            try:
                vector = np.asarray(candidate.meta.get(self.field.key, ()), np.float32)
            except (TypeError, ValueError):
                return candidate.bad("bad_vector", f"{self.field.key!r} is no list of numbers")
        if vector.shape != (self.field.size,):
            detail = f"{self.field.key!r} is {list(vector.shape)}, not [{self.field.size}]"
            return candidate.bad("bad_vector", detail)
        if not np.isfinite(vector).all():
            return candidate.bad("bad_vector", f"{self.field.key!r} is not finite")
        return None if self._file is not None else vector

    def make(self, rows: Rows) -> np.ndarray:
        if self._file is not None:
            return np.asarray(self._file[[each.index for each in rows.loaded]], np.float32)
        return np.stack([each.extras[self.key] for each in rows.loaded])
