"""Random decisions as functions of a record's key: never a generator, for a task may run twice."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np


def key_hashes(keys: Sequence[str], salt: str) -> np.ndarray:
    """uint64[n]: the first 64 bits of BLAKE2b of each key.

    Args:
      keys: of records.
      salt: another salt gives independent numbers.
    """
    start = hashlib.blake2b(
        digest_size=8, salt=hashlib.blake2b(salt.encode(), digest_size=16).digest()
    )
    result = np.empty(len(keys), np.uint64)
    for place, key in enumerate(keys):
        state = start.copy()
        state.update(key.encode("utf-8", "surrogatepass"))
        result[place] = int.from_bytes(state.digest(), "big")
    return result


def uniforms(keys: Sequence[str], salt: str) -> np.ndarray:
    """float64[n] in [0, 1): u(key, salt), the first 53 bits of :func:`key_hashes`."""
    return (key_hashes(keys, salt) >> np.uint64(11)) * 2.0**-53


def digests(items: Iterable[bytes | None]) -> np.ndarray:
    """uint64[n, 2]: SHA-256 of bytes, the first 128 bits; zeros for None."""
    raw = b"".join(
        bytes(16) if item is None else hashlib.sha256(item).digest()[:16] for item in items
    )
    return np.frombuffer(raw, ">u8").reshape(-1, 2).astype(np.uint64)


def ordered_bits(values: np.ndarray) -> np.ndarray:
    """uint32[n] in the order of float32 values; NaN is below all."""
    floats = np.asarray(values, np.float32) + np.float32(0)  # -0 becomes 0
    bits = floats.view(np.uint32)
    ordered = np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))
    return np.where(np.isnan(floats), np.uint32(0), ordered)


def spread(keys: np.ndarray, parts: int) -> np.ndarray:
    """int64[n] in [0, parts): which part each uint64 key belongs to."""
    mixed = np.asarray(keys, np.uint64) * np.uint64(0x9E3779B97F4A7C15)  # Fibonacci hashing
    return ((mixed >> np.uint64(32)) % np.uint64(parts)).astype(np.int64)
