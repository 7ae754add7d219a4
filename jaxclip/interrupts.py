"""Ctrl-C at moments at which Python's own handler aborts the process, or is not heard."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

# Libraries whose start in native code can't stand a KeyboardInterrupt: the process aborts, or they
# call themselves badly installed.
_NATIVE = ("numpy", "jax", "jaxlib", "tensorflow", "orbax")


@contextlib.contextmanager
def interruptible_while_loading() -> Iterator[None]:
    """End at once by Ctrl-C while such a library is being loaded; nothing is open yet."""

    def interrupt(number: int, frame: Any) -> None:
        specs = (getattr(sys.modules.get(name), "__spec__", None) for name in _NATIVE)
        if any(getattr(spec, "_initializing", False) for spec in specs):
            os.write(2, b"jaxclip: interrupted\n")
            os._exit(128 + number)
        if frame is not None and frame.f_code.co_name == "_xla_gc_callback":
            # An exception here would be printed and forgotten: once more, when it has returned.
            threading.Timer(0.05, os.kill, (os.getpid(), number)).start()
            return
        signal.default_int_handler(number, frame)

    interrupt.is_plain = True  # type: ignore[attr-defined]  # see jaxclip.parallel.waiting
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGINT) is interrupt:
            signal.signal(signal.SIGINT, signal.default_int_handler)
