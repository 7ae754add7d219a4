"""TrAct's first layer in training: exact on any number of devices and micro-batches."""

import copy

import jax
import numpy as np
import pytest

from jaxclip import config as config_lib
from jaxclip import parallel
from jaxclip.train import dry_run, setup
from tests.objectives.battery import BASE


def build(devices, first_layer="tract", **given):
    config = copy.deepcopy(BASE)
    config["model"]["image"]["first_layer"] = first_layer
    return setup.build(config_lib.resolve({**config, **given}), devices=jax.devices()[:devices])


def step(experiment, start):
    batch = dry_run.made_up_batch(experiment.config, experiment.batch_spec)
    batch = parallel.to_global(batch, experiment.mesh)
    state, _ = experiment.train_step(jax.device_put(start, experiment.state_shardings), batch)
    return jax.tree.map(np.asarray, state.params)


def test_devices_change_nothing(compilation_cache):
    with compilation_cache():
        experiments = build(1), build(8), build(1, "plain")
        start = jax.tree.map(np.asarray, experiments[0].init_state())
        one, eight, plain = (step(experiment, start) for experiment in experiments)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5), one, eight)
    kernels = [params["image"]["patch_embedding"].pop("kernel") for params in (one, plain)]
    assert np.abs(kernels[0] - kernels[1]).max() > 1e-3
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), one, plain)


def test_micro_batches_change_nothing(compilation_cache):
    """The gradient is whitened by the patches of the whole batch."""
    with compilation_cache():
        whole, parts = build(2), build(2, num_micro_batches=4)
        start = jax.tree.map(np.asarray, whole.init_state())
        one, other = (step(experiment, start) for experiment in (whole, parts))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5), one, other)


def test_several_views_with_micro_batches_are_refused():
    slip = [{"name": "slip"}]
    with pytest.raises(ValueError, match=r"num_micro_batches=4: .*first_layer='tract'.* use num_m"):
        build(1, num_micro_batches=4, objective=slip)
    build(1, "plain", num_micro_batches=4, objective=slip)
