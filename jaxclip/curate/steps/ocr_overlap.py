"""Captions that spell the text in their picture ("parrot captions")."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import numpy as np

from jaxclip.curate.caption_gate import gate
from jaxclip.curate.flow import Flow
from jaxclip.curate.rows import Rows
from jaxclip.curate.step import Step, check_range

_WORD = re.compile(r"\w+")


@dataclasses.dataclass(frozen=True)
class OcrOverlap(Step):
    """Drop captions of whose words too many stand in the picture (2312.14232).

    The words that an OCR read come with the record.

    Attributes:
      text: member of the record's meta: a text, or a list of them. Without it nothing is dropped.
      at_most: share of a caption's words that may stand in the picture.
    """

    text: str = "ocr_text"
    at_most: float = 0.5

    reasons: ClassVar[tuple[str, ...]] = ("spells_the_picture",)

    def check(self) -> None:
        check_range("at_most", self.at_most, 0, 1)

    def run(self, flow: Flow) -> None:
        flow.decide(self.verdict)

    def verdict(self, rows: Rows) -> dict[str, Any]:
        """What is said of each record; ``ocr_overlap`` is the least rate of its captions."""
        rates = [
            [overlap(text, _texts(meta.get(self.text))) for text in texts]
            for texts, meta in zip(rows.texts, rows.meta, strict=True)
        ]
        codes = np.array([rate > self.at_most for each in rates for rate in each], np.int64)
        least = np.array([min(each, default=0.0) for each in rates], np.float32)
        return {**gate(rows, codes), "ocr_overlap": least}


def overlap(caption: str, read: Iterable[str]) -> float:
    """Share of the different words of a caption that were read in its picture."""
    words = set(_WORD.findall(caption.casefold()))
    seen = {word for text in read for word in _WORD.findall(text.casefold())}
    return len(words & seen) / len(words) if words else 0.0


def _texts(value: Any) -> Sequence[str]:
    if isinstance(value, str):
        return [value]
    return [each for each in value if isinstance(each, str)] if isinstance(value, list) else []
