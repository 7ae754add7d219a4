"""The benchmark of transformations, on a preset that takes seconds."""

from __future__ import annotations

import gc
import itertools

import jax.numpy as jnp
import pytest
from jax.typing import DTypeLike

from jaxclip.bench import __main__ as bench
from jaxclip.bench import compile_time
from jaxclip.bench import optim as bench_optim


def test_prints_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--preset", "tiny", "--rounds", "1", "--system_malloc"]
    assert bench.main(["optim", *arguments, "--only", "zclip", "stable_spam"]) == 0
    printed = capsys.readouterr().out
    rows = [line.split("|")[1:-1] for line in printed.splitlines() if line.startswith("| ")]
    name, *cells = (cell.strip() for cell in rows[1])
    assert name == "zclip" and all(float(cell) > 0 for cell in cells[:3])
    assert float(cells[3]) < 0.001  # scalars
    assert float(rows[2][4]) == pytest.approx(2.0, abs=0.01)  # two moments
    percentile = printed.splitlines()[-1]
    assert "10 000 norms" in percentile and 0 < float(percentile.split()[-2]) < 100


def test_unknown_transformation_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench_optim.main(["--system_malloc", "--only", "zlip"]) == 2
    assert "'zlip'; did you mean 'zclip'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name",
    [
        "(one read)",
        "dicesgd",
        "track_clipping_quantile",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in bench_optim.NAMES
            if name not in ("(one read)", "dicesgd", "track_clipping_quantile")
        ),
    ],
)
def test_a_row_is_measured(name: str) -> None:
    params = {"kernel": jnp.ones((64, 64)), "bias": jnp.ones(64)}
    result = bench_optim.measure(name, params, rounds=1)
    assert result.ratio > 0 and result.cpu_ratio > 0
    # Two moments; of bfloat16 parameters float32 ones count twice, and Kahan's compensation once.
    copies = {"kahan_summation(adamw)": 5, "stochastic_rounding(adamw)": 4}.get(name, 2)
    # Histories are large beside these tensors: AutoClip's of 10 000 norms, 2 x 128 of spikes.
    assert name == "autoclip" or 0 <= result.state_copies < copies + 0.1


def test_compile_time_is_a_ratio_to_optax(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of made-up times: three seconds, and two of what it is compared with."""
    compile_seconds, times = compile_time.compile_seconds, itertools.cycle((2.0, 3.0))

    def made_up(make: compile_time.Make, tensors: int, dtype: DTypeLike) -> float:
        assert compile_seconds(make, tensors, dtype) > 0
        return 9.0 if tensors == 1 else next(times)  # the first one warms up

    monkeypatch.setattr(compile_time, "compile_seconds", made_up)
    monkeypatch.setattr(compile_time, "REPEATS", 1)
    # Before each it collects garbage, and this process holds all that other tests compiled.
    monkeypatch.setattr(gc, "collect", lambda: 0)
    arguments = ["--compile_tensors", "2", "--only", "zclip", "stable_adamw"]
    assert bench.main(["optim", *arguments]) == 0
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[1].strip() for row in rows] == ["clip_by_global_norm", "adamw"]
    for row in rows:
        assert [float(number) for number in row[2].split(",")] == [3.0, 1.5]
