"""Exported files in the code that they are for, where it is installed: slow.

``eva_clip`` and ``alpha_clip`` are their authors' repositories (baaivision/EVA, folder
``EVA-CLIP-18B/shinji``, and SunzeY/AlphaCLIP), which have to be on the path.
"""

import dataclasses
import json

import jax
import numpy as np
import pytest

from jaxclip import models
from jaxclip.inference import convert
from jaxclip.models import presets
from jaxclip.weights import export
from jaxclip.weights.checkpoint import open_checkpoint
from jaxclip.weights.families import FAMILIES, Checkpoint
from tests.weights.test_export import live_inputs, unit

torch = pytest.importorskip("torch")
open_clip = pytest.importorskip("open_clip")
transformers = pytest.importorskip("transformers")
sweep = pytest.importorskip("tests.weights.open_clip_models")

pytestmark = pytest.mark.slow


def embeddings(opened, images, tokens):
    model, params = models.build(opened.sizes), opened.read()
    run = jax.jit(lambda p, i, t: (model.encode_image(p, i), model.encode_text(p, t)))
    return run(params, images, tokens)


@pytest.mark.parametrize("name", ["coca_ViT-B-32", "coca_base"])
def test_coca_goes_to_open_clip_and_comes_back(name, tmp_path):
    """Two blocks a stack; the same bits of every tensor, and the same numbers."""
    model, config = sweep.build(name)
    with torch.no_grad():  # open_clip leaves it as the memory was
        model.text_decoder.text_projection.normal_(std=0.1)
    (tmp_path / "from").mkdir()
    sweep.write(model, config, tmp_path / "from")
    done = convert.export_weights(
        tmp_path / "from", tmp_path / "to", form="open_clip", tokenizer_path=""
    )
    assert "open_clip_coca" in done
    theirs = open_clip.create_model(f"local-dir:{tmp_path / 'to'}").eval()
    before, after = model.state_dict(), theirs.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    images, tokens = sweep.inputs(model, config)
    tokens = tokens[:1]
    image, text = embeddings(open_checkpoint(tmp_path / "to"), images, tokens)
    pixels, ids = torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(tokens).long()
    with torch.no_grad():
        np.testing.assert_allclose(image, theirs.encode_image(pixels), atol=1e-5)
        np.testing.assert_allclose(text, theirs.encode_text(ids), atol=1e-5)
        logits = [each(pixels, ids, output_labels=False)["logits"] for each in (model, theirs)]
    assert torch.equal(*logits)


def test_roberta_goes_to_open_clip_at_full_size(tmp_path, monkeypatch):
    """open_clip makes the tower by its name, so there is no smaller one."""
    hub = {**sweep.ROBERTA, "vocab_size": 50_265}
    monkeypatch.setattr(
        transformers.AutoConfig, "from_pretrained", lambda name: transformers.RobertaConfig(**hub)
    )
    sizes = presets.get("roberta_vit_b32")
    image = dataclasses.replace(sizes.image, depth=2)
    sizes = dataclasses.replace(sizes, image=image)
    params = jax.jit(models.build(sizes).init)(jax.random.key(0))
    family = FAMILIES.get("open_clip_roberta")
    preprocess = family.preprocess(Checkpoint("", {}), sizes)
    export.export_checkpoint(params, sizes, "open_clip_roberta", tmp_path / "to", preprocess)
    theirs = open_clip.create_model(f"local-dir:{tmp_path / 'to'}").eval()
    images, tokens = live_inputs(224, 50_000, 77)
    tokens[0, 40:] = 1
    opened = open_checkpoint(tmp_path / "to")
    assert opened.sizes == sizes
    jax.tree.map(np.testing.assert_array_equal, opened.read(), params)
    found = embeddings(opened, images, tokens)
    with torch.no_grad():
        expected = theirs.encode_image(torch.from_numpy(images).permute(0, 3, 1, 2))
        np.testing.assert_allclose(found[0], unit(expected), atol=1e-5)
        expected = theirs.encode_text(torch.from_numpy(tokens).long())
        np.testing.assert_allclose(found[1], unit(expected), atol=1e-5)


