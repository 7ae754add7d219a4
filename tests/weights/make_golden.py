"""Makes the files of ``golden/``: small models of other people's code with what they compute.

    pip install torch torchvision transformers open_clip_torch
    python tests/weights/make_golden.py

The tests read the files without any of these.
"""

import json
import pathlib

import numpy as np
import open_clip
import safetensors.torch
import timm
import torch
import transformers
from timm.models import vision_transformer_hybrid as hybrid

FOLDER = pathlib.Path(__file__).parent / "golden"
LENGTH, VOCABULARY = 8, 48


def randomized(model):
    """Every parameter random, norms around 1, so that nothing hides at its initial value."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = 0.3 * torch.randn(parameter.shape, generator=generator)
            is_scale = ("norm" in name or "ln_" in name) and name.endswith("weight")
            parameter.copy_(noise + (1.0 if is_scale else 0.0))
    return model.eval()


def inputs(size, causal):
    rng = np.random.default_rng(0)
    images = rng.standard_normal((2, size, size, 3)).astype(np.float32)
    tokens = rng.integers(1, VOCABULARY - 2, (2, LENGTH)).astype(np.int32)
    if causal:  # the end of a text is its largest token
        tokens[0, 4], tokens[0, 5:], tokens[1, -1] = VOCABULARY - 1, 0, VOCABULARY - 1
    return images, tokens


def save_outputs(folder, images, tokens, image, text, **more):
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (image, text)]
    arrays = {"images": images, "tokens": tokens, "image": unit[0], "text": unit[1], **more}
    np.savez(folder / "expected.npz", **arrays)


def tensor(output):
    return (output if torch.is_tensor(output) else output.pooler_output).numpy()


def hf(name, config, model_class, size, causal):
    folder = FOLDER / name
    model = randomized(model_class(config))
    model.save_pretrained(folder)
    images, tokens = inputs(size, causal)
    with torch.no_grad():
        image = model.get_image_features(pixel_values=torch.from_numpy(images).permute(0, 3, 1, 2))
        text = model.get_text_features(input_ids=torch.from_numpy(tokens).long())
    save_outputs(folder, images, tokens, tensor(image), tensor(text))


def hugging_face():
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    shape["num_attention_heads"] = 2
    text = {**shape, "vocab_size": VOCABULARY, "max_position_embeddings": LENGTH}
    ids = {"bos_token_id": VOCABULARY - 2, "eos_token_id": VOCABULARY - 1, "pad_token_id": 0}
    vision = {**shape, "image_size": 8, "patch_size": 4, "img_size": 8}
    config = transformers.CLIPConfig(
        text_config={**text, **ids}, vision_config=vision, projection_dim=12
    )
    hf("hf_clip", config, transformers.CLIPModel, 8, True)
    config = transformers.SiglipConfig(
        text_config={**text, **ids, "projection_size": 16}, vision_config=vision
    )
    hf("hf_siglip", config, transformers.SiglipModel, 8, False)


def naflex():
    """Two pictures of 3 x 2 and 1 x 5 patches in sequences of 7; a table of 4 x 4 positions."""
    folder = FOLDER / "hf_siglip2"
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    shape |= {"num_attention_heads": 2}
    text = {**shape, "vocab_size": VOCABULARY, "max_position_embeddings": LENGTH}
    vision = {**shape, "num_patches": 16, "patch_size": 4}
    config = transformers.Siglip2Config(
        text_config={**text, "projection_size": 16}, vision_config=vision
    )
    model = randomized(transformers.Siglip2Model(config))
    model.save_pretrained(folder)
    preprocessor = {"max_num_patches": 7, "patch_size": 4, "resample": 2}
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    patches = np.random.default_rng(1).standard_normal((2, 7, 48)).astype(np.float32)
    grid = np.array([[3, 2], [1, 5]], np.int32)
    valid = np.arange(7) < grid.prod(1)[:, None]
    _, tokens = inputs(8, False)
    with torch.no_grad():
        out = model(
            input_ids=torch.from_numpy(tokens).long(),
            pixel_values=torch.from_numpy(patches),
            pixel_attention_mask=torch.from_numpy(valid).int(),
            spatial_shapes=torch.from_numpy(grid).long(),
        )
    np.savez(
        folder / "expected.npz",
        patches=patches,
        valid=valid,
        grid=grid,
        tokens=tokens,
        image=out.image_embeds.numpy(),
        text=out.text_embeds.numpy(),
        logits=out.logits_per_image.numpy(),
        image_tokens=out.vision_model_output.last_hidden_state.numpy(),
    )


def open_clip_coca():
    """Logits of two texts, one with a 0 within, and what is generated greedily."""
    folder = FOLDER / "open_clip_coca"
    folder.mkdir(parents=True, exist_ok=True)
    vision = {"image_size": 8, "layers": 2, "width": 16, "patch_size": 4, "head_width": 8}
    vision |= {"attentional_pool": True, "attn_pooler_heads": 3, "attn_pooler_queries": 5}
    text = {"context_length": LENGTH, "vocab_size": VOCABULARY, "width": 12, "heads": 2}
    decoder = {**text, "layers": 2, "attn_pooler_heads": 3}
    text |= {"layers": 2, "embed_cls": True, "output_tokens": True}
    config = {"embed_dim": 12, "vision_cfg": {**vision, "output_tokens": True}, "text_cfg": text}
    config |= {"multimodal_cfg": decoder}
    model = randomized(open_clip.coca_model.CoCa(**config))
    torch.save(model.state_dict(), folder / "open_clip_pytorch_model.bin")
    config["custom_text"] = True
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    images, tokens = inputs(8, True)
    tokens[1, 3] = 0
    with torch.no_grad():
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
        out = model(pixels, torch.from_numpy(tokens).long(), output_labels=False)
        _, image_tokens = model._encode_image(pixels)
        greedy = torch.full((2, 1), VOCABULARY - 2)
        for _ in range(LENGTH - 1):
            logits = model(pixels, greedy, output_labels=False)["logits"][:, -1]
            greedy = torch.cat([greedy, logits.argmax(1, keepdim=True)], 1)
    np.savez(
        folder / "expected.npz",
        images=images,
        tokens=tokens,
        image=out["image_features"].numpy(),
        text=out["text_features"].numpy(),
        logits=out["logits"].numpy(),
        image_tokens=image_tokens.numpy(),
        greedy=greedy.numpy(),
    )


def open_clip_roberta():
    """XLM-RoBERTa's tower with places counted from 2, and a row that ends early."""
    folder = FOLDER / "open_clip_roberta"
    folder.mkdir(parents=True, exist_ok=True)
    shape = {"hidden_size": 64, "intermediate_size": 24, "num_hidden_layers": 2}
    shape |= {"num_attention_heads": 1, "vocab_size": VOCABULARY, "type_vocab_size": 1}
    shape |= {"max_position_embeddings": LENGTH + 4, "layer_norm_eps": 1e-5}
    hf = transformers.XLMRobertaConfig(**shape)
    transformers.AutoConfig.from_pretrained = lambda name: hf
    vision = {"image_size": 8, "layers": 1, "width": 16, "patch_size": 4, "head_width": 8}
    text = {"hf_model_name": "xlm-roberta-base", "hf_tokenizer_name": "xlm-roberta-base"}
    text |= {"hf_pooler_type": "mean_pooler", "hf_model_pretrained": False}
    text |= {"context_length": LENGTH, "output_tokens": True}
    config = {"embed_dim": 12, "vision_cfg": vision, "text_cfg": text}
    model = randomized(open_clip.model.CustomTextCLIP(**config))
    torch.save(model.state_dict(), folder / "open_clip_pytorch_model.bin")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    images, _ = inputs(8, True)
    tokens = np.random.default_rng(2).integers(3, VOCABULARY, (2, LENGTH)).astype(np.int32)
    tokens[:, 0], tokens[0, 4], tokens[0, 5:], tokens[1, -1] = 0, 2, 1, 2
    with torch.no_grad():
        image = model.encode_image(torch.from_numpy(images).permute(0, 3, 1, 2), normalize=True)
        text, states = model.text(torch.from_numpy(tokens).long())
        text = torch.nn.functional.normalize(text, dim=-1)
    np.savez(
        folder / "expected.npz",
        images=images,
        tokens=tokens,
        image=image.numpy(),
        text=text.numpy(),
        text_tokens=states.numpy(),
    )


