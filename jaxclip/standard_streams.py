"""Standard streams that may be closed, or vanish: a reader that ended, a full disk, a terminal."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Callable
from typing import Any, TextIO


def keep_open() -> None:
    """Open the null device in place of standard streams that the caller has closed (``>&-``).

    The next file that is opened would get the number of a closed one, and with it whatever a
    library prints.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDONLY if number == 0 else os.O_WRONLY)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    # What the terminal's encoding lacks is written as \u2026, rather than to end a command.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


class Forgiving:
    """A text stream whose writes never fail: after the first that does, all go nowhere.

    For a run that has better things to do than to die of it. Everything else is the stream's.
    """

    def __init__(self, stream: TextIO, lost: Callable[[OSError], None] = lambda error: None):
        """Wrap a stream.

        Args:
          stream: to write to.
          lost: called with the error, once.
        """
        self._stream = stream
        self._lost = lost
        self._is_lost = False

    def write(self, text: str) -> int:
        """Write, if the stream takes it."""
        self._try(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Flush, if the stream takes it."""
        self._try(self._stream.flush)

    def _try(self, act: Callable[[], Any]) -> None:
        if self._is_lost:
            return
        try:
            act()
        except OSError as error:
            self._is_lost = True
            silence(self._stream)
            self._lost(error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def silence(stream: TextIO) -> None:
    """Let a stream that can't be written go to the null device, what is buffered in it, too."""
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


def say(text: str, lost: Callable[[OSError], None] = lambda error: None) -> None:
    """Print a line to standard output, if that takes it; ``lost`` gets the error if not."""
    print(text, file=Forgiving(sys.stdout, lost), flush=True)  # type: ignore[arg-type]


def explain(error: BaseException) -> str:
    """What is wrong with standard output, if that is where an error comes from; else nothing.

    The error of a ``print`` has a number, but neither a file name nor words of ours.
    """
    if not isinstance(error, OSError) or error.errno is None or error.filename is not None:
        return ""
    try:
        sys.stdout.write("\n")
        sys.stdout.flush()
    except OSError as again:
        silence(sys.stdout)
        return f"standard output can't be written: {again.strerror}"
    return ""
