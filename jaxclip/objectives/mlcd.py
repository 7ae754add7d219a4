"""MLCD: the image tower tells clusters of pictures apart, several of each picture."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxclip import fields as field_lib
from jaxclip.models import CLIPConfig, unit
from jaxclip.objectives._base import Context, Metrics, Objective, Outputs, Params, State
from jaxclip.objectives._checks import check_count, check_number

# Far below any logit, yet finite.
_NOTHING = -1e30


@dataclasses.dataclass(frozen=True)
class MLCD(Objective):
    """An et al. 2024, multi-label cluster discrimination (arXiv:2407.17331).

    Offline, k-means of another model's image vectors gives ``num_classes`` centres, and each record
    keeps the numbers of its ``labels`` nearest ones. With learned class vectors W the loss of a
    picture is log(1 + Σ_pos exp(-z)) + log(1 + Σ_neg exp(z)), z = scale (cos(image, W) - margin of
    positives): positives pull each for itself, no negative stands in their way. Negatives are a
    random share of the classes, the same for the whole batch of a step; positives always count. The
    text tower is not trained: list ``contrastive`` beside it, or train it afterwards with the image
    tower frozen (LiT).

    Paper: 1e6 classes, 8 labels, share 0.1, AdamW 1e-3, weight decay 0.2, batch 32k, 32 epochs. The
    authors' code has not this loss; scale and margin are of its ancestor (UNICOM,
    arXiv:2304.05884), whose margin is that of ArcFace (an angle). W is float32[num_classes, D].

    Attributes:
      num_classes: k.
      labels: positives of a record; numbers outside of 0 to k - 1 do not count, -1 say.
      key: name of the list in the records.
      negatives: share of the classes that are drawn as negatives, in (0, 1].
      shards: W is cut into so many equal parts, and as many negatives are drawn from each. Set it
        to the devices that W is sharded over: each has as much to do, and no row of W moves.
      scale: of cosines.
      margin: angle that is added to that of positives.
    """

    num_classes: int = 1_000_000
    labels: int = 8
    key: str = "cluster_labels"
    negatives: float = 0.1
    shards: int = 1
    scale: float = 32.0
    margin: float = 0.3

    small: ClassVar[Mapping[str, Any]] = {"num_classes": 6, "labels": 2, "negatives": 1.0}

    def __post_init__(self) -> None:
        check_count("mlcd.num_classes", self.num_classes, 2)
        check_count("mlcd.labels", self.labels)
        check_number("mlcd.negatives", self.negatives, high=1.0, positive=True)
        check_number("mlcd.scale", self.scale, positive=True)
        check_number("mlcd.margin", self.margin, high=1.5)
        check_count("mlcd.shards", self.shards)
        if self.num_classes % self.shards:
            raise ValueError(
                f"mlcd.shards={self.shards} does not divide mlcd.num_classes={self.num_classes}; "
                "each shard must have as many classes"
            )
        if self.num_classes > 2**24:
            raise ValueError(f"mlcd.num_classes={self.num_classes} must be at most {2**24}")

    @property
    def row_needs(self) -> frozenset[str]:
        return frozenset({"image", "cluster_labels"})

    @property
    def fields(self) -> field_lib.BatchSpec:
        return {"cluster_labels": field_lib.Stored(self.key, self.labels)}

    def init_params(self, rng: jax.Array, sizes: CLIPConfig) -> Params:
        return {"classes": 0.01 * jax.random.normal(rng, (self.num_classes, sizes.embed_dim))}

    def _drawn(self, ctx: Context) -> jax.Array:
        """int32[shards, m], places within its shard of the classes that are negatives in this
        step."""
        size = self.num_classes // self.shards
        count = max(1, round(self.negatives * size))
        if count == size:
            return jnp.tile(jnp.arange(size), (self.shards, 1))
        keys = ctx.key[None] if self.shards == 1 else jax.random.split(ctx.key, self.shards)
        return jax.vmap(lambda key: jax.random.choice(key, size, (count,), replace=False))(keys)

    def rows(self, params: Params, outputs: Outputs, ctx: Context) -> dict[str, jax.Array]:
        images = outputs["image"].astype(jnp.float32)
        labels = jnp.round(outputs["cluster_labels"]).astype(jnp.int32)
        real = (labels >= 0) & (labels < self.num_classes)
        labels = jnp.where(real, labels, -1)
        own = unit(params["classes"][jnp.maximum(labels, 0)])
        positive = with_margin(
            jnp.einsum("bd,bld->bl", images, own, precision="highest"), self.margin
        )
        places = self._drawn(ctx)
        size = self.num_classes // self.shards
        drawn = (places + size * jnp.arange(self.shards)[:, None]).reshape(-1)
        # Taken within each shard, which has its classes on one device.
        shards = params["classes"].reshape(self.shards, size, -1)
        wrong = jnp.take_along_axis(shards, places[:, :, None], axis=1).reshape(len(drawn), -1)
        others = jnp.matmul(images, unit(wrong).T, precision="highest")
        is_own = jnp.any(labels[:, :, None] == drawn, axis=1)
        loss = cluster_loss(self.scale * positive, real, self.scale * others, ~is_own)
        best = jnp.max(jnp.where(is_own, _NOTHING, others), axis=1)
        hits = jnp.any(real & (positive > best[:, None]), axis=1)
        count = jnp.any(real, axis=1)
        return {
            "nll": jnp.where(count, loss, 0.0),
            "hits": (hits & count).astype(jnp.float32),
            "count": count.astype(jnp.float32),
        }

    def loss(
        self, params: Params, state: State, outputs: Outputs, ctx: Context
    ) -> tuple[jax.Array, Metrics, State]:
        count = jnp.maximum(jnp.sum(outputs["count"]), 1.0)
        metrics = {"accuracy": jnp.sum(outputs["hits"]) / count}
        metrics["labelled"] = jnp.mean(outputs["count"])
        return jnp.sum(outputs["nll"]) / count, metrics, state


def with_margin(cosines: jax.Array, margin: float) -> jax.Array:
    """cos(angle + margin) of cosines of any shape (ArcFace, arXiv:1801.07698).

    Where the angle is beyond π - margin it falls on, as a line.
    """
    if not margin:
        return cosines
    sine = jnp.sqrt(jnp.maximum(1.0 - cosines**2, 1e-12))
    moved = cosines * jnp.cos(margin) - sine * jnp.sin(margin)
    beyond = cosines < -jnp.cos(margin)
    return jnp.where(beyond, cosines - margin * jnp.sin(margin), moved)


def cluster_loss(
    positive: jax.Array, is_positive: jax.Array, negative: jax.Array, is_negative: jax.Array
) -> jax.Array:
    """log(1 + Σ_pos exp(-z)) + log(1 + Σ_neg exp(z)) of each row.

    Args:
      positive: float32[B, P], logits z.
      is_positive: bool[B, P], which count.
      negative: float32[B, N].
      is_negative: bool[B, N].

    Returns:
      float32[B].
    """
    total = jnp.zeros(len(positive))
    for logits, counts in ((-positive, is_positive), (negative, is_negative)):
        kept = jnp.where(counts, logits, _NOTHING)
        total += jax.nn.logsumexp(jnp.pad(kept, ((0, 0), (0, 1))), axis=1)  # a zero for the 1
    return total