def plain_open_clip():
    folder = FOLDER / "open_clip"
    folder.mkdir(parents=True, exist_ok=True)
    vision = {"image_size": 8, "layers": 2, "width": 16, "patch_size": 4, "head_width": 8}
    text = {"context_length": LENGTH, "vocab_size": VOCABULARY, "width": 16, "heads": 2}
    config = {"embed_dim": 12, "vision_cfg": vision, "text_cfg": {**text, "layers": 2}}
    model = randomized(open_clip.CLIP(**config))
    torch.save(model.state_dict(), folder / "open_clip_pytorch_model.bin")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    images, tokens = inputs(8, True)
    with torch.no_grad():
        image = model.encode_image(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
        text = model.encode_text(torch.from_numpy(tokens).long()).numpy()
    save_outputs(folder, images, tokens, image, text)


def open_clip_siglip():
    """SigLIP 2 as open_clip has it: exact GELU in timm's B/16, its approximation in the text."""
    folder = FOLDER / "open_clip_siglip"
    folder.mkdir(parents=True, exist_ok=True)
    name = "vit_base_patch16_siglip_224"
    vision = {"image_size": 8, "timm_model_name": name, "timm_pool": "map", "timm_proj": "none"}
    text = {"context_length": LENGTH, "vocab_size": VOCABULARY, "width": 16, "heads": 2}
    text |= {"layers": 2, "no_causal_mask": True, "proj_bias": True, "pool_type": "last"}
    text |= {"norm_kwargs": {"eps": 1e-6}, "act_kwargs": {"approximate": "tanh"}}
    config = {"embed_dim": 16, "init_logit_bias": -10, "vision_cfg": vision, "text_cfg": text}
    create = timm.create_model
    small = {"embed_dim": 16, "depth": 2, "num_heads": 1, "patch_size": 4, "img_size": 8}
    timm.create_model = lambda *args, **kwargs: create(*args, **{**kwargs, **small})
    model = randomized(open_clip.model.CustomTextCLIP(**config))
    timm.create_model = create
    safetensors.torch.save_file(
        {k: v.contiguous() for k, v in model.state_dict().items()},
        folder / "open_clip_model.safetensors",
    )
    config["custom_text"] = True
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    images, tokens = inputs(8, False)
    with torch.no_grad():
        image = model.encode_image(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
        text = model.encode_text(torch.from_numpy(tokens).long()).numpy()
    save_outputs(folder, images, tokens, image, text)


def open_clip_timm(name, timm_name, pool, size):
    """EVA-02 and Perception Encoder: one block with one head of 64 channels, in half precision."""
    folder = FOLDER / name
    folder.mkdir(parents=True, exist_ok=True)
    vision = {"image_size": size, "timm_model_name": timm_name, "timm_pool": pool}
    vision |= {"timm_proj": None}
    text = {"context_length": LENGTH, "vocab_size": VOCABULARY, "width": 16, "heads": 2}
    config = {"embed_dim": 12, "vision_cfg": vision, "text_cfg": {**text, "layers": 1}}
    create = timm.create_model
    small = {"embed_dim": 64, "depth": 1, "num_heads": 1, "patch_size": 4, "img_size": size}
    timm.create_model = lambda *args, **kwargs: create(*args, **{**kwargs, **small})
    model = randomized(open_clip.model.CustomTextCLIP(**config))
    timm.create_model = create
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.half())
    state = {k: v.contiguous().half() for k, v in model.state_dict().items()}
    safetensors.torch.save_file(state, folder / "open_clip_model.safetensors")
    config["custom_text"] = True
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    outputs(model, folder, size)


def outputs(model, folder, size):
    images, tokens = inputs(size, True)
    with torch.no_grad():
        image = model.encode_image(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
        text = model.encode_text(torch.from_numpy(tokens).long()).numpy()
    save_outputs(folder, images, tokens, image, text)


def clipa():
    folder = FOLDER / "clipa"
    folder.mkdir(parents=True, exist_ok=True)
    vision = {"image_size": 8, "layers": 1, "width": 16, "patch_size": 4, "head_width": 8}
    vision |= {"no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True}
    text = {"context_length": LENGTH, "vocab_size": VOCABULARY, "width": 16, "heads": 2}
    text |= {"layers": 1, "pool_type": "last", "no_causal_mask": True}
    config = {"embed_dim": 12, "vision_cfg": vision, "text_cfg": text}
    model = randomized(open_clip.CLIP(**config))
    safetensors.torch.save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    outputs(model, folder, 8)


def round_half(model):
    """Random as above, statistics too, in numbers that half precision holds."""
    generator = torch.Generator().manual_seed(1)
    randomized(model)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("running_mean"):
                tensor.copy_(0.2 * torch.randn(tensor.shape, generator=generator))
            if name.endswith("running_var"):
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
            if ".bn" in name and name.endswith(".weight"):  # batch norms of other names
                tensor.add_(1.0)
            if tensor.is_floating_point():
                tensor.copy_(tensor.half().float())
    return model


def convolutional(name, vision, *, causal=True, custom=True, width=16, **timm_options):
    """A small model of open_clip's with another image tower."""
    folder = FOLDER / name
    folder.mkdir(parents=True, exist_ok=True)
    text = {"context_length": LENGTH, "vocab_size": VOCABULARY, "width": width, "heads": 2}
    text |= {"layers": 1, "no_causal_mask": not causal}
    config = {"embed_dim": 12, "vision_cfg": vision, "text_cfg": text}
    create = timm.create_model
    timm.create_model = lambda *args, **kwargs: create(*args, **{**kwargs, **timm_options})
    model = round_half((open_clip.model.CustomTextCLIP if custom else open_clip.CLIP)(**config))
    timm.create_model = create
    state = model.state_dict()
    safetensors.torch.save_file(
        {k: (v.half() if v.is_floating_point() else v).contiguous() for k, v in state.items()},
        folder / "open_clip_model.safetensors",
    )
    model_cfg = {**config, "custom_text": custom}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model_cfg}))
    images, tokens = inputs(vision["image_size"], True)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
    with torch.no_grad():
        image = model.encode_image(pixels).numpy()
        text = model.encode_text(torch.from_numpy(tokens).long()).numpy()
        if hasattr(model.visual, "trunk"):
            places = model.visual.trunk.forward_features(pixels)
        else:
            places = model.visual.forward_intermediates(pixels)["image_intermediates"][-1]
    places = places.flatten(2).permute(0, 2, 1) if places.ndim == 4 else places[:, 1:]
    save_outputs(folder, images, tokens, image, text, places=places.numpy())


