"""ViT variants against other people's code, where it is installed: slow."""

import dataclasses
import json
import types

import jax
import numpy as np
import pytest

from jaxclip import models
from jaxclip.models import presets
from jaxclip.train import state_io
from jaxclip.weights import export, mapping
from jaxclip.weights.checkpoint import open_checkpoint
from jaxclip.weights.families import FAMILIES
from tests.models import reference
from tests.weights.test_export import live_inputs, unit

torch = pytest.importorskip("torch")
open_clip = pytest.importorskip("open_clip")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.slow


def moved(model, seed=0):
    """Random weights, no parameter at its initial value."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "head" in name and parameter.ndim == 2:
                parameter.copy_(torch.randn_like(parameter) * parameter.shape[1] ** -0.5)
            elif parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def pictures(images):
    return torch.from_numpy(np.asarray(images)).permute(0, 3, 1, 2)


def save(tensors, folder, config=None):
    from safetensors.torch import save_file

    folder.mkdir(exist_ok=True)
    tensors = {key: value.clone().contiguous() for key, value in tensors.items()}
    save_file(tensors, folder / "model.safetensors")
    if config:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def encode(opened, images=None, tokens=None):
    model, params = models.build(opened.sizes), opened.read()
    image = None if images is None else jax.jit(model.encode_image)(params, images)
    text = None if tokens is None else jax.jit(model.encode_text)(params, tokens)
    return image, text


@pytest.mark.parametrize("preset", ["eva02_b16", "pe_core_t16"])
def test_open_clip_computes_the_same_on_our_files(preset, tmp_path):
    """Full size: open_clip's configurations can't name a shallower tower."""
    sizes = presets.get(preset)
    sizes = dataclasses.replace(sizes, text=dataclasses.replace(sizes.text, depth=2))
    params = models.build(sizes).init(jax.random.key(0))
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: x + 0.02 * rng.standard_normal(x.shape).astype(np.float32), params
    )
    preprocess = FAMILIES.get("open_clip_timm").preprocess(types.SimpleNamespace(config={}), sizes)
    export.export_checkpoint(params, sizes, "open_clip_timm", tmp_path / "to", preprocess)
    theirs = open_clip.create_model(f"local-dir:{tmp_path / 'to'}").eval()
    images, tokens = live_inputs(sizes.image.image_size, 49_000, sizes.text.context_length)
    tokens[:, -1] = 49_407
    with torch.no_grad():
        image = theirs.encode_image(pictures(images))
        text = theirs.encode_text(torch.from_numpy(tokens).long())
    model = models.build(sizes)
    np.testing.assert_allclose(unit(image), jax.jit(model.encode_image)(params, images), atol=1e-5)
    np.testing.assert_allclose(unit(text), jax.jit(model.encode_text)(params, tokens), atol=1e-5)


EVA_NAMES = (
    ("visual.trunk.", "visual."), (".mlp.fc1_g.", ".mlp.w1."), (".mlp.fc1_x.", ".mlp.w2."),
    (".mlp.norm.", ".mlp.ffn_ln."), (".attn.norm.", ".attn.inner_attn_ln."),
    ("q_proj.bias", "q_bias"), ("v_proj.bias", "v_bias"),
)  # fmt: skip


@pytest.mark.parametrize("name", ["EVA02-B-16", "EVA01-g-14", "EVA02-E-14"])
def test_evas_own_names_hold_what_open_clips_do(name, tmp_path):
    """Full shapes, two blocks; timm's own conversion of the renamed file gives the file back."""
    import timm.models.eva

    from tests.weights import open_clip_models as sweep

    model, config = sweep.build(name)
    renamed = {}
    for key, value in model.state_dict().items():
        new = key
        for theirs, evas in EVA_NAMES:
            new = new.replace(theirs, evas)
        if "fc1_g" in "".join(model.state_dict()):
            new = new.replace(".mlp.fc2.", ".mlp.w3.") if new.startswith("visual") else new
        renamed[new] = value
    back = timm.models.eva.checkpoint_filter_fn(dict(renamed), model.visual.trunk)
    expected = model.visual.trunk.state_dict()
    assert back.keys() == expected.keys()
    assert all(torch.equal(back[key], expected[key]) for key in expected)
    opened = open_checkpoint(save(renamed, tmp_path / "eva"))
    assert opened.family == "eva_clip"
    images, tokens = sweep.inputs(model, config)
    theirs = sweep.theirs(model, images, tokens)
    image, text = encode(opened, images, tokens)
    np.testing.assert_allclose(image, theirs["image"], atol=1e-5)
    np.testing.assert_allclose(text, theirs["text"], atol=1e-5)


