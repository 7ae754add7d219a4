"""open_clip's own convolutional models beside ours, in published shapes (slow; needs torch)."""

import json
import pathlib

import jax
import numpy as np
import pytest

from jaxclip import models
from jaxclip.inference import model as inference
from jaxclip.models import presets
from jaxclip.weights import export
from jaxclip.weights.checkpoint import open_checkpoint

pytestmark = pytest.mark.slow

# Model of open_clip, and what is made smaller: its image tower's depths by timm's name or its own.
MODELS = {
    "RN50": {},
    "RN101": {"layers": [1, 2, 2, 1]},
    "RN50x4-quickgelu": {"layers": [1, 2, 2, 1]},
    "RN50x16": {"layers": [1, 1, 2, 1]},
    "RN50x64": {"layers": [1, 1, 2, 1]},
    "convnext_base_w": {"depths": [1, 2, 2, 1]},
    "convnext_large_d": {"depths": [1, 1, 2, 1]},
    "convnext_xxlarge": {"depths": [1, 1, 1, 1]},
    "MobileCLIP2-S0": {},
    "MobileCLIP-S1": {},
    "MobileCLIP-S2": {"timm_layers": [1, 2, 2, 1]},
    "MobileCLIP2-S3": {"timm_layers": [1, 1, 2, 1, 1]},
    "MobileCLIP2-S4": {"timm_layers": [1, 1, 1, 1, 1]},
    "MobileCLIP-B": {},
    "MobileCLIP2-L-14": {"depth": 2},
}
COSINE = 0.99995  # in bfloat16, of every model; docs/weights.md has what was seen


def random_model(open_clip, torch, name, change):
    """A model of random weights and statistics, and its ``model_cfg``."""
    timm = pytest.importorskip("timm")
    folder = pathlib.Path(open_clip.__file__).parent / "model_configs"
    config = json.loads((folder / f"{name}.json").read_text())
    config["text_cfg"]["layers"] = 1
    options = {key.removeprefix("timm_"): value for key, value in change.items()}
    if config["vision_cfg"].get("timm_model_name") is None:
        config["vision_cfg"] |= options
        options = {}
    custom = config.pop("custom_text", False)
    create, timm.create_model = timm.create_model, lambda *a, **k: create(*a, **{**k, **options})
    try:
        torch.manual_seed(0)
        model = (open_clip.model.CustomTextCLIP if custom else open_clip.CLIP)(**config)
    finally:
        timm.create_model = create
    with torch.no_grad():
        for key, tensor in model.state_dict().items():
            if key.endswith("running_mean"):
                tensor.copy_(0.2 * torch.randn(tensor.shape))
            elif key.endswith("running_var"):
                tensor.copy_(0.5 + torch.rand(tensor.shape))
            elif key.endswith("gamma"):
                tensor.copy_(0.3 + 0.1 * torch.randn(tensor.shape))
            elif tensor.ndim == 1:
                tensor.copy_(float(key.endswith("weight")) + 0.1 * torch.randn(tensor.shape))
    return model.eval(), {**config, "custom_text": custom}


def inputs(torch, size):
    rng = np.random.default_rng(0)
    images = rng.standard_normal((2, size, size, 3)).astype(np.float32)
    tokens = rng.integers(1, 400, (2, 77)).astype(np.int32)
    tokens[0, 10], tokens[0, 11:], tokens[1, -1] = 49407, 0, 49407
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
    return images, tokens, pixels, torch.from_numpy(tokens).long()


@pytest.mark.parametrize("name", MODELS)
def test_outputs_are_those_of_open_clip(name, tmp_path):
    torch, open_clip = pytest.importorskip("torch"), pytest.importorskip("open_clip")
    from safetensors.torch import save_file

    theirs, config = random_model(open_clip, torch, name, MODELS[name])
    state = {key: tensor.contiguous() for key, tensor in theirs.state_dict().items()}
    save_file(state, tmp_path / "open_clip_model.safetensors")
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    images, tokens, pixels, ids = inputs(torch, config["vision_cfg"].get("image_size", 224))
    with torch.no_grad():
        image = theirs.encode_image(pixels, normalize=True).numpy()
        text = theirs.encode_text(ids, normalize=True).numpy()
        if hasattr(theirs.visual, "trunk"):
            places = theirs.visual.trunk.forward_features(pixels)
        else:
            places = theirs.visual.forward_intermediates(pixels)["image_intermediates"][-1]
        logits = (theirs.logit_scale.exp() * torch.from_numpy(image @ text.T)).numpy()
    if places.ndim == 4:
        places = places.flatten(2).permute(0, 2, 1)
    places = places.numpy()
    del theirs, state

    opened = open_checkpoint(tmp_path)
    params, model = opened.read(), models.build(opened.sizes)
    ours = jax.jit(model.image_features)(params, images)
    ours_text = np.asarray(jax.jit(model.encode_text)(params, tokens))
    tower = np.concatenate([ours.prefix, ours.tokens], axis=1)
    scale = np.exp(params["logit_scale"])
    half = models.build(opened.sizes, dtype="bfloat16", residual_dtype="float32")
    cosine = (np.asarray(jax.jit(half.encode_image)(params, images)) * image).sum(axis=1).min()
    seen = {
        "image": np.abs(ours.embedding - image).max(),
        "text": np.abs(ours_text - text).max(),
        "tokens": np.abs(tower - places).max() / np.abs(places).max(),
        "logits": np.abs(scale * np.asarray(ours.embedding) @ ours_text.T - logits).max(),
    }
    print(name, {key: f"{value:.1e}" for key, value in seen.items()}, f"bf16 {cosine:.7f}")
    assert max(seen.values()) <= 1e-5
    assert cosine >= COSINE


