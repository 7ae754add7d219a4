"""EVA-CLIP as baaivision/EVA writes it: EVA-01, EVA-02, EVA-CLIP-8B and 18B."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from jaxclip.models.presets import CLIPConfig, ImageConfig
from jaxclip.models.variants import EVA_RMS_TOWERS, TIMM_TOWERS
from jaxclip.weights.families._base import Checkpoint, Family, Preprocess, SpecialIds
from jaxclip.weights.families._layouts import (
    TEXT_LAYOUT,
    TEXT_WITHOUT_OPTIONS,
    TIMM_LAYOUT,
    check_clip_preprocess,
    ratio,
)
from jaxclip.weights.families._open_clip_text import model_config, read_text, text_entries
from jaxclip.weights.families._parts import CLIP_MEAN, CLIP_STD, count_blocks, square_grid
from jaxclip.weights.families.open_clip import read_preprocess
from jaxclip.weights.mapping import (
    BATCH_AXIS,
    ROW,
    SAME,
    SCALAR,
    TRANSPOSED,
    Entry,
    convolution,
    dense,
    norm,
    rows_apart,
)

_QKV = ("query", "key", "value")
# By width, which no two of them share.
_TOWERS: Mapping[int, Mapping[str, Any]] = {
    fields["width"]: fields
    for fields in (
        TIMM_TOWERS["eva02_base_patch16_clip_224"],
        TIMM_TOWERS["eva02_large_patch14_clip_224"],
        TIMM_TOWERS["eva_giant_patch14_clip_224"],
        TIMM_TOWERS["eva02_enormous_patch14_clip_224"],
        *EVA_RMS_TOWERS.values(),
    )
}


class EVACLIP(Family):
    """EVA-CLIP (Sun et al., 2023, arXiv:2303.15389; 2024, arXiv:2402.04252).

    What the tensors do not tell (norm on the branch, rotary positions) is told by the width.
    """

    example = "eva02_b16"

    @staticmethod
    def matches(checkpoint: Checkpoint) -> bool:
        names = {
            "visual.blocks.0.norm1.weight",
            "visual.head.weight",
            "text.token_embedding.weight",
        }
        return names <= set(checkpoint.shapes)

    @staticmethod
    def ignore(name: str) -> bool:
        return ".rope." in name or name == "text.attn_mask"

    @staticmethod
    def sizes(checkpoint: Checkpoint) -> CLIPConfig:
        shapes, config = checkpoint.shapes, model_config(checkpoint.config)
        width, _, patch_size, _ = shapes["visual.patch_embed.proj.weight"]
        if width not in _TOWERS:
            known = ", ".join(map(str, sorted(_TOWERS)))
            raise ValueError(f"width {width} is of no EVA-CLIP that is known; known: {known}")
        gated = _TOWERS[width].get("mlp") == "gated"
        fields = {
            **_TOWERS[width],
            "image_size": square_grid(shapes["visual.pos_embed"][1], 1, "visual") * patch_size,
            "patch_size": patch_size,
            "depth": count_blocks(shapes, "visual.blocks."),
            "mlp_dim": shapes[f"visual.blocks.0.mlp.{'w2' if gated else 'fc1'}.weight"][0],
        }
        return CLIPConfig(
            image=ImageConfig(**fields),
            text=read_text(shapes, dict(config.get("text_cfg") or {}), prefix="text."),
            embed_dim=shapes["visual.head.weight"][0],
            logit_scale_init=math.log(1 / 0.07),
        )

    @staticmethod
    def entries(sizes: CLIPConfig) -> list[Entry]:
        image = sizes.image
        layer = image.norm == "layer"
        blocks = (
            entry
            for index in range(image.depth)
            for entry in _block(image, f"visual.blocks.{index}", f"image/blocks_{index}")
        )
        return [
            Entry(
                "visual.patch_embed.proj.weight",
                ("image/patch_embedding/kernel",),
                convolution(image.patch_size),
            ),
            Entry("visual.patch_embed.proj.bias", ("image/patch_embedding/bias",), SAME),
            Entry("visual.cls_token", ("image/class_token",), ROW),
            Entry("visual.pos_embed", ("image/positions",), BATCH_AXIS),
            *blocks,
            *norm("visual.norm", "image/norm_post", bias=layer),
            *dense("visual.head", "image/projection", bias=image.projection == "linear_bias"),
            *text_entries(sizes, "text."),
            Entry("logit_scale", ("logit_scale",), SCALAR),
        ]

    layout: Mapping[str, Any] = {
        **TIMM_LAYOUT,
        **TEXT_LAYOUT,
        **TEXT_WITHOUT_OPTIONS,
        "image.pool": "cls",
        "text.causal": True,
    }
    weights_file = "model.safetensors"

    @staticmethod
    def config_files(
        sizes: CLIPConfig, preprocess: Preprocess, ids: SpecialIds
    ) -> dict[str, Mapping[str, Any]]:
        check_clip_preprocess(preprocess, sizes, ids, "eva_clip")
        text = sizes.text
        if text.mlp_dim != 4 * text.width:
            raise ValueError(
                f"model.text.mlp_dim={text.mlp_dim} can't be expressed by eva_clip, which has four "
                f"times the width, {4 * text.width}"
            )
        text_cfg = {
            "context_length": text.context_length,
            "vocab_size": text.vocab_size,
            "width": text.width,
            "heads": text.num_heads,
            "layers": text.depth,
        }
        model = {"embed_dim": sizes.embed_dim, "vision_cfg": _vision_cfg(sizes.image)}
        return {"config.json": {**model, "text_cfg": text_cfg}}

    @staticmethod
    def preprocess(checkpoint: Checkpoint, sizes: CLIPConfig) -> Preprocess:
        return read_preprocess(checkpoint.config, CLIP_MEAN, CLIP_STD, sizes, {"kind": "clip"})


def _vision_cfg(image: ImageConfig) -> dict[str, Any]:
    """Of its authors' ``eva_clip``, without xformers and apex, which compute the same faster."""
    return {
        "image_size": image.image_size,
        "layers": image.depth,
        "width": image.width,
        "head_width": image.width // image.num_heads,
        "mlp_ratio": ratio(image.mlp_dim, image.width),
        "patch_size": image.patch_size,
        "eva_model_name": f"eva-clip-{image.width}-{image.patch_size}",
        "drop_path_rate": 0.0,
        "qkv_bias": image.qkv_bias == "qv",
        "postnorm": image.norm_place == "post",
        "rope": image.rope != "none",
        "pt_hw_seq_len": image.rope_grid,
        "intp_freq": True,
        "naiveswiglu": image.mlp == "gated",
        "subln": image.sub_norm,
        "use_rms_norm": image.norm == "rms",
    }


