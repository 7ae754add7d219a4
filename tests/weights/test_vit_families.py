"""ViT variants: EVA, Perception Encoder, CLIPA, Long-CLIP, Alpha-CLIP, and single towers."""

import dataclasses
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest

import jaxclip
from jaxclip import models
from jaxclip.inference import convert
from jaxclip.models import presets
from jaxclip.weights import export, mapping
from jaxclip.weights.checkpoint import open_checkpoint
from jaxclip.weights.families import FAMILIES
from jaxclip.weights.families._base import SpecialIds

GOLDEN = pathlib.Path(__file__).parent / "golden"


def read(name):
    """Tensors of a golden model, and its folder's name."""
    opened = open_checkpoint(GOLDEN / name)
    return {key: tensor.read() for key, tensor in opened.tensors.items()}


def save(tensors, folder, config=None, name="model.safetensors"):
    from safetensors.numpy import save_file

    folder.mkdir(exist_ok=True)
    save_file({key: np.ascontiguousarray(array) for key, array in tensors.items()}, folder / name)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_without_a_configuration_clipa_is_told_by_its_tensors(tmp_path):
    told = open_checkpoint(GOLDEN / "clipa").sizes
    shutil.copy(GOLDEN / "clipa" / "open_clip_model.safetensors", tmp_path)
    found = open_checkpoint(tmp_path).sizes  # but for the heads, which are 64 wide in its models
    assert found.image == dataclasses.replace(told.image, num_heads=1)
    assert found.text == dataclasses.replace(told.text, num_heads=1)


