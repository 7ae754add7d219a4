"""The kept records as a new data set: one format a file, found by its name.

A writer makes a file for each shard, then what belongs to all of them. The data set comes into
being in ``DIR.writing`` and is renamed to ``DIR`` when it is whole; killed, the same command goes
on.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from jaxclip import storage
from jaxclip.curate import source, store
from jaxclip.curate.runners import Runner
from jaxclip.curate.store import View
from jaxclip.data.record import BadRecord, Record
from jaxclip.registry import Registry

if TYPE_CHECKING:
    from jaxclip.curate.job import Outcome

WRITERS = Registry("format", "jaxclip.curate.writers")

_REQUEST = "request.json"


class Writer(Protocol):
    """Writes one format into a folder."""

    def write(self, folder: str, shard: int, records: Iterator[Record]) -> Mapping[str, Any]:
        """Write a shard's records into files of the folder; returns JSON for :meth:`finish`."""

    def finish(self, folder: str, split: str, shards: Sequence[Mapping[str, Any]]) -> None:
        """Write what belongs to all shards, given what :meth:`write` returned of each."""


def check_target(to: str | os.PathLike[str]) -> pathlib.Path:
    """The folder that kept records would be written to, as a whole path.

    Raises:
      ValueError: it is an address.
      FileExistsError: it holds something else than a curation has written.
      NotADirectoryError, PermissionError: it can't be made.
    """
    if not storage.is_local(to):
        raise ValueError(f"--to {to}: name a folder on this machine's disks; mount the bucket")
    target = pathlib.Path(os.path.abspath(os.path.expanduser(to)))
    storage.check_place(target.parent)
    for place in (target, _unfinished(target)):
        if place.is_file() or (_is_filled(place) and _request(place) is None):
            raise FileExistsError(f"{place} holds something else; name another folder for --to")
    return target


def _unfinished(target: pathlib.Path) -> pathlib.Path:
    return target.with_name(target.name + ".writing")


def _is_filled(place: pathlib.Path) -> bool:
    return place.exists() and any(place.iterdir())


def write(outcome: Outcome, to: str | os.PathLike[str], name: str, *, runner: Runner) -> str:
    """Write the kept records.

    Args:
      outcome: of the curation.
      to: new folder, or that of the same outcome.
      name: of the format.
      runner: carries it out.

    Returns:
      A line that says what is there.

    Raises:
      ValueError: an unknown format, or nothing is kept.
      FileExistsError: the folder holds something else.
    """
    target = check_target(to)
    WRITERS.get(name)  # an unknown one is refused before anything is written
    view = outcome.view
    request = {"format": name, "source": view.source, "split": view.split,
               "verdict": view.verdict, "kept": outcome.kept}  # fmt: skip
    said = f"{target}: {outcome.kept:,} records as {name}"
    if _is_filled(target):
        if _request(target) == request:
            return f"{said}, written before"
        raise FileExistsError(f"{target} holds something else; name another folder for --to")
    if not outcome.kept:
        raise ValueError(f"nothing to write to {target}: no record is kept")
    unfinished = _unfinished(target)
    if unfinished.exists() and _request(unfinished) != request:
        shutil.rmtree(unfinished)
    unfinished.mkdir(parents=True, exist_ok=True)
    store.write_bytes(unfinished / _REQUEST, json.dumps(request).encode())
    todo = [shard for shard in view.shards if not _note(unfinished, shard).is_file()]
    runner.each(functools.partial(_write_shard, view, name, str(unfinished)), todo)
    notes = [json.loads(_note(unfinished, shard).read_text()) for shard in view.shards]
    WRITERS.get(name)().finish(str(unfinished), view.split, [n for n in notes if n["records"]])
    for shard in view.shards:
        _note(unfinished, shard).unlink()
    if target.exists():
        target.rmdir()
    unfinished.rename(target)
    return said


def records_of(view: View, shard: int) -> Iterator[Record]:
    """The kept records of a shard, each with the captions that are left of it.

    Raises:
      OSError: a record of the source can't be read any more.
    """
    rows = view.rows(shard)
    for index, key, texts in zip(rows.index.tolist(), rows.keys, rows.texts, strict=True):
        record = source.record(view.source, view.split, index)
        if isinstance(record, BadRecord):
            raise OSError(
                f"{view.source}: record {key!r} can't be read any more ({record.reason} "
                f"{record.detail}); the source must stay as it is while it is curated"
            )
        yield dataclasses.replace(record, key=key, texts=tuple(texts))


def extension(image: bytes) -> str:
    """``"png"``, ``"jpg"``, … of an encoded picture, by its first bytes."""
    for start, name in (
        (b"\x89PNG", "png"), (b"\xff\xd8", "jpg"), (b"GIF8", "gif"), (b"BM", "bmp"),
        (b"II*\0", "tif"), (b"MM\0*", "tif"), (b"RIFF", "webp"), (b"P6", "ppm"), (b"P5", "ppm"),
        (b"\0\0\1\0", "ico"),
    ):  # fmt: skip
        if image.startswith(start):
            return name
    return "avif" if image[4:8] == b"ftyp" else "jpg"


def _write_shard(view: View, name: str, folder: str, shard: int) -> None:
    note = WRITERS.get(name)().write(folder, shard, records_of(view, shard))
    store.write_bytes(_note(pathlib.Path(folder), shard), json.dumps(dict(note)).encode())


def _note(folder: pathlib.Path, shard: int) -> pathlib.Path:
    return folder / f".shard-{shard:05d}.json"


def _request(folder: pathlib.Path) -> Any:
    try:
        return json.loads((folder / _REQUEST).read_text())
    except (OSError, ValueError):
        return None
