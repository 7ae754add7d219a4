"""Drop what is in an evaluation set, by perceptual hashes or vectors of its pictures."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, ClassVar

import numpy as np

from jaxclip.curate import perceptual, source, vectors
from jaxclip.curate.flow import Flow
from jaxclip.curate.rows import Rows
from jaxclip.curate.step import Step, check_one_vector, check_range, path_stamp
from jaxclip.curate.store import REASON, Stored
from jaxclip.data import decode
from jaxclip.data.record import BadRecord

_TILE = 2048


@dataclasses.dataclass(frozen=True)
class Decontaminate(Step):
    """Drop records whose picture is one of an evaluation set, or nearly.

    Attributes:
      data: the evaluation set, a data set as training names it, compared by pHash: other sizes and
        encodings are found.
      split: of it.
      distance: bits in which hashes may differ.
      folder: vectors of the evaluation set's pictures (``jaxclip embed``), compared with the column
        ``on``: crops and copies are found. Instead of ``data``, or beside it.
      on: column with vectors of the same model.
      eps: a cosine of more than 1 - eps is a match.
    """

    data: str = ""
    split: str = "test"
    distance: int = 3
    folder: str = ""
    on: str = "image"
    eps: float = 0.05

    reasons: ClassVar[tuple[str, ...]] = ("in_evaluation_set",)

    def wants(self) -> tuple[str, ...]:
        return (self.on,) if self.folder else ()

    def check(self) -> None:
        if not self.data and not self.folder:
            raise ValueError("give data, an evaluation set, or folder, of `jaxclip embed`")
        check_range("distance", self.distance, 0, 16)
        check_range("eps", self.eps, 0, 2)
        if self.data:
            source.open(source.absolute(self.data)).check_split(self.split)
        if self.folder:
            vectors.check_folder(self.folder)
            check_one_vector("on", self.on)

    def stamp(self) -> Any:
        pictures = source.stamp(source.absolute(self.data)) if self.data else None
        return [pictures, path_stamp(self.folder) if self.folder else None]

    def run(self, flow: Flow) -> None:
        hashes = flow.save("evaluation", self.hashes_of_set) if self.data else None
        flow.note("evaluation pictures", len(hashes.arrays()["hash"]) if hashes else 0)
        if hashes is not None and (left := int(hashes.arrays().get("left_out", 0))):
            flow.note("evaluation pictures that can't be compared", left)
        flow.decide(functools.partial(self.verdict, hashes))

    def hashes_of_set(self) -> dict[str, np.ndarray]:
        """pHashes of the evaluation set's pictures, each once."""
        records = source.open(source.absolute(self.data)).source(self.split)
        found, left_out = set(), 0
        for index in range(len(records)):
            record = records.picture(index)
            value = None if isinstance(record, BadRecord) else _phash(record.image)
            if value is not None:
                found.add(value)
            else:  # damaged, or of one colour
                left_out += 1
        return {"hash": np.array(sorted(found), np.uint64), "left_out": np.array(left_out)}

    def verdict(self, hashes: Stored | None, rows: Rows) -> dict[str, Any]:
        """What is said of each record."""
        match = np.zeros(len(rows), bool)
        if hashes is not None:
            known = hashes.arrays()["hash"]
            for row, data in enumerate(rows.pictures()):
                value = None if isinstance(data, BadRecord) else _phash(data)
                if value is not None and len(known):
                    least = perceptual.distance(known, np.array(value, np.uint64)).min()
                    match[row] = least <= self.distance
        if self.folder:
            match |= nearest(vectors.unit(rows[self.on]), self.folder) > 1 - self.eps
        return {REASON: match}


def nearest(points: np.ndarray, folder: str) -> np.ndarray:
    """float32[n]: the largest cosine of each vector to one of a folder.

    Raises:
      ValueError: those of the folder have another length.
    """
    best = np.full(len(points), -1, np.float32)
    for file in vectors.open_folder(folder).files:
        known = np.load(file, mmap_mode="r")
        if known.shape[1] != points.shape[1]:
            raise ValueError(f"{file} has vectors of {known.shape[1]}, the records have "
                             f"{points.shape[1]}: they are of different models")  # fmt: skip
        for start in range(0, len(known), _TILE):
            tile = vectors.unit(known[start : start + _TILE])
            best = np.maximum(best, (points @ tile.T).max(axis=1, initial=-1))
    return best


def _phash(data: bytes) -> int | None:
    image = decode.decode(data, draft=perceptual.DRAFT)
    return None if isinstance(image, BadRecord) else perceptual.phash(image)
