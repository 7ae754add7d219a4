"""The headers of a plain tar at once, some ten times faster than one by one.

A tar of ten thousand samples has thirty thousand headers, and the first batch of a run needs a
sample each of some hundred tars. So headers are walked through with as little as can be done (where
is the next one), and all else is done on arrays. Whatever is not as most tools write it (long or
other than ASCII names, links, sparse files, damage) is left to :mod:`tarfile`.
"""

from __future__ import annotations

import mmap
from typing import NamedTuple

import numpy as np

BLOCK = 512
# Bytes behind the end of a tar that are looked at; most tools write at most 10 KiB of zeros.
PADDING = 64 << 10
_NAME = slice(0, 100)
_SIZE_AT, _KIND_AT, _SUM_AT, _PREFIX_AT = 124, 156, 148, 345
_FILES, _FOLDER, _MORE = (0, ord("0")), ord("5"), ord("x")
# Of the values that stand before a header of its own those that change what we take from that one.
_TELLING = (b"path=", b"size=", b"GNU.sparse", b"hdrcharset=")


class Files(NamedTuple):
    """The regular files of a tar, in order.

    Attributes:
      names: uint8[n, 100], ASCII, zero behind the end.
      offsets: int64[n], where the content starts.
      sizes: int64[n].
    """

    names: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray


def read(data: bytes | mmap.mmap) -> Files | None:
    """All regular files of a tar; None if there is anything about it that needs a closer look."""
    walked = _walk(data)
    if walked is None:
        return None
    positions, sizes, kinds = (np.array(each, np.int64) for each in walked)
    blocks = b"".join([data[position : position + BLOCK] for position in walked[0]])
    headers = np.frombuffer(blocks, np.uint8).reshape(-1, BLOCK)
    if not _are_sound(headers):
        return None
    chosen = np.isin(kinds, _FILES)
    names = headers[chosen, _NAME]
    # What stands behind the end of a name is no part of it.
    names = names * np.logical_and.accumulate(names != 0, axis=1)
    lengths = np.count_nonzero(names, axis=1)
    ends = names[np.arange(len(names)), lengths - 1]
    if (names > 127).any() or (lengths == 0).any() or (ends == ord("/")).any():
        return None
    return Files(names, positions[chosen] + BLOCK, sizes[chosen])


def _walk(data: bytes | mmap.mmap) -> tuple[list[int], list[int], list[int]] | None:
    """Where headers are, the sizes of what follows, and of which kinds that is."""
    positions: list[int] = []
    sizes: list[int] = []
    kinds: list[int] = []
    position, end = 0, len(data)
    while position + BLOCK <= end:
        field = data[position + _SIZE_AT : position + _SIZE_AT + 12]
        kind = data[position + _KIND_AT]
        try:
            size = int(field.rstrip(b"\0 "), 8)
        except ValueError:
            # Another tar may stand behind the end of this one.
            rest = data[position : position + PADDING].strip(b"\0")
            return (positions, sizes, kinds) if positions and not rest else None
        if size < 0:  # back to where it came from, for ever
            return None
        if kind == _MORE:
            content = data[position + BLOCK : position + BLOCK + size]
            if any(each in content for each in _TELLING):
                return None
        elif kind not in _FILES and (kind != _FOLDER or size):
            return None
        positions.append(position)
        sizes.append(size)
        kinds.append(kind)
        position += BLOCK + -(-size // BLOCK) * BLOCK
    return (positions, sizes, kinds) if positions and position == end else None


def _are_sound(headers: np.ndarray) -> bool:
    """Whether the checksums of headers uint8[n, 512] are right, and no name goes on elsewhere."""
    digits = headers[:, _SUM_AT : _SUM_AT + 6].astype(np.int64) - ord("0")
    if ((digits < 0) | (digits > 7)).any() or headers[:, _SUM_AT + 6].any():
        return False
    noted = digits @ 8 ** np.arange(5, -1, -1)
    field = headers[:, _SUM_AT : _SUM_AT + 8].sum(axis=1, dtype=np.int64)
    found = headers.sum(axis=1, dtype=np.int64) - field + 8 * ord(" ")
    return bool((noted == found).all()) and not headers[:, _PREFIX_AT:500].any()
