"""Keeps the log lines of the stores' own libraries off the screen.

TensorStore and Amazon's C++ library print lines on the way to credentials, of files that need not
be there or were found, and there is no setting for it. What matters in them is in the error that
the request ends with, which we say in one line. They come when a store is opened and first asked,
so only then the lines are looked at; everything else that is printed meanwhile comes afterwards.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import tempfile
import threading
from collections.abc import Iterator

# As Abseil's logging writes: severity, month and day, time, thread, file, line.
_LINE = re.compile(rb"[IWE]\d{4} \d\d:\d\d:\d\d\.\d+ +\d+ [\w.-]+:\d+\] .*\n?")
_STDERR = 2
_turn = threading.RLock()


@contextlib.contextmanager
def left_out(wanted: bool = True) -> Iterator[None]:
    """Leave out such lines of what the process prints to standard error within the context.

    Args:
      wanted: False does nothing, nor does anything with ``TENSORSTORE_VERBOSE_LOGGING`` or
        ``JAXCLIP_TRACEBACK`` in the environment.
    """
    shown = os.environ.get("TENSORSTORE_VERBOSE_LOGGING") or os.environ.get("JAXCLIP_TRACEBACK")
    if not wanted or shown:
        yield
        return
    with _turn, contextlib.ExitStack() as stack:
        try:
            kept = stack.enter_context(tempfile.TemporaryFile())
            screen = os.dup(_STDERR)
        except OSError:  # no room, or no standard error
            kept = None
        if kept is None:
            yield
            return
        _flush()
        os.dup2(kept.fileno(), _STDERR)
        try:
            yield
        finally:
            _flush()
            os.dup2(screen, _STDERR)
            os.close(screen)
            kept.seek(0)
            for line in kept:
                if not _LINE.fullmatch(line):
                    os.write(_STDERR, line)


def _flush() -> None:
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stderr.flush()
