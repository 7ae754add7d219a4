"""Share of a loading thread's time that holds the interpreter's lock, beside open_clip's way.

    python -m jaxclip.bench interpreter_lock [--photos 64] [--rounds 30] [--sizes 500x375 1024x768]

The pictures and crops of ``bench decode``, in one thread: rows as a worker process makes them, and
webdataset's batches. A thread that holds the lock keeps all others of its process from Python, so
the share says how many threads a process can use.

Counted is processor time outside ``PyEval_SaveThread`` … ``PyEval_RestoreThread``, which every
library calls to let go of the lock. For this a small library is compiled (it takes a C
compiler) and loaded before all others (which works on Linux). What the interpreter itself does
without the lock is not seen where it is linked statically, so the share is one from above.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from jaxclip.bench import decode
from jaxclip.bench.loading import SIDE, import_reference
from jaxclip.markdown import table

_COUNTER = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <time.h>
static __thread long long began, freed;
static long long now(void) {
  struct timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return t.tv_sec * 1000000000LL + t.tv_nsec;
}
void *PyEval_SaveThread(void) {
  void *(*real)(void) = dlsym(RTLD_NEXT, "PyEval_SaveThread"), *state = real();
  began = now();
  return state;
}
void PyEval_RestoreThread(void *state) {
  void (*real)(void *) = dlsym(RTLD_NEXT, "PyEval_RestoreThread");
  freed += now() - began;
  real(state);
}
long long nanoseconds_without_lock(void) { return freed; }
"""
_WARMUP = 2
_LIBRARY = "JAXCLIP_BENCH_LOCK_COUNTER"


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark; returns its exit status, 1 where the counter can't be made."""
    parser = argparse.ArgumentParser(
        prog="python -m jaxclip.bench interpreter_lock", description=__doc__
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--photos", type=int, default=64, help="number of made-up photographs")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--sizes", nargs="+", default=["500x375", "1024x768"])
    args = parser.parse_args(arguments)
    if _LIBRARY in os.environ:
        _measure(args)
        return 0
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or not sys.platform.startswith("linux"):
        print("jaxclip.bench: error: this takes Linux and a C compiler (cc)", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as name:
        library = pathlib.Path(name) / "counter.so"
        build = [compiler, "-shared", "-fPIC", "-O2", "-x", "c", "-", "-o", str(library), "-ldl"]
        subprocess.run(build, input=_COUNTER, text=True, check=True)
        again = [sys.executable, "-m", "jaxclip.bench", "interpreter_lock", *arguments]
        loaded = {"LD_PRELOAD": str(library), _LIBRARY: str(library)}
        return subprocess.run(again, env={**os.environ, **loaded}, check=False).returncode


def _rows_of(photos: pathlib.Path, backend: str, count: int) -> Callable[[], object]:
    """What makes rows of batches, in memory that is used again, as a worker process does."""
    from jaxclip.data import order

    reader, chain = decode.reader_of(photos, backend)
    places = np.arange(count // decode.BATCH * decode.BATCH)
    draws = {"image": order.uniforms(0, places, chain.num_draws)}
    views = {"image": np.empty((len(places), SIDE, SIDE, 3), np.uint8)}
    return lambda: reader.outcomes(places, draws, views)


def _take_turns(
    loads: Mapping[str, Callable[[], object]], rounds: int, without_lock: Callable[[], int]
) -> dict[str, list[tuple[float, float]]]:
    """Nanoseconds of each round, and those of them under the lock, by name."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in loads}
    for turn in range(rounds + _WARMUP):
        for name, load in loads.items():
            began, free = time.thread_time_ns(), without_lock()
            load()
            spent, free = time.thread_time_ns() - began, without_lock() - free
            if turn >= _WARMUP:
                found[name].append((spent, spent - free))
    return found


def _measure(args: argparse.Namespace) -> None:
    # A call through CDLL would let go of the lock itself.
    without_lock = ctypes.PyDLL(os.environ[_LIBRARY]).nanoseconds_without_lock
    without_lock.restype = ctypes.c_longlong
    has_reference = import_reference()
    rows = [["photographs", "loader", "CPU us an image", "of it under the lock", "share"]]
    for text in args.sizes:
        with decode.photographs(text, args.photos) as (files, photos):
            loads: dict[str, Callable[[], object]] = {
                f"jaxclip, {backend}": _rows_of(photos, backend, args.photos)
                for backend in ("pillow", "fast")
            }
            if has_reference:
                loads[decode.REFERENCE] = decode.webdataset_loader(files, args.photos)
            found = _take_turns(loads, args.rounds, without_lock)
        images = args.photos // decode.BATCH * decode.BATCH
        for each, times in found.items():
            spent, held = (
                statistics.median(column) / 1e3 / images for column in zip(*times, strict=True)
            )
            share = statistics.median(held / spent for spent, held in times)
            rows.append([text, each, f"{spent:,.0f}", f"{held:,.0f}", f"{share:.1%}"])
    print(table(rows))
