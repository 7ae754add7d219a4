"""ViLLA: which region shows which attribute is learned of pictures alone, then used as pairs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxclip import fields as field_lib
from jaxclip.models import CLIPConfig, unit
from jaxclip.models.heads import MLPHead
from jaxclip.objectives import _regions
from jaxclip.objectives._base import Context, Metrics, Objective, Outputs, Params, State
from jaxclip.objectives._checks import check_count, check_number, check_square_grid
from jaxclip.objectives._clip import clip_part


@dataclasses.dataclass(frozen=True)
class ViLLA(Objective):
    """Varma et al. 2023 (arXiv:2308.11194): a mapping of attributes to regions, then their pairs.

    A record lists its attributes (``region_texts``) but not where they are. A picture's regions are
    the cells of a grid of windows, and the similarity of a picture to an attribute is the best of
    its regions', after a projector, over ``temperature``. Mapping: an attribute finds its picture
    among those of the batch that do not have it. Pairs: the mean of the regions whose score is
    above the best one's minus ``margin`` is contrasted with the attribute's text.

    Theirs is two runs, with frozen vectors in the first; here both terms train at once, the mapping
    under a stop-gradient of vectors and texts, so that it is learned of what the towers give at the
    time. Theirs has a projector for each attribute of a fixed list; here there is one, for
    attributes are texts. The paper: mapping with AdamW 1e-4 for 30 epochs; pairs with Adam 5e-5,
    weight decay 0.2, joined sentences, and a temperature of 0.07 that is not learned.

    Attributes:
      contrastive: weight of CLIP's loss.
      mapping: weight of the mapping.
      pairs: weight of the pairs of regions and attributes.
      margin: of scores that count as the attribute's regions, cosines.
      temperature: of mapping and pairs.
      window_grid: cells along a side.
      num_regions: attributes of a record at most.
    """

    contrastive: float = 1.0
    mapping: float = 1.0
    pairs: float = 1.0
    margin: float = 0.2
    temperature: float = 0.07
    window_grid: int = 2
    num_regions: int = 4

    small: ClassVar[Mapping[str, Any]] = {"num_regions": 2}

    def __post_init__(self) -> None:
        for name in ("contrastive", "mapping", "pairs", "margin"):
            check_number(f"villa.{name}", getattr(self, name))
        check_number("villa.temperature", self.temperature, positive=True)
        for name in ("window_grid", "num_regions"):
            check_count(f"villa.{name}", getattr(self, name))

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"image", "text", "regions/text", "regions/text_input"})

    @property
    def row_needs(self) -> frozenset[str]:
        return frozenset({"image_tokens"})

    @property
    def fields(self) -> field_lib.BatchSpec:
        return _regions.region_fields(self.num_regions, boxes=False)

    @property
    def whole_views(self) -> frozenset[str]:
        return frozenset({"image"})

    def check(self, sizes: CLIPConfig, teacher: CLIPConfig | None) -> None:
        check_square_grid("villa", sizes)

    def init_params(self, rng: jax.Array, sizes: CLIPConfig) -> Params:
        first, second = jax.random.split(rng)
        region = MLPHead(sizes.embed_dim, depth=1)
        return {
            "region": region.init(first, jnp.zeros((1, sizes.image.width)))["params"],
            "projector": self._projector(sizes).init(second, jnp.zeros((1, sizes.embed_dim)))[
                "params"
            ],
        }

    @staticmethod
    def _projector(sizes: CLIPConfig) -> MLPHead:
        return MLPHead(sizes.embed_dim, depth=2, width=sizes.embed_dim, unit=True)

    def rows(self, params: Params, outputs: Outputs, ctx: Context) -> dict[str, jax.Array]:
        tokens = outputs["image_tokens"]
        cells = _regions.windows(self.window_grid)
        pooled = _regions.box_pool(tokens, jnp.broadcast_to(cells, (len(tokens), *cells.shape)))
        head = MLPHead(ctx.sizes.embed_dim, depth=1)
        regions: Any = head.apply({"params": params["region"]}, pooled)
        return {"regions": unit(regions)}

    def loss(
        self, params: Params, state: State, outputs: Outputs, ctx: Context
    ) -> tuple[jax.Array, Metrics, State]:
        loss, metrics = clip_part(self.contrastive, outputs["image"], outputs["text"], ctx)
        ids, regions = outputs["regions/text_input"], outputs["regions"]
        there = (ids != 0).any(-1)
        numbers = _regions.text_numbers(ids)
        texts = jax.lax.stop_gradient(_regions.flat(outputs["regions/text"]))
        projector = self._projector(ctx.sizes)
        fixed = jax.lax.stop_gradient(regions)
        projected: Any = projector.apply({"params": params["projector"]}, fixed)
        scores = jnp.einsum("bwd,ad->baw", projected, texts)  # [B, attributes, windows]
        owner = jnp.repeat(jnp.arange(len(ids)), ids.shape[1])
        # Which pictures have which attribute: those that list the same text.
        lists = (numbers[:, :, None] == _regions.flat(numbers)[None, None, :]) & there[:, :, None]
        present = lists.any(axis=1)  # [B, attributes]
        mapping = attribute_loss(
            scores.max(-1) / self.temperature, present, owner, _regions.flat(there)
        )
        own = scores[owner, jnp.arange(len(owner))]  # [attributes, windows] of its own picture
        chosen = own > own.max(-1, keepdims=True) - self.margin
        weights = jax.lax.stop_gradient(chosen / jnp.maximum(chosen.sum(-1, keepdims=True), 1))
        mapped = unit(jnp.einsum("aw,awd->ad", weights, regions[owner]))
        pairs, more = _regions.region_contrast(
            mapped,
            _regions.flat(outputs["regions/text"]),
            _regions.flat(there),
            _regions.flat(numbers),
            jnp.asarray(1.0 / self.temperature),
        )
        metrics |= more | {"mapping": mapping, "pairs": pairs, "mapped": chosen.sum(-1).mean()}
        return loss + self.mapping * mapping + self.pairs * pairs, metrics, state


def attribute_loss(
    similarity: jax.Array, present: jax.Array, owner: jax.Array, valid: jax.Array
) -> jax.Array:
    """-log of a picture's share among itself and those without the attribute, the mean of pairs.

    Args:
      similarity: float32[B, A], of pictures and attributes.
      present: bool[B, A], which pictures have which.
      owner: int32[A], the picture that an attribute is listed by.
      valid: bool[A].

    Returns:
      float32[]; 0 without any attribute.
    """
    own = similarity[owner, jnp.arange(len(owner))]
    others = jnp.where(present, -1e9, similarity)
    total = jnp.logaddexp(own, jax.nn.logsumexp(others, axis=0))
    weight = valid.astype(jnp.float32)
    return ((total - own) * weight).sum() / jnp.maximum(weight.sum(), 1.0)
