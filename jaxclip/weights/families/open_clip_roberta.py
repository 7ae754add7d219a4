"""open_clip's models with RoBERTa or XLM-RoBERTa as text tower."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from jaxclip.data.roberta_tokens import PAD_ID
from jaxclip.models.presets import CLIPConfig, TextConfig
from jaxclip.weights.families._base import Checkpoint, Family, Preprocess, SpecialIds
from jaxclip.weights.families._layouts import (
    OPEN_CLIP_LAYOUT,
    TEXT_WITHOUT_OPTIONS,
    open_clip_preprocess,
)
from jaxclip.weights.families._open_clip_text import model_config
from jaxclip.weights.families._parts import CLIP_MEAN, CLIP_STD, count_blocks, read_number
from jaxclip.weights.families.open_clip import (
    image_entries,
    read_image,
    read_preprocess,
    vision_cfg,
)
from jaxclip.weights.mapping import SAME, SCALAR, TRANSPOSED, Entry, dense, norm

_TEXT = "text.transformer"
_EMBEDDINGS = f"{_TEXT}.embeddings"
_LAYERS = f"{_TEXT}.encoder.layer."
_BUFFERS = (".position_ids", ".token_type_ids")
# Vocabularies of RoBERTa and XLM-RoBERTa; BERT's tensors have the same names.
_VOCABULARIES = (50_265, 250_002)
# What transformers' hub has under a name: vocabulary, positions, width, depth, MLP.
_PUBLISHED = {
    (50_265, 514, 768, 12, 3072): "roberta-base",
    (50_265, 514, 1024, 24, 4096): "roberta-large",
    (250_002, 514, 768, 12, 3072): "xlm-roberta-base",
    (250_002, 514, 1024, 24, 4096): "xlm-roberta-large",
}


class OpenCLIPRoberta(Family):
    """``roberta-ViT-B-32``, ``xlm-roberta-base-ViT-B-32`` and ``xlm-roberta-large-ViT-H-14`` of
    open_clip (LAION): mean of the tokens, two linear layers to the joint space."""

    example = "roberta_vit_b32"

    @staticmethod
    def matches(checkpoint: Checkpoint) -> bool:
        names = set(checkpoint.shapes)
        wanted = {"visual.class_embedding", f"{_EMBEDDINGS}.token_type_embeddings.weight"}
        return wanted <= names and "text_decoder.text_projection" not in names  # CoCa's

    @staticmethod
    def ignore(name: str) -> bool:
        return name.endswith(_BUFFERS)

    @staticmethod
    def sizes(checkpoint: Checkpoint) -> CLIPConfig:
        shapes = checkpoint.shapes
        config = model_config(checkpoint.config)
        text = dict(config.get("text_cfg") or {})
        _refuse_others(text, shapes)
        vocab_size, width = shapes[f"{_EMBEDDINGS}.word_embeddings.weight"]
        mlp_dim = shapes[f"{_LAYERS}0.intermediate.dense.weight"][0]
        vision, quick = dict(config.get("vision_cfg") or {}), bool(config.get("quick_gelu"))
        return CLIPConfig(
            image=read_image(shapes, vision, quick),
            embed_dim=shapes["visual.proj"][1],
            logit_scale_init=math.log(1 / 0.07),
            text=TextConfig(
                kind="roberta",
                vocab_size=vocab_size,
                context_length=read_number(text, "context_length", 77),
                num_positions=shapes[f"{_EMBEDDINGS}.position_embeddings.weight"][0],
                width=width,
                depth=count_blocks(shapes, _LAYERS),
                num_heads=max(1, width // 64),
                mlp_dim=mlp_dim,
                causal=False,
                pool="mean",
                projection="mlp" if "text.proj.0.weight" in shapes else "linear",
                norm_eps=1e-5,
                pad_id=PAD_ID,
            ),
        )

    @staticmethod
    def entries(sizes: CLIPConfig) -> list[Entry]:
        scale = Entry("logit_scale", ("logit_scale",), SCALAR)
        return [*image_entries(sizes.image), *_text(sizes.text), scale]

    layout: Mapping[str, Any] = {
        **{key: value for key, value in OPEN_CLIP_LAYOUT.items() if "text." not in key},
        **TEXT_WITHOUT_OPTIONS,
        "text.kind": "roberta",
        "text.pool": "mean",
    }
    weights_file = "open_clip_model.safetensors"

    @staticmethod
    def config_files(
        sizes: CLIPConfig, preprocess: Preprocess, ids: SpecialIds
    ) -> dict[str, Mapping[str, Any]]:
        name = _published(sizes.text)
        model_cfg = {
            "embed_dim": sizes.embed_dim,
            "quick_gelu": sizes.image.activation == "quick_gelu",
            "vision_cfg": vision_cfg(sizes.image),
            "text_cfg": {
                "context_length": sizes.text.context_length,
                "hf_model_name": name,
                "hf_tokenizer_name": name,
                # The weights are beside, so that the name's own need not be fetched.
                "hf_model_pretrained": False,
                "hf_pooler_type": "mean_pooler",
                "hf_proj_type": sizes.text.projection,
            },
        }
        cfg = open_clip_preprocess(preprocess, sizes.image.image_size)
        return {"open_clip_config.json": {"model_cfg": model_cfg, "preprocess_cfg": cfg}}

    @staticmethod
    def preprocess(checkpoint: Checkpoint, sizes: CLIPConfig) -> Preprocess:
        tokenizer = {"kind": "roberta"}
        return read_preprocess(checkpoint.config, CLIP_MEAN, CLIP_STD, sizes, tokenizer)


def _published(text: TextConfig) -> str:
    """The name of a text tower on transformers' hub, by which open_clip makes it.

    Raises:
      ValueError: there is none.
    """
    shape = (text.vocab_size, text.num_positions, text.width, text.depth, text.mlp_dim)
    if shape not in _PUBLISHED:
        what = "vocab_size, num_positions, width, depth, mlp_dim"
        raise ValueError(
            f"model.text ({what}) = {shape} can't be expressed by open_clip, which makes the tower "
            f"by a name of transformers' hub: {', '.join(_PUBLISHED.values())}"
        )
    return _PUBLISHED[shape]


def _refuse_others(text: Mapping[str, Any], shapes: Mapping[str, Any]) -> None:
    name = str(text.get("hf_model_name", ""))
    vocab_size = shapes[f"{_EMBEDDINGS}.word_embeddings.weight"][0]
    if "roberta" not in name.lower() and (name or vocab_size not in _VOCABULARIES):
        raise ValueError(
            f"text_cfg.hf_model_name={name!r} with {vocab_size} tokens is neither roberta nor "
            "xlm-roberta"
        )
    pooler = text.get("hf_pooler_type") or "mean_pooler"
    if pooler != "mean_pooler":
        raise ValueError(f"hf_pooler_type={pooler!r} is not supported; known: mean_pooler")


def _text(text: TextConfig) -> Iterator[Entry]:
    names = {
        "word_embeddings": "token_embedding/embedding",
        "position_embeddings": "positions",
        "token_type_embeddings": "token_type",
    }
    for theirs, ours in names.items():
        yield Entry(f"{_EMBEDDINGS}.{theirs}.weight", (f"text/{ours}",), SAME)
    yield from norm(f"{_EMBEDDINGS}.LayerNorm", "text/norm_embed")
    for index in range(text.depth):
        at, to = f"{_LAYERS}{index}", f"text/blocks_{index}"
        for name in ("query", "key", "value"):
            yield from dense(f"{at}.attention.self.{name}", f"{to}/attention/{name}")
        yield from dense(f"{at}.attention.output.dense", f"{to}/attention/out")
        yield from norm(f"{at}.attention.output.LayerNorm", f"{to}/attention_norm")
        yield from dense(f"{at}.intermediate.dense", f"{to}/mlp/up")
        yield from dense(f"{at}.output.dense", f"{to}/mlp/down")
        yield from norm(f"{at}.output.LayerNorm", f"{to}/mlp_norm")
    if text.projection == "linear":
        yield Entry("text.proj.weight", ("text/projection/kernel",), TRANSPOSED)
    else:
        yield Entry("text.proj.0.weight", ("text/projection/hidden/kernel",), TRANSPOSED)
        yield Entry("text.proj.2.weight", ("text/projection/out/kernel",), TRANSPOSED)