def small(preset, image_size, **image):
    """Published widths of both towers, one or two blocks, few tokens."""
    sizes = presets.get(preset)
    return dataclasses.replace(
        sizes,
        image=dataclasses.replace(sizes.image, image_size=image_size, **image),
        text=dataclasses.replace(sizes.text, depth=1, vocab_size=400),
    )


def exported(sizes, folder):
    """Random weights, written under the authors' names, and read as the same bits."""
    from safetensors.torch import load_file

    rng = np.random.default_rng(0)

    def draw(path, leaf):
        noise = rng.standard_normal(leaf.shape, np.float32)
        scaled = noise * np.float32(leaf.shape[0] ** -0.5 if leaf.ndim == 2 else 0.3)
        return scaled + np.float32(path[-1].key == "scale")

    shapes = jax.eval_shape(models.build(sizes).init, jax.random.key(0))
    params = jax.tree_util.tree_map_with_path(draw, shapes)
    family = export.family_of(sizes, "original")
    preprocess = FAMILIES.get(family).preprocess(Checkpoint("", {}), sizes)
    export.export_checkpoint(params, sizes, family, folder, preprocess)
    opened = open_checkpoint(folder)
    assert opened.family == family and opened.sizes.image == sizes.image
    jax.tree.map(np.testing.assert_array_equal, opened.read(), params)
    return opened, load_file(folder / "model.safetensors")


def compare(opened, theirs, images, tokens, *more):
    pixels = torch.from_numpy(images[..., :3]).permute(0, 3, 1, 2)
    with torch.no_grad():
        image = unit(theirs.encode_image(pixels, *more))
        text = unit(theirs.encode_text(torch.from_numpy(tokens).long()))
    found = embeddings(opened, images, tokens)
    differ = [float(np.abs(a - b).max()) for a, b in zip(found, (image, text), strict=True)]
    print(differ)
    assert max(differ) <= 1e-5


@pytest.mark.parametrize(
    ("preset", "image_size", "image"),
    [
        ("eva02_b16", 224, {"depth": 2}),
        ("eva02_l14_336", 336, {"depth": 1}),
        ("eva01_g14", 224, {"depth": 1}),
        ("eva02_e14", 224, {"depth": 1}),
        ("eva_8b", 112, {"depth": 1, "mlp_dim": 8192}),
        ("eva_18b", 112, {"depth": 1, "mlp_dim": 5120}),
    ],
)
def test_eva_clips_own_code_computes_the_same(preset, image_size, image, tmp_path):
    eva_clip = pytest.importorskip("eva_clip.model")
    opened, tensors = exported(small(preset, image_size, **image), tmp_path / "to")
    config = json.loads((tmp_path / "to" / "config.json").read_text())
    theirs = eva_clip.CustomCLIP(**config).eval()
    keys = theirs.load_state_dict(tensors, strict=False)
    assert not keys.unexpected_keys and all("rope" in key for key in keys.missing_keys)
    images, tokens = live_inputs(image_size, 399, 77)
    tokens[:, -1] = 399
    compare(opened, theirs, images, tokens)


def test_alpha_clips_own_code_computes_the_same(tmp_path, monkeypatch):
    alpha_clip = pytest.importorskip("alpha_clip.model")
    monkeypatch.setattr(alpha_clip, "convert_weights", lambda model: None)  # to half precision
    opened, tensors = exported(small("alphaclip_b16", 224, depth=2), tmp_path / "to")
    theirs = alpha_clip.build_model(tensors)
    images, tokens = live_inputs(224, 399, 77)
    tokens[:, -1] = 399
    mask = np.random.default_rng(1).random((3, 224, 224, 1)).astype(np.float32)
    normalised = torch.from_numpy((mask - 0.5) / 0.26).permute(0, 3, 1, 2)
    compare(opened, theirs, np.concatenate([images, mask], axis=-1), tokens, normalised)
