"""Pictures by size, shape and bytes, as their headers say, or by whether they decode."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import numpy as np

from jaxclip.curate.flow import Flow
from jaxclip.curate.rows import Rows
from jaxclip.curate.step import Step, check_range
from jaxclip.curate.store import REASON
from jaxclip.data import decode
from jaxclip.data.record import BadRecord

REASONS = ("too_few_bytes", "too_small", "too_large", "too_narrow", "undecodable")


@dataclasses.dataclass(frozen=True)
class Pictures(Step):
    """Keep pictures of some size and shape.

    DataComp's basic filter (2304.14108) is ``min_side=200, max_aspect=3``; LAION-5B's (2210.08402)
    ``min_bytes=5120``; BIOMEDICA's (2501.07171) ``min_side=21``.

    Attributes:
      min_side: shorter side in pixels.
      max_aspect: longer side over the shorter one.
      max_pixels: width times height; 0 = no bound.
      min_bytes: size of the encoded picture.
      decode: decode every picture, and drop those that can't be: slow, but nothing else finds
        pictures that end before their last row.
    """

    min_side: int = 1
    max_aspect: float = float("inf")
    max_pixels: int = 0
    min_bytes: int = 0
    decode: bool = False

    reasons: ClassVar[tuple[str, ...]] = REASONS

    def check(self) -> None:
        check_range("max_aspect", self.max_aspect, 1)
        for option in ("min_side", "max_pixels", "min_bytes"):
            check_range(option, getattr(self, option), 0)

    def run(self, flow: Flow) -> None:
        flow.decide(self.verdict)

    def verdict(self, rows: Rows) -> dict[str, Any]:
        """What is said of each record, with its ``pixels`` and ``aspect``."""
        width, height = np.asarray(rows["width"]), np.asarray(rows["height"])
        short, long = np.minimum(width, height), np.maximum(width, height)
        aspect = (long / np.maximum(short, 1)).astype(np.float32)
        pixels = width * height
        too_large = pixels > self.max_pixels if self.max_pixels else np.zeros(len(rows), bool)
        wrong = (
            np.asarray(rows["bytes"]) < self.min_bytes,
            short < self.min_side,
            too_large,
            long > self.max_aspect * short,
        )
        reason = np.select(wrong, np.arange(1, 5), 0)
        if self.decode:
            for row, data in enumerate(rows.pictures()):
                bad = isinstance(data, BadRecord) or isinstance(decode.decode(data), BadRecord)
                reason[row] = reason[row] or 5 * bad
        return {REASON: reason, "pixels": pixels, "aspect": aspect}
