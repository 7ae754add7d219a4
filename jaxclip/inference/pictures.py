"""Pictures to embed, from a folder, tars or a data set: counted, and read by number."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from jaxclip.data import file_kinds, sources, tar_index
from jaxclip.data.naming import is_hidden
from jaxclip.data.record import BadRecord, Record

ENDINGS = tuple(f".{ending}" for ending in tar_index.IMAGE_EXTENSIONS)


class Pictures(NamedTuple):
    """Encoded pictures in a fixed order.

    Attributes:
      name: as asked for.
      total: how many.
      read: number -> ``(id, bytes)``, or ``(id, BadRecord)``; safe to call from many threads.
    """

    name: str
    total: int
    read: Callable[[int], tuple[str, bytes | BadRecord]]


def open_pictures(name: str | os.PathLike[str]) -> Pictures:
    """Open pictures.

    Args:
      name: a picture file, a folder with some (searched to the bottom; ids are paths in it), tars
        (``"x-{000..009}.tar"``, a WebDataset), or a data set with a split (``"emoji:test_style"``,
        ``"/data/coco/1.0.0:val"``); without one, all of a data set's splits one after the other.

    Raises:
      FileNotFoundError: there is nothing of that name.
      ValueError: a folder without pictures, or an unknown split.
    """
    text = os.fspath(name)
    folder = pathlib.Path(text).expanduser()
    if text.endswith(".tar") or text.startswith("webdataset:"):
        pattern = text if text.startswith("webdataset:") else f"webdataset:{text}"
        return _of_data_set(text, pattern, None)
    if folder.is_dir() and not (folder / "dataset_info.json").is_file():
        return _of_folder(text, folder)
    if folder.is_file():
        return _of_files(text, folder.parent, [folder.name])
    if folder.suffix.lower() in ENDINGS:
        way = "; name the folder for all pictures in it" if "*" in text else ""
        raise FileNotFoundError(f"{text}: there is no such file{way}")
    if folder.is_dir() or ":" not in text:
        return _of_data_set(text, text, None)
    data, _, split = text.rpartition(":")
    return _of_data_set(text, data, split)


def _of_folder(name: str, folder: pathlib.Path) -> Pictures:
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*")]
    seen = [name for name in names if not any(is_hidden(part) for part in name.split("/"))]
    pictures = file_kinds.pictures_among(seen, ENDINGS)
    files = sorted(name for name in pictures if (folder / name).is_file())
    if not files:
        tars = next(iter(sorted(folder.glob("*.tar"))), None)
        more = f"; for its tars write --images '{folder}/*.tar'" if tars else ""
        raise ValueError(f"{folder} holds no pictures ({', '.join(ENDINGS)}){more}")
    return _of_files(name, folder, files)


def _of_files(name: str, folder: pathlib.Path, files: Sequence[str]) -> Pictures:
    def read(index: int) -> tuple[str, bytes | BadRecord]:
        try:
            return files[index], (folder / files[index]).read_bytes()
        except OSError as error:
            return files[index], BadRecord("missing_image", str(error))

    return Pictures(name, len(files), read)


def _of_data_set(name: str, data: str, split: str | None) -> Pictures:
    try:
        dataset = sources.open(data)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"no picture or folder of pictures {name!r}, and {error}") from None
    some = [each for each, count in dataset.splits.items() if count]
    splits: Sequence[str] = [split] if split else some
    opened = [(each, dataset.source(each)) for each in splits]
    total = sum(len(source) for _, source in opened)
    if not total:
        raise ValueError(f"{name} holds no pictures")

    starts = np.cumsum([0, *(len(source) for _, source in opened)])

    def read(index: int) -> tuple[str, bytes | BadRecord]:
        which = int(np.searchsorted(starts, index, side="right")) - 1
        each, source = opened[which]
        row = index - int(starts[which])
        record = source.picture(row)
        identity = ("" if split else f"{each}/") + (record.key or str(row))
        return identity, record.image if isinstance(record, Record) else record

    return Pictures(name, total, read)
