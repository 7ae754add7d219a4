"""Pictures that are the same but for scale, encoding or slight changes: one of each stays."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from jaxclip.curate import near, perceptual
from jaxclip.curate.flow import Flow
from jaxclip.curate.rows import Rows
from jaxclip.curate.step import Step, check_choice, check_range
from jaxclip.curate.store import REASON
from jaxclip.data import decode
from jaxclip.data.record import BadRecord

_HASHES = {"phash": perceptual.phash, "dhash": perceptual.dhash}


@dataclasses.dataclass(frozen=True)
class NearPictures(Step):
    """Keep one of pictures whose 64-bit perceptual hashes, and colours, are close.

    Of a group the one with the most pixels stays. Hashes find other sizes and encodings, not crops:
    those are for ``semantic_duplicates``. They take variants of a drawing for the same (one more
    stroke, other hands of a clock); ``distance=0`` fewer of them. Flat pictures are never compared.

    Attributes:
      distance: bits that may differ; all pairs up to it are found.
      colour: mean difference of the colours of 4 x 4 parts, of 255, that is still the same; hashes
        are of grey pictures. 255 = do not compare.
      hash: ``"phash"`` or ``"dhash"``.
      largest: groups of more pictures are left alone and counted.
    """

    distance: int = 3
    colour: float = 16.0
    hash: str = "phash"
    largest: int = 1000

    reasons: ClassVar[tuple[str, ...]] = ("near_duplicate", "undecodable")

    def check(self) -> None:
        check_choice("hash", self.hash, tuple(_HASHES))
        check_range("distance", self.distance, 0, 8)
        check_range("colour", self.colour, 0, 255)
        check_range("largest", self.largest, 2)

    def run(self, flow: Flow) -> None:
        flow.columns("hashes", self.hashes)
        near.find(flow, self.bands, self.agree, self.largest)
        flow.decide(self.verdict)

    def hashes(self, rows: Rows) -> dict[str, Any]:
        """``_hash`` uint64[n], ``_signature`` uint8[n, 56] (hash and colours), and ``_state``: 0
        flat, 1 has a hash, 2 can't be decoded."""
        hashes, state = np.zeros(len(rows), np.uint64), np.zeros(len(rows), np.uint8)
        colours = np.zeros((len(rows), 48), np.uint8)
        for row, data in enumerate(rows.pictures()):
            image = data if isinstance(data, BadRecord) else _decoded(data)
            if isinstance(image, BadRecord):
                state[row] = 2
                continue
            found = _HASHES[self.hash](image)
            if found is not None:
                hashes[row], state[row] = found, 1
                colours[row] = perceptual.colours(image)
        signature = np.concatenate([hashes[:, None].view(np.uint8), colours], axis=1)
        return {"_hash": hashes, near.SIGNATURE: signature, "_state": state}

    def bands(self, rows: Rows) -> tuple[np.ndarray, np.ndarray]:
        """Keys that close hashes share, and who has a hash."""
        return perceptual.bands(rows["_hash"], self.distance), rows["_state"] == 1

    def agree(self, one: np.ndarray, other: np.ndarray) -> np.ndarray:
        """Whether hashes and colours are close."""
        hashes = [np.ascontiguousarray(each[:, :8]).view(np.uint64)[:, 0] for each in (one, other)]
        apart = np.abs(one[:, 8:].astype(np.int16) - other[:, 8:]).mean(axis=1)
        return (perceptual.distance(*hashes) <= self.distance) & (apart <= self.colour)

    def verdict(self, rows: Rows) -> dict[str, Any]:
        """What is said of each record."""
        return {REASON: np.select([rows["_is_near_duplicate"], rows["_state"] == 2], [1, 2], 0)}


def _decoded(data: bytes) -> Image.Image | BadRecord:
    return decode.decode(data, draft=perceptual.DRAFT)