def convolutional_towers():
    resnet = {"image_size": 64, "layers": [1, 2, 1, 1], "width": 2, "head_width": 16}
    convolutional("open_clip_resnet", {**resnet, "patch_size": None}, custom=False)
    convolutional(
        "open_clip_convnext",
        {"image_size": 64, "timm_model_name": "convnext_base", "timm_pool": "", "timm_proj": "mlp"},
        custom=False,
        depths=(1, 2, 1, 1),
        dims=(4, 8, 8, 16),
    )
    mobile = {"image_size": 64, "timm_pool": "avg", "timm_proj": None}
    convolutional(
        "open_clip_fastvit",
        {**mobile, "timm_model_name": "fastvit_mci0"},
        causal=False,
        layers=(2, 1, 1, 1),
        embed_dims=(4, 8, 16, 32),
    )
    stem = hybrid.ConvStem
    hybrid.ConvStem = lambda **kwargs: stem(**{**kwargs, "channels": (4, 4, 16)})
    convolutional(
        "open_clip_timm_vit",
        {**mobile, "image_size": 32, "timm_model_name": "vit_base_mci_224", "timm_pool": "token"},
        img_size=32,
        embed_dim=16,
        depth=1,
        num_heads=1,
    )
    hybrid.ConvStem = stem


