"""CLIP with Hoyer's penalty on the MLPs' activations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip import parallel
from jaxclip.objectives import hoyer
from jaxclip.objectives.hoyer import Hoyer
from jaxclip.train import dry_run
from tests.objectives import battery
from tests.objectives import fixture_g as g


def outputs(image, text):
    """The pairs of fixture G with sums of some blocks, each [blocks][rows][2]."""
    sums = {"image": image, "text": text}
    arrays = {
        f"{tower}_activation_sums": jnp.array(rows, jnp.float32).reshape(-1, 3, 2).swapaxes(0, 1)
        for tower, rows in sums.items()
    }
    return {"image": g.I, "text": g.T, **arrays}


def test_value_of_the_specification():
    """Activations 3 and 4: 7² / 25 is 1.96 and the threshold 25 / 7, however rows share them."""
    ratio, threshold = hoyer.ratios(jnp.array([[7.0, 25.0]]))
    assert float(ratio[0]) == pytest.approx(1.96, rel=1e-6)
    assert float(threshold[0]) == pytest.approx(3.571429, rel=1e-6)
    split = [[[3.0, 9.0], [4.0, 16.0], [0.0, 0.0]]]
    loss, metrics, _ = g.value(Hoyer(penalty=0.5), outputs(split, split))
    assert float(loss) == pytest.approx(0.1081597 + 0.5 * 2 * 1.96, rel=1e-5)
    assert float(metrics["hoyer"]) == pytest.approx(2 * 1.96, rel=1e-6)
    assert float(metrics["hoyer_threshold"]) == pytest.approx(25 / 7, rel=1e-6)


def test_blocks_have_ratios_of_their_own():
    """Pooled, these two would have (2 + 4)² / (1 + 16)."""
    blocks = [[[2.0, 1.0], [0, 0], [0, 0]], [[4.0, 16.0], [0, 0], [0, 0]]]
    _, metrics, _ = g.value(Hoyer(), outputs(blocks, []))
    assert float(metrics["hoyer"]) == pytest.approx(4 + 1, rel=1e-6)
    assert float(metrics["hoyer_threshold"]) == pytest.approx((0.5 + 4) / 2, rel=1e-6)


def test_nothing_on_is_nothing():
    for sums in ([], np.zeros((2, 3, 2))):
        loss, metrics, _ = g.value(Hoyer(penalty=1e3), outputs(sums, sums))
        assert float(loss) == pytest.approx(0.1081597, rel=1e-5)
        assert float(metrics["hoyer"]) == float(metrics["hoyer_threshold"]) == 0.0
    gradient = jax.grad(lambda sums: hoyer.ratios(sums)[0].sum())(jnp.zeros((2, 2)))
    np.testing.assert_array_equal(gradient, 0.0)


def test_gradient_is_that_of_the_formula():
    def reference(x, _):
        blocks = [x[f"{tower}_activation_sums"].sum(0) for tower in ("image", "text")]
        h = sum((each[:, 0] ** 2 / each[:, 1]).sum() for each in blocks)
        return 0.5 * g.clip(x["image"], x["text"], 10.0) + 0.01 * h

    rng = np.random.default_rng(0)
    sums = {
        f"{tower}_activation_sums": jnp.asarray(rng.uniform(0.5, 2.0, (3, 2, 2)), jnp.float32)
        for tower in ("image", "text")
    }
    objective = Hoyer(contrastive=0.5, penalty=0.01)
    given = {**g.random_rows("image", "text"), **sums}
    g.check_gradient(objective, given, reference)


def test_training_with_a_large_penalty_lowers_it():
    term = {"name": "hoyer", "contrastive": 0.0, "penalty": 1e-3}
    optim = {**battery.BASE["optim"], "learning_rate": 0.1}
    experiment = battery.experiment_of(["hoyer"], objective=[term], optim=optim)
    state, found = battery.first_state(experiment), []
    batch = dry_run.made_up_batch(experiment.config, experiment.batch_spec)
    batch = parallel.to_global(batch, experiment.mesh)
    for _ in range(10):
        state, metrics = experiment.train_step(state, batch)
        found.append(float(metrics["hoyer/hoyer"]))
    assert metrics["nonfinite_count"] == 0
    assert found[-1] < 0.8 * found[0], found


def test_bad_options_are_refused():
    with pytest.raises(ValueError, match=r"hoyer.penalty=-1 must be a number of at least 0"):
        Hoyer(penalty=-1)
    with pytest.raises(ValueError, match=r"hoyer.implementation='fast'; use 'plain' or"):
        Hoyer(implementation="fast")