@pytest.mark.parametrize("preset", ["eva_8b", "eva_18b"])
def test_the_largest_evas_against_float64_numpy(preset, tmp_path):
    """Full width, one block, a narrower MLP (for memory), by the names of baaivision's source."""
    full = presets.get(preset)
    image = dataclasses.replace(full.image, depth=1, image_size=56, mlp_dim=full.image.width)
    text = dataclasses.replace(full.text, depth=1, vocab_size=64, mlp_dim=1280)
    sizes = dataclasses.replace(full, image=image, text=text)
    rng = np.random.default_rng(0)
    shapes = state_io.named_leaves(jax.eval_shape(models.build(sizes).init, jax.random.key(0)))

    def draw(shape):
        scale = shape[0] ** -0.5 if len(shape) == 2 else 0.3
        return (scale * rng.standard_normal(shape)).astype(np.float32)

    ours = {name: draw(leaf.shape) + name.endswith("scale") for name, leaf in shapes.items()}
    theirs = dict(mapping.to_theirs(FAMILIES.get("eva_clip").entries(sizes), ours))
    opened = open_checkpoint(
        save({k: torch.from_numpy(np.array(v)) for k, v in theirs.items()}, tmp_path / "eva")
    )
    assert opened.family == "eva_clip" and opened.sizes == sizes
    images = rng.standard_normal((1, 56, 56, 3)).astype(np.float32)
    found, _ = encode(opened, images)
    expected = reference.encode_image(opened.read(), sizes, images)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def openai_like(**vision):
    """open_clip's model with OpenAI's arithmetic, at two blocks."""
    config = {
        "embed_dim": 512,
        "quick_gelu": True,
        "vision_cfg": {"layers": 2, "width": 768, "patch_size": 16, "image_size": 224, **vision},
        "text_cfg": {"layers": 2, "width": 512, "heads": 8, "vocab_size": 400},
    }
    return moved(open_clip.CLIP(**config)), config


def test_long_clip(tmp_path):
    """The reference adds both tables, each under its mask, in place of one."""
    model, _ = openai_like()
    tables = torch.randn(2, 248, 512)
    mask = (torch.arange(248) < 20)[:, None]
    state = dict(model.state_dict())
    state |= {"positional_embedding": tables[0], "positional_embedding_res": tables[1]}
    model.positional_embedding = torch.nn.Parameter(tables[0] * mask + tables[1] * ~mask)
    model.attn_mask = torch.full((248, 248), float("-inf")).triu_(1)
    opened = open_checkpoint(save(state, tmp_path / "long"))
    _, tokens = live_inputs(8, 399, 248)
    tokens[0, 100], tokens[0, 101:], tokens[1:, -1] = 399, 0, 399
    with torch.no_grad():
        expected = unit(model.encode_text(torch.from_numpy(tokens).long()))
    np.testing.assert_allclose(encode(opened, tokens=tokens)[1], expected, atol=1e-5)


def test_alpha_clip(tmp_path):
    """The reference adds a convolution of the normalised mask to that of the picture."""
    model, _ = openai_like()
    convolution = torch.nn.Conv2d(1, 768, 16, 16, bias=False)
    images, _ = live_inputs(224, 400)
    alpha = np.random.default_rng(1).random((3, 224, 224, 1)).astype(np.float32)
    state = {
        name.removeprefix("visual.").replace("attn.in_proj_", "attn.in_proj."): value
        for name, value in model.state_dict().items()
        if name.startswith("visual.")
    }
    state["conv1_alpha.weight"] = convolution.weight.data
    opened = open_checkpoint(save(state, tmp_path / "alpha"))
    mask = (pictures(alpha) - 0.5) / 0.26
    model.visual.conv1.register_forward_hook(lambda *args: args[2] + convolution(mask))
    with torch.no_grad():
        expected = unit(model.encode_image(pictures(images)))
    found, _ = encode(opened, np.concatenate([images, alpha], axis=-1))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def hf_towers():
    clip = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 2}
    vision = transformers.CLIPVisionConfig(**clip, num_attention_heads=12, projection_dim=512)
    text = transformers.CLIPTextConfig(num_hidden_layers=2, vocab_size=400, projection_dim=512,
                                       eos_token_id=399, bos_token_id=398)  # fmt: skip
    siglip = transformers.SiglipVisionConfig(**clip, num_attention_heads=12, image_size=224,
                                             patch_size=16)  # fmt: skip
    words = transformers.SiglipTextConfig(**clip, num_attention_heads=12, vocab_size=400)
    return {
        "clip_vision": (transformers.CLIPVisionModelWithProjection, vision, "image_embeds"),
        "clip_text": (transformers.CLIPTextModelWithProjection, text, "text_embeds"),
        "clip_vision_alone": (transformers.CLIPVisionModel, vision, "pooler_output"),
        "siglip_vision": (transformers.SiglipVisionModel, siglip, "pooler_output"),
        "siglip_text": (transformers.SiglipTextModel, words, "pooler_output"),
    }


@pytest.mark.parametrize("name", sorted(hf_towers()))
def test_one_tower_of_transformers(name, tmp_path):
    cls, config, output = hf_towers()[name]
    model = moved(cls(config))
    model.save_pretrained(tmp_path)
    opened = open_checkpoint(tmp_path)
    images, tokens = live_inputs(224, 399, 77 if name == "clip_text" else 64)
    tokens[:, -1] = 399
    with torch.no_grad():
        if opened.parts == ("image",):
            expected, at = getattr(model(pictures(images)), output), 0
        else:
            expected, at = getattr(model(torch.from_numpy(tokens).long()), output), 1
    found = encode(opened, images if at == 0 else None, tokens if at else None)[at]
    np.testing.assert_allclose(found, unit(expected), atol=1e-5)
