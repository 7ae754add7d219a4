"""Hugging Face ``CLIPModel``: names of tensors, ``config.json``."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from jaxclip.models.presets import CLIPConfig, ImageConfig, TextConfig
from jaxclip.weights.families._base import TOWERS, Checkpoint, Family, Preprocess, SpecialIds
from jaxclip.weights.families._layouts import CLIP_LAYOUT, hf_image_ops, hf_preprocessor
from jaxclip.weights.families._parts import (
    CLIP_MEAN,
    CLIP_STD,
    activation,
    count_blocks,
    hf_activation,
    read_number,
    square_grid,
)
from jaxclip.weights.mapping import SAME, SCALAR, Entry, convolution, dense, norm

_PATCHES = "vision_model.embeddings.patch_embedding.weight"
_TOKENS = "text_model.embeddings.token_embedding.weight"
_ATTENTION = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "out": "out_proj"}


class HFCLIP(Family):
    """``transformers.CLIPModel`` (Radford et al. 2021, arXiv:2103.00020)."""

    example = "vit_b32_quickgelu"

    @staticmethod
    def matches(checkpoint: Checkpoint) -> bool:
        names = checkpoint.shapes
        text = names.get(_TOKENS) and "text_model.head.weight" not in names
        return "vision_model.pre_layrnorm.weight" in names or bool(text and _PATCHES not in names)

    @staticmethod
    def parts(checkpoint: Checkpoint) -> tuple[str, ...]:
        return hf_parts(checkpoint)

    @staticmethod
    def ignore(name: str) -> bool:
        return name.endswith(".position_ids")

    @staticmethod
    def sizes(checkpoint: Checkpoint) -> CLIPConfig:
        config = checkpoint.config
        image, text, embed_dim = ImageConfig(), TextConfig(), 0
        parts = hf_parts(checkpoint)
        if "image" in parts:
            image, embed_dim = _image(checkpoint)
        if "text" in parts:
            text, embed_dim = _text(checkpoint)
        return CLIPConfig(
            image=image,
            text=text,
            embed_dim=embed_dim,
            logit_scale_init=float(config.get("logit_scale_init_value", math.log(1 / 0.07))),
        )

    @staticmethod
    def entries(sizes: CLIPConfig) -> list[Entry]:
        vision = "vision_model.embeddings"
        text = "text_model.embeddings"
        return [
            Entry(f"{vision}.class_embedding", ("image/class_token",), SAME),
            Entry(
                f"{vision}.patch_embedding.weight",
                ("image/patch_embedding/kernel",),
                convolution(sizes.image.patch_size),
            ),
            Entry(f"{vision}.position_embedding.weight", ("image/positions",), SAME),
            *norm("vision_model.pre_layrnorm", "image/norm_pre"),
            *blocks("vision_model", "image", sizes.image.depth),
            *norm("vision_model.post_layernorm", "image/norm_post"),
            *_projection("visual_projection", "image", sizes.image),
            Entry(f"{text}.token_embedding.weight", ("text/token_embedding/embedding",), SAME),
            Entry(f"{text}.position_embedding.weight", ("text/positions",), SAME),
            *blocks("text_model", "text", sizes.text.depth),
            *norm("text_model.final_layer_norm", "text/norm_post"),
            *_projection("text_projection", "text", sizes.text),
            Entry("logit_scale", ("logit_scale",), SCALAR),
        ]

    layout = CLIP_LAYOUT
    weights_file = "model.safetensors"

    @staticmethod
    def config_files(
        sizes: CLIPConfig, preprocess: Preprocess, ids: SpecialIds
    ) -> dict[str, Mapping[str, Any]]:
        if ids.end == 2:
            raise ValueError(
                "the tokenizer's end of text has id 2, which transformers' CLIPModel takes for "
                "'the largest id' (its files before 2023 said so); export it as open_clip"
            )
        start = {} if ids.start is None else {"bos_token_id": ids.start}
        config = {
            "architectures": ["CLIPModel"],
            "model_type": "clip",
            "projection_dim": sizes.embed_dim,
            "logit_scale_init_value": sizes.logit_scale_init,
            "torch_dtype": "float32",
            "vision_config": {
                "model_type": "clip_vision_model",
                "projection_dim": sizes.embed_dim,
                **tower_config(sizes.image),
            },
            "text_config": {
                "model_type": "clip_text_model",
                "projection_dim": sizes.embed_dim,
                **start,
                "eos_token_id": ids.end,
                "pad_token_id": ids.pad,
                **tower_config(sizes.text),
            },
        }
        pictures = hf_preprocessor(preprocess, sizes.image.image_size, "CLIP")
        return {"config.json": config, "preprocessor_config.json": pictures}

    @staticmethod
    def preprocess(checkpoint: Checkpoint, sizes: CLIPConfig) -> Preprocess:
        given = checkpoint.preprocessor
        return Preprocess(
            given.get("image_mean", CLIP_MEAN),
            given.get("image_std", CLIP_STD),
            hf_image_ops(given, "resize_small|center_crop(rounding='down')"),
            {"kind": "clip", "context_length": sizes.text.context_length},
        )


def hf_parts(checkpoint: Checkpoint) -> tuple[str, ...]:
    """The towers that a checkpoint of transformers holds."""
    names = {"image": _PATCHES, "text": _TOKENS}
    return tuple(tower for tower in TOWERS if names[tower] in checkpoint.shapes)


def hf_section(checkpoint: Checkpoint, name: str) -> dict[str, Any]:
    """``vision_config`` or ``text_config``; of one tower alone it is the whole file."""
    config = checkpoint.config
    alone = len(hf_parts(checkpoint)) == 1 and name not in config
    return dict(config) if alone else dict(config.get(name) or {})


def _image(checkpoint: Checkpoint) -> tuple[ImageConfig, int]:
    shapes, config = checkpoint.shapes, hf_section(checkpoint, "vision_config")
    width, _, patch_size, _ = shapes[_PATCHES]
    embed_dim, projection = _projected(checkpoint, "visual_projection.weight", width)
    tokens, _ = shapes["vision_model.embeddings.position_embedding.weight"]
    image_size = square_grid(tokens, 1, "vision_model") * patch_size
    told = read_number(config, "image_size", image_size)
    if told // patch_size * patch_size != image_size:
        raise ValueError(f"image_size={told}, but its positions are for {image_size} pixels")
    image = ImageConfig(
        image_size=image_size,
        patch_size=patch_size,
        width=width,
        projection=projection,
        **_shape(config, "vision_model", shapes, width),
    )
    return image, embed_dim


def _text(checkpoint: Checkpoint) -> tuple[TextConfig, int]:
    shapes, config = checkpoint.shapes, hf_section(checkpoint, "text_config")
    vocab_size, width = shapes[_TOKENS]
    embed_dim, projection = _projected(checkpoint, "text_projection.weight", width)
    text = TextConfig(
        vocab_size=vocab_size,
        context_length=shapes["text_model.embeddings.position_embedding.weight"][0],
        width=width,
        projection=projection,
        **_shape(config, "text_model", shapes, width),
    )
    return text, embed_dim


def _projected(checkpoint: Checkpoint, name: str, width: int) -> tuple[int, str]:
    """Size of the joint space, and the projection to it: only a single tower may have none."""
    shapes = checkpoint.shapes
    if name not in shapes and len(hf_parts(checkpoint)) == 1:
        return width, "none"
    return shapes[name][0], "linear"


def _projection(theirs: str, tower: str, config: ImageConfig | TextConfig) -> Iterator[Entry]:
    if config.projection != "none":
        yield from dense(theirs, f"{tower}/projection", bias=False)


def tower_config(tower: ImageConfig | TextConfig) -> dict[str, Any]:
    """``vision_config`` or ``text_config`` of ``CLIPModel`` and ``SiglipModel``."""
    if isinstance(tower, ImageConfig):
        own = {"image_size": tower.image_size, "patch_size": tower.patch_size}
    else:
        own = {
            "vocab_size": tower.vocab_size,
            "max_position_embeddings": tower.context_length,
        }
    return own | {
        "hidden_size": tower.width,
        "intermediate_size": tower.mlp_dim,
        "num_hidden_layers": tower.depth,
        "num_attention_heads": tower.num_heads,
        "hidden_act": hf_activation(tower.activation),
        "layer_norm_eps": tower.norm_eps,
    }


def blocks(theirs: str, ours: str, depth: int) -> Iterator[Entry]:
    """The Transformer of ``CLIPModel`` and ``SiglipModel``."""
    for index in range(depth):
        at, to = f"{theirs}.encoder.layers.{index}", f"{ours}/blocks_{index}"
        yield from norm(f"{at}.layer_norm1", f"{to}/attention_norm")
        for name, theirs_name in _ATTENTION.items():
            yield from dense(f"{at}.self_attn.{theirs_name}", f"{to}/attention/{name}")
        yield from norm(f"{at}.layer_norm2", f"{to}/mlp_norm")
        yield from dense(f"{at}.mlp.fc1", f"{to}/mlp/up")
        yield from dense(f"{at}.mlp.fc2", f"{to}/mlp/down")


def _shape(config: dict[str, Any], prefix: str, shapes: Any, width: int) -> dict[str, Any]:
    start = f"{prefix}.encoder.layers."
    return {
        "depth": count_blocks(shapes, start),
        "num_heads": read_number(config, "num_attention_heads", max(1, width // 64)),
        "mlp_dim": shapes[f"{start}0.mlp.fc1.weight"][0],
        "activation": activation(config.get("hidden_act", "quick_gelu")),
        "norm_eps": float(config.get("layer_norm_eps", 1e-5)),
    }