def test_a_timm_tower_of_no_known_shape_needs_its_configuration(tmp_path):
    shutil.copy(GOLDEN / "eva02" / "open_clip_model.safetensors", tmp_path)
    with pytest.raises(mapping.MappingError, match=r"width=64, depth=1, .*open_clip_config.json"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"timm_model_name": "eva02_base_patch16_clip_244"},
            "not supported; did you mean 'eva02_b",
        ),
        ({"timm_pool": "avg"}, "timm_pool='avg' of 'eva02_base_patch16_clip_224' is not supported"),
        ({"timm_proj": "mlp"}, "timm_proj='mlp' is not supported; known: linear"),
    ],
)
def test_timm_towers_that_are_others_are_refused(change, message, tmp_path):
    folder = pathlib.Path(shutil.copytree(GOLDEN / "eva02", tmp_path / "model"))
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["vision_cfg"] |= change
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(mapping.MappingError, match=message):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vision_cfg": {"layers": [3, 4, 6, 3]}}, "has a modified ResNet as image tower$"),
        (
            {"vision_cfg": {"timm_model_name": "convnext_base"}},
            "timm's image tower 'convnext_base'",
        ),
        ({"text_cfg": {"hf_model_name": "roberta-base"}}, "the text tower 'roberta-base' of trans"),
    ],
)
def test_what_no_family_has_is_named_in_one_line(change, message, tmp_path):
    save({"x.weight": np.zeros((2, 2), np.float32)}, tmp_path, {"model_cfg": change})
    with pytest.raises(mapping.MappingError, match=message) as error:
        open_checkpoint(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("option", ["qk_norm", "scale_fc"])
def test_blocks_that_no_published_model_has_are_refused(option, tmp_path):
    folder = pathlib.Path(shutil.copytree(GOLDEN / "clipa", tmp_path / "model"))
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"][option] = True
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(mapping.MappingError, match=rf"text_cfg\.{option}=True is not supported"):
        open_checkpoint(folder)


# Export.


@pytest.mark.parametrize(
    ("preset", "name"),
    [("eva02_l14_336", "eva02_large_patch14_clip_336"),
     ("pe_core_bigg14", "vit_pe_core_gigantic_patch14_448"),
     ("eva02_e14_plus", "eva02_enormous_patch14_clip_224")],
)  # fmt: skip
def test_towers_are_exported_by_their_names_in_timm(preset, name):
    sizes = presets.get(preset)
    assert export.family_of(sizes, "open_clip") == "open_clip_timm"
    preprocess = open_checkpoint(GOLDEN / "eva02").preprocess
    files = FAMILIES.get("open_clip_timm").config_files(
        sizes, preprocess, SpecialIds(49_406, 49_407)
    )
    config = files["open_clip_config.json"]["model_cfg"]
    assert config["vision_cfg"]["timm_model_name"] == name and config["custom_text"]
    assert config["vision_cfg"]["timm_proj"] is None
    assert config["text_cfg"]["layers"] == sizes.text.depth


def test_a_tower_that_timm_does_not_register_is_refused(tmp_path):
    opened = open_checkpoint(GOLDEN / "eva02")
    with pytest.raises(
        ValueError, match=r"model\.image\.\w+=\d+ is of no tower in timm that open_"
    ):
        export.export_checkpoint(
            opened.read(), opened.sizes, "open_clip_timm", tmp_path / "to", opened.preprocess
        )


def test_clipa_is_exported_as_the_same_bits(tmp_path):
    opened = open_checkpoint(GOLDEN / "clipa")
    params = opened.read()
    export.export_checkpoint(params, opened.sizes, "open_clip", tmp_path / "to", opened.preprocess)
    again = open_checkpoint(tmp_path / "to")
    assert again.sizes == opened.sizes
    for ours, theirs in zip(*map(jax.tree.leaves, (again.read(), params)), strict=True):
        np.testing.assert_array_equal(ours, theirs)


# Long-CLIP and Alpha-CLIP: OpenAI's names, and more.


def test_long_clips_two_tables_of_positions_are_one(tmp_path):
    tensors = read("open_clip")
    rng = np.random.default_rng(0)
    for name in ("positional_embedding", "positional_embedding_res"):
        tensors[name] = rng.standard_normal((248, 16)).astype(np.float32)
    opened = open_checkpoint(save(tensors, tmp_path / "long"))
    assert opened.family == "open_clip"
    assert opened.sizes.text.context_length == 248
    assert opened.preprocess.tokenizer["context_length"] == 248
    assert opened.sizes.text.activation == opened.sizes.image.activation == "quick_gelu"
    mask = np.arange(248)[:, None] < 20
    expected = tensors["positional_embedding"] * mask
    expected = expected + tensors["positional_embedding_res"] * ~mask
    np.testing.assert_array_equal(opened.read()["text"]["positions"], expected)
    tensors["positional_embedding_res"] = tensors["positional_embedding_res"][:77]
    with pytest.raises(
        mapping.MappingError, match=r"not used: positional_embedding_res \[77, 16\]"
    ):
        open_checkpoint(save(tensors, tmp_path / "long"))


def alpha_tensors():
    """The image tower alone, by Alpha-CLIP's names."""
    tensors = {
        name.removeprefix("visual.").replace("attn.in_proj_", "attn.in_proj."): array
        for name, array in read("open_clip").items()
        if name.startswith("visual.")
    }
    shape = (tensors["conv1.weight"].shape[0], 1, 4, 4)
    alpha = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    return {**tensors, "conv1_alpha.weight": alpha}


def test_alpha_clips_image_tower(tmp_path):
    tensors = alpha_tensors()
    opened = open_checkpoint(save(tensors, tmp_path / "alpha"))
    assert opened.family == "alpha_clip" and opened.parts == ("image",)
    assert opened.sizes.image.alpha and opened.sizes.image.activation == "quick_gelu"
    params = opened.read()
    assert set(params) == {"image"}
    kernel = params["image"]["alpha_embedding"]["kernel"]
    mask = np.random.default_rng(1).random((4, 4, 1))
    expected = np.einsum("yx,cyx->c", mask[..., 0], tensors["conv1_alpha.weight"][:, 0])
    np.testing.assert_allclose(mask.reshape(-1) @ kernel, expected, rtol=1e-5)
    both = {f"visual.{name}": array for name, array in tensors.items()}
    both |= {k: v for k, v in read("open_clip").items() if not k.startswith("visual.")}
    whole = open_checkpoint(save(both, tmp_path / "whole"))
    assert whole.parts == ("image", "text") and whole.sizes.image == opened.sizes.image
    with pytest.raises(ValueError, match=r"model\.image\.alpha=True can't be expressed by open_cl"):
        export.export_checkpoint(
            whole.read(), whole.sizes, "open_clip", tmp_path / "to", whole.preprocess
        )
    files = export.export_checkpoint(
        whole.read(), whole.sizes, "alpha_clip", tmp_path / "to", whole.preprocess
    )
    # OpenAI's names, of which its authors' code makes linear layers; and no configuration.
    assert "model.safetensors" in files and not any("config" in file for file in files)
    again = open_checkpoint(tmp_path / "to")
    assert "visual.transformer.resblocks.0.attn.in_proj_weight" in again.tensors
    assert again.sizes == whole.sizes
    jax.tree.map(np.testing.assert_array_equal, again.read(), whole.read())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_ops": "resize"}, r"data\.eval_image_ops='resize' can't be expressed by eva_clip"),
        ({"image_mean": (0.5, 0.5, 0.5)}, r"data\.image_mean=\(0\.5, .* whose is CLIP's"),
        ({"tokenizer": {"kind": "emoji_bpe", "context_length": 8}}, r"end of text has id 2, but"),
    ],
)
def test_code_with_clips_pixels_and_texts_takes_no_others(change, message):
    sizes = presets.get("eva02_b16")
    preprocess = open_checkpoint(GOLDEN / "eva02").preprocess._replace(**change)
    ids = SpecialIds(1, 2) if "tokenizer" in change else SpecialIds(49_406, 49_407)
    with pytest.raises(ValueError, match=message):
        FAMILIES.get("eva_clip").config_files(sizes, preprocess, ids)