@pytest.mark.parametrize("preset", ["rn50", "convnext_base_w", "mobileclip2_s0", "mobileclip_b"])
def test_open_clip_computes_what_we_export(preset, tmp_path):
    torch, open_clip = pytest.importorskip("torch"), pytest.importorskip("open_clip")
    sizes = presets.get(preset)
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        name = jax.tree_util.keystr(path)
        if name.endswith("running_var']"):
            return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
        spread = 0.1 if leaf.ndim < 2 else (leaf.size / leaf.shape[-1]) ** -0.5
        shift = float(name.endswith("scale']"))
        return (shift + spread * rng.standard_normal(leaf.shape)).astype(np.float32)

    model = models.build(sizes)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    params = jax.tree_util.tree_map_with_path(draw, shapes)
    golden = pathlib.Path(__file__).parent / "golden" / "open_clip_resnet"
    preprocess = open_checkpoint(golden).preprocess
    tokenizer = {**preprocess.tokenizer, "context_length": sizes.text.context_length}
    family = export.family_of(sizes, "open_clip")
    preprocess = preprocess._replace(tokenizer=tokenizer)
    export.export_checkpoint(params, sizes, family, tmp_path / "to", preprocess)
    theirs = open_clip.create_model(f"local-dir:{tmp_path / 'to'}").eval()
    images, tokens, pixels, ids = inputs(torch, sizes.image.image_size)
    with torch.no_grad():
        image = theirs.encode_image(pixels, normalize=True).numpy()
        text = theirs.encode_text(ids, normalize=True).numpy()
    ours = np.asarray(jax.jit(model.encode_image)(params, images))
    ours_text = np.asarray(jax.jit(model.encode_text)(params, tokens))
    print(preset, np.abs(ours - image).max(), np.abs(ours_text - text).max())
    np.testing.assert_allclose(ours, image, atol=1e-5)
    np.testing.assert_allclose(ours_text, text, atol=1e-5)


def test_openais_archive_of_a_resnet(tmp_path):
    """A TorchScript archive with half-precision kernels and float statistics, as OpenAI's are."""
    torch, open_clip = pytest.importorskip("torch"), pytest.importorskip("open_clip")
    from tests.weights.make_golden import Leaf

    theirs, _ = random_model(open_clip, torch, "RN50-quickgelu", {})
    state = {k: v for k, v in theirs.state_dict().items() if k != "attn_mask"}
    numbers = {"input_resolution": 224, "context_length": 77, "vocab_size": 49408}
    tree = {key: torch.tensor(value) for key, value in numbers.items()}
    for name, value in state.items():
        node = tree
        *folders, last = name.split(".")
        for folder in folders:
            node = node.setdefault(folder, {})
        node[last] = value.half() if value.ndim > 1 else value
    archive = torch.jit.trace(Leaf(tree), torch.zeros(1))
    archive.save(str(tmp_path / "RN50.pt"))
    loaded = inference.load(tmp_path / "RN50.pt")
    assert loaded.sizes == presets.get("rn50_quickgelu").__class__.from_dict(
        {**presets.get("rn50_quickgelu").to_dict(),
         "text": {**presets.get("rn50_quickgelu").to_dict()["text"], "depth": 1}}
    )  # fmt: skip
    pictures = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), np.uint8)
    mean, std = (np.array(loaded.config["data"][f"image_{key}"]) for key in ("mean", "std"))
    pixels = torch.from_numpy(((pictures / 255 - mean) / std).astype(np.float32))
    with torch.no_grad():
        for tensor in theirs.state_dict().values():
            if tensor.ndim > 1:
                tensor.copy_(tensor.half().float())
        image = theirs.encode_image(pixels.permute(0, 3, 1, 2), normalize=True).numpy()
    np.testing.assert_allclose(loaded.encode_image(pictures), image, atol=1e-5)
