"""Presets against published parameter counts, and what a configuration refuses."""

import dataclasses
import json

import jax
import pytest

from jaxclip import models
from jaxclip.models import presets

# Millions of parameters (all, image tower, text tower) as in docs/model_profile.csv of OpenCLIP.
# It counts logit_scale and logit_bias with no tower.
PUBLISHED = {
    "vit_s32": (63.09, 22.64, 40.44),
    "vit_s16": (62.26, 21.81, 40.44),
    "vit_b32": (151.28, 87.85, 63.43),
    "vit_b32_quickgelu": (151.28, 87.85, 63.43),
    "vit_b16": (149.62, 86.19, 63.43),
    "vit_b16_quickgelu": (149.62, 86.19, 63.43),
    "vit_l14": (427.62, 303.97, 123.65),
    "vit_l14_quickgelu": (427.62, 303.97, 123.65),
    "vit_l14_336": (427.94, 304.29, 123.65),
    "vit_l14_336_quickgelu": (427.94, 304.29, 123.65),
    "vit_h14": (986.11, 632.08, 354.03),
    "vit_g14": (1366.68, 1012.65, 354.03),
    "vit_bigg14": (2539.57, 1844.91, 694.66),
    "siglip_b16": (203.16, 92.88, 110.27),
    "siglip_b16_256": (203.20, 92.93, 110.27),
    "siglip_b16_384": (203.45, 93.18, 110.27),
    "siglip_l16_256": (652.15, 315.96, 336.19),
    "siglip_l16_384": (652.48, 316.28, 336.19),
    "siglip_so400m_14": (877.36, 427.68, 449.68),
    "siglip_so400m_14_384": (877.96, 428.23, 449.73),
    # Of transformers' Siglip2Model.
    "siglip2_b16_naflex": (375.23, 92.93, 282.30),
    "siglip2_so400m_16_naflex": (1135.67, 427.89, 707.78),
    # Of open_clip's CoCa, without the decoder, which the objective keeps.
    "coca_vit_b32": (152.59, 89.16, 63.43),
    "coca_vit_l14": (430.38, 306.72, 123.65),
    "coca_base": (221.06, 86.40, 134.66),
    # Of open_clip with transformers' RoBERTa.
    "roberta_vit_b32": (212.72, 87.85, 124.87),
    "xlm_roberta_base_vit_b32": (366.12, 87.85, 278.27),
    "xlm_roberta_large_vit_h14": (1193.01, 632.08, 560.94),
}


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("name", presets.names())
def test_parameter_counts_are_the_published_ones(name):
    # tiny is our own; it is to stay small.
    published = (2.84, 1.88, 0.96) if name == "tiny" else PUBLISHED[name]
    params = jax.eval_shape(models.build(presets.get(name)).init, jax.random.key(0))
    millions = tuple(count(t) / 1e6 for t in (params, params["image"], params["text"]))
    # Half a unit of the last published digit.
    assert millions == pytest.approx(published, abs=0.005)


def test_every_published_count_has_its_preset():
    assert set(PUBLISHED) == set(presets.names()) - {"tiny"}


@pytest.mark.parametrize("name", ["vit_b16", "siglip_b16"])
def test_a_configuration_survives_json(name):
    config = dataclasses.replace(presets.get(name), embed_dim=768)
    config = dataclasses.replace(
        config,
        image=dataclasses.replace(config.image, stem="conv", stem_widths=(32, 64), stem_depth=2),
    )
    assert presets.CLIPConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_unknown_names_get_a_hint():
    with pytest.raises(ValueError, match="did you mean 'vit_b16'"):
        presets.get("vit_b_16")
    with pytest.raises(ValueError, match=r"model\.image\.patchsize; did you mean 'patch_size'"):
        presets.CLIPConfig.from_dict({"image": {"patchsize": 8}})
    with pytest.raises(ValueError, match=r"unknown field model\.embeddim; did you mean"):
        presets.CLIPConfig.from_dict({"embeddim": 8})


@pytest.mark.parametrize(
    ("tower", "fields", "message"),
    [
        ("image", {"image_size": 64, "patch_size": 14}, r"does not divide image_size=64; use 4 or"),
        ("image", {"width": 100, "num_heads": 3}, r"image\.num_heads=3 does not divide width=100"),
        ("text", {"width": 100, "num_heads": 3}, r"text\.num_heads=3 does not divide width=100"),
        ("image", {"pool": "max"}, r"model\.image\.pool='max'; use 'cls'"),
        ("image", {"stem": "conv", "stem_widths": ()}, r"stem_widths=\(\)"),
        ("image", {"patch_size": 8, "stem": "conv", "stem_widths": (8,) * 5}, r"patch_size=8"),
        ("image", {"positions": "sincos", "width": 6, "num_heads": 1}, "divisible by 4"),
        ("image", {"activation": "relu"}, r"model\.image\.activation='relu'"),
        ("text", {"pool": "cls"}, r"model\.text\.pool='cls'"),
        ("text", {"projection": "none"}, r"model\.text\.projection='none'"),
    ],
)
def test_bad_fields_are_refused_before_anything_is_built(tower, fields, message):
    with pytest.raises(ValueError, match=message):
        presets.CLIPConfig.from_dict({tower: fields})


def test_no_projection_needs_equal_widths():
    with pytest.raises(ValueError, match=r"width=768 equal to model\.embed_dim=512"):
        presets.CLIPConfig.from_dict({"image": {"projection": "none"}})
