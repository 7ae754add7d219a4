"""Training a NaFlex tower on batches of patches."""

import json

import jax
import numpy as np
import pytest

from jaxclip import config as config_lib
from jaxclip.data import patch_sequence
from jaxclip.train import dry_run, loop, outputs, setup
from tests.models import small

TOWER = {"width": 16, "depth": 1, "num_heads": 2, "mlp_dim": 32}
CONFIG = {
    "total_steps": 4,
    "global_batch_size": 8,
    "data": {"image_size": 16},
    "tokenizer": {"context_length": 8},
    "model": {
        "image": {**TOWER, "patch_size": 4, "max_patches": 16, "pool": "map"},
        "text": {**TOWER, "vocab_size": 64},
        "embed_dim": 16,
    },
    "optim": {"clip": "none", "schedule": {"name": "constant", "warmup_steps": 0}},
}


def build(**data):
    config = config_lib.resolve({**CONFIG, "data": {**CONFIG["data"], **data}})
    return setup.build(config, devices=jax.devices()[:1])


def as_patches(batch, count):
    pairs = [patch_sequence.cut(image, 4, count) for image in batch["image"]]
    return {
        **batch,
        "image": np.stack([patches for patches, _, _ in pairs]),
        "image_grid": np.stack([grid for _, _, grid in pairs]),
    }


def test_patches_of_squares_are_embedded_as_squares_whatever_the_padding():
    experiment = build(patch_counts=[16, 25])
    assert list(experiment.batch_spec) == ["image", "image_grid", "text"]
    assert experiment.abstract_batch()["image"].shape == (8, 25, 48)
    params = small.params_for(experiment.model)
    pixels = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), np.uint8)
    made = as_patches({"image": pixels}, 16)
    padded = np.pad(made["image"], [(0, 0), (0, 9), (0, 0)], constant_values=77)

    @jax.jit
    def run(params, *views):
        return [experiment.towers.encode(params, "image", view) for view in views]

    inputs = [outputs.tower_input({**made, "image": x}, "image") for x in (made["image"], padded)]
    squares, *patches = run(params, pixels, *inputs)
    for found in patches:
        np.testing.assert_allclose(found, squares, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_square_pictures_train_as_without_patches_whatever_the_padding():
    experiment = build()
    batch = dry_run.made_up_batch(experiment.config, experiment.batch_spec)
    _, metrics = experiment.train_step(experiment.init_state(), batch)
    loss, norm = float(metrics["loss"]), float(metrics["grad_norm"])
    experiment = build(patch_counts=[16, 25])
    for count in (16, 25):
        made = as_patches(batch, 16)
        padding = [(0, 0), (0, count - 16), (0, 0)]
        made["image"] = np.pad(made["image"], padding, constant_values=77 if count > 16 else 0)
        _, metrics = experiment.train_step(experiment.init_state(), made)
        assert float(metrics["loss"]) == pytest.approx(loss, rel=1e-5)
        assert float(metrics["grad_norm"]) == pytest.approx(norm, rel=1e-4)


def test_a_tower_of_squares_refuses_patches():
    config = {**CONFIG, "data": {"image_size": 16, "patch_counts": [16]}}
    image = {**TOWER, "patch_size": 4}
    config["model"] = {**CONFIG["model"], "image": image}
    with pytest.raises(ValueError, match=r"data.patch_counts=\[16\] is for image towers that take"):
        setup.build(config_lib.resolve(config), devices=jax.devices()[:1])


@pytest.mark.slow
def test_a_run_with_several_counts_trains(tmp_path):
    config = {
        **CONFIG,
        "total_steps": 12,
        "global_batch_size": 16,
        "data": {"image_size": 16, "image_ops": "random_part", "patch_counts": [4, 9, 16]},
        "model": {"image": CONFIG["model"]["image"], "text": TOWER, "embed_dim": 16},
        "watch": {"enabled": True, "probe_every_steps": 4},
        "evaluate": {"zero_shot": ["test_concept"]},
        "num_micro_batches": 2,
    }
    result = loop.train(config_lib.resolve(config), tmp_path / "run")
    assert result.finished
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    logged = {key: value for line in lines for key, value in json.loads(line).items()}
    assert 0 <= logged["eval/test_concept/zero_shot/top5"] <= 1
    assert logged["watch/attention_logit_image"] > 0


@pytest.mark.parametrize("name", ["filip", "sparc"])
def test_terms_that_would_take_padding_for_patches_are_refused(name):
    config = {**CONFIG, "data": {"image_size": 16, "patch_counts": [16]}}
    config["objective"] = [{"name": name}]
    with pytest.raises(
        ValueError, match=rf"'{name}' reads 'image_tokens'.*pads pictures; set data"
    ):
        setup.build(config_lib.resolve(config), devices=jax.devices()[:1])
