"""The benchmark of transformations, on a preset that takes seconds."""

from __future__ import annotations

import pytest

from jaxclip.bench import __main__ as bench
from jaxclip.bench import optim as bench_optim


def test_prints_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--preset", "tiny", "--rounds", "1", "--only", "zclip", "stable_spam"]
    assert bench.main(["optim", *arguments]) == 0
    printed = capsys.readouterr().out
    rows = [line.split("|")[1:-1] for line in printed.splitlines() if line.startswith("| ")]
    name, *cells = (cell.strip() for cell in rows[1])
    assert name == "zclip" and all(float(cell) > 0 for cell in cells[:3])
    assert float(cells[3]) < 0.001  # scalars
    assert float(rows[2][4]) == pytest.approx(2.0, abs=0.01)  # two moments
    percentile = printed.splitlines()[-1]
    assert "10 000 norms" in percentile and 0 < float(percentile.split()[-2]) < 100


def test_unknown_transformation_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench_optim.main(["--only", "zlip"]) == 2
    assert "'zlip'; there are: " in capsys.readouterr().err
