"""SigLIP as google-research/big_vision writes it: one ``.npz``."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from jaxclip.data.siglip_tokens import kind_of
from jaxclip.models.presets import CLIPConfig, ImageConfig, TextConfig
from jaxclip.weights.families._base import Checkpoint, Family, Preprocess
from jaxclip.weights.families._parts import HALF, count_blocks, square_grid
from jaxclip.weights.mapping import BATCH_AXIS, ONE_ELEMENT, SAME, Entry, Layout, flat, stack

_TOWERS = ("params/img/Transformer", "params/txt/Encoder_0")
_ATTENTION = "MultiHeadDotProductAttention_0"


# Where a file keeps the parameters: with optax's state beside them, with Flax's old optimizer, or
# alone, as most published files do.
_ROOTS = ("params/", "opt/target/")
_MODEL = ("img/", "txt/")


class BigVision(Family):
    """``two_towers`` models of big_vision with a MAP head (Zhai et al. 2023, arXiv:2303.15343;
    SigLIP 2: Tschannen et al. 2025, arXiv:2502.14786).

    Blocks may be apart (``encoderblock_0``, …) or stacked by ``scan`` (``encoderblock``, with a
    leading axis of layers), in each tower.
    """

    example = "siglip_b16"

    @staticmethod
    def canonical(name: str) -> str | None:
        for root in _ROOTS:
            if name.startswith(root):
                return "params/" + name.removeprefix(root)
        if name.startswith(_MODEL) or name in ("t", "b"):
            return f"params/{name}"
        return None

    @staticmethod
    def matches(checkpoint: Checkpoint) -> bool:
        return {"params/img/embedding/kernel", "params/txt/Embed_0/embedding"} <= set(
            checkpoint.shapes
        )

    @staticmethod
    def sizes(checkpoint: Checkpoint) -> CLIPConfig:
        shapes = checkpoint.shapes
        patch_size, _, _, width = shapes["params/img/embedding/kernel"]
        grid = square_grid(shapes["params/img/pos_embedding"][1], 0, "img")
        vocab_size, text_width = shapes["params/txt/Embed_0/embedding"]
        return CLIPConfig(
            image=ImageConfig(
                image_size=grid * patch_size,
                patch_size=patch_size,
                width=width,
                pool="map",
                pre_norm=False,
                patch_bias=True,
                projection="none",
                **_shape(shapes, "params/img/Transformer"),
            ),
            text=TextConfig(
                vocab_size=vocab_size,
                context_length=shapes["params/txt/pos_embedding"][1],
                width=text_width,
                causal=False,
                pool="final",
                mask_padding=False,
                projection="linear_bias",
                **_shape(shapes, "params/txt/Encoder_0"),
            ),
            embed_dim=width,
            logit_scale_init=math.log(10.0),
            logit_bias_init=-10.0,
        )

    @staticmethod
    def entries(sizes: CLIPConfig) -> list[Entry]:
        image, text = sizes.image, sizes.text
        pool, to = "params/img/MAPHead_0", "image/attention_pool"
        size = image.patch_size
        return [
            Entry(
                "params/img/embedding/kernel",
                ("image/patch_embedding/kernel",),
                flat((size, size, 3, image.width)),
            ),
            Entry("params/img/embedding/bias", ("image/patch_embedding/bias",), SAME),
            Entry("params/img/pos_embedding", ("image/positions",), BATCH_AXIS),
            *_blocks("params/img/Transformer", "image", image.depth, image.width, image.num_heads),
            *_norm("params/img/Transformer/encoder_norm", "image/norm_post"),
            Entry(f"{pool}/probe", (f"{to}/probe",), SAME),
            *_attention(f"{pool}/{_ATTENTION}", f"{to}/attention", image.width, image.num_heads),
            *_norm(f"{pool}/LayerNorm_0", f"{to}/norm"),
            *_mlp(f"{pool}/MlpBlock_0", f"{to}/mlp"),
            Entry("params/txt/Embed_0/embedding", ("text/token_embedding/embedding",), SAME),
            Entry("params/txt/pos_embedding", ("text/positions",), BATCH_AXIS),
            *_blocks("params/txt/Encoder_0", "text", text.depth, text.width, text.num_heads),
            *_norm("params/txt/Encoder_0/encoder_norm", "text/norm_post"),
            *_dense("params/txt/head", "text/projection"),
            Entry("params/t", ("logit_scale",), ONE_ELEMENT),
            Entry("params/b", ("logit_bias",), ONE_ELEMENT),
        ]

    @classmethod
    def entries_of(cls, checkpoint: Checkpoint, sizes: CLIPConfig) -> list[Entry]:
        entries = cls.entries(sizes)
        for at in _TOWERS:
            if any(name.startswith(f"{at}/encoderblock/") for name in checkpoint.shapes):
                entries = _stacked(entries, at)
        return entries

    @staticmethod
    def preprocess(checkpoint: Checkpoint, sizes: CLIPConfig) -> Preprocess:
        tokenizer = {
            "kind": kind_of(sizes.text.vocab_size),
            "context_length": sizes.text.context_length,
        }
        return Preprocess(HALF, HALF, "resize(method='bilinear')", tokenizer)


def _shape(shapes: Mapping[str, tuple[int, ...]], at: str) -> dict[str, Any]:
    stacked = f"{at}/encoderblock/{_ATTENTION}/query/kernel" in shapes
    first = f"{at}/encoderblock" if stacked else f"{at}/encoderblock_0"
    query = shapes[f"{first}/{_ATTENTION}/query/kernel"]
    return {
        "depth": query[0] if stacked else count_blocks(shapes, f"{at}/encoderblock_"),
        "num_heads": query[-2],
        "mlp_dim": shapes[f"{first}/MlpBlock_0/Dense_0/kernel"][-1],
        "activation": "gelu_tanh",
        "norm_eps": 1e-6,
    }


def _stacked(entries: list[Entry], at: str) -> list[Entry]:
    """The table with the blocks of a tower stacked, as ``scan`` keeps them."""
    others, layers = [], defaultdict(list)
    for entry in entries:
        found = re.fullmatch(rf"{at}/encoderblock_\d+/(.+)", entry.theirs)
        if found:
            layers[found[1]].append(entry)
        else:
            others.append(entry)
    for rest, parts in layers.items():
        paths = tuple(entry.ours[0] for entry in parts)
        others.append(Entry(f"{at}/encoderblock/{rest}", paths, stack([e.layout for e in parts])))
    return others


def _blocks(theirs: str, ours: str, depth: int, width: int, num_heads: int) -> Iterator[Entry]:
    for index in range(depth):
        at, to = f"{theirs}/encoderblock_{index}", f"{ours}/blocks_{index}"
        yield from _norm(f"{at}/LayerNorm_0", f"{to}/attention_norm")
        yield from _attention(f"{at}/{_ATTENTION}", f"{to}/attention", width, num_heads)
        yield from _norm(f"{at}/LayerNorm_1", f"{to}/mlp_norm")
        yield from _mlp(f"{at}/MlpBlock_0", f"{to}/mlp")


def _attention(theirs: str, ours: str, width: int, num_heads: int) -> Iterator[Entry]:
    """Flax keeps heads apart: kernels [C, H, C / H], and [H, C / H, C] on the way out."""
    head = width // num_heads
    inner = Layout(
        lambda x: [x.reshape(width, width)], lambda xs: xs[0].reshape(width, num_heads, head)
    )
    for name in ("query", "key", "value"):
        yield Entry(f"{theirs}/{name}/kernel", (f"{ours}/{name}/kernel",), inner)
        yield Entry(f"{theirs}/{name}/bias", (f"{ours}/{name}/bias",), _heads(num_heads, head))
    yield Entry(f"{theirs}/out/kernel", (f"{ours}/out/kernel",), flat((num_heads, head, width)))
    yield Entry(f"{theirs}/out/bias", (f"{ours}/out/bias",), SAME)


def _heads(num_heads: int, head: int) -> Layout:
    return Layout(lambda x: [x.reshape(-1)], lambda xs: xs[0].reshape(num_heads, head))


def _norm(theirs: str, ours: str) -> Iterator[Entry]:
    yield Entry(f"{theirs}/scale", (f"{ours}/scale",), SAME)
    yield Entry(f"{theirs}/bias", (f"{ours}/bias",), SAME)


def _dense(theirs: str, ours: str) -> Iterator[Entry]:
    yield Entry(f"{theirs}/kernel", (f"{ours}/kernel",), SAME)
    yield Entry(f"{theirs}/bias", (f"{ours}/bias",), SAME)


def _mlp(theirs: str, ours: str) -> Iterator[Entry]:
    yield from _dense(f"{theirs}/Dense_0", f"{ours}/up")
    yield from _dense(f"{theirs}/Dense_1", f"{ours}/down")
