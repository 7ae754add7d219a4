"""Waiting for what another thread or process does: as long as the slowest machine takes."""

import time

# Seconds after which what is waited for will not come; no test may depend on how many they are.
LONG = 300.0


def until(condition):
    """Wait until ``condition()`` holds; what it said then."""
    end = time.monotonic() + LONG
    while not (found := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)
    return found
