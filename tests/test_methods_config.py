"""configs/methods.py: the emoji recipe with any objective."""

import pathlib
import zlib

import jax
import numpy as np
import pytest

from jaxclip import config as config_lib
from jaxclip import fields, models, objectives
from jaxclip.data import image_ops, pipeline
from jaxclip.train import setup, towers

FILE = pathlib.Path(__file__).parents[1] / "configs" / "methods.py"


def load(arg):
    return config_lib.resolve(config_lib.load_file(f"{FILE}:{arg}"))


@pytest.mark.parametrize("name", objectives.REGISTRY.names())
def test_every_method_suits_the_recipe(name):
    config = load(name)
    total = objectives.from_config(config["objective"], config["loss"])
    assert [term.name for term in total.terms] == [name]
    wants = any(each.startswith("teacher/") for each in total.needs | total.row_needs)
    assert wants == (config["teacher"]["kind"] != "none")
    sizes = towers.model_sizes(config)
    total.check(sizes, sizes if wants else None)  # a teacher trained by the same recipe
    jax.eval_shape(models.build(sizes).init, jax.random.key(0))
    for field in total.fields.values():
        if isinstance(field, fields.View):
            image_ops.build(field.ops, config["data"]["image_size"])


@pytest.mark.parametrize("name", ["cloc", "grain", "villa"])
def test_methods_on_regions_have_scenes_of_known_boxes(name):
    config = load(name)
    assert config["data"]["name"] == "emoji"  # which evaluation goes on with
    total = objectives.from_config(config["objective"], config["loss"])
    pipeline.check_spec(config["data"], {**fields.PAIR, **total.fields})


def test_pictures_as_patches_and_stored_vectors():
    config = load("naflex")
    spec = setup.in_patches(config, towers.model_sizes(config), fields.PAIR)
    assert spec["image"] == fields.Patches("", 8, (16, 36, 64))
    pipeline.check_spec(config["data"], spec)
    config = load("mobileclip_reinforced")
    assert config["teacher"]["kind"] == "reinforced"
    assert config["objective"][0]["captions"] == "random"
    with pytest.raises(ValueError, match=r"teacher\.kind='reinforced' needs teacher.path"):
        setup.build(config, devices=jax.devices()[:1])


def test_the_unmasked_phase_is_short_and_slow():
    masked, unmasked = load("flip"), load("flip_unmasked")
    assert unmasked["objective"] == [{"name": "flip", "mask_ratio": 0.0}]
    assert unmasked["total_steps"] == masked["total_steps"] // 10
    ratio = unmasked["optim"]["learning_rate"] / masked["optim"]["learning_rate"]
    assert ratio == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("name", "terms"),
    [
        ("siglip2", ["contrastive", "locca", "tips"]),
        ("rs_m_clip", ["laclip", "silc"]),
        ("clipa_full", ["contrastive"]),
        ("basic_labels", ["class_head"]),
        ("basic_texts", ["contrastive"]),
        ("basic_both", ["contrastive"]),
    ],
)
def test_recipes_of_several_terms_and_phases(name, terms):
    config = load(name)
    total = objectives.from_config(config["objective"], config["loss"])
    assert [term.name for term in total.terms] == terms
    sizes = towers.model_sizes(config)
    total.check(sizes, sizes)
    wants = any(each.startswith("teacher/") for each in total.needs | total.row_needs)
    assert wants == (config["teacher"]["kind"] == "ema")
    # One contrast at full weight, whatever else there is.
    contrasts = [getattr(term.objective, "contrastive", 1.0) for term in total.terms]
    assert contrasts.count(1.0) == 1 and set(contrasts) <= {0.0, 1.0}


def test_siglip2_distils_in_its_last_fifth():
    config = load("siglip2")
    total = objectives.from_config(config["objective"], config["loss"])
    weight = total.terms[2].weight
    last = 0.8 * config["total_steps"]
    assert float(weight(last)) == 0.0 and float(weight(last + 1)) == pytest.approx(0.25)
    assert config["model"]["logit_bias_init"] == -10.0


def test_clipa_starts_small_and_ends_at_full_size():
    small, full = load("clipa"), load("clipa_full")
    sizes = [towers.model_sizes(config).image for config in (small, full)]
    assert [each.image_size for each in sizes] == [32, 64]
    assert {each.positions for each in sizes} == {"sincos"}  # a table of any size
    assert full["total_steps"] == small["total_steps"] // 10


def test_other_languages_are_live():
    config = load("laclip")
    total = objectives.from_config(config["objective"], config["loss"])
    seen = []

    def tokenizer(texts):
        seen.extend(texts)
        return np.ones((len(texts), 1), np.int32)

    batches = pipeline.train_iterator(
        {**config["data"], "image_size": 8, "image_ops": "resize"},
        tokenizer=tokenizer,
        global_batch_size=256,
        seed=0,
        spec={"text": total.fields["text"]},
    )
    next(batches)
    batches.close()
    foreign = [text for text in seen if set(text) & set("äöüßéèñçáíóú")]
    # A share: how many batches are made ahead depends on the machine.
    assert 0.015 < len(foreign) / len(seen) < 0.4


def test_a_batch_of_labels_holds_both_pictures_of_an_idea_with_captions_of_their_own():
    config = load("unicl")
    total = objectives.from_config(config["objective"], config["loss"])
    batches = pipeline.train_iterator(
        {**config["data"], "image_size": 8, "image_ops": "resize"},
        tokenizer=lambda texts: np.array([[zlib.crc32(text.encode())] for text in texts]),
        global_batch_size=32,
        seed=0,
        spec={**fields.PAIR, **total.fields},
    )
    batch = next(batches)
    batches.close()
    pairs = [(row, row + 1) for row in range(0, 32, 2)]
    assert all(batch["label"][a] == batch["label"][b] for a, b in pairs)
    assert len(set(batch["label"].tolist())) == 16
    assert all(batch["image"][a].tolist() != batch["image"][b].tolist() for a, b in pairs)
    assert sum(batch["text"][a].tolist() != batch["text"][b].tolist() for a, b in pairs) > 4


@pytest.mark.parametrize("name", ["mobileclip", "clip_refine", "tinyclip", "eva"])
def test_a_frozen_teacher_is_asked_for_by_its_path(name):
    with pytest.raises(ValueError, match=r"teacher\.kind='frozen' needs teacher.path"):
        setup.build(load(name), devices=jax.devices()[:1])


def test_without_a_name_it_is_the_contrastive_loss():
    config = config_lib.load_file(FILE)
    assert config["objective"] == [{"name": "contrastive"}]
