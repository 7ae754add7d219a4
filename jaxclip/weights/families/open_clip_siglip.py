"""SigLIP in open_clip's files: a timm image tower, open_clip's text tower."""

from __future__ import annotations

import math
from collections.abc import Iterator

from jaxclip.data.siglip_tokens import kind_of
from jaxclip.models.presets import CLIPConfig, ImageConfig, TextConfig
from jaxclip.weights.families._base import Checkpoint, Family, Preprocess
from jaxclip.weights.families._parts import HALF, count_blocks, square_grid
from jaxclip.weights.families.open_clip import blocks as open_clip_blocks
from jaxclip.weights.families.open_clip import read_preprocess
from jaxclip.weights.mapping import (
    BATCH_AXIS,
    SAME,
    SCALAR,
    Entry,
    convolution,
    dense,
    fused_attention,
    norm,
)

_TRUNK = "visual.trunk"
# Width of a head: 64, and 72 in So400m.
_HEAD_WIDTH = {1152: 72}


class OpenCLIPSigLIP(Family):
    """``ViT-*-SigLIP`` of open_clip (Zhai et al. 2023, arXiv:2303.15343)."""

    @staticmethod
    def matches(checkpoint: Checkpoint) -> bool:
        return {f"{_TRUNK}.attn_pool.latent", "text.text_projection.weight"} <= set(
            checkpoint.shapes
        )

    @staticmethod
    def sizes(checkpoint: Checkpoint) -> CLIPConfig:
        shapes = checkpoint.shapes
        width, _, patch_size, _ = shapes[f"{_TRUNK}.patch_embed.proj.weight"]
        grid = square_grid(shapes[f"{_TRUNK}.pos_embed"][1], 0, _TRUNK)
        vocab_size, text_width = shapes["text.token_embedding.weight"]
        shape = {"activation": "gelu_tanh", "norm_eps": 1e-6}
        return CLIPConfig(
            image=ImageConfig(
                image_size=grid * patch_size,
                patch_size=patch_size,
                width=width,
                depth=count_blocks(shapes, f"{_TRUNK}.blocks."),
                num_heads=max(1, width // _HEAD_WIDTH.get(width, 64)),
                mlp_dim=shapes[f"{_TRUNK}.blocks.0.mlp.fc1.weight"][0],
                pool="map",
                pre_norm=False,
                patch_bias=True,
                projection="none",
                **shape,  # type: ignore[arg-type]
            ),
            text=TextConfig(
                vocab_size=vocab_size,
                context_length=shapes["text.positional_embedding"][0],
                width=text_width,
                depth=count_blocks(shapes, "text.transformer.resblocks."),
                num_heads=max(1, text_width // _HEAD_WIDTH.get(text_width, 64)),
                mlp_dim=shapes["text.transformer.resblocks.0.mlp.c_fc.weight"][0],
                causal=False,
                pool="final",
                mask_padding=False,
                projection="linear_bias",
                **shape,  # type: ignore[arg-type]
            ),
            embed_dim=width,
            logit_scale_init=math.log(10.0),
            logit_bias_init=-10.0,
        )

    @staticmethod
    def entries(sizes: CLIPConfig) -> list[Entry]:
        pool, to = f"{_TRUNK}.attn_pool", "image/attention_pool"
        return [
            Entry(
                f"{_TRUNK}.patch_embed.proj.weight",
                ("image/patch_embedding/kernel",),
                convolution(sizes.image.patch_size),
            ),
            Entry(f"{_TRUNK}.patch_embed.proj.bias", ("image/patch_embedding/bias",), SAME),
            Entry(f"{_TRUNK}.pos_embed", ("image/positions",), BATCH_AXIS),
            *_timm_blocks(sizes.image.depth),
            *norm(f"{_TRUNK}.norm", "image/norm_post"),
            Entry(f"{pool}.latent", (f"{to}/probe",), SAME),
            *dense(f"{pool}.q", f"{to}/attention/query"),
            *fused_attention(
                f"{pool}.kv.weight", f"{pool}.kv.bias", f"{to}/attention", ("key", "value")
            ),
            *dense(f"{pool}.proj", f"{to}/attention/out"),
            *norm(f"{pool}.norm", f"{to}/norm"),
            *dense(f"{pool}.mlp.fc1", f"{to}/mlp/up"),
            *dense(f"{pool}.mlp.fc2", f"{to}/mlp/down"),
            Entry("text.token_embedding.weight", ("text/token_embedding/embedding",), SAME),
            Entry("text.positional_embedding", ("text/positions",), SAME),
            *open_clip_blocks("text.transformer.resblocks", "text", sizes.text.depth),
            *norm("text.ln_final", "text/norm_post"),
            *dense("text.text_projection", "text/projection"),
            Entry("logit_scale", ("logit_scale",), SCALAR),
            Entry("logit_bias", ("logit_bias",), SCALAR),
        ]

    @staticmethod
    def preprocess(checkpoint: Checkpoint, sizes: CLIPConfig) -> Preprocess:
        return read_preprocess(
            checkpoint.config, HALF, HALF, sizes, {"kind": kind_of(sizes.text.vocab_size)}
        )


def _timm_blocks(depth: int) -> Iterator[Entry]:
    for index in range(depth):
        at, to = f"{_TRUNK}.blocks.{index}", f"image/blocks_{index}"
        yield from norm(f"{at}.norm1", f"{to}/attention_norm")
        yield from fused_attention(
            f"{at}.attn.qkv.weight",
            f"{at}.attn.qkv.bias",
            f"{to}/attention",
            ("query", "key", "value"),
        )
        yield from dense(f"{at}.attn.proj", f"{to}/attention/out")
        yield from norm(f"{at}.norm2", f"{to}/mlp_norm")
        yield from dense(f"{at}.mlp.fc1", f"{to}/mlp/up")
        yield from dense(f"{at}.mlp.fc2", f"{to}/mlp/down")
