"""Pictures that fool a model, shown to others: rates of those that were right."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip import config as config_lib
from jaxclip.bench import transfer
from jaxclip.lab import config as lab_config
from jaxclip.lab import data


@pytest.mark.parametrize("argv", [["--steps", "10"], ["--seeds", "0"], ["--radius", "0"]])
def test_what_can_not_be_is_refused(argv, capsys):
    with pytest.raises(SystemExit) as stopped:
        transfer.main(argv)
    assert stopped.value.code == 2 and "must be at least 60" in capsys.readouterr().err


def test_the_table(monkeypatch, capsys):
    victims = {name: [0.25, 0.75] for name in transfer.VICTIMS}
    found = {"random signs": victims, "AdamW": victims}
    right = {"AdamW": [0.5, 0.5], "victim, same towers": [0.6, 0.6]}
    monkeypatch.setattr(transfer, "measure", lambda *args: (found, right))
    assert transfer.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    row = next(line for line in lines if line.startswith("| AdamW"))
    assert row.count("50.0 ± 35.4%") == 3 and "50.0 ± 0.0%" in row
    assert lines[-1] == "victim, same towers: 60.0 ± 0.0% right of the pictures as they are"


@pytest.mark.slow
def test_a_model_is_fooled_by_its_own_pictures():
    config = config_lib.resolve({**lab_config.TRAIN, "total_steps": 150})
    pairs = data.load(config, config["data"]["train_split"])
    models = transfer.Models(pairs, rho=0.05, steps=150)
    params, loss = models.train(0)
    assert loss < 3.0  # of ln 32 = 3.47 for chance
    images, tokens = jnp.asarray(pairs.images[:64]), jnp.asarray(pairs.tokens[:64])
    before = models.right(params, images, tokens)
    changed = models.fool(params, images, tokens, 8.0, jax.random.key(0))
    assert np.abs(np.asarray(changed) - np.asarray(images, np.float32)).max() <= 8 + 1e-4
    noisy = images + 8.0 * jax.random.rademacher(jax.random.key(1), images.shape, jnp.float32)
    own, noise = (
        float(transfer.attack.success_rate(before, models.right(params, x, tokens)))
        for x in (changed, jnp.clip(noisy, 0, 255))
    )
    assert own > 0.5 > noise
    again, _ = models.train(0)
    jax.tree.map(np.testing.assert_array_equal, params, again)
