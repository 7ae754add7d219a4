"""Keep freed memory in the process: on a CPU a step is handed the same pages as the one before."""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import sys

import jax

# Parameters of mallopt(3), from glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> bool:
    """Tell glibc's malloc never to give memory back to the system; for processes that train.

    XLA:CPU allocates all temporaries of a step in one piece and frees it behind the step. By
    default malloc gets so large a piece from the system each time, which clears it page by page: a
    fifth of the step's time for a small model. With this, freed memory is kept and used again; the
    process stays as large as it has once been. Concerns the whole process and can't be undone. Call
    it before JAX starts: threads that exist already keep heaps of their own.

    Returns:
      Whether it was done: False where the C library is another one.
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # musl, for one
        return False
    # Large pieces from the heap, too; one heap, as others than the first have a limit of 64 MiB;
    # and never cut it back (-1 switches the threshold off).
    settings = ((_MMAP_MAX, 0), (_ARENA_MAX, 1), (_TRIM_THRESHOLD, -1))
    return all([mallopt(parameter, value) == 1 for parameter, value in settings])


def runs_on_cpu() -> bool:
    """Whether JAX has nothing but the CPU, found out without starting it.

    (:func:`keep_freed_memory` has to come before that.)
    """
    platforms: str | None = getattr(jax.config, "jax_platforms", None)  # or JAX_PLATFORMS
    if platforms:
        return platforms.split(",")[0] == "cpu"
    plugins = importlib.metadata.entry_points(group="jax_plugins")
    return not plugins and importlib.util.find_spec("libtpu") is None
