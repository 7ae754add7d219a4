"""A data worker: a process that makes rows of batches for the training process.

It is told (place, record number) of each row and answers with the record and its views, the latter
in shared memory. It keeps nothing that a result depends on, so it may end at any time and be
replaced by another one. :mod:`jaxclip.data.workers` starts it, by a command that does not import
the main module of the program.
"""

from __future__ import annotations

import logging
import mmap
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from jaxclip import fields
from jaxclip.data import pipeline, wire
from jaxclip.data.record import BadRecord
from jaxclip.data.shared_memory import Layout

Send = Callable[..., None]

# Seconds between looks at whether the parent is still there.
_PATIENCE = 1.0


def main(arguments: Sequence[str]) -> None:
    """Serve until the connection ends.

    Args:
      arguments: the descriptors of the connection and of the shared memory, and the parent's
        process number.
    """
    connection, memory, parent = (int(each) for each in arguments)
    # Ctrl-C and a scheduler's SIGTERM are for the parent, which may go on until it has saved.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()
    serve(socket.socket(fileno=connection), memory)
    os._exit(0)


def _leave_with(parent: int) -> None:
    """End this process soon after its parent.

    The connection ends with the parent, too, but not as long as a fork of the parent has it open.
    """
    while os.getppid() == parent:
        time.sleep(_PATIENCE)
    os._exit(0)


def serve(connection: socket.socket, memory: int) -> None:
    """Answer messages until there are no more."""
    lock = threading.Lock()

    def send(message: dict[str, Any], arrays: Sequence[np.ndarray] = ()) -> None:
        data = wire.encode(message, arrays)
        try:
            with lock:
                connection.sendall(data)
        except OSError:  # nobody is there to be told
            os._exit(0)

    def read(size: int) -> bytes:
        try:
            return connection.recv(size)
        except OSError:  # reset: the parent did not wait for an answer
            return b""

    logging.getLogger().addHandler(_Forward(send))
    messages = wire.receive(read, wire.Parser())
    setup, _ = next(messages, ({}, []))
    if not setup:
        return
    try:
        work = _Work(setup, memory, send)
    except Exception as error:
        send({"failed": f"{error}" or type(error).__name__})
        return
    send({"ready": True})
    with ThreadPoolExecutor(setup["layout"]["threads"]) as pool:
        for message, arrays in messages:
            pool.submit(work.do, message, *arrays)
        os._exit(0)  # without waiting for what nobody wants any more


class _Forward(logging.Handler):
    """Hands what is logged to the parent."""

    def __init__(self, send: Send):
        super().__init__()
        self._send = send

    def emit(self, record: logging.LogRecord) -> None:
        # The parent counts and logs records that can't be used itself.
        if record.name != "jaxclip.data.record_stats":
            self._send({"log": [record.name, record.levelno, record.getMessage()]})


class _Work:
    """What this process does for its parent; see :mod:`jaxclip.data.workers` for the messages."""

    def __init__(self, setup: dict[str, Any], memory: int, send: Send):
        spec = {
            key: getattr(fields, name)(**options) for key, (name, options) in setup["spec"].items()
        }
        self._layout = Layout(**setup["layout"])
        self._memory = mmap.mmap(memory, self._layout.size)
        board = self._layout.board(self._memory, setup["worker"])
        self._reader = pipeline.local_reader(setup["config"], spec, setup["seed"], board)
        self._send = send

    def do(self, message: dict[str, Any], places: np.ndarray, indices: np.ndarray) -> None:
        """Make the rows of a task and say so."""
        number = message["task"]
        try:
            for index, *bad in message["lethal"]:
                self._reader.stats.remember(index, BadRecord(*bad))
            slot = self._layout.views(self._memory, message["slot"])
            views = {key: array[: len(places)] for key, array in slot.items()}
            outcomes = self._reader.outcomes(places, indices, views, singly=message["careful"])
            arrays: list[np.ndarray] = []
            rows = [wire.pack_outcome(each, arrays) for each in outcomes]
            self._send({"task": number, "rows": rows}, arrays)
        except Exception as error:
            self._send({"task": number, "error": [type(error).__name__, str(error)]})
