"""Hugging Face ``SiglipModel``: names of tensors, ``config.json``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from jaxclip.data.siglip_tokens import kind_of
from jaxclip.models.presets import CLIPConfig, ImageConfig, TextConfig
from jaxclip.weights.families._base import Checkpoint, Family, Preprocess, SpecialIds
from jaxclip.weights.families._layouts import SIGLIP_LAYOUT, hf_image_ops, hf_preprocessor
from jaxclip.weights.families._parts import (
    HALF,
    activation,
    count_blocks,
    read_number,
    square_grid,
)
from jaxclip.weights.families.hf_clip import blocks, hf_parts, hf_section, tower_config
from jaxclip.weights.mapping import (
    ONE_ELEMENT,
    SAME,
    Entry,
    convolution,
    dense,
    fused_attention,
    norm,
)

_HEAD = "vision_model.head"


class HFSigLIP(Family):
    """``transformers.SiglipModel`` (Zhai et al. 2023, arXiv:2303.15343), and SigLIP 2's models of
    fixed resolution, which are stored as such."""

    example = "siglip_b16"

    @staticmethod
    def matches(checkpoint: Checkpoint) -> bool:
        shapes, parts = checkpoint.shapes, hf_parts(checkpoint)
        patches = shapes.get("vision_model.embeddings.patch_embedding.weight", (0,) * 4)
        heads = {"image": f"{_HEAD}.probe", "text": "text_model.head.weight"}
        return (
            bool(parts)
            and all(heads[tower] in shapes for tower in parts)
            and len(patches) == 4  # SigLIP 2's flexible models have a linear patch embedding
        )

    @staticmethod
    def parts(checkpoint: Checkpoint) -> tuple[str, ...]:
        return hf_parts(checkpoint)

    @staticmethod
    def ignore(name: str) -> bool:
        return name.endswith(".position_ids")

    @staticmethod
    def sizes(checkpoint: Checkpoint) -> CLIPConfig:
        shapes, parts = checkpoint.shapes, hf_parts(checkpoint)
        image, text, embed_dim = ImageConfig(), TextConfig(), 0
        if "image" in parts:
            image = _image(checkpoint)
            embed_dim = image.width
        if "text" in parts:
            text = _text(checkpoint)
            embed_dim, _ = shapes["text_model.head.weight"]
        return CLIPConfig(
            image=image,
            text=text,
            embed_dim=embed_dim,
            logit_scale_init=math.log(10.0),
            logit_bias_init=-10.0,
        )

    @staticmethod
    def entries(sizes: CLIPConfig) -> list[Entry]:
        vision, text = "vision_model.embeddings", "text_model.embeddings"
        pool = "image/attention_pool"
        return [
            Entry(
                f"{vision}.patch_embedding.weight",
                ("image/patch_embedding/kernel",),
                convolution(sizes.image.patch_size),
            ),
            Entry(f"{vision}.patch_embedding.bias", ("image/patch_embedding/bias",), SAME),
            Entry(f"{vision}.position_embedding.weight", ("image/positions",), SAME),
            *blocks("vision_model", "image", sizes.image.depth),
            *norm("vision_model.post_layernorm", "image/norm_post"),
            Entry(f"{_HEAD}.probe", (f"{pool}/probe",), SAME),
            *fused_attention(
                f"{_HEAD}.attention.in_proj_weight",
                f"{_HEAD}.attention.in_proj_bias",
                f"{pool}/attention",
                ("query", "key", "value"),
            ),
            *dense(f"{_HEAD}.attention.out_proj", f"{pool}/attention/out"),
            *norm(f"{_HEAD}.layernorm", f"{pool}/norm"),
            *dense(f"{_HEAD}.mlp.fc1", f"{pool}/mlp/up"),
            *dense(f"{_HEAD}.mlp.fc2", f"{pool}/mlp/down"),
            Entry(f"{text}.token_embedding.weight", ("text/token_embedding/embedding",), SAME),
            Entry(f"{text}.position_embedding.weight", ("text/positions",), SAME),
            *blocks("text_model", "text", sizes.text.depth),
            *norm("text_model.final_layer_norm", "text/norm_post"),
            *dense("text_model.head", "text/projection"),
            Entry("logit_scale", ("logit_scale",), ONE_ELEMENT),
            Entry("logit_bias", ("logit_bias",), ONE_ELEMENT),
        ]

    layout: Mapping[str, Any] = {**SIGLIP_LAYOUT, "text.projection": "linear_bias"}
    weights_file = "model.safetensors"

    @staticmethod
    def config_files(
        sizes: CLIPConfig, preprocess: Preprocess, ids: SpecialIds
    ) -> dict[str, Mapping[str, Any]]:
        config = {
            "architectures": ["SiglipModel"],
            "model_type": "siglip",
            "torch_dtype": "float32",
            "vision_config": {"model_type": "siglip_vision_model", **tower_config(sizes.image)},
            "text_config": {
                "model_type": "siglip_text_model",
                "projection_size": sizes.embed_dim,
                "bos_token_id": ids.start,
                "eos_token_id": ids.end,
                "pad_token_id": ids.pad,
                **tower_config(sizes.text),
            },
        }
        pictures = hf_preprocessor(preprocess, sizes.image.image_size, "Siglip")
        return {"config.json": config, "preprocessor_config.json": pictures}

    @staticmethod
    def preprocess(checkpoint: Checkpoint, sizes: CLIPConfig) -> Preprocess:
        given = checkpoint.preprocessor
        return Preprocess(
            given.get("image_mean", HALF),
            given.get("image_std", HALF),
            hf_image_ops(given, "resize"),
            {"kind": kind_of(sizes.text.vocab_size), "context_length": sizes.text.context_length},
        )


def _image(checkpoint: Checkpoint) -> ImageConfig:
    shapes = checkpoint.shapes
    width, _, patch_size, _ = shapes["vision_model.embeddings.patch_embedding.weight"]
    tokens, _ = shapes["vision_model.embeddings.position_embedding.weight"]
    return ImageConfig(
        # 384 pixels in patches of 14 are read as 378.
        image_size=square_grid(tokens, 0, "vision_model") * patch_size,
        patch_size=patch_size,
        width=width,
        pool="map",
        pre_norm=False,
        patch_bias=True,
        projection="none",
        **_shape(hf_section(checkpoint, "vision_config"), "vision_model", shapes),
    )


def _text(checkpoint: Checkpoint) -> TextConfig:
    shapes = checkpoint.shapes
    vocab_size, width = shapes["text_model.embeddings.token_embedding.weight"]
    return TextConfig(
        vocab_size=vocab_size,
        context_length=shapes["text_model.embeddings.position_embedding.weight"][0],
        width=width,
        causal=False,
        pool="final",
        mask_padding=False,
        projection="linear_bias",
        **_shape(hf_section(checkpoint, "text_config"), "text_model", shapes),
    )


def _shape(config: dict[str, Any], prefix: str, shapes: Any) -> dict[str, Any]:
    start = f"{prefix}.encoder.layers."
    return {
        "depth": count_blocks(shapes, start),
        "num_heads": read_number(config, "num_attention_heads", 12),
        "mlp_dim": shapes[f"{start}0.mlp.fc1.weight"][0],
        "activation": activation(config.get("hidden_act", "gelu_pytorch_tanh")),
        "norm_eps": float(config.get("layer_norm_eps", 1e-6)),
    }
