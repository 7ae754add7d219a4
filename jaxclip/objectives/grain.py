"""GRAIN: queries find regions, their boxes and descriptions, and the picture's embedding."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxclip import fields as field_lib
from jaxclip.models import CLIPConfig, layers, unit
from jaxclip.models.heads import ACTIVATIONS, MLPHead
from jaxclip.objectives import _regions
from jaxclip.objectives._base import Context, Metrics, Objective, Outputs, Params, State
from jaxclip.objectives._checks import check_count, check_number
from jaxclip.objectives._clip import clip_part


class QueryDecoder(nn.Module):
    """Learned queries that see each other and the patches: [B, N, C] -> [B, Q, width].

    Layers of x + self_attention(norm(x) + queries), x + cross_attention(norm(x) + queries,
    patches), x + mlp(norm(x)), with ReLU. The state starts at zero, of which the first layer takes
    no norm. DETR adds queries to the queries and keys of self-attention; here its values have them.
    """

    num_queries: int
    width: int
    depth: int
    num_heads: int
    mlp_dim: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, patches: jax.Array) -> jax.Array:
        shape = (self.num_queries, self.width)
        places = self.param("queries", nn.initializers.normal(0.02), shape).astype(self.dtype)
        memory = layers.dense(self.width, self.dtype, "patches_in", use_bias=False)(patches)
        x = jnp.zeros((len(patches), *shape), self.dtype)
        for index in range(self.depth):

            def name(part: str, index: int = index) -> str:
                return f"{part}_{index}"

            attention = layers.Attention(self.num_heads, self.dtype, name=name("attention"))
            y = jnp.broadcast_to(places, x.shape)
            if index:
                y = layers.norm(1e-5, self.dtype, name("attention_norm"))(x) + places
            x = x + attention(y, y, mask=None, causal=False)[0]
            cross = layers.Attention(self.num_heads, self.dtype, name=name("cross_attention"))
            y = layers.norm(1e-5, self.dtype, name("cross_norm"))(x) + places
            x = x + cross(y, memory, mask=None, causal=False)[0]
            y = layers.norm(1e-5, self.dtype, name("mlp_norm"))(x)
            y = layers.dense(self.mlp_dim, self.dtype, name("up"))(y)
            x = x + layers.dense(self.width, self.dtype, name("down"))(ACTIVATIONS["relu"](y))
        return layers.norm(1e-5, self.dtype, "norm")(x)


@dataclasses.dataclass(frozen=True)
class GRAIN(Objective):
    """Shakya et al. 2024 (arXiv:2412.04429): CLIP by a decoder's query + boxes + descriptions.

    A decoder has R region queries and an image query. The image query's vector is contrasted with
    the caption. Regions are matched with the record's boxes (each way of matching is tried: R! of
    them, so at most six) by 5 L1 - 2 GIoU, and then trained: box_weight (L1 + 1 - GIoU), and a
    region's vector picks its description among those of the batch, in this direction alone. What
    has no box has no loss. Their 1.5 comes of dividing 3 weights by their mean; the descriptions of
    theirs are of one device's batch, ours are of the global one, and equal ones are left out.

    The embedding of evaluation and export is the tower's own, which ``contrastive`` trains beside
    it; theirs is the image query's, :meth:`image_query` here.

    The paper: learning rate 1e-3, weight decay 0.1, betas 0.9 and 0.98; ViT-B/16 with QK norm.

    Attributes:
      contrastive: weight of CLIP's loss on the tower's own embedding; theirs has none.
      query: weight of CLIP's loss on the image query.
      box_weight: of the boxes.
      describe: weight of the descriptions.
      num_regions: R, region queries and boxes of a record at most.
      width: of the decoder.
      depth: of the decoder, layers.
      num_heads: of the decoder.
      mlp_dim: of the decoder.
    """

    contrastive: float = 1.0
    query: float = 1.0
    box_weight: float = 1.5
    describe: float = 1.0
    num_regions: int = 5
    width: int = 512
    depth: int = 6
    num_heads: int = 8
    mlp_dim: int = 2048

    small: ClassVar[Mapping[str, Any]] = {
        "num_regions": 2,
        "width": 16,
        "depth": 1,
        "num_heads": 2,
        "mlp_dim": 16,
    }

    def __post_init__(self) -> None:
        for name in ("contrastive", "query", "box_weight", "describe"):
            check_number(f"grain.{name}", getattr(self, name))
        for name in ("num_regions", "width", "depth", "num_heads", "mlp_dim"):
            check_count(f"grain.{name}", getattr(self, name))
        if self.num_regions > 6:
            raise ValueError(f"grain.num_regions={self.num_regions!r}: at most 6, as all are tried")
        if self.width % self.num_heads:
            raise ValueError(
                f"grain.width={self.width!r} must be a multiple of num_heads={self.num_heads!r}"
            )

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"image", "text", "boxes", "regions/text", "regions/text_input"})

    @property
    def row_needs(self) -> frozenset[str]:
        return frozenset({"image_tokens"})

    @property
    def fields(self) -> field_lib.BatchSpec:
        return _regions.region_fields(self.num_regions)

    def _modules(self, sizes: CLIPConfig) -> dict[str, nn.Module]:
        return {
            "decoder": QueryDecoder(
                self.num_regions + 1, self.width, self.depth, self.num_heads, self.mlp_dim
            ),
            "image_out": MLPHead(sizes.embed_dim, depth=1),
            "region_out": MLPHead(sizes.embed_dim, depth=1),
            "box_out": MLPHead(4, depth=3, width=self.width),
        }

    def init_params(self, rng: jax.Array, sizes: CLIPConfig) -> Params:
        tokens, states = jnp.zeros((1, 1, sizes.image.width)), jnp.zeros((1, 1, self.width))
        keys = jax.random.split(rng, 4)
        return {
            name: module.init(key, tokens if name == "decoder" else states)["params"]
            for key, (name, module) in zip(keys, self._modules(sizes).items(), strict=True)
        }

    def image_query(self, params: Params, tokens: jax.Array, sizes: CLIPConfig) -> jax.Array:
        """The picture's embedding as theirs: float32[B, D] of unit length, of patches [B, N, C]."""
        modules = self._modules(sizes)
        states: Any = modules["decoder"].apply({"params": params["decoder"]}, tokens)
        out: Any = modules["image_out"].apply({"params": params["image_out"]}, states[:, -1])
        return unit(out)

    def rows(self, params: Params, outputs: Outputs, ctx: Context) -> dict[str, jax.Array]:
        modules = self._modules(ctx.sizes)

        def run(name: str, x: jax.Array) -> Any:
            return modules[name].apply({"params": params[name]}, x)

        states = run("decoder", outputs["image_tokens"])
        return {
            "query": unit(run("image_out", states[:, -1])),
            "regions": unit(run("region_out", states[:, :-1])),
            "found_boxes": _regions.corners(jax.nn.sigmoid(run("box_out", states[:, :-1]))),
        }

    def loss(
        self, params: Params, state: State, outputs: Outputs, ctx: Context
    ) -> tuple[jax.Array, Metrics, State]:
        loss, metrics = clip_part(self.contrastive, outputs["image"], outputs["text"], ctx)
        queried, own = clip_part(self.query, outputs["query"], outputs["text"], ctx)
        metrics |= {f"query_{key}": value for key, value in own.items()}
        boxes, ids = outputs["boxes"], outputs["regions/text_input"]
        valid = _regions.valid_regions(boxes, ids)
        order = jax.lax.stop_gradient(best_match(outputs["found_boxes"], boxes, valid))
        found = jnp.take_along_axis(outputs["found_boxes"], order[..., None], axis=1)
        regions = jnp.take_along_axis(outputs["regions"], order[..., None], axis=1)
        box = _regions.box_loss(found, boxes, valid)
        described, own = _regions.region_contrast(
            _regions.flat(regions),
            _regions.flat(outputs["regions/text"]),
            _regions.flat(valid),
            _regions.flat(_regions.text_numbers(ids)),
            jnp.exp(ctx.logit_scale),
            both=False,
        )
        metrics |= own | {"box": box, "describe": described}
        return loss + queried + self.box_weight * box + self.describe * described, metrics, state


def best_match(found: jax.Array, boxes: jax.Array, valid: jax.Array) -> jax.Array:
    """Which query each box gets, so that 5 L1 - 2 GIoU over all boxes is least.

    Args:
      found: float32[B, R, 4], (x0, y0, x1, y1) of the queries.
      boxes: float32[B, R, 4].
      valid: bool[B, R], boxes that are there.

    Returns:
      int32[B, R]: of each box its query.
    """
    a, b = found[:, :, None], boxes[:, None]
    cost = 5.0 * jnp.abs(a - b).sum(-1) - 2.0 * _regions.giou(a, b)  # [B, query, box]
    cost = jnp.where(valid[:, None], cost, 0.0)
    ways = np.array(list(itertools.permutations(range(found.shape[1]))), np.int32)
    totals = cost[:, ways, np.arange(found.shape[1])].sum(-1)  # [B, ways]
    return jnp.asarray(ways)[jnp.argmin(totals, axis=1)]