# From the model_configs of baaivision/EVA.
EVA_18B = {
    "image_size": 224, "layers": 48, "width": 5120, "head_width": 128, "mlp_ratio": 5,
    "patch_size": 14, "drop_path_rate": 0, "qkv_bias": False, "postnorm": True,
    "use_rms_norm": True,
}  # fmt: skip
EVA02_L = {
    "image_size": 336, "layers": 24, "width": 1024, "head_width": 64, "patch_size": 14,
    "rope": True, "pt_hw_seq_len": 16, "intp_freq": True, "naiveswiglu": True, "subln": True,
}  # fmt: skip


@pytest.mark.parametrize(("preset", "expected"), [("eva_18b", EVA_18B), ("eva02_l14_336", EVA02_L)])
def test_evas_configurations_are_its_authors(preset, expected):
    sizes = presets.get(preset)
    preprocess = open_checkpoint(GOLDEN / "eva02").preprocess
    files = FAMILIES.get("eva_clip").config_files(sizes, preprocess, SpecialIds(49_406, 49_407))
    config = files["config.json"]
    assert config["vision_cfg"].items() >= expected.items()
    assert int(sizes.image.width * config["vision_cfg"]["mlp_ratio"]) == sizes.image.mlp_dim
    assert config["embed_dim"] == sizes.embed_dim
    assert config["text_cfg"]["layers"] == sizes.text.depth


def test_eva_is_exported_by_its_authors_names_as_the_same_bits(tmp_path):
    sizes = presets.get("eva02_b16")
    image = dataclasses.replace(sizes.image, depth=1, image_size=32, mlp_dim=64)
    text = dataclasses.replace(sizes.text, depth=1, vocab_size=64, width=64, num_heads=1)
    text = dataclasses.replace(text, mlp_dim=256, context_length=8)
    sizes = dataclasses.replace(sizes, image=image, text=text)
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(models.build(sizes).init, jax.random.key(0))
    params = jax.tree.map(lambda s: rng.standard_normal(s.shape).astype(np.float32), shapes)
    preprocess = open_checkpoint(GOLDEN / "eva02").preprocess
    export.export_checkpoint(params, sizes, "eva_clip", tmp_path / "to", preprocess)
    again = open_checkpoint(tmp_path / "to")
    assert again.family == "eva_clip" and "visual.blocks.0.mlp.w3.weight" in again.tensors
    assert (again.sizes.image, again.sizes.text) == (image, text)
    jax.tree.map(np.testing.assert_array_equal, again.read(), params)


