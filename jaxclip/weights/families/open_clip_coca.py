"""CoCa in open_clip's files: both towers and the decoder that writes captions."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxclip.models import heads
from jaxclip.models.presets import CLIPConfig, ImageConfig
from jaxclip.weights.families._base import Checkpoint, Family, Preprocess
from jaxclip.weights.families._parts import read_number
from jaxclip.weights.families.open_clip import OpenCLIP
from jaxclip.weights.families.open_clip import blocks as open_clip_blocks
from jaxclip.weights.mapping import SAME, TRANSPOSED, Entry, dense, fused_attention, norm

_POOLER = "visual.attn_pool"
_DECODER = "text_decoder"
# Heads of poolers and decoders where the configuration is silent (open_clip's defaults).
_HEADS = 8


class OpenCLIPCoCa(Family):
    """``coca_*`` of open_clip (Yu et al. 2022, arXiv:2205.01917)."""

    @staticmethod
    def matches(checkpoint: Checkpoint) -> bool:
        wanted = {"visual.class_embedding", "text.cls_emb", f"{_DECODER}.text_projection"}
        return wanted <= set(checkpoint.shapes)

    @staticmethod
    def ignore(name: str) -> bool:
        return name.endswith("attn_mask")

    @staticmethod
    def sizes(checkpoint: Checkpoint) -> CLIPConfig:
        config = checkpoint.config.get("model_cfg", checkpoint.config)
        vision, text, decoder = (
            dict(config.get(f"{part}_cfg") or {}) for part in ("vision", "text", "multimodal")
        )
        plain = {
            name.removeprefix("text."): shape
            for name, shape in checkpoint.shapes.items()
            if name.startswith(("text.", "visual."))
        }
        base = OpenCLIP.sizes(checkpoint._replace(shapes=plain))
        positions, _ = plain["positional_embedding"]
        text_heads = base.text.num_heads
        if decoder and read_number(decoder, "heads", _HEADS) != text_heads:
            raise ValueError(
                f"multimodal_cfg.heads={decoder.get('heads', _HEADS)} and text_cfg.heads="
                f"{text_heads} differ; our decoder has those of the text tower"
            )
        if text.get("correct_cls_mask") or text.get("no_causal_mask"):
            raise ValueError("correct_cls_mask or no_causal_mask of text_cfg is not supported")
        return dataclasses.replace(
            base,
            image=_image(base.image, vision, checkpoint.shapes),
            text=dataclasses.replace(base.text, pool="cls", context_length=positions - 1),
        )

    @staticmethod
    def entries(sizes: CLIPConfig) -> list[Entry]:
        plain = [
            entry
            if entry.theirs == "logit_scale" or entry.theirs.startswith("visual.")
            else dataclasses.replace(entry, theirs=f"text.{entry.theirs}")
            for entry in OpenCLIP.entries(sizes)
        ]
        pooler = list(_pooler(fused=False)) if sizes.image.pool == "queries" else []
        class_token = Entry("text.cls_emb", ("text/class_token",), SAME)
        return [*plain, class_token, *pooler, *_decoder(sizes)]

    @classmethod
    def entries_of(cls, checkpoint: Checkpoint, sizes: CLIPConfig) -> list[Entry]:
        entries = cls.entries(sizes)
        if f"{_POOLER}.attn.in_proj_weight" not in checkpoint.shapes:
            return entries
        # Where both widths are equal, torch keeps the three in one.
        others = [entry for entry in entries if not entry.theirs.startswith(_POOLER)]
        return [*others, *_pooler(fused=True)]

    @staticmethod
    def terms(sizes: CLIPConfig) -> list[dict[str, Any]]:
        return [{"name": "coca", "num_queries": 0, "self_mlp": True}]

    @staticmethod
    def init_terms(sizes: CLIPConfig, rng: jax.Array) -> dict[str, Any]:
        text = jnp.zeros((1, 2, sizes.text.width))
        image = jnp.zeros((1, 2, sizes.token_width))
        decoder = heads.caption_decoder(sizes, self_mlp=True)
        return {"coca": {"decoder": decoder.init(rng, text, image)["params"]}}

    @staticmethod
    def preprocess(checkpoint: Checkpoint, sizes: CLIPConfig) -> Preprocess:
        return OpenCLIP.preprocess(checkpoint, sizes)


def _image(image: ImageConfig, vision: Mapping[str, Any], shapes: Mapping[str, Any]) -> ImageConfig:
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
        for entry in open_clip_blocks(f"{_DECODER}.{theirs}", to, sizes.text.depth):
            yield dataclasses.replace(entry, ours=tuple(_renamed(p, to, names) for p in entry.ours))
    for index in range(sizes.text.depth):
        at = f"{_DECODER}.cross_attn.{index}.ln_1_kv"
        yield from norm(at, f"{to}/blocks_{index}/image_norm")
    yield from norm(f"{_DECODER}.ln_final", f"{to}/norm_post")
    yield Entry(f"{_DECODER}.text_projection", (f"{to}/logits/kernel",), SAME)


def _renamed(path: str, prefix: str, names: Mapping[str, str]) -> str:
    block, part, *rest = path.removeprefix(f"{prefix}/").split("/")
    return "/".join([prefix, block, names[part], *rest])
