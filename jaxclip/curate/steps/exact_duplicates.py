"""Records that are the same in their bytes, pixels or captions: one of each stays."""

from __future__ import annotations

import dataclasses
import unicodedata
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from jaxclip.curate.flow import Flow
from jaxclip.curate.hashing import digests
from jaxclip.curate.rows import Rows
from jaxclip.curate.step import Step, check_choice
from jaxclip.curate.store import INDEX, REASON
from jaxclip.data import decode
from jaxclip.data.record import BadRecord

KINDS = ("bytes", "pixels", "captions", "pair", "key")


@dataclasses.dataclass(frozen=True)
class ExactDuplicates(Step):
    """Keep one of equal records: the one with the most pixels, of those the one whose key's hash is
    the least.

    Attributes:
      by: what is compared, by SHA-256: ``"bytes"`` of the encoded picture, ``"pixels"`` after
        decoding, ``"captions"`` (those that are left; case, width of letters and white space do not
        count), ``"pair"`` (bytes and captions), or ``"key"``.
    """

    by: str = "bytes"

    reasons: ClassVar[tuple[str, ...]] = ("duplicate", "undecodable")

    def check(self) -> None:
        check_choice("by", self.by, KINDS)

    def run(self, flow: Flow) -> None:
        flow.columns("digest", self.digest)
        flow.group("same", self.emit, self.settle, fill={"_is_duplicate": False})
        flow.decide(self.verdict)

    def digest(self, rows: Rows) -> dict[str, Any]:
        """``_digest`` uint64[n, 2], zeros for pictures that do not decode."""
        pictures = enumerate(self._pictures(rows))
        return {"_digest": digests(_BY[self.by](rows, row, data) for row, data in pictures)}

    def _pictures(self, rows: Rows) -> Any:
        needed = self.by in ("bytes", "pixels", "pair")
        return rows.pictures() if needed else [b""] * len(rows)

    def emit(self, rows: Rows) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Each record by its digest."""
        digest = rows["_digest"]
        readable = digest.any(axis=1)
        found = {"second": digest[:, 1], "rank": rank(rows), INDEX: rows.index}
        return digest[readable, 0], {name: array[readable] for name, array in found.items()}

    def settle(
        self, keys: np.ndarray, starts: np.ndarray, said: dict[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """All but the first of each group, in the order of their ranks."""
        key = np.repeat(keys, np.diff(starts))
        order = np.lexsort((said[INDEX], said["rank"], said["second"], key))
        key, second = key[order], said["second"][order]
        again = np.concatenate([[False], (key[1:] == key[:-1]) & (second[1:] == second[:-1])])
        index = said[INDEX][order][again]
        return {INDEX: index, "_is_duplicate": np.ones(len(index), bool)}

    def verdict(self, rows: Rows) -> dict[str, Any]:
        """What is said of each record."""
        bad = ~rows["_digest"].any(axis=1)
        return {REASON: np.select([rows["_is_duplicate"], bad], [1, 2], 0)}


def rank(rows: Rows) -> np.ndarray:
    """uint64[n]: the least of a group of duplicates stays. More pixels come first, then a hash."""
    pixels = np.minimum(np.asarray(rows["width"]) * np.asarray(rows["height"]), 2**32 - 1)
    first = np.uint64(2**32 - 1) - pixels.astype(np.uint64)
    return (first << np.uint64(32)) | (rows.hashes("duplicates") >> np.uint64(32))


def normalized(texts: Sequence[str]) -> bytes:
    """Captions without what does not count, in a fixed order."""
    folded = (unicodedata.normalize("NFKC", text).casefold() for text in texts)
    return "\n".join(sorted(" ".join(text.split()) for text in folded)).encode()


def _bytes(rows: Rows, row: int, data: bytes | BadRecord) -> bytes | None:
    return None if isinstance(data, BadRecord) else data


def _pixels(rows: Rows, row: int, data: bytes | BadRecord) -> bytes | None:
    image = data if isinstance(data, BadRecord) else decode.decode(data)
    return None if isinstance(image, BadRecord) else f"{image.size}".encode() + image.tobytes()


def _captions(rows: Rows, row: int, data: bytes | BadRecord) -> bytes | None:
    return normalized(rows.texts[row])


def _pair(rows: Rows, row: int, data: bytes | BadRecord) -> bytes | None:
    return None if isinstance(data, BadRecord) else data + b"\n" + normalized(rows.texts[row])


def _key(rows: Rows, row: int, data: bytes | BadRecord) -> bytes | None:
    return rows.keys[row].encode("utf-8", "surrogatepass")


_BY = {
    "bytes": _bytes, "pixels": _pixels, "captions": _captions, "pair": _pair, "key": _key,
}  # fmt: skip
