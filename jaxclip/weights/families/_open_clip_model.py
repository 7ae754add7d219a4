"""What open_clip's models with another image tower than its own ViT have in common."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from jaxclip.models.presets import CLIPConfig, TextConfig
from jaxclip.weights.families._base import Checkpoint, Preprocess, SpecialIds
from jaxclip.weights.families._layouts import open_clip_preprocess
from jaxclip.weights.families._open_clip_text import (
    model_config,
    read_text,
    text_cfg,
    text_entries,
)
from jaxclip.weights.mapping import SCALAR, Entry

# OpenAI's files tell these as numbers beside the weights; its models use quick-GELU.
OPENAI_NUMBERS = ("input_resolution", "context_length", "vocab_size")


def is_quick(checkpoint: Checkpoint) -> bool:
    """Whether a model computes quick-GELU: its configuration says so, or it is OpenAI's file."""
    openai = all(name in checkpoint.shapes for name in OPENAI_NUMBERS)
    return bool(model_config(checkpoint.config).get("quick_gelu", openai))


def is_buffer(name: str) -> bool:
    """Whether a tensor holds no weights."""
    last = name.rsplit(".", 1)[-1]
    return name in OPENAI_NUMBERS or last in ("attn_mask", "num_batches_tracked")


def text_sizes(checkpoint: Checkpoint, prefix: str = "") -> TextConfig:
    """The text tower; ``prefix`` is ``"text."`` in open_clip's ``CustomTextCLIP``."""
    text = dict(model_config(checkpoint.config).get("text_cfg") or {})
    return read_text(checkpoint.shapes, text, prefix=prefix, quick=is_quick(checkpoint))


def other_entries(sizes: CLIPConfig, prefix: str = "") -> Iterator[Entry]:
    """The table of all but the image tower."""
    yield from text_entries(sizes, prefix)
    yield Entry("logit_scale", ("logit_scale",), SCALAR)
    if sizes.logit_bias_init is not None:
        yield Entry("logit_bias", ("logit_bias",), SCALAR)


def config_file(
    sizes: CLIPConfig,
    vision_cfg: Mapping[str, Any],
    preprocess: Preprocess,
    ids: SpecialIds,
    *,
    custom_text: bool = False,
) -> dict[str, Mapping[str, Any]]:
    """``open_clip_config.json``, by its name.

    Args:
      sizes: the architecture.
      vision_cfg: of the image tower.
      preprocess: how inputs are made.
      ids: of the tokenizer.
      custom_text: whether open_clip's class is ``CustomTextCLIP``.
    """
    model_cfg: dict[str, Any] = {
        "embed_dim": sizes.embed_dim,
        "quick_gelu": sizes.text.activation == "quick_gelu",
        "vision_cfg": vision_cfg,
        "text_cfg": text_cfg(sizes.text, ids),
        **({"custom_text": True} if custom_text else {}),
    }
    if sizes.logit_bias_init is not None:
        model_cfg["init_logit_bias"] = sizes.logit_bias_init
    cfg = open_clip_preprocess(preprocess, sizes.image.image_size)
    return {"open_clip_config.json": {"model_cfg": model_cfg, "preprocess_cfg": cfg}}
