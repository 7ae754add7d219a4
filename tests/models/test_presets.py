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
}
# Counted in open_clip 3.3's own models, without the statistics of batch norms.
RESNETS = {
    "rn50": (102.01, 38.32, 63.69),
    "rn101": (119.69, 56.26, 63.43),
    "rn50x4": (178.30, 87.14, 91.16),
    "rn50x16": (290.98, 167.33, 123.65),
    "rn50x64": (623.26, 420.38, 202.88),
}
PUBLISHED |= RESNETS | {f"{name}_quickgelu": counts for name, counts in RESNETS.items()}
PUBLISHED |= {
    "convnext_base_w": (179.39, 88.22, 91.16),
    "convnext_base_w_320": (179.39, 88.22, 91.16),
    "convnext_large_d": (351.77, 199.77, 152.00),
    "convnext_large_d_320": (351.77, 199.77, 152.00),
    "convnext_xxlarge": (1200.58, 846.54, 354.03),
    "mobileclip_s1": (84.97, 21.54, 63.43),
    "mobileclip_s2": (99.24, 35.82, 63.43),
    "mobileclip_b": (149.78, 86.35, 63.43),
    "mobileclip2_s0": (74.84, 11.41, 63.43),
    "mobileclip2_s3": (248.89, 125.24, 123.65),
    "mobileclip2_s4": (445.44, 321.78, 123.65),
    "mobileclip2_l14": (427.62, 303.97, 123.65),
}
# Tracing their many blocks takes a second or more each.
DEEP = ("rn101", "rn50x", "_quickgelu", "_320", "convnext_l", "convnext_x", "mobileclip_s",
        "mobileclip2_s")  # fmt: skip
NAMES = [
    pytest.param(name, marks=pytest.mark.slow)
    if not name.startswith("vit") and any(part in name for part in DEEP)
    else name
    for name in presets.names()
]


def count(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return sum(leaf.size for path, leaf in leaves if "running_" not in jax.tree_util.keystr(path))


@pytest.mark.parametrize("name", NAMES)
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
