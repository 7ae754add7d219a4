"""While a process waits for the others of its run: what for, in time, and an end in one line.

JAX says nothing until its own time is up, and ends by an abort with a stack trace then.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

# Seconds until the first line, and between the others.
_FIRST, _AGAIN = 10.0, 60.0
# How much longer JAX is given than we wait.
_LATER = 30
# Where Linux lists connections, and how it says that one stands.
_TABLES = (pathlib.Path("/proc/net/tcp"), pathlib.Path("/proc/net/tcp6"))
_ESTABLISHED = "01"


@contextlib.contextmanager
def told(timeouts: dict[str, Any], hint: str) -> Iterator[dict[str, Any]]:
    """Around ``jax.distributed.initialize``: say after 10 s what is waited for, then once a minute.

    After ``initialization_timeout`` a line says so, and the process ends with status 1: the main
    thread is within JAX, which would end it by an abort. Ctrl-C ends it at once.

    Args:
      timeouts: those of ``jax.distributed.initialize``.
      hint: what to do where there should be one process alone, for the lines.

    Yields:
      The timeouts, in which JAX has some time more.
    """
    limit = timeouts["initialization_timeout"]
    here = threading.Event()
    thread = threading.Thread(
        target=_watch, args=(here, limit, hint), name="start_watch", daemon=True
    )
    with _interruptible():
        thread.start()
        try:
            yield {**timeouts, "initialization_timeout": limit + _LATER}
        finally:
            here.set()


def _watch(here: threading.Event, limit: float, hint: str) -> None:
    began, pause, first = time.monotonic(), min(_FIRST, limit), True
    while not here.wait(pause):
        left = limit - (time.monotonic() - began)
        what, again = _situation()
        if here.is_set():
            return
        if left <= 0:
            _say(
                f"jaxclip: error: {what} ({hint}); gave up after {limit:g} s "
                "(distributed.initialization_timeout_seconds)"
            )
            sys.stdout.flush()
            os._exit(1)
        elif first or again:
            _say(f"jaxclip: {what} ({hint}); waiting for {max(0.0, left):.0f} s more")
        pause, first = max(min(_AGAIN, left), 0.1), False


def _situation() -> tuple[str, bool]:
    """What is waited for and what to look at, and whether that bears repeating."""
    address, process, count = _who()
    host = socket.gethostname()
    if not address:
        return (
            f"a process on {host} has not found the others yet: see whether each was started, or "
            "ended with an error of its own",
            True,
        )
    me = f"process {process} of {count} on {host}"
    if process:
        why = _refusal(address)
        if not why:
            return f"{me} has reached process 0 at {address}, whose log says who is missing", False
        return (
            f"{me} can't reach process 0 at {address} ({why}): see whether it runs there, and "
            "whether this host may connect to that port",
            True,
        )
    there = _connections(int(address.rpartition(":")[2]))
    some = f"{there} of {count} are there" if 0 < there < count else "not all are there"
    return (
        f"{me} waits for the others at {address}, {some}: see whether each was started, ended "
        "with an error of its own, or can't reach this address",
        True,
    )


def _who() -> tuple[str, int, int]:
    """``(address of process 0, number of this one, how many)``, as JAX has found them out."""
    from jax._src import distributed  # of Slurm, say; there is no public name for it before

    state = getattr(distributed, "global_state", None)
    address = getattr(state, "coordinator_address", None) or ""
    return address, getattr(state, "process_id", 0), getattr(state, "num_processes", None) or 0


def _refusal(address: str) -> str:
    """Why nobody answers at ``host:port``; empty if somebody does."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _connections(port: int) -> int:
    """How many connections others have to a port of this machine; 0 if that can't be known."""
    found = 0
    for table in _TABLES:
        with contextlib.suppress(OSError):
            rows = [line.split() for line in table.read_text().splitlines()[1:]]
            found += sum(
                row[3] == _ESTABLISHED and int(row[1].rpartition(":")[2], 16) == port
                for row in rows
            )
    return found


def _say(line: str) -> None:
    with contextlib.suppress(OSError, ValueError):
        print(line, file=sys.stderr, flush=True)


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C ends this process though the main thread is within JAX; after that it is as before."""
    before = signal.getsignal(signal.SIGINT)
    # The command line's own (jaxclip.interrupts) does what Python's does, once all is loaded.
    is_plain = before is signal.default_int_handler or getattr(before, "is_plain", False)
    if threading.current_thread() is not threading.main_thread() or not is_plain:
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
