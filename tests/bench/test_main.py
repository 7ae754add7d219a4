"""``python -m jaxclip.bench`` finds its benchmarks."""

import ast
import pathlib

import pytest

from jaxclip.bench import __main__ as bench

FOLDER = pathlib.Path(bench.__file__).parent


def test_a_file_with_a_main_is_a_benchmark(tmp_path):
    (tmp_path / "mine.py").write_text('"""What mine costs.\n\nMore."""\ndef main(arguments): ...\n')
    (tmp_path / "helper.py").write_text('"""What mine is made of."""\n')
    (tmp_path / "_own.py").write_text("def main(): ...\n")
    (tmp_path / "broken_import.py").write_text('"""Needs it."""\nimport nowhere\ndef main(): ...\n')
    assert bench.benchmarks(tmp_path) == {"broken_import": "Needs it", "mine": "What mine costs"}


def test_each_says_what_it_measures(capsys):
    assert bench.main([]) == 0
    printed = capsys.readouterr().out
    found = bench.benchmarks()
    assert {"data", "loss", "optim", "step"} <= found.keys()
    assert not {"timing", "torch_clip", "compile_time"} & found.keys()
    for name, what in found.items():
        assert 20 < len(what) < 100 and f"{name} " in printed and what in printed


def test_an_unknown_one_is_refused_with_the_nearest(capsys):
    assert bench.main(["dat"]) == 2
    error = capsys.readouterr().err
    assert error == "jaxclip.bench: error: no benchmark 'dat'; did you mean 'data'?\n"


@pytest.mark.parametrize("name", sorted(bench.benchmarks()))
def test_its_help_is_what_its_file_says(name, capsys):
    with pytest.raises(SystemExit) as stopped:
        bench.main([name, "--help"])
    assert stopped.value.code == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"usage: python -m jaxclip.bench {name} [-h]")
    said = ast.get_docstring(ast.parse((FOLDER / f"{name}.py").read_text()))
    assert said.strip() in printed, "line by line, not as one paragraph"


@pytest.mark.parametrize("name", ["loss", "memory", "watch"])
def test_a_wrong_option_is_told(name, capsys):
    with pytest.raises(SystemExit) as stopped:
        bench.main([name, "--ronds=3"])
    assert stopped.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error == f"python -m jaxclip.bench {name}: error: unrecognized arguments: --ronds=3"
