"""What several processes must decide alike: small collectives over hosts, no-ops for one."""

from __future__ import annotations

import jax
import numpy as np
from jax.experimental import multihost_utils


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
