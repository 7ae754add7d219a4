"""Outputs by name, on towers that are made up."""

import types

import jax
import jax.numpy as jnp
import numpy as np

from jaxclip import models
from jaxclip.train import outputs
from jaxclip.train import towers as towers_lib
from tests.objectives import fixture_g

SIZES = models.CLIPConfig(models.ImageConfig(width=4, num_heads=1, depth=2))
IMAGES = jnp.arange(2 * 4 * 4 * 3, dtype=jnp.uint8).reshape(2, 4, 4, 3)
TEXTS = jnp.array([[3, 1], [2, 0]], jnp.int32)
BATCH = {"image": IMAGES, "view1/image": IMAGES + 1, "text": TEXTS}


class Towers:
    """Records how it is run; its attention of block b is b + 1 everywhere."""

    sizes = SIZES

    def __init__(self):
        self.runs = []

    def encode(self, params, tower, array):
        self.runs.append((tower, {}))
        return jnp.ones((len(array), 3))

    def features(self, params, tower, array, **options):
        self.runs.append((tower, options))
        maps = {b: jnp.full((len(array), 2, 5, 5), b + 1.0) for b in options.get("attention", ())}
        return types.SimpleNamespace(embedding=jnp.ones((len(array), 3)), attention=maps)

    def train_options(self, tower, keys):
        return {}


def nothing(tower, view, of_teacher):
    return {}


def test_the_input_of_a_tower_is_an_output_and_runs_nothing():
    towers = Towers()
    made = outputs.compute({"text_input", "view1/image_input"}, BATCH, towers, {}, nothing)
    np.testing.assert_array_equal(made["text_input"], TEXTS)
    np.testing.assert_array_equal(made["view1/image_input"], IMAGES + 1)
    assert towers.runs == []
    made = outputs.compute({"text_input", "text"}, BATCH, towers, {}, nothing)
    assert set(made) == {"text_input", "text"} and towers.runs == [("text", {})]


def test_attention_without_a_number_is_the_mean_over_blocks_and_heads():
    towers = Towers()
    names = {"image_attention", "image_attention_1"}
    made = outputs.compute(names, BATCH, towers, {}, nothing)
    np.testing.assert_array_equal(made["image_attention"], np.full((2, 5, 5), 1.5))
    np.testing.assert_array_equal(made["image_attention_1"], np.full((2, 2, 5, 5), 2.0))
    assert towers.runs == [("image", {"attention": (0, 1)})]


def test_how_a_tower_runs_may_depend_on_what_the_teacher_saw():
    own, teacher = Towers(), Towers()
    seen = {}

    def options(tower, view, of_teacher):
        seen[view] = set(of_teacher)
        return {"keep": of_teacher["teacher/view1/image_attention"][:, 0, 1:3].astype(int)}

    names = {"image", "view1/image", "teacher/view1/image_attention"}
    made = outputs.compute(
        names, BATCH, own, {}, options, teacher=outputs.Teacher(teacher), teacher_params={}
    )
    assert seen == {view: {"teacher/view1/image_attention"} for view in ("image", "view1/image")}
    assert set(made) == names
    assert [sorted(how) for _, how in own.runs] == [["keep"], ["keep"]]
    assert teacher.runs == [("image", {"attention": (0, 1)})]


def test_the_only_patch_in_the_joint_space_is_the_picture():
    image = models.ImageConfig(
        image_size=4, patch_size=4, width=8, num_heads=2, depth=1, mlp_dim=8, pool="map"
    )
    text = models.TextConfig(
        vocab_size=8, context_length=4, width=8, num_heads=2, depth=1, mlp_dim=8
    )
    model = models.build(models.CLIPConfig(image, text, embed_dim=6))
    towers = towers_lib.ModelTowers(model, (0.5,) * 3, (0.25,) * 3, "float32")
    names = {"image_projected", "image_raw", "text_projected"}

    run = jax.jit(lambda params: outputs.compute(names, BATCH, towers, params, nothing))
    made = run(fixture_g.drawn(model.init))
    np.testing.assert_allclose(made["image_projected"][:, 0], made["image_raw"], atol=1e-6)
    assert made["text_projected"].shape == (2, 2, 6)
