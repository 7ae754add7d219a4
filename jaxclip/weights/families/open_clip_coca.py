"""CoCa in open_clip's files: both towers and the decoder that writes captions."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxclip.models import heads
from jaxclip.models.presets import CLIPConfig, ImageConfig
from jaxclip.weights.families._base import Checkpoint, Family, Preprocess, SpecialIds
from jaxclip.weights.families._layouts import OPEN_CLIP_LAYOUT, open_clip_preprocess
from jaxclip.weights.families._open_clip_text import (
    blocks,
    model_config,
    read_text,
    text_cfg,
    text_entries,
)
from jaxclip.weights.families._parts import read_number
from jaxclip.weights.families.open_clip import OpenCLIP, image_entries, read_image, vision_cfg
from jaxclip.weights.mapping import SAME, SCALAR, TRANSPOSED, Entry, dense, fused_attention, norm

_POOLER = "visual.attn_pool"
_DECODER = "text_decoder"
# Heads of poolers and decoders where the configuration is silent (open_clip's defaults).
_HEADS = 8


class OpenCLIPCoCa(Family):
    """``coca_*`` of open_clip (Yu et al. 2022, arXiv:2205.01917)."""

    example = "coca_vit_b32"

    @staticmethod
    def matches(checkpoint: Checkpoint) -> bool:
        wanted = {"visual.class_embedding", "text.cls_emb", f"{_DECODER}.text_projection"}
        return wanted <= set(checkpoint.shapes)

    @staticmethod
    def ignore(name: str) -> bool:
        return name.endswith("attn_mask")

    @staticmethod
    def sizes(checkpoint: Checkpoint) -> CLIPConfig:
        shapes, config = checkpoint.shapes, model_config(checkpoint.config)
        vision, text, decoder = (
            dict(config.get(f"{part}_cfg") or {}) for part in ("vision", "text", "multimodal")
        )
        quick = bool(config.get("quick_gelu"))
        known = {name: shape for name, shape in shapes.items() if name != "text.cls_emb"}
        plain = {name: value for name, value in text.items() if name != "embed_cls"}
        tower = read_text(known, plain, prefix="text.", quick=quick)
        if decoder and read_number(decoder, "heads", _HEADS) != tower.num_heads:
            raise ValueError(
                f"multimodal_cfg.heads={decoder.get('heads', _HEADS)} and text_cfg.heads="
                f"{tower.num_heads} differ; our decoder has those of the text tower"
            )
        if text.get("correct_cls_mask") or not tower.causal:
            raise ValueError("correct_cls_mask or no_causal_mask of text_cfg is not supported")
        length = tower.context_length - 1
        return CLIPConfig(
            image=_with_pooler(read_image(shapes, vision, quick), vision, shapes),
            text=dataclasses.replace(tower, pool="cls", context_length=length),
            embed_dim=shapes["visual.proj"][1],
            logit_scale_init=math.log(1 / 0.07),
        )

    @classmethod
    def entries(cls, sizes: CLIPConfig) -> list[Entry]:
        # Where both widths are equal, torch keeps query, key and value in one.
        return cls._table(sizes, fused=sizes.embed_dim == sizes.image.width)

    @classmethod
    def entries_of(cls, checkpoint: Checkpoint, sizes: CLIPConfig) -> list[Entry]:
        return cls._table(sizes, fused=f"{_POOLER}.attn.in_proj_weight" in checkpoint.shapes)

    @staticmethod
    def _table(sizes: CLIPConfig, *, fused: bool) -> list[Entry]:
        return [
            *image_entries(sizes.image),
            *(_pooler(fused=fused) if sizes.image.pool == "queries" else ()),
            *text_entries(sizes, "text."),
            Entry("text.cls_emb", ("text/class_token",), SAME),
            *_decoder(sizes),
            Entry("logit_scale", ("logit_scale",), SCALAR),
        ]

    @staticmethod
    def terms(sizes: CLIPConfig) -> list[dict[str, Any]]:
        return [{"name": "coca", "num_queries": 0, "self_mlp": True}]

    @staticmethod
    def init_terms(sizes: CLIPConfig, rng: jax.Array) -> dict[str, Any]:
        text = jnp.zeros((1, 2, sizes.text.width))
        image = jnp.zeros((1, 2, sizes.token_width))
        decoder = heads.caption_decoder(sizes, self_mlp=True)
        return {"coca": {"decoder": decoder.init(rng, text, image)["params"]}}

    layout = {
        key: value for key, value in OPEN_CLIP_LAYOUT.items() if key != "image.pool_heads"
    } | {
        "logit_bias": False,
        "text.pool": "cls",
        "text.norm_eps": 1e-5,  # the decoder's can't be told
    }
    weights_file = "open_clip_model.safetensors"

    @staticmethod
    def config_files(
        sizes: CLIPConfig, preprocess: Preprocess, ids: SpecialIds
    ) -> dict[str, Mapping[str, Any]]:
        image, text = sizes.image, sizes.text
        fixed = {"activation": ("gelu", "quick_gelu"), "mlp_dim": (4 * text.width,)}
        for name, known in fixed.items():
            if (value := getattr(text, name)) not in known:
                raise ValueError(
                    f"model.text.{name}={value!r} can't be expressed by open_clip, whose decoder "
                    f"of captions has {' or '.join(map(repr, known))}"
                )
        if ids.pad != 0:
            raise ValueError(
                f"the tokenizer fills texts with id {ids.pad}, but CoCa's class token in open_clip "
                "looks past id 0"
            )
        vision = {**vision_cfg(image), "output_tokens": True}
        if image.pool == "queries":
            vision |= {
                "attentional_pool": True,
                "attn_pooler_queries": image.num_queries,
                "attn_pooler_heads": image.pool_heads,
            }
        decoder = text_cfg(
            dataclasses.replace(text, pool="last"), SpecialIds(None, text.vocab_size - 1)
        )
        model_cfg = {
            "embed_dim": sizes.embed_dim,
            "quick_gelu": text.activation == "quick_gelu",
            "custom_text": True,
            "vision_cfg": vision,
            "text_cfg": {**decoder, "embed_cls": True, "output_tokens": True},
            "multimodal_cfg": {**decoder, "attn_pooler_heads": _HEADS},
        }
        cfg = open_clip_preprocess(preprocess, image.image_size)
        return {"open_clip_config.json": {"model_cfg": model_cfg, "preprocess_cfg": cfg}}

    @staticmethod
    def preprocess(checkpoint: Checkpoint, sizes: CLIPConfig) -> Preprocess:
        return OpenCLIP.preprocess(checkpoint, sizes)


def _with_pooler(
    image: ImageConfig, vision: Mapping[str, Any], shapes: Mapping[str, Any]
) -> ImageConfig:
    if f"{_POOLER}.query" not in shapes:
        return image
    if vision.get("attentional_pool") not in (None, True):
        raise ValueError(f"attentional_pool={vision['attentional_pool']!r} is not supported")
    return dataclasses.replace(
        image,
        pool="queries",
        num_queries=shapes[f"{_POOLER}.query"][0],
        pool_heads=read_number(vision, "attn_pooler_heads", _HEADS),
    )


def _pooler(*, fused: bool) -> Iterator[Entry]:
    to = "image/query_pool"
    yield Entry(f"{_POOLER}.query", (f"{to}/queries",), SAME)
    yield from norm(f"{_POOLER}.ln_q", f"{to}/query_norm")
    yield from norm(f"{_POOLER}.ln_k", f"{to}/token_norm")
    yield from _attention(f"{_POOLER}.attn", f"{to}/attention", fused=fused)


def _attention(theirs: str, ours: str, *, fused: bool) -> Iterator[Entry]:
    """``torch.nn.MultiheadAttention``, with keys of its own width (not ``fused``) or without."""
    names = ("query", "key", "value")
    weight, bias = f"{theirs}.in_proj_weight", f"{theirs}.in_proj_bias"
    for entry in fused_attention(weight, bias, ours, names):
        if fused or entry.theirs == bias:
            yield entry
    if not fused:
        for name in names:
            path = (f"{ours}/{name}/kernel",)
            yield Entry(f"{theirs}.{name[0]}_proj_weight", path, TRANSPOSED)
    yield from dense(f"{theirs}.out_proj", f"{ours}/out")


def _decoder(sizes: CLIPConfig) -> Iterator[Entry]:
    """One layer of ours is two blocks of theirs, the second with cross-attention."""
    to = "objective/coca/decoder"
    first = {"attention_norm": "attention_norm", "attention": "attention"}
    first |= {"mlp_norm": "self_mlp_norm", "mlp": "self_mlp"}
    second = {"attention_norm": "cross_norm", "attention": "cross_attention"}
    second |= {"mlp_norm": "mlp_norm", "mlp": "mlp"}
    for theirs, names in (("resblocks", first), ("cross_attn", second)):
        for entry in blocks(f"{_DECODER}.{theirs}", to, sizes.text.depth):
            yield dataclasses.replace(entry, ours=tuple(_renamed(p, to, names) for p in entry.ours))
    for index in range(sizes.text.depth):
        at = f"{_DECODER}.cross_attn.{index}.ln_1_kv"
        yield from norm(at, f"{to}/blocks_{index}/image_norm")
    yield from norm(f"{_DECODER}.ln_final", f"{to}/norm_post")
    yield Entry(f"{_DECODER}.text_projection", (f"{to}/logits/kernel",), SAME)


def _renamed(path: str, prefix: str, names: Mapping[str, str]) -> str:
    block, part, *rest = path.removeprefix(f"{prefix}/").split("/")
    return "/".join([prefix, block, names[part], *rest])
