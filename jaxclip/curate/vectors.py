"""Vectors of pictures from a folder of ``jaxclip embed``, joined to records by key."""

from __future__ import annotations

import functools
import json
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxclip.curate.hashing import key_hashes


class Folder(NamedTuple):
    """What is in a folder: ids, in the order of their hashes, and where their vectors are.

    Attributes:
      hashes: uint64[n], ascending.
      file: int32[n]: number of the file.
      row: int64[n]: within it.
      files: the files.
    """

    hashes: np.ndarray
    file: np.ndarray
    row: np.ndarray
    files: list[pathlib.Path]


def check_folder(path: str) -> None:
    """Raise FileNotFoundError or ValueError unless a folder holds embeddings."""
    folder = pathlib.Path(path).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(f"embeddings {path!r}: no such folder; `jaxclip embed` makes it")
    if next(folder.glob("ids_*.jsonl"), None) is None:
        raise ValueError(f"{path!r} holds no embeddings; `jaxclip embed` makes them")


@functools.lru_cache(maxsize=2)
def open_folder(path: str) -> Folder:
    """Find the ids of a folder; each process does it once (28 bytes an id).

    Raises:
      ValueError: an id is there twice.
    """
    place = pathlib.Path(path).expanduser()
    hashes, file, row, files = [], [], [], []
    for number, ids in enumerate(sorted(place.glob("ids_*.jsonl"))):
        names = [json.loads(line)["id"] for line in ids.read_text("utf-8").splitlines()]
        hashes.append(key_hashes(names, "id"))
        file.append(np.full(len(names), number, np.int32))
        row.append(np.arange(len(names)))
        files.append(place / ids.name.replace("ids_", "embeddings_").replace("jsonl", "npy"))
    all_hashes = np.concatenate(hashes)
    order = np.argsort(all_hashes, kind="stable")
    found = Folder(
        all_hashes[order], np.concatenate(file)[order], np.concatenate(row)[order], files
    )
    if np.any(found.hashes[1:] == found.hashes[:-1]):
        raise ValueError(f"{path}: an id is there twice; records can't be told apart by it")
    return found


def look_up(path: str, ids: Sequence[Sequence[str]]) -> tuple[np.ndarray, np.ndarray]:
    """The vectors of records.

    Args:
      path: the folder.
      ids: for each way in which the folder may name records, the ids of all of them.

    Returns:
      float32[n, D], zeros where there is none, and bool[n]: which are there.
    """
    folder = open_folder(path)
    count = len(ids[0])
    place = np.full(count, -1)
    for names in ids:
        hashes = key_hashes(names, "id")
        found = np.minimum(np.searchsorted(folder.hashes, hashes), len(folder.hashes) - 1)
        place = np.where((place < 0) & (folder.hashes[found] == hashes), found, place)
    there = place >= 0
    first = np.load(folder.files[0], mmap_mode="r")
    vectors = np.zeros((count, first.shape[1]), np.float32)
    for number in np.unique(folder.file[place[there]]):
        mine = np.flatnonzero(there & (folder.file[place] == number))
        array = np.load(folder.files[number], mmap_mode="r")
        vectors[mine] = array[folder.row[place[mine]]]
    return vectors, there


def unit(vectors: np.ndarray) -> np.ndarray:
    """float32 rows of unit length; zeros stay."""
    floats = np.asarray(vectors, np.float32)
    norms = np.linalg.norm(floats, axis=-1, keepdims=True)
    return floats / np.where(norms > 0, norms, 1)
