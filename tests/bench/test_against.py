"""This tree against another checkout."""

import pathlib

import pytest

from jaxclip.bench import against

ROOT = pathlib.Path(__file__).parents[2]


def test_a_folder_that_is_no_checkout_is_refused(tmp_path, capsys):
    assert against.main(["--tree", str(tmp_path)]) == 2
    assert f"{tmp_path} is no checkout of jaxclip" in capsys.readouterr().err


@pytest.mark.slow
def test_a_tree_against_itself_computes_the_same(capsys):
    options = ["--steps", "120", "--rounds", "1"]
    assert against.main(["--tree", str(ROOT), *options, "--ours", "log_every_steps=20"]) == 0
    lines = capsys.readouterr().out.splitlines()
    losses = {line.rpartition("|")[0].rpartition("|")[2].strip() for line in lines[-2:]}
    assert len(losses) == 1 and float(losses.pop()) > 0
