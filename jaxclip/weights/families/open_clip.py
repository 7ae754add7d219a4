"""OpenAI's own files and open_clip's, which keep their names: plain ViTs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxclip.models.presets import CLIPConfig, ImageConfig
from jaxclip.weights.families._base import Checkpoint, Family, Preprocess, SpecialIds
from jaxclip.weights.families._layouts import (
    OPEN_CLIP_LAYOUT,
    open_clip_preprocess,
    ratio,
    resize_ops,
)
from jaxclip.weights.families._open_clip_model import OPENAI_NUMBERS
from jaxclip.weights.families._open_clip_text import (
    arithmetic,
    blocks,
    flat_name,
    logit_entries,
    model_config,
    read_text,
    refuse_options,
    text_cfg,
    text_entries,
)
from jaxclip.weights.families._parts import (
    CLIP_MEAN,
    CLIP_STD,
    count_blocks,
    norm_eps,
    read_number,
    square_grid,
    torch_gelu,
)
from jaxclip.weights.files import Tensor
from jaxclip.weights.mapping import SAME, Entry, convolution, norm

# Long-CLIP's second table of positions, and the rows that the first one keeps.
_LONG, KEEP = "positional_embedding_res", 20
# open_clip's heads are 64 wide but in its largest image towers (its model configurations).
_HEAD_WIDTH = {1280: 80, 1408: 88, 1664: 104}


class OpenCLIP(Family):
    """openai/CLIP and mlfoundations/open_clip: image towers of class token, linear patch embedding
    and learned positions, causal text towers (Radford et al. 2021, arXiv:2103.00020; Cherti et al.
    2023, arXiv:2212.07143). MetaCLIP, DFN, DataComp and LAION weights have these shapes, too.
    """

    example = "vit_b32"

    @staticmethod
    def canonical(name: str) -> str | None:
        return flat_name(name)

    @staticmethod
    def matches(checkpoint: Checkpoint) -> bool:
        names = set(checkpoint.shapes)
        wanted = {"visual.class_embedding", "visual.proj", "visual.conv1.weight"}
        wanted.add("token_embedding.weight")
        # Alpha-CLIP's and CoCa's.
        others = {"visual.conv1_alpha.weight", "visual.attn_pool.query", "text.cls_emb"}
        return wanted <= names and not others & names

    @staticmethod
    def joined(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Long-CLIP keeps two tables of positions: the first 20 rows are of one, the rest of the
        other."""
        found = dict(tensors)
        rest = found.pop(_LONG, None)
        first = found.get("positional_embedding")
        if rest is None or first is None or first.shape != rest.shape:
            return tensors

        def read() -> np.ndarray:
            return np.concatenate([first.read()[:KEEP], rest.read()[KEEP:]])

        return {**found, "positional_embedding": first._replace(read=read)}

    @staticmethod
    def ignore(name: str) -> bool:
        return name in OPENAI_NUMBERS or name == "attn_mask"

    @staticmethod
    def sizes(checkpoint: Checkpoint) -> CLIPConfig:
        shapes, config = checkpoint.shapes, model_config(checkpoint.config)
        vision, text = dict(config.get("vision_cfg") or {}), dict(config.get("text_cfg") or {})
        openai = all(name in shapes for name in OPENAI_NUMBERS) or _LONG in shapes
        quick = bool(config.get("quick_gelu", openai))
        image = read_image(shapes, vision, quick)
        return CLIPConfig(
            image=image,
            text=read_text(shapes, text, quick=quick, clipa=not image.pre_norm),
            embed_dim=shapes["visual.proj"][1],
            logit_scale_init=math.log(1 / 0.07),
            logit_bias_init=-10.0 if "logit_bias" in shapes else None,
        )

    @staticmethod
    def entries(sizes: CLIPConfig) -> list[Entry]:
        return [
            *image_entries(sizes.image),
            *text_entries(sizes),
            *logit_entries(sizes),
        ]

    layout = OPEN_CLIP_LAYOUT
    weights_file = "open_clip_model.safetensors"

    @staticmethod
    def config_files(
        sizes: CLIPConfig, preprocess: Preprocess, ids: SpecialIds
    ) -> dict[str, Mapping[str, Any]]:
        image = sizes.image
        if not image.has_class_token:
            raise ValueError(
                "model.image.class_token=False can't be expressed by open_clip, which has one"
            )
        model_cfg = {
            "embed_dim": sizes.embed_dim,
            "quick_gelu": image.activation == "quick_gelu",
            "vision_cfg": vision_cfg(image),
            "text_cfg": text_cfg(sizes.text, ids),
        }
        if sizes.logit_bias_init is not None:
            model_cfg["init_logit_bias"] = sizes.logit_bias_init
        cfg = open_clip_preprocess(preprocess, image.image_size)
        return {"open_clip_config.json": {"model_cfg": model_cfg, "preprocess_cfg": cfg}}

    @staticmethod
    def preprocess(checkpoint: Checkpoint, sizes: CLIPConfig) -> Preprocess:
        return read_preprocess(checkpoint.config, CLIP_MEAN, CLIP_STD, sizes, {"kind": "clip"})


