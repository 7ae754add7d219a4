"""Columns of pictures in their own aspect ratio, as patches (SigLIP 2, arXiv:2502.14786)."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from jaxclip.data import image_chain, order, patch_sequence
from jaxclip.data.column import Column, Context, Rows
from jaxclip.data.loader import num_cpus
from jaxclip.fields import Grid, Patches

_COUNT = "patch counts"
_THREADS_FROM = 8  # rows: fewer are not worth a thread


class PatchesColumn(Column[Patches]):
    """Patches of pictures, see :class:`jaxclip.fields.Patches`."""

    def __init__(self, key: str, field: Patches, context: Context):
        super().__init__(key, field, context)
        if not field.counts or min(field.counts) < 1:
            raise ValueError(f"data.patch_counts={list(field.counts)} must be 1 or more each")
        if field.patch_size < 1:
            raise ValueError(f"patch_size={field.patch_size} must be at least 1")
        if context.config["workers"]:
            raise ValueError("data.patch_counts has no data workers; set data.workers=0")
        ops = field.ops or context.config["image_ops"]
        self.chain = image_chain.build(ops, context.config["image_size"])
        self._threads = context.config["num_parallel_calls"] or num_cpus()
        self._pool: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pool": None, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    def count(self, seed: int, batch: int) -> int:
        """Patches of a picture in a batch at most: a function of (seed, number of the batch)."""
        u = order.uniforms(seed, np.array([batch]), 1, _COUNT)[0, 0]
        counts = self.field.counts
        return counts[min(int(float(u) * len(counts)), len(counts) - 1)]

    def cut(self, rows: Rows) -> tuple[np.ndarray, np.ndarray]:
        """Patches uint8[b, N, p * p * 3] and grids int32[b, 2], made once."""
        if self.key not in rows.made:
            count, size = self.count(rows.seed, rows.batch), self.field.patch_size
            u = self.draws(rows, self.chain.num_draws)

            def one(row: int) -> tuple[np.ndarray, np.ndarray]:
                pixels = rows.loaded[row].pixels
                assert pixels is not None  # the loader decodes for this column
                picture = self.chain.apply([pixels], u[row : row + 1])[0]
                patches, _, grid = patch_sequence.cut(picture, size, count)
                return patches, grid

            places = range(len(rows.loaded))
            parallel = self._threads > 1 and len(places) >= _THREADS_FROM
            found = list(self._workers().map(one, places) if parallel else map(one, places))
            patches, grids = zip(*found, strict=True)
            rows.made[self.key] = np.stack(patches), np.stack(grids)
        made: tuple[np.ndarray, np.ndarray] = rows.made[self.key]
        return made

    def make(self, rows: Rows) -> np.ndarray:
        return self.cut(rows)[0]

    def _workers(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="jaxclip-patches")
            return self._pool


class GridColumn(Column[Grid]):
    """Rows and columns of patches, see :class:`jaxclip.fields.Grid`."""

    def __init__(self, key: str, field: Grid, context: Context):
        super().__init__(key, field, context)
        other = context.spec.get(field.of)
        if not isinstance(other, Patches):
            raise ValueError(f"batch[{field.of!r}], whose grid it is, is {other}")
        self._patches = PatchesColumn(field.of, other, context)

    def make(self, rows: Rows) -> np.ndarray:
        return self._patches.cut(rows)[1]
