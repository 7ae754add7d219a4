"""OpenAI's own files and open_clip's, which keep their names: plain ViTs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from jaxclip.models.presets import CLIPConfig, ImageConfig, TextConfig
from jaxclip.weights.families._base import Checkpoint, Family, Preprocess, SpecialIds
from jaxclip.weights.families._layouts import CLIP_LAYOUT, open_clip_preprocess, ratio, resize_ops
from jaxclip.weights.families._parts import (
    CLIP_MEAN,
    CLIP_STD,
    count_blocks,
    norm_eps,
    read_number,
    square_grid,
    torch_gelu,
)
from jaxclip.weights.mapping import SAME, SCALAR, Entry, convolution, dense, fused_attention, norm

# OpenAI's files tell these as numbers beside the weights; its models use quick-GELU.
_OPENAI_NUMBERS = ("input_resolution", "context_length", "vocab_size")
# open_clip's heads are 64 wide but in its largest image towers (its model configurations).
_HEAD_WIDTH = {1280: 80, 1408: 88, 1664: 104}


class OpenCLIP(Family):
    """openai/CLIP and mlfoundations/open_clip: image towers of class token, linear patch embedding
    and learned positions, causal text towers (Radford et al. 2021, arXiv:2103.00020; Cherti et al.
    2023, arXiv:2212.07143). MetaCLIP, DFN, DataComp and LAION weights have these shapes, too.
    """

    @staticmethod
    def matches(checkpoint: Checkpoint) -> bool:
        names = checkpoint.shapes
        return "visual.class_embedding" in names and "text_projection" in names

    @staticmethod
    def ignore(name: str) -> bool:
        return name in _OPENAI_NUMBERS or name == "attn_mask"

    @staticmethod
    def sizes(checkpoint: Checkpoint) -> CLIPConfig:
        shapes = checkpoint.shapes
        config = checkpoint.config.get("model_cfg", checkpoint.config)
        vision, text = dict(config.get("vision_cfg") or {}), dict(config.get("text_cfg") or {})
        width, _, patch_size, _ = shapes["visual.conv1.weight"]
        _, embed_dim = shapes["visual.proj"]
        grid = square_grid(shapes["visual.positional_embedding"][0], 1, "visual")
        vocab_size, text_width = shapes["token_embedding.weight"]
        openai = all(name in shapes for name in _OPENAI_NUMBERS)
        quick = bool(config.get("quick_gelu", openai))
        activations = ["quick_gelu" if quick else torch_gelu(tower) for tower in (vision, text)]
        head_width = read_number(vision, "head_width", _HEAD_WIDTH.get(width, 64))
        return CLIPConfig(
            image=ImageConfig(
                image_size=grid * patch_size,
                patch_size=patch_size,
                width=width,
                depth=count_blocks(shapes, "visual.transformer.resblocks."),
                num_heads=max(1, width // head_width),
                mlp_dim=shapes["visual.transformer.resblocks.0.mlp.c_fc.weight"][0],
                activation=activations[0],
                norm_eps=norm_eps(vision),
            ),
            text=TextConfig(
                vocab_size=vocab_size,
                context_length=shapes["positional_embedding"][0],
                width=text_width,
                depth=count_blocks(shapes, "transformer.resblocks."),
                num_heads=read_number(text, "heads", max(1, text_width // 64)),
                mlp_dim=shapes["transformer.resblocks.0.mlp.c_fc.weight"][0],
                activation=activations[1],
                norm_eps=norm_eps(text),
            ),
            embed_dim=embed_dim,
            logit_scale_init=math.log(1 / 0.07),
        )

    @staticmethod
    def entries(sizes: CLIPConfig) -> list[Entry]:
        return [
            Entry("visual.class_embedding", ("image/class_token",), SAME),
            Entry("visual.positional_embedding", ("image/positions",), SAME),
            Entry(
                "visual.conv1.weight",
                ("image/patch_embedding/kernel",),
                convolution(sizes.image.patch_size),
            ),
            *norm("visual.ln_pre", "image/norm_pre"),
            *blocks("visual.transformer.resblocks", "image", sizes.image.depth),
            *norm("visual.ln_post", "image/norm_post"),
            Entry("visual.proj", ("image/projection/kernel",), SAME),
            Entry("token_embedding.weight", ("text/token_embedding/embedding",), SAME),
            Entry("positional_embedding", ("text/positions",), SAME),
            *blocks("transformer.resblocks", "text", sizes.text.depth),
            *norm("ln_final", "text/norm_post"),
            Entry("text_projection", ("text/projection/kernel",), SAME),
            Entry("logit_scale", ("logit_scale",), SCALAR),
        ]

    layout = CLIP_LAYOUT
    weights_file = "open_clip_model.safetensors"

    @staticmethod
    def config_files(
        sizes: CLIPConfig, preprocess: Preprocess, ids: SpecialIds
    ) -> dict[str, Mapping[str, Any]]:
        image, text = sizes.image, sizes.text
        vision_cfg = {
            "image_size": image.image_size,
            "layers": image.depth,
            "width": image.width,
            "head_width": image.width // image.num_heads,
            "patch_size": image.patch_size,
            "mlp_ratio": ratio(image.mlp_dim, image.width),
            **_arithmetic(image),
        }
        text_cfg: dict[str, Any] = {
            "context_length": text.context_length,
            "vocab_size": text.vocab_size,
            "width": text.width,
            "heads": text.num_heads,
            "layers": text.depth,
            "mlp_ratio": ratio(text.mlp_dim, text.width),
            **_arithmetic(text),
        }
        if ids.end != text.vocab_size - 1:  # by default the largest id is the end
            text_cfg |= {"pool_type": "eos", "eos_id": ids.end, "pad_id": ids.pad}
        model_cfg = {
            "embed_dim": sizes.embed_dim,
            "quick_gelu": image.activation == "quick_gelu",
            "vision_cfg": vision_cfg,
            "text_cfg": text_cfg,
        }
        cfg = open_clip_preprocess(preprocess, image.image_size)
        return {"open_clip_config.json": {"model_cfg": model_cfg, "preprocess_cfg": cfg}}

    @staticmethod
    def preprocess(checkpoint: Checkpoint, sizes: CLIPConfig) -> Preprocess:
        return read_preprocess(checkpoint.config, CLIP_MEAN, CLIP_STD, sizes, {"kind": "clip"})


def _arithmetic(tower: ImageConfig | TextConfig) -> dict[str, Any]:
    """Epsilon and approximation, where they are not open_clip's defaults."""
    found: dict[str, Any] = {}
    if tower.norm_eps != 1e-5:
        found["norm_kwargs"] = {"eps": tower.norm_eps}
    if tower.activation == "gelu_tanh":
        found["act_kwargs"] = {"approximate": "tanh"}
    return found


