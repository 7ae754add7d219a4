"""configs/methods.py: the emoji recipe with any objective."""

import pathlib

import pytest

from jaxclip import config as config_lib
from jaxclip import fields, objectives
from jaxclip.data import image_ops
from jaxclip.train import towers

FILE = pathlib.Path(__file__).parents[1] / "configs" / "methods.py"


def load(arg):
    return config_lib.resolve(config_lib.load_file(f"{FILE}:{arg}"))


@pytest.mark.parametrize("name", objectives.REGISTRY.names())
def test_every_method_suits_the_recipe(name):
    config = load(name)
    total = objectives.from_config(config["objective"], config["loss"])
    assert [term.name for term in total.terms] == [name]
    sizes = towers.model_sizes(config)
    if not any(each.startswith("teacher/") for each in total.needs | total.row_needs):
        total.check(sizes)
    for field in total.fields.values():
        if isinstance(field, fields.View):
            image_ops.build(field.ops, config["data"]["image_size"])


def test_the_unmasked_phase_is_short_and_slow():
    masked, unmasked = load("flip"), load("flip_unmasked")
    assert unmasked["objective"] == [{"name": "flip", "mask_ratio": 0.0}]
    assert unmasked["total_steps"] == masked["total_steps"] // 10
    ratio = unmasked["optim"]["learning_rate"] / masked["optim"]["learning_rate"]
    assert ratio == pytest.approx(0.1)


def test_without_a_name_it_is_the_contrastive_loss():
    config = config_lib.load_file(FILE)
    assert config["objective"] == [{"name": "contrastive"}]
