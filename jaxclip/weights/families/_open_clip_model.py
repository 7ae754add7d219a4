"""What open_clip's models with another image tower than its own ViT have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from jaxclip.models.presets import CLIPConfig, TextConfig
from jaxclip.weights.families._base import Checkpoint, Family, Preprocess, SpecialIds
from jaxclip.weights.families._layouts import open_clip_preprocess
from jaxclip.weights.families._open_clip_text import (
    custom_name,
    flat_name,
    logit_entries,
    model_config,
    read_text,
    text_cfg,
    text_entries,
)
from jaxclip.weights.mapping import Entry

# OpenAI's files tell these as numbers beside the weights; its models use quick-GELU.
OPENAI_NUMBERS = ("input_resolution", "context_length", "vocab_size")


def is_quick(checkpoint: Checkpoint) -> bool:
    """Whether a model computes quick-GELU: its configuration says so, or it is OpenAI's file."""
    openai = all(name in checkpoint.shapes for name in OPENAI_NUMBERS)
    return bool(model_config(checkpoint.config).get("quick_gelu", openai))


def text_sizes(checkpoint: Checkpoint, prefix: str = "") -> TextConfig:
    """The text tower; ``prefix`` is ``"text."`` in open_clip's ``CustomTextCLIP``."""
    text = dict(model_config(checkpoint.config).get("text_cfg") or {})
    return read_text(checkpoint.shapes, text, prefix=prefix, quick=is_quick(checkpoint))


class OtherTower(Family):
    """A model of open_clip with CLIP's text tower and another image tower than CLIP's ViT.

    A family says what is its own: :meth:`image_entries` and :meth:`vision_cfg`, beside
    :meth:`~Family.matches` and :meth:`~Family.sizes`.
    """

    # ``"text."`` where open_clip's class is ``CustomTextCLIP``.
    text_prefix: ClassVar[str] = ""
    weights_file = "open_clip_model.safetensors"

    @classmethod
    def canonical(cls, name: str) -> str | None:
        return custom_name(name) if cls.text_prefix else flat_name(name)

    @staticmethod
    def ignore(name: str) -> bool:
        last = name.rsplit(".", 1)[-1]
        return name in OPENAI_NUMBERS or last in ("attn_mask", "num_batches_tracked")

    @staticmethod
    def image_entries(image: Any) -> list[Entry]:
        """The table of the image tower."""
        raise NotImplementedError

    @staticmethod
    def vision_cfg(image: Any) -> dict[str, Any]:
        """Section ``vision_cfg`` of ``open_clip_config.json``.

        Raises:
          ValueError: an architecture that open_clip has no words for.
        """
        raise NotImplementedError

    @classmethod
    def entries(cls, sizes: CLIPConfig) -> list[Entry]:
        return [
            *cls.image_entries(sizes.image),
            *text_entries(sizes, cls.text_prefix),
            *logit_entries(sizes),
        ]

    @classmethod
    def config_files(
        cls, sizes: CLIPConfig, preprocess: Preprocess, ids: SpecialIds
    ) -> dict[str, Mapping[str, Any]]:
        model_cfg: dict[str, Any] = {
            "embed_dim": sizes.embed_dim,
            "quick_gelu": sizes.text.activation == "quick_gelu",
            "vision_cfg": {"image_size": sizes.image.image_size, **cls.vision_cfg(sizes.image)},
            "text_cfg": text_cfg(sizes.text, ids),
            **({"custom_text": True} if cls.text_prefix else {}),
        }
        if sizes.logit_bias_init is not None:
            model_cfg["init_logit_bias"] = sizes.logit_bias_init
        cfg = open_clip_preprocess(preprocess, sizes.image.image_size)
        return {"open_clip_config.json": {"model_cfg": model_cfg, "preprocess_cfg": cfg}}
