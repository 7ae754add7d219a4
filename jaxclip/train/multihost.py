"""What several processes must decide alike: small collectives over hosts, no-ops for one."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxclip.errors import ProcessesError, RunError

# Bytes of a line that is told to the other processes.
_LONGEST = 2000


def broadcast(value: np.ndarray) -> np.ndarray:
    """Process 0's array, on all processes, which give one of the same shape and dtype."""
    if jax.process_count() == 1:
        return value
    return np.asarray(multihost_utils.broadcast_one_to_all(value))


def broadcast_steps(steps: list[int]) -> set[int]:
    """Process 0's list of steps, on all processes."""
    count = int(broadcast(np.asarray(len(steps))))
    padded = np.zeros(count, np.int32)
    if jax.process_index() == 0:
        padded[:] = steps
    return {int(step) for step in broadcast(padded)} if count else set()


def total(count: int) -> int:
    """The sum of a number over all processes."""
    if jax.process_count() == 1:
        return count
    return int(np.sum(multihost_utils.process_allgather(np.asarray(count))))


def all_agree(flag: bool) -> bool:
    """Whether the flag is set on every process."""
    if jax.process_count() == 1:
        return flag
    return bool(np.all(multihost_utils.process_allgather(np.asarray(flag))))


def first_problem(problem: str) -> str:
    """What the first of the processes that have a problem says, on all of them.

    Args:
      problem: what went wrong on this one; empty if nothing did.

    Returns:
      ``process 1 of 4 on HOST: …``, in one process its own words; empty if nobody has a problem.
    """
    if jax.process_count() == 1 or not _gather_any(bool(problem)):
        return problem
    who = f"process {jax.process_index()} of {jax.process_count()} on {socket.gethostname()}"
    line = np.zeros(_LONGEST, np.uint8)
    if problem:
        text = f"{who}: {problem}".encode()[:_LONGEST]
        line[: len(text)] = np.frombuffer(text, np.uint8)
    told = np.asarray(multihost_utils.process_allgather(line))
    first = told[np.flatnonzero(told[:, 0])[0]]
    return first.tobytes().rstrip(b"\0").decode(errors="ignore")


@contextlib.contextmanager
def together(what: str) -> Iterator[None]:
    """A block that each process does on its own, after which all go on or none does.

    One that failed alone would leave the others waiting for it in the next collective. The block
    must hold none; all processes come to its end.

    Args:
      what: what could not be done, for the message: ``"checkpoint 5 can't be fetched"``.

    Raises:
      ProcessesError: some process failed, on several of them; says which one and why.
      Exception: of the block, on a process that is alone, and where it is a fault of the program.
    """
    error: Exception | None = None
    try:
        yield
    except Exception as caught:
        if jax.process_count() == 1:
            raise
        error = caught
    problem = first_problem((str(error) or type(error).__name__) if error else "")
    if error is not None and not isinstance(error, (RunError, OSError, ValueError)):
        raise error
    if problem:
        raise ProcessesError(f"{what}: {problem}") from error


def _gather_any(flag: bool) -> bool:
    return bool(np.any(multihost_utils.process_allgather(np.asarray(flag))))
