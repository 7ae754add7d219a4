"""``jaxclip sharpness``: mistakes in one line, and the files of a run."""

import json

import numpy as np
import pytest

from jaxclip import cli
from jaxclip.lab import sharpness as lab
from jaxclip.train.fixed_batches import fixed_batches


def test_mistakes_are_one_line(trained, tmp_path, capsys):
    small = ["--batch_size", "16", "--batches", "1"]
    assert cli.main(["sharpness", "--workdir", str(trained), "--batch_size", "100"]) == 2
    assert cli.main(["sharpness", "--workdir", str(trained), "--batches", "0"]) == 2
    assert cli.main(["sharpness", "--workdir", str(trained), "--split", "tset", *small]) == 2
    assert cli.main(["sharpness", "--workdir", str(tmp_path / "none")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].endswith("fewer than a batch of 100; use a batch size of 48 or less")
    assert lines[1] == "jaxclip: error: --batches 0 must be at least 1"
    assert "did you mean 'test'" in lines[2]
    assert "there is no such folder" in lines[3] and len(lines) == 4


def test_batches_are_fixed_and_shuffled(tiny_config):
    config = tiny_config()
    one, two = (fixed_batches(config, "train", 9, 16, seed=3) for _ in range(2))
    assert one["image"].shape == (3, 16, 16, 16, 3) and one["text"].shape == (3, 16, 8)
    for name in one:
        np.testing.assert_array_equal(one[name], two[name])
    other = fixed_batches(config, "train", 9, 16, seed=4)
    assert not np.array_equal(one["image"], other["image"])
    assert len(np.unique(one["image"].reshape(48, -1), axis=0)) == 48  # each record once


def test_what_is_measured_is_said(trained, tmp_path, monkeypatch, caplog):
    """It takes minutes, most of which go by in the compiler."""
    for name in ("adaptive", "directions", "traces", "landscape"):
        monkeypatch.setattr(lab.Sharpness, name, lambda *args, name=name: {"is": name})
    monkeypatch.setattr(lab.sharpness_page, "write", lambda result, folder: folder)
    monkeypatch.setattr(lab.sharpness_page, "table", lambda result: [])
    caplog.set_level("INFO", "jaxclip")
    arguments = ["sharpness", "--workdir", str(trained), "--batch_size", "16", "--batches", "1"]
    assert cli.main([*arguments, "--landscape", "--to", str(tmp_path / "to")]) == 0
    said = [line for line in caplog.messages if " of 5: " in line]
    assert said[0] == "1 of 5: loss" and said[3:] == [
        "4 of 5: trace of the Hessian",
        "5 of 5: landscape",
    ]
    found = json.loads((tmp_path / "to" / "sharpness.json").read_text())
    assert found["trace"] == {"is": "traces"} and found["landscape"] == {"is": "landscape"}


@pytest.mark.slow
def test_a_run_and_the_way_from_another(trained, tiny_config, tmp_path, capsys):
    from jaxclip.train import loop

    other = tmp_path / "other"
    loop.train(tiny_config("seed=1", "total_steps=2", "checkpoint.best_metric="), other)
    arguments = ["sharpness", "--workdir", str(trained), "--batch_size", "16", "--batches", "2"]
    arguments += ["--probes", "2", "--places", "3", "--landscape"]
    assert cli.main([*arguments, "--to", str(tmp_path / "alone")]) == 0
    printed = capsys.readouterr().out
    assert "adaptive sharpness, worst, radius 0.5" in printed
    found = json.loads((tmp_path / "alone" / "sharpness.json").read_text())
    slices = found["landscape"]
    np.testing.assert_allclose(slices["plane"]["loss"][1][1], found["loss"], rtol=1e-5)
    np.testing.assert_allclose(slices["slice"]["loss"][25], found["loss"], rtol=1e-5)
    worst = [value for _, value in found["adaptive"]["worst"]]
    assert 0 < worst[0] < worst[1] < worst[2]
    assert found["trace"].keys() >= {"image/blocks_0", "text/blocks_0", "image/projection"}
    assert cli.main([*arguments, "--between", str(other), "--to", str(tmp_path / "both")]) == 0
    found = json.loads((tmp_path / "both" / "sharpness.json").read_text())
    line = found["between"]["line"]
    np.testing.assert_allclose(line["loss"][-1], found["loss"], rtol=1e-5)
    curve = found["landscape"]["between"]
    at = [int(np.argmin(np.abs(np.array(curve["x"]) - x))) for x in (0, 1)]
    assert abs(curve["loss"][at[1]] - line["loss"][-1]) < 0.05
    for folder in ("alone", "both"):
        names = {path.name for path in (tmp_path / folder).iterdir()}
        assert names == {"sharpness.json", "sharpness.png", "landscape.png", "index.html"}
    slim = tmp_path / "slim"
    config = tiny_config("model.image.mlp_dim=16", "total_steps=2", "checkpoint.best_metric=")
    loop.train(config, slim)
    capsys.readouterr()
    assert cli.main([*arguments, "--between", str(slim)]) == 2
    assert "only models of one architecture" in capsys.readouterr().err