# One tower alone.


def half(name, tower, *, bare=False):
    """Tensors and configuration of one tower, as transformers writes it."""
    prefix = {"vision": ("vision_model.", "visual_projection."),
              "text": ("text_model.", "text_projection.")}[tower]  # fmt: skip
    tensors = {k: v for k, v in read(name).items() if k.startswith(prefix)}
    if bare:
        tensors = {k.removeprefix(prefix[0]): v for k, v in tensors.items() if prefix[0] in k}
    config = json.loads((GOLDEN / name / "config.json").read_text())[f"{tower}_config"]
    return tensors, config


@pytest.mark.parametrize(
    ("name", "tower", "bare"),
    [("hf_clip", "vision", False), ("hf_clip", "text", False), ("hf_siglip", "vision", False),
     ("hf_siglip", "vision", True), ("hf_siglip", "text", True)],
)  # fmt: skip
def test_one_tower_alone_holds_the_same_numbers(name, tower, bare, tmp_path):
    folder = save(*[*half(name, tower, bare=bare)[:1], tmp_path], half(name, tower)[1])
    opened, whole = open_checkpoint(folder), open_checkpoint(GOLDEN / name)
    ours = {"vision": "image", "text": "text"}[tower]
    assert opened.family == name and opened.parts == (ours,)
    assert getattr(opened.sizes, ours) == getattr(whole.sizes, ours)
    assert opened.sizes.embed_dim == whole.sizes.embed_dim
    found, expected = opened.read(), whole.read()[ours]
    assert set(found) == {ours}
    jax.tree.map(np.testing.assert_array_equal, found[ours], expected)


def test_transformers_vision_model_without_projection(tmp_path):
    tensors, config = half("hf_clip", "vision", bare=True)
    opened = open_checkpoint(save(tensors, tmp_path, config))
    assert opened.parts == ("image",) and opened.sizes.image.projection == "none"
    assert opened.sizes.embed_dim == 16


def test_a_model_of_one_tower_embeds_images_and_says_that_it_can_no_texts(tmp_path):
    folder = save(*half("hf_clip", "vision")[:1], tmp_path / "half", half("hf_clip", "vision")[1])
    model = jaxclip.load(folder)
    expected = np.load(GOLDEN / "hf_clip" / "expected.npz")
    pixels = (expected["images"] * 50 + 128).astype(np.uint8)
    assert model.encode_image(pixels).shape == (2, 12)
    with pytest.raises(
        ValueError, match="half holds the image tower alone: nothing can embed text"
    ):
        model.encode_text(expected["tokens"])
    assert "\ntext        none" in convert.describe(folder)
    with pytest.raises(ValueError, match="holds the image tower alone, which makes no workdir"):
        convert.import_weights(folder, tmp_path / "to")
    assert not (tmp_path / "to").exists()


def test_low_rank_factors_alone_are_refused_with_the_way_out(tmp_path):
    names = [f"base_model.model.vision_model.encoder.layers.0.self_attn.q_proj.lora_{x}.weight"
             for x in "AB"]  # fmt: skip
    save({name: np.zeros((2, 4), np.float32) for name in names}, tmp_path,
         name="adapter_model.safetensors")  # fmt: skip
    with pytest.raises(
        mapping.MappingError, match=r"low-rank factors \(LoRA, 2 of 2 .*merge_and_un"
    ):
        open_checkpoint(tmp_path)
