import subprocess
import sys

import jax
import pytest

from jaxclip.train import allocator

# Page faults of filling 64 MiB a second time: 16 384 pages of 4 KiB unless memory is kept.
PROGRAM = """
import resource, sys
import numpy as np
from jaxclip.train import allocator

if "keep" in sys.argv:
    print("kept" if allocator.keep_freed_memory() else "not possible")
for turn in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.full(64 * 2**20, 7, np.uint8)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults)
"""


def run(*arguments):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout.split()


def test_memory_is_used_again():
    said, *faults = run("keep")
    if said != "kept":
        pytest.skip("the C library is not glibc")
    assert int(faults[-1]) < 100


@pytest.mark.parametrize(("platforms", "expected"), [("cpu", True), ("tpu,cpu", False)])
def test_platforms_named_decide(monkeypatch, platforms, expected):
    class Config:
        jax_platforms = platforms

    monkeypatch.setattr(jax, "config", Config)
    assert allocator.runs_on_cpu() is expected
