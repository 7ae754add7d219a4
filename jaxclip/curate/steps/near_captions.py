"""Captions that share most of their word pairs (MinHash): one of each group stays."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import re
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from jaxclip.curate import near
from jaxclip.curate.flow import Flow
from jaxclip.curate.rows import Rows
from jaxclip.curate.step import Step, check_range
from jaxclip.curate.store import REASON

_WORD = re.compile(r"\w+")


@dataclasses.dataclass(frozen=True)
class NearCaptions(Step):
    """Keep one of records whose captions' sets of word pairs overlap.

    Sets are of pairs of words that follow each other (of single words where there is one only), of
    all captions of a record together; two records are alike if their MinHash signatures say that
    the Jaccard similarity is at least ``similarity``. ``bands`` of ``rows`` numbers each find a
    pair of similarity s with probability 1 - (1 - s^rows)^bands: by default 95% at 0.8.

    Attributes:
      similarity: least Jaccard similarity, estimated with a standard error of at most 0.045.
      bands: parts of the signature.
      rows: numbers of each.
      largest: groups of more records are left alone and counted.
    """

    similarity: float = 0.8
    bands: int = 16
    rows: int = 8
    largest: int = 1000

    reasons: ClassVar[tuple[str, ...]] = ("near_duplicate",)

    def check(self) -> None:
        check_range("similarity", self.similarity, 0, 1)
        check_range("bands", self.bands, 1)
        check_range("rows", self.rows, 1)
        check_range("largest", self.largest, 2)

    def run(self, flow: Flow) -> None:
        flow.columns("signatures", self.signatures)
        near.find(flow, self.band_keys, self.agree, self.largest)
        flow.decide(self.verdict)

    def signatures(self, rows: Rows) -> dict[str, Any]:
        """``_signature`` uint32[n, bands * rows] and who has one."""
        count = self.bands * self.rows
        found = [minhash(shingles(texts), count) for texts in rows.texts]
        has = np.array([each is not None for each in found], bool)
        empty = np.zeros(count, np.uint32)
        signature = [empty if each is None else each for each in found]
        return {near.SIGNATURE: np.array(signature, np.uint32).reshape(-1, count), "_has": has}

    def band_keys(self, rows: Rows) -> tuple[np.ndarray, np.ndarray]:
        """A key for each band."""
        parts = rows[near.SIGNATURE].astype(np.uint64).reshape(len(rows), self.bands, self.rows)
        keys = np.arange(self.bands, dtype=np.uint64) * np.ones((len(rows), 1), np.uint64)
        for row in range(self.rows):
            keys = (keys ^ parts[:, :, row]) * np.uint64(0x9E3779B97F4A7C15)
            keys ^= keys >> np.uint64(29)
        return keys, rows["_has"]

    def agree(self, one: np.ndarray, other: np.ndarray) -> np.ndarray:
        """Whether the share of equal numbers is large enough."""
        return (one == other).mean(axis=1) >= self.similarity

    def verdict(self, rows: Rows) -> dict[str, Any]:
        """What is said of each record."""
        return {REASON: rows["_is_near_duplicate"]}


def shingles(texts: Sequence[str]) -> set[str]:
    """Pairs of words that follow each other, in lower case."""
    found: set[str] = set()
    for text in texts:
        words = _WORD.findall(text.casefold())
        pairs = [f"{one} {two}" for one, two in itertools.pairwise(words)]
        found.update(pairs or words)
    return found


def minhash(items: set[str], count: int) -> np.ndarray | None:
    """uint32[count]: the least value of each of so many hash functions; None for nothing."""
    if not items:
        return None
    raw = b"".join(hashlib.blake2b(item.encode(), digest_size=8).digest() for item in items)
    hashes = np.frombuffer(raw, np.uint64)
    factors, terms = _functions(count)
    # Multiply, add, and take the high bits: one multiplication for each function and item.
    return ((hashes[:, None] * factors + terms) >> np.uint64(32)).min(axis=0).astype(np.uint32)


@functools.cache
def _functions(count: int) -> tuple[np.ndarray, np.ndarray]:
    raw = b"".join(
        hashlib.blake2b(f"minhash {i}".encode(), digest_size=16).digest() for i in range(count)
    )
    numbers = np.frombuffer(raw, np.uint64).reshape(count, 2)
    return numbers[:, 0] | np.uint64(1), numbers[:, 1].copy()