class Leaf(torch.nn.Module):
    """A module of any tree of parameters."""

    def __init__(self, tree):
        super().__init__()
        for key, value in tree.items():
            if isinstance(value, dict):
                self.add_module(key, Leaf(value))
            elif value.ndim:
                self.register_parameter(key, torch.nn.Parameter(value, requires_grad=False))
            else:
                self.register_buffer(key, value)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def openai_archive():
    """A TorchScript archive with the tensors of the open_clip model, halved as OpenAI's are."""
    state = torch.load(FOLDER / "open_clip" / "open_clip_pytorch_model.bin", weights_only=True)
    numbers = {"input_resolution": 8, "context_length": LENGTH, "vocab_size": VOCABULARY}
    state |= {key: torch.tensor(value) for key, value in numbers.items()}
    state.pop("attn_mask", None)
    tree = {}
    for name, value in state.items():
        node = tree
        *folders, last = name.split(".")
        for folder in folders:
            node = node.setdefault(folder, {})
        node[last] = value.half() if value.is_floating_point() and value.ndim > 1 else value
    folder = FOLDER / "openai"
    folder.mkdir(parents=True, exist_ok=True)
    scripted = torch.jit.trace(Leaf(tree), torch.zeros(1))
    scripted.save(str(folder / "model.pt"))


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    hugging_face()
    naflex()
    open_clip_coca()
    open_clip_roberta()
    plain_open_clip()
    open_clip_siglip()
    open_clip_timm("eva02", "eva02_base_patch16_clip_224", "token", 12)
    open_clip_timm("pe_core", "vit_pe_core_base_patch16_224", "map", 12)
    clipa()
    openai_archive()
    convolutional_towers()
