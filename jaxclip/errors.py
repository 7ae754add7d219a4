"""What ends a run from outside: the disk, the numbers, the machine."""

import errno
import os
import sys


def explain_no_device(error: BaseException) -> str:
    """What is wrong with the devices, if JAX could not start any; else nothing.

    JAX has no error of its own for that: it is a RuntimeError, or an assertion without a word. So
    JAX is asked once more for its devices, and fails with the same, or has them at hand.
    """
    jax = sys.modules.get("jax")
    if jax is None or type(error) not in (RuntimeError, AssertionError):
        return ""
    try:
        jax.devices()
        return ""
    except Exception as again:
        if (type(again), str(again)) != (type(error), str(error)):
            return ""
    wanted = os.environ.get("JAX_PLATFORMS", "")
    if not wanted:
        return f"JAX finds no device: {error}"
    why = str(error).partition(" (set JAX_PLATFORMS")[0] or "no plugin for it is installed"
    return (
        f"JAX_PLATFORMS={wanted} names a device that is not there ({why}); unset it, or install "
        "JAX for that device (pip install 'jax[cuda12]', 'jax[tpu]')"
    )


# What helps with an error of the system, by its number.
_WAYS = {
    errno.EACCES: "change its owner or mode, or name another place",
    errno.EPERM: "change its owner or mode, or name another place",
    errno.EROFS: "name a place on another file system",
    errno.ENOTDIR: "a part of the path is a file; name another place",
}


def explain_file(error: BaseException) -> str:
    """An error of the system with its file first and a way out; nothing if it names no file."""
    if not isinstance(error, OSError) or error.filename is None or error.strerror is None:
        return ""
    way = _WAYS.get(error.errno or 0)
    return f"{os.fsdecode(error.filename)}: {error.strerror.lower()}{f'; {way}' if way else ''}"


class RunError(RuntimeError):
    """A run can't go on; the message says why and what helps, and is shown without a traceback."""


class NonFiniteError(RunError):
    """Too many steps in a row had a loss or gradient that was not finite."""


class ProcessesError(RunError):
    """One process could not do what all have to do; the same line on every one of them.

    Attributes:
      explained: that its text says what another process met with
        (:func:`jaxclip.parallel.distributed.explain_loss`).
    """

    explained = True


class UploadInterrupt(KeyboardInterrupt):
    """A run at an address was interrupted; the message says where it lies and how to go on."""
