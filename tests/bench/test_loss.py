"""The benchmark of the losses runs, and prints what it says."""

import re

import jax
import pytest

from jaxclip import parallel
from jaxclip.bench import loss


def test_times_and_memory_of_each_loss(capsys):
    assert loss.main(["--sizes", "64", "--width", "8", "--tile_size", "16", "--rounds", "1"]) == 0
    rows = re.findall(
        r"\| (softmax|sigmoid) +\| 64 +\| ([\d.]+) +\| ([\d.]+)", capsys.readouterr().out
    )
    assert [row[0] for row in rows] == ["softmax", "sigmoid"]
    assert all(float(ms) > 0 for row in rows for ms in row[1:])


def test_memory_of_a_loss_is_a_devices_share():
    mesh = parallel.make_mesh({"data": 2}, devices=jax.devices()[:2])
    plain = loss.temporary_bytes("sigmoid", mesh, 512, 8)
    blockwise = loss.temporary_bytes("sigmoid_blockwise", mesh, 512, 8, tile_size=32)
    assert blockwise < plain / 4


def test_sizes_that_are_no_numbers_are_refused(capsys):
    with pytest.raises(SystemExit) as exit_:
        loss.main(["--sizes", "1k"])
    assert exit_.value.code == 2 and "'1k' are no numbers" in capsys.readouterr().err
