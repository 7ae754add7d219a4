"""``jaxclip weights prune`` by the Hessian and by a task, and a pruned model that trains on."""

import numpy as np
import pytest

import jaxclip
from jaxclip import cli
from jaxclip import config as config_lib
from jaxclip.train import init_from, loop


@pytest.mark.slow
@pytest.mark.parametrize("score", ["hap", "mope"])
def test_a_run_is_pruned_and_distilled(trained, tiny_config, tmp_path, score, capsys):
    small, tuned = tmp_path / "small", tmp_path / "tuned"
    task = ("--task", "retrieval split=test") if score == "mope" else ()
    arguments = ["--from", str(trained), "--to", str(small), "--score", score, *task]
    arguments += ["--keep_heads", "0.5", "--keep_units", "0.5"]
    assert cli.main(["weights", "prune", *arguments]) == 0
    assert "heads 2 -> 1, MLP 32 -> 16, layers 1 -> 1" in capsys.readouterr().out
    model = jaxclip.load(small)
    assert model.sizes.image.head_dim == model.sizes.text.head_dim == 8
    found = init_from.open_source(small).config
    config = tiny_config("ema_decay=0.0", "checkpoint.best_metric=")
    changes = {
        "model": found["model"],
        "init_from": str(small),
        "teacher": {"kind": "frozen", "path": str(trained)},
        "objective": [
            {"name": "contrastive"},
            {"name": "affinity", "scale": None, "teacher_scale": None},
        ],
        "total_steps": 10,
    }
    config = config_lib.resolve({**config, **changes})
    assert loop.train(config, tuned).finished
    picture = np.zeros((1, 16, 16, 3), np.uint8)
    assert np.isfinite(jaxclip.load(tuned).encode_image(picture)).all()
