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
    "eva01_g14": (1136.44, 1012.59, 123.85),
    "eva01_g14_plus": (1366.62, 1012.59, 354.03),
    "eva02_b16": (149.69, 86.26, 63.43),
    "eva02_l14": (427.76, 304.11, 123.65),
    "eva02_l14_336": (428.08, 304.43, 123.65),
    "eva02_e14": (4704.59, 4350.56, 354.03),
    "eva02_e14_plus": (5044.89, 4350.56, 694.33),
    "clipa_l14": (414.21, 303.96, 110.25),
    "clipa_l14_336": (414.54, 304.29, 110.25),
    "clipa_h14": (968.24, 632.07, 336.16),
    "clipa_h14_336": (968.64, 632.48, 336.16),
    "clipa_bigg14": (2517.22, 1844.90, 672.32),
    "clipa_bigg14_336": (2517.76, 1845.44, 672.32),
    # Not in that file: counted in open_clip 3.3's own models.
    "pe_core_t16": (69.55, 6.14, 63.41),
    "pe_core_s16": (87.19, 23.78, 63.41),
    "pe_core_b16": (447.66, 93.67, 353.99),
    "pe_core_l14": (671.14, 317.15, 353.99),
    "pe_core_bigg14": (2419.27, 1882.03, 537.23),
    # Their base and 171 more positions, or a kernel of one channel.
    "longclip_b16": (149.62 + 171 * 512e-6, 86.19, 63.43 + 171 * 512e-6),
    "longclip_l14": (427.62 + 171 * 768e-6, 303.97, 123.65 + 171 * 768e-6),
    "alphaclip_b16": (149.62 + 256 * 768e-6, 86.19 + 256 * 768e-6, 63.43),
    "alphaclip_l14": (427.62 + 196 * 1024e-6, 303.97 + 196 * 1024e-6, 123.65),
    "alphaclip_l14_336": (427.94 + 196 * 1024e-6, 304.29 + 196 * 1024e-6, 123.65),
    # The paper says 7.5 and 17.5 billion for the image towers; these are its widths and depths.
    "eva_8b": (8220.75, 7526.09, 694.66),
    "eva_18b": (18325.48, 17630.49, 694.99),
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
# One or two of each architecture, the smaller ones: tracing a deep one takes a second or two.
# `-m slow` takes the others.
SMALL = {
    "alphaclip_b16", "clipa_l14", "coca_base", "coca_vit_b32", "convnext_base_w", "eva01_g14",
    "eva02_b16", "longclip_b16", "mobileclip2_s0", "mobileclip_b", "pe_core_t16", "rn50",
    "roberta_vit_b32", "siglip2_b16_naflex", "siglip_b16", "siglip_l16_256", "tiny", "vit_b16",
    "vit_b32_quickgelu", "vit_h14", "vit_s32", "xlm_roberta_base_vit_b32",
}  # fmt: skip
NAMES = [
    name if name in SMALL else pytest.param(name, marks=pytest.mark.slow)
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
    # Half a unit of the last published digit; twice where it is a sum of such.
    assert millions == pytest.approx(published, abs=0.01 if "clip_" in name else 0.0051)


def test_every_published_count_has_its_preset():
    assert set(PUBLISHED) == set(presets.names()) - {"tiny"} and set(presets.names()) >= SMALL


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
        ("text", {"pool": "cls", "causal": False}, r"model\.text\.pool='cls'"),
        ("text", {"projection": "gelu"}, r"model\.text\.projection='gelu'"),
        ("text", {"eos_id": 50_000}, r"model\.text\.eos_id=50000 must be a token, 0 to"),
        ("image", {"rope": "yx", "width": 30, "num_heads": 5}, "heads of a multiple of 4 chann"),
        ("image", {"rope": "yx", "head_dim": 6}, "multiple of 4 channels, not 6$"),
        ("image", {"norm_after_pool": True}, r"norm_after_pool=True is for pool='mean', not 'cls'"),
        ("image", {"pool_prefix": True}, r"pool_prefix=True is for pool='mean' or 'map', not"),
        ("image", {"pool": "map", "pool_heads": 7}, "pool_heads=7 does not divide width=768"),
        ("image", {"layer_scale": -1.0}, r"layer_scale=-1\.0 is negative"),
    ],
)
def test_bad_fields_are_refused_before_anything_is_built(tower, fields, message):
    with pytest.raises(ValueError, match=message):
        presets.CLIPConfig.from_dict({tower: fields})


def test_no_projection_needs_equal_widths():
    with pytest.raises(ValueError, match=r"width=768 equal to model\.embed_dim=512"):
        presets.CLIPConfig.from_dict({"image": {"projection": "none"}})
    with pytest.raises(ValueError, match=r"text\.width=256 equal to model\.embed_dim=512"):
        presets.CLIPConfig.from_dict({"text": {"projection": "none", "width": 256}})
