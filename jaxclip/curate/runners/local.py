"""The passes in processes of this machine, without Beam."""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import multiprocessing
import os
import pathlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from jaxclip.curate.runners import (
    Arrays,
    Emit,
    Finish,
    Function,
    Merge,
    Parcel,
    Runner,
    Save,
    Settle,
)
from jaxclip.data.loader import num_cpus


class Local(Runner):
    """Runs passes on this machine; what lies between two halves of a shuffle is in files.

    Args:
      workers: processes; 1 = this one alone, 0 = one for each CPU.
    """

    def __init__(self, workers: int = 1):
        if workers < 0:
            raise ValueError(f"workers={workers} must not be negative")
        self._workers = workers or num_cpus()
        self._pool: concurrent.futures.ProcessPoolExecutor | None = None

    def each(self, function: Callable[[int], None], items: Sequence[int]) -> None:
        for _ in self._map(function, items):
            pass

    def reduce(self, function: Function, merge: Merge, save: Save, items: Sequence[int]) -> None:
        total: Arrays | None = None
        for found in self._map(function, items):
            total = merge([found] if total is None else [total, found])
        assert total is not None  # a split has at least one shard
        save(total)

    def shuffle(
        self, emit: Emit, settle: Settle, finish: Finish, items: Sequence[int], parts: int,
        folder: str,
    ) -> None:  # fmt: skip
        place = pathlib.Path(folder)
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        there, back = str(place / "there"), str(place / "back")
        self.each(functools.partial(_send, emit, there), items)
        self.each(functools.partial(_settle, settle, there, back, list(items)), range(parts))
        self.each(functools.partial(_finish, finish, back, parts), items)
        shutil.rmtree(place)

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def _map(self, function: Callable[[int], Any], items: Sequence[int]) -> Iterator[Any]:
        if self._workers == 1 or len(items) < 2:
            yield from map(function, items)
            return
        if self._pool is None:
            # Forked children would hold locks of JAX's and TensorFlow's threads.
            self._pool = concurrent.futures.ProcessPoolExecutor(
                self._workers, multiprocessing.get_context("spawn")
            )
        with _one_thread():
            futures = [self._pool.submit(function, item) for item in items]
        try:
            for future in futures:
                yield future.result()
        finally:
            for future in futures:
                future.cancel()


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Processes that start meanwhile use one thread each for matrix products."""
    names = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update({name: value or "1" for name, value in before.items()})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]


def _send(emit: Emit, folder: str, item: int) -> None:
    _write(f"{folder}.{item}", emit(item))


def _settle(settle: Settle, there: str, back: str, items: Sequence[int], part: int) -> None:
    found = [arrays for item in items if (arrays := _read(f"{there}.{item}", part))]
    _write(f"{back}.{part}", settle(part, found) if found else ())


def _finish(finish: Finish, back: str, parts: int, item: int) -> None:
    finish(item, [arrays for part in range(parts) if (arrays := _read(f"{back}.{part}", item))])


def _write(folder: str, parcels: Iterable[Parcel]) -> None:
    """Parcels in a folder: a file for each array of all of them, mapped when it is read."""
    place = pathlib.Path(folder)
    place.mkdir(exist_ok=True)
    sorted_parcels = sorted(parcels, key=lambda parcel: parcel[0])
    if not sorted_parcels:
        return
    sizes = [len(next(iter(arrays.values()))) for _, arrays in sorted_parcels]
    np.save(place / "to.npy", np.array([to for to, _ in sorted_parcels]))
    np.save(place / "ends.npy", np.cumsum(sizes))
    for name in sorted_parcels[0][1]:
        np.save(place / f"{name}.array.npy", np.concatenate([a[name] for _, a in sorted_parcels]))


def _read(folder: str, to: int) -> Arrays:
    """The arrays of all parcels for a place; empty if there are none."""
    place = pathlib.Path(folder)
    if not (place / "to.npy").exists():
        return {}
    chosen = np.flatnonzero(np.load(place / "to.npy") == to)
    if not len(chosen):
        return {}
    ends = np.load(place / "ends.npy")
    first = int(ends[chosen[0] - 1]) if chosen[0] else 0
    last = int(ends[chosen[-1]])
    return {
        file.name.removesuffix(".array.npy"): np.array(np.load(file, mmap_mode="r")[first:last])
        for file in sorted(place.glob("*.array.npy"))
    }