def blocks(theirs: str, ours: str, depth: int) -> Iterator[Entry]:
    """``ResidualAttentionBlock`` of OpenAI and open_clip."""
    for index in range(depth):
        at, to = f"{theirs}.{index}", f"{ours}/blocks_{index}"
        yield from norm(f"{at}.ln_1", f"{to}/attention_norm")
        yield from fused_attention(
            f"{at}.attn.in_proj_weight",
            f"{at}.attn.in_proj_bias",
            f"{to}/attention",
            ("query", "key", "value"),
        )
        yield from dense(f"{at}.attn.out_proj", f"{to}/attention/out")
        yield from norm(f"{at}.ln_2", f"{to}/mlp_norm")
        yield from dense(f"{at}.mlp.c_fc", f"{to}/mlp/up")
        yield from dense(f"{at}.mlp.c_proj", f"{to}/mlp/down")


def read_preprocess(
    config: Mapping[str, Any],
    mean: Any,
    std: Any,
    sizes: CLIPConfig,
    tokenizer: Mapping[str, Any],
) -> Preprocess:
    """``preprocess_cfg`` of an ``open_clip_config.json``.

    Raises:
      ValueError: a resize mode or interpolation that we do not have.
    """
    given = dict(config.get("preprocess_cfg") or {})
    method = given.get("interpolation", "bicubic")
    mode = given.get("resize_mode", "shortest")
    if mode not in ("shortest", "longest", "squash"):
        raise ValueError(f"resize_mode={mode!r} of the checkpoint; use shortest, longest, squash")
    return Preprocess(
        given.get("mean", mean),
        given.get("std", std),
        resize_ops(mode, method),
        {**tokenizer, "context_length": sizes.text.context_length},
    )