def read_image(
    shapes: Mapping[str, tuple[int, ...]], vision: Mapping[str, Any], quick: bool
) -> ImageConfig:
    """An image tower, by its shapes and ``vision_cfg``.

    Raises:
      ValueError: one that we do not have.
    """
    refuse_options(vision, "vision_cfg")
    width, _, patch_size, _ = shapes["visual.conv1.weight"]
    grid = square_grid(shapes["visual.positional_embedding"][0], 1, "visual")
    pre_norm = "visual.ln_pre.weight" in shapes
    # Without a configuration, what has no norm before its blocks is CLIPA's.
    pool = vision.get("pool_type", "tok" if pre_norm or vision else "avg")
    if pool not in ("tok", "avg"):
        raise ValueError(f"vision_cfg.pool_type={pool!r} is not supported; known: tok, avg")
    head_width = read_number(vision, "head_width", _HEAD_WIDTH.get(width, 64))
    block = "visual.transformer.resblocks."
    scaled = f"{block}0.ls_1.gamma" in shapes
    return ImageConfig(
        image_size=grid * patch_size,
        patch_size=patch_size,
        width=width,
        depth=count_blocks(shapes, block),
        num_heads=max(1, width // head_width),
        mlp_dim=shapes[f"{block}0.mlp.c_fc.weight"][0],
        activation="quick_gelu" if quick else torch_gelu(vision),
        norm_eps=norm_eps(vision),
        pre_norm=pre_norm,
        pool="cls" if pool == "tok" else "mean",
        class_token=pool == "avg",
        norm_after_pool=pool == "avg" and bool(vision.get("final_ln_after_pool", not vision)),
        layer_scale=float(vision.get("ls_init_value") or 1e-4) if scaled else None,
    )


def vision_cfg(image: ImageConfig) -> dict[str, Any]:
    """``vision_cfg`` of a tower."""
    found: dict[str, Any] = {
        "image_size": image.image_size,
        "layers": image.depth,
        "width": image.width,
        "head_width": image.width // image.num_heads,
        "patch_size": image.patch_size,
        "mlp_ratio": ratio(image.mlp_dim, image.width),
        **arithmetic(image),
    }
    if not image.pre_norm:
        found["no_ln_pre"] = True
    if image.pool == "mean":
        found |= {"pool_type": "avg", "final_ln_after_pool": image.norm_after_pool}
    if image.layer_scale is not None:
        found["ls_init_value"] = image.layer_scale
    return found


def image_entries(image: ImageConfig) -> list[Entry]:
    """The table of an image tower."""
    patches = convolution(image.patch_size)
    blocks_of = "visual.transformer.resblocks"
    return [
        Entry("visual.class_embedding", ("image/class_token",), SAME),
        Entry("visual.positional_embedding", ("image/positions",), SAME),
        Entry("visual.conv1.weight", ("image/patch_embedding/kernel",), patches),
        *(norm("visual.ln_pre", "image/norm_pre") if image.pre_norm else ()),
        *blocks(blocks_of, "image", image.depth, layer_scale=image.layer_scale is not None),
        *norm("visual.ln_post", "image/norm_post"),
        Entry("visual.proj", ("image/projection/kernel",), SAME),
    ]


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
