"""The benchmark of meshes knows all meshes and refuses those that are none."""

import math

import pytest

from jaxclip.bench import mesh


def test_meshes():
    shapes = mesh.meshes(8)
    assert len(shapes) == len(set(shapes)) == 10
    assert shapes[0] == (8, 1, 1) and all(math.prod(s) == 8 for s in shapes)
    assert mesh.meshes(1) == [(1, 1, 1)]


def test_the_sharding_that_uses_the_axes():
    shapes = [(8, 1, 1), (2, 4, 1), (2, 1, 4), (2, 2, 2)]
    assert [mesh.sharding_of(s) for s in shapes] == ["dp", "fsdp", "tp", "fsdp+tp"]


@pytest.mark.parametrize(
    ("text", "message"), [("8x1", "'8x1' is not of the form"), ("3x1x1", "wants 3 devices")]
)
def test_meshes_that_are_none(text, message, capsys):
    with pytest.raises(SystemExit) as exit_:
        mesh.main(["--meshes", text])
    assert exit_.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.slow
def test_every_mesh_and_micro_batch_is_in_the_table(capsys):
    arguments = ["--batch_size", "16", "--rounds", "1", "--meshes", "8x1x1,2x2x2"]
    tower = ["width=16", "depth=1", "num_heads=2", "mlp_dim=32"]
    overrides = [f"model.{name}.{field}" for name in ("image", "text") for field in tower]
    assert mesh.main([*arguments, "--micro_batches", "1,2", *overrides]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum("| fsdp+tp " in line for line in lines) == 2
    assert sum("| dp " in line for line in lines) == 2
