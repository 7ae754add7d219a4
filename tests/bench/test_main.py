"""``python -m jaxclip.bench`` finds its benchmarks."""

import pytest

from jaxclip.bench import __main__ as bench


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


@pytest.mark.parametrize("name", ["loss", "step", "optim"])
def test_it_hands_the_options_on(name, capsys):
    with pytest.raises(SystemExit) as stopped:
        bench.main([name, "--help"])
    assert stopped.value.code == 0
    assert "usage" in capsys.readouterr().out
