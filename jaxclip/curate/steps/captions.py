"""Captions by what they are made of: lengths, letters, scripts, and the rules of alt texts."""

from __future__ import annotations

import dataclasses
import math
import re
import unicodedata
from collections import Counter
from typing import Any, ClassVar

import numpy as np

from jaxclip.curate.caption_gate import gate
from jaxclip.curate.flow import Flow
from jaxclip.curate.rows import Rows
from jaxclip.curate.step import Step, check_order, check_range

REASONS = (
    "too_few_words", "too_many_words", "too_few_characters", "too_many_characters", "few_letters",
    "repeated_words", "other_script", "file_name", "address", "placeholder", "banned",
)  # fmt: skip

_FILE_NAME = re.compile(
    r"\S*\.(jpe?g|png|gif|webp|bmp|tiff?|svg|heic|pdf)"
    r"|(img|dscn?|pict?|photo|image|screenshot)[-_ ]?\d[\d\w-]*"
    r"|[0-9a-f]{12,}",
    re.IGNORECASE,
)
_ADDRESS = re.compile(r"((https?:)?//|www\.)\S+|\S+@\S+\.\S+", re.IGNORECASE)
_BETWEEN = re.compile(r"[^\w]+")
# What content systems write where nobody wrote anything.
_PLACEHOLDERS = frozenset(
    (
        "alt", "banner", "blank", "caption", "click here", "default", "description",
        "digital camera", "featured image", "gallery", "icon", "image", "image not available",
        "img", "logo", "missing", "n/a", "no alt text", "no caption", "no description",
        "no description available", "no image", "no image available", "none", "null", "photo",
        "photo gallery", "pic", "picture", "placeholder", "spacer", "thumbnail", "undefined",
        "unknown", "untitled",
    )
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Captions(Step):
    """Keep captions that look like descriptions.

    DataComp's basic filter (2304.14108) is ``min_words=3, min_characters=6``; LAION-5B's
    (2210.08402) ``min_characters=5``.

    Attributes:
      min_words, max_words: words, split at white space; 0 = no bound.
      min_characters, max_characters: length; 0 = no bound.
      min_letters: share of letters among what is no white space.
      max_repeated: largest share of one word among the words of a caption with at least 4.
      scripts: writing systems, of which most letters must have one (``"Latin"``, ``"Cyrillic"``,
        ``"Cjk"``: the first word of the letters' names in Unicode); empty for any.
      alt_text: drop file names, addresses and placeholders.
      banned: captions with one of these words or phrases go, whatever the case of letters.
    """

    min_words: int = 1
    max_words: int = 0
    min_characters: int = 1
    max_characters: int = 0
    min_letters: float = 0.0
    max_repeated: float = 1.0
    scripts: tuple[str, ...] = ()
    alt_text: bool = False
    banned: tuple[str, ...] = ()

    reasons: ClassVar[tuple[str, ...]] = REASONS

    def check(self) -> None:
        for option in ("min_words", "max_words", "min_characters", "max_characters"):
            check_range(option, getattr(self, option), 0)
        for unit in ("words", "characters"):
            most = getattr(self, f"max_{unit}") or math.inf
            check_order(f"min_{unit}", getattr(self, f"min_{unit}"), f"max_{unit}", most)
        check_range("min_letters", self.min_letters, 0, 1)
        check_range("max_repeated", self.max_repeated, 0, 1)

    def run(self, flow: Flow) -> None:
        flow.decide(self.verdict)

    def verdict(self, rows: Rows) -> dict[str, Any]:
        """What is said of each record, with the ``words`` of its longest caption."""
        codes = np.array([self.code(t) for ts in rows.texts for t in ts], np.int64)
        words = [max((len(text.split()) for text in texts), default=0) for texts in rows.texts]
        return {**gate(rows, codes), "words": np.array(words, np.int32)}

    def code(self, text: str) -> int:
        """0 for a caption that passes, else the number of the reason, from 1."""
        found = self._why_not(text)
        return REASONS.index(found) + 1 if found else 0

    def _why_not(self, text: str) -> str:
        words = text.split()
        solid = "".join(words)
        letters = sum(character.isalpha() for character in solid)
        if len(words) < self.min_words:
            return "too_few_words"
        if 0 < self.max_words < len(words):
            return "too_many_words"
        if len(text) < self.min_characters:
            return "too_few_characters"
        if 0 < self.max_characters < len(text):
            return "too_many_characters"
        if letters < self.min_letters * len(solid):
            return "few_letters"
        if len(words) >= 4 and self.max_repeated < 1:
            most = Counter(word.casefold() for word in words).most_common(1)[0][1]
            if most > self.max_repeated * len(words):
                return "repeated_words"
        if self.scripts and script(text) not in {each.title() for each in self.scripts}:
            return "other_script"
        return self._by_words(text, words)

    def _by_words(self, text: str, words: list[str]) -> str:
        plain = " ".join(words)
        if self.alt_text:
            if _FILE_NAME.fullmatch(plain):
                return "file_name"
            if _ADDRESS.fullmatch(plain):
                return "address"
            if plain.casefold().strip(" .:-_()[]") in _PLACEHOLDERS:
                return "placeholder"
        if not self.banned:
            return ""
        spaced = f" {_BETWEEN.sub(' ', text.casefold()).strip()} "
        if any(f" {each.casefold()} " in spaced for each in self.banned):
            return "banned"
        return ""


def script(text: str) -> str:
    """Writing system of most letters; empty without letters."""
    letters = [character for character in text[:200] if character.isalpha()]
    names = Counter(unicodedata.name(letter, "unknown").split()[0].title() for letter in letters)
    return names.most_common(1)[0][0] if names else ""
