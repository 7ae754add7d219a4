"""Runs in processes of their own: killed at random moments, or with a full disk."""

import dataclasses
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from jaxclip.train import checkpoint, loop, metrics, setup

STEPS = 40
OVERRIDES = (
    f"total_steps={STEPS}",
    "checkpoint.every_steps=7",
    "evaluate.every_steps=0",
    "log_every_steps=1",
)


# A run that is to be killed does not come to its end before, however late the kill.
_ENDLESS = f"""
import sys, time
from jaxclip import cli
from jaxclip.train import loop

save = loop._Run.save

def waits(self, state, step, **options):
    time.sleep(1e4 if step == {STEPS} else 0)
    save(self, state, step, **options)

loop._Run.save = waits
sys.exit(cli.main(sys.argv[1:]))
"""


@dataclasses.dataclass
class Runner:
    """Starts `jaxclip train`, each time the same, in a new process."""

    config_file: pathlib.Path
    cache_dir: pathlib.Path

    def start(self, workdir, *overrides, program=("-m", "jaxclip")):
        flags = [f"--config.{text}" for text in (*OVERRIDES, *overrides)]
        environment = {
            **os.environ,
            "JAX_COMPILATION_CACHE_DIR": str(self.cache_dir),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
        }
        command = [sys.executable, *program, "train", "--config", self.config_file]
        return subprocess.Popen(
            [*command, "--workdir", workdir, *flags],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            text=True,
        )

    def finish(self, workdir, *overrides):
        process = self.start(workdir, *overrides)
        try:
            output, _ = process.communicate()
        finally:
            process.kill()
        assert process.returncode == 0, output
        return output

    def kill_beyond(self, workdir, step, delay):
        """Start, and SIGKILL ``delay`` seconds after ``step`` was recorded; where it came."""
        file = workdir / metrics.FILE_NAME
        process = self.start(workdir, program=("-c", _ENDLESS))
        while process.poll() is None and newest_step(file) < step:
            time.sleep(0.002)
        time.sleep(delay)
        process.kill()
        output, _ = process.communicate()
        assert process.returncode == -signal.SIGKILL, output
        return newest_step(file)


@pytest.fixture(scope="module")
def runner(tiny_config_file, cache_dir):
    return Runner(tiny_config_file, cache_dir)


@pytest.fixture(scope="module")
def uninterrupted(tiny_config, compilation_cache, tmp_path_factory):
    """The same run in this process, whose compiled programs the others find."""
    workdir = tmp_path_factory.mktemp("whole")
    with compilation_cache():
        assert loop.train(tiny_config(*OVERRIDES), workdir).finished
    return workdir


def newest_step(file):
    """The last step in ``metrics.jsonl``, while it is being written."""
    if not file.exists():
        return -1
    with file.open("rb") as stream:
        stream.seek(max(0, file.stat().st_size - 4000))
        lines = stream.read().split(b"\n")[1:-1]
    return json.loads(lines[-1])["step"] if lines else 0


def final_state(workdir, experiment):
    """All arrays of the newest checkpoint."""
    with checkpoint.Checkpointer(workdir / "checkpoints", writable=False) as checkpointer:
        restored = checkpointer.restore_latest(experiment.abstract_state)
    assert restored.step == STEPS and not restored.skipped
    return jax.tree.map(np.asarray, restored.state)


def check_same(workdir, uninterrupted):
    experiment = setup.build(json.loads((workdir / "config.json").read_text()))
    found, wanted = (final_state(folder, experiment) for folder in (workdir, uninterrupted))
    jax.tree.map(np.testing.assert_array_equal, found, wanted)
    curves, expected = (
        metrics.curves(metrics.read_metrics(folder)) for folder in (workdir, uninterrupted)
    )
    assert curves["loss"][0].tolist() == list(range(1, STEPS + 1))
    for name in ("loss", "grad_norm", "optim/zclip/threshold", "eval/test/zero_shot/top1"):
        np.testing.assert_array_equal(curves[name], expected[name], err_msg=name)
    records = metrics.read_metrics(workdir)
    steps = [record["step"] for record in records if "loss" in record]
    assert len(steps) == len(set(steps)), "metrics.jsonl has a step twice"


def kill_and_finish(runner, workdir, kills, seed):
    """Kill a run ``kills`` times, then let it finish."""
    chance = random.Random(seed)
    steps = sorted(chance.sample(range(STEPS - 5), kills))
    for step in steps:
        # From within the step to the middle of the writing of a checkpoint.
        runner.kill_beyond(workdir, step, chance.uniform(0, 0.05))
    runner.finish(workdir)


def test_killed_once_ends_with_the_same_bits(runner, uninterrupted, tmp_path):
    kill_and_finish(runner, tmp_path, 1, seed=0)
    check_same(tmp_path, uninterrupted)


@pytest.mark.slow
def test_killed_ten_times_ends_with_the_same_bits(runner, uninterrupted, tmp_path):
    kill_and_finish(runner, tmp_path, 10, seed=1)
    check_same(tmp_path, uninterrupted)
