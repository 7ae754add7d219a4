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
OPENAI_NUMBERS = ("input_resolution", "context_length", "vocab_size")
_TEXT_TENSORS = ("token_embedding.", "positional_embedding", "transformer.", "ln_final.",
                 "text_projection", "attn_mask")  # fmt: skip
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
        return is_buffer(name)

    @staticmethod
    def sizes(checkpoint: Checkpoint) -> CLIPConfig:
        shapes = checkpoint.shapes
        config = checkpoint.config.get("model_cfg", checkpoint.config)
        vision = dict(config.get("vision_cfg") or {})
        width, _, patch_size, _ = shapes["visual.conv1.weight"]
        _, embed_dim = shapes["visual.proj"]
        grid = square_grid(shapes["visual.positional_embedding"][0], 1, "visual")
        quick = is_quick(checkpoint)
        head_width = read_number(vision, "head_width", _HEAD_WIDTH.get(width, 64))
        return CLIPConfig(
            image=ImageConfig(
                image_size=grid * patch_size,
                patch_size=patch_size,
                width=width,
                depth=count_blocks(shapes, "visual.transformer.resblocks."),
                num_heads=max(1, width // head_width),
                mlp_dim=shapes["visual.transformer.resblocks.0.mlp.c_fc.weight"][0],
                activation="quick_gelu" if quick else torch_gelu(vision),
                norm_eps=norm_eps(vision),
            ),
            text=text_sizes(checkpoint),
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
            *text_entries(sizes.text.depth),
        ]

    layout = CLIP_LAYOUT
    weights_file = "open_clip_model.safetensors"

    @staticmethod
    def config_files(
        sizes: CLIPConfig, preprocess: Preprocess, ids: SpecialIds
    ) -> dict[str, Mapping[str, Any]]:
        image = sizes.image
        vision_cfg = {
            "image_size": image.image_size,
            "layers": image.depth,
            "width": image.width,
            "head_width": image.width // image.num_heads,
            "patch_size": image.patch_size,
            "mlp_ratio": ratio(image.mlp_dim, image.width),
            **_arithmetic(image),
        }
        quick = image.activation == "quick_gelu"
        return config_file(sizes, vision_cfg, preprocess, ids, quick_gelu=quick)

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


def config_file(
    sizes: CLIPConfig,
    vision_cfg: Mapping[str, Any],
    preprocess: Preprocess,
    ids: SpecialIds,
    *,
    custom_text: bool = False,
    quick_gelu: bool | None = None,
) -> dict[str, Mapping[str, Any]]:
    """``open_clip_config.json`` of a model with CLIP's text tower, by its name.

    Args:
      sizes: the architecture.
      vision_cfg: of the image tower.
      preprocess: how inputs are made.
      ids: of the tokenizer.
      custom_text: whether open_clip's class is ``CustomTextCLIP``.
      quick_gelu: of the whole model; None for the text tower's.
    """
    text = sizes.text
    text_cfg: dict[str, Any] = {
        "context_length": text.context_length,
        "vocab_size": text.vocab_size,
        "width": text.width,
        "heads": text.num_heads,
        "layers": text.depth,
        "mlp_ratio": ratio(text.mlp_dim, text.width),
        **_arithmetic(text),
    }
    if not text.causal:
        text_cfg["no_causal_mask"] = True
    if ids.end != text.vocab_size - 1:  # by default the largest id is the end
        text_cfg |= {"pool_type": "eos", "eos_id": ids.end, "pad_id": ids.pad}
    model_cfg = {
        "embed_dim": sizes.embed_dim,
        "quick_gelu": text.activation == "quick_gelu" if quick_gelu is None else quick_gelu,
        "vision_cfg": vision_cfg,
        "text_cfg": text_cfg,
        **({"custom_text": True} if custom_text else {}),
    }
    cfg = open_clip_preprocess(preprocess, sizes.image.image_size)
    return {"open_clip_config.json": {"model_cfg": model_cfg, "preprocess_cfg": cfg}}


def is_quick(checkpoint: Checkpoint) -> bool:
    """Whether a model computes quick-GELU: its configuration says so, or it is OpenAI's file."""
    config = checkpoint.config.get("model_cfg", checkpoint.config)
    openai = all(name in checkpoint.shapes for name in OPENAI_NUMBERS)
    return bool(config.get("quick_gelu", openai))


def text_sizes(checkpoint: Checkpoint, prefix: str = "") -> TextConfig:
    """CLIP's text tower.

    Args:
      checkpoint: with canonical names.
      prefix: of their names: ``"text."`` in open_clip's ``CustomTextCLIP``.

    Raises:
      ValueError: padding is masked, which our towers do otherwise.
    """
    shapes = checkpoint.shapes
    config = checkpoint.config.get("model_cfg", checkpoint.config)
    text = dict(config.get("text_cfg") or {})
    if text.get("use_pad_mask"):
        raise ValueError("text_cfg.use_pad_mask is not supported")
    causal = not text.get("no_causal_mask", False)
    vocab_size, width = shapes[f"{prefix}token_embedding.weight"]
    return TextConfig(
        vocab_size=vocab_size,
        context_length=shapes[f"{prefix}positional_embedding"][0],
        width=width,
        depth=count_blocks(shapes, f"{prefix}transformer.resblocks."),
        num_heads=read_number(text, "heads", max(1, width // 64)),
        mlp_dim=shapes[f"{prefix}transformer.resblocks.0.mlp.c_fc.weight"][0],
        causal=causal,
        mask_padding=causal,
        activation="quick_gelu" if is_quick(checkpoint) else torch_gelu(text),
        norm_eps=norm_eps(text),
    )


def text_entries(depth: int, prefix: str = "") -> Iterator[Entry]:
    """CLIP's text tower and the temperature; arguments as in :func:`text_sizes`."""
    yield Entry(f"{prefix}token_embedding.weight", ("text/token_embedding/embedding",), SAME)
    yield Entry(f"{prefix}positional_embedding", ("text/positions",), SAME)
    yield from blocks(f"{prefix}transformer.resblocks", "text", depth)
    yield from norm(f"{prefix}ln_final", "text/norm_post")
    yield Entry(f"{prefix}text_projection", ("text/projection/kernel",), SAME)
    yield Entry("logit_scale", ("logit_scale",), SCALAR)


def with_text_prefix(name: str) -> str:
    """A tensor's name as ``CustomTextCLIP`` has it, of either of open_clip's model classes."""
    return f"text.{name}" if name.startswith(_TEXT_TENSORS) else name


def without_text_prefix(name: str) -> str:
    """A tensor's name as ``CLIP`` has it, of either of open_clip's model classes."""
    bare = name.removeprefix("text.")
    return bare if bare.startswith(_TEXT_TENSORS) else name


def is_buffer(name: str) -> bool:
    """Whether a tensor of a model with CLIP's text tower holds no weights."""
    last = name.rsplit(".", 1)[-1]
    return name in OPENAI_NUMBERS or last in ("attn_mask", "num_batches_tracked")


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