def _block(image: ImageConfig, at: str, to: str) -> Iterator[Entry]:
    layer = image.norm == "layer"
    attention, ours = f"{at}.attn", f"{to}/attention"
    yield from norm(f"{at}.norm1", f"{to}/attention_norm", bias=layer)
    kernels = tuple(f"{ours}/{name}/kernel" for name in _QKV)
    if image.sub_norm:
        for name, kernel in zip(_QKV, kernels, strict=True):
            yield Entry(f"{attention}.{name[0]}_proj.weight", (kernel,), TRANSPOSED)
        yield from norm(f"{attention}.inner_attn_ln", f"{ours}/sub_norm")
    else:
        yield Entry(f"{attention}.qkv.weight", kernels, rows_apart(3, transpose=True))
    if image.qkv_bias == "qv":
        yield Entry(f"{attention}.q_bias", (f"{ours}/query/bias",), SAME)
        yield Entry(f"{attention}.v_bias", (f"{ours}/value/bias",), SAME)
    yield from dense(f"{attention}.proj", f"{ours}/out")
    yield from norm(f"{at}.norm2", f"{to}/mlp_norm", bias=layer)
    if image.mlp == "gated":
        yield from dense(f"{at}.mlp.w1", f"{to}/mlp/gate")
        yield from dense(f"{at}.mlp.w2", f"{to}/mlp/up")
        yield from norm(f"{at}.mlp.ffn_ln", f"{to}/mlp/sub_norm")
        yield from dense(f"{at}.mlp.w3", f"{to}/mlp/down")
    else:
        yield from dense(f"{at}.mlp.fc1", f"{to}/mlp/up")
        yield from dense(f"{at}.mlp.fc2", f"{to}/mlp/down")
