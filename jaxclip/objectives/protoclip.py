"""ProtoCLIP: each tower predicts the cluster of the other modality."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxclip import losses
from jaxclip.models import CLIPConfig, unit
from jaxclip.objectives import _episodes
from jaxclip.objectives._base import Context, Metrics, Objective, Outputs, Params, State
from jaxclip.objectives._checks import IMPLEMENTATIONS, check_choice, check_count, check_number
from jaxclip.objectives._clip import clip_part

_TOWERS = ("image", "text")


@dataclasses.dataclass(frozen=True)
class ProtoCLIP(Objective):
    """Chen et al. 2022 (arXiv:2206.10996), without its external teacher.

    CLIP + proto (L_i2t + L_t2i) / 2. Heads make unit features h. When an episode ends, k-means
    clusters each modality's into C; an image's prototypes P are the means of image features by the
    *text's* cluster y, 0 where empty, and the mirror for text. L_i2t is the cross-entropy of
    softmax(s h Pᵀ) to softmax(C_y Cᵀ / target_temperature). The first episode is CLIP alone.

    The paper embeds an episode's samples anew and keeps labels by index. Here its features are the
    last ones of training, and y is the centroid next to the row's feature of now. The state has
    float32[episode_size + 2 num_clusters, size] for each modality.

    Attributes:
      num_clusters: of each modality.
      episode_size: examples between two clusterings.
      hidden: width of the heads' layer with batch norm, over the global batch.
      size: of the features.
      target_temperature: of the targets.
      proto: weight of the prototypes' loss.
      contrastive: weight of CLIP's loss; 0 where a contrastive term of its own is listed.
      implementation: of CLIP's loss, ``"plain"`` or ``"blockwise"``.
    """

    num_clusters: int = 20_000
    episode_size: int = 200_000
    hidden: int = 2048
    size: int = 128
    target_temperature: float = 0.01
    proto: float = 1.0
    contrastive: float = 1.0
    implementation: str = "plain"

    small: ClassVar[Mapping[str, Any]] = {
        **{"num_clusters": 4, "episode_size": 32, "hidden": 16, "size": 8},
        "target_temperature": 0.5,
    }

    def __post_init__(self) -> None:
        for name in ("num_clusters", "hidden", "size"):
            check_count(f"protoclip.{name}", getattr(self, name))
        check_count("protoclip.episode_size", self.episode_size, low=self.num_clusters)
        check_number("protoclip.target_temperature", self.target_temperature, positive=True)
        check_number("protoclip.proto", self.proto)
        check_number("protoclip.contrastive", self.contrastive)
        check_choice("protoclip.implementation", self.implementation, IMPLEMENTATIONS)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset(_TOWERS)

    def init_params(self, rng: jax.Array, sizes: CLIPConfig) -> Params:
        make = jax.nn.initializers.lecun_normal()
        params: dict[str, Any] = {"logit_scale": jnp.float32(math.log(1 / 0.07))}
        for tower, key in zip(_TOWERS, jax.random.split(rng), strict=True):
            first, last = jax.random.split(key)
            enter = make(first, (sizes.embed_dim, self.hidden))
            norm = {"scale": jnp.ones(self.hidden), "bias": jnp.zeros(self.hidden)}
            params[tower] = {"in": enter, **norm, "out": make(last, (self.hidden, self.size))}
        return params

    def init_state(self, sizes: CLIPConfig) -> State:
        return _episodes.start(_TOWERS, self.episode_size, self.num_clusters, self.size)

    def check_run(self, global_batch_size: int, teacher: str) -> None:
        if global_batch_size > self.episode_size:
            raise ValueError(
                f"protoclip.episode_size={self.episode_size} must be at least the batch of "
                f"{global_batch_size}"
            )

    def loss(
        self, params: Params, state: State, outputs: Outputs, ctx: Context
    ) -> tuple[jax.Array, Metrics, State]:
        images, texts = outputs["image"], outputs["text"]
        self.check_run(len(images), "none")
        features = {tower: _head(params[tower], outputs[tower]) for tower in _TOWERS}
        fixed = jax.lax.stop_gradient(features)
        state = _episodes.advance(state, fixed, ctx.key)
        scale = jnp.exp(jnp.minimum(params["logit_scale"], math.log(100.0)))
        proto = jnp.zeros(())
        for tower, other in (_TOWERS, _TOWERS[::-1]):
            centroids, prototypes = state["centroids"][other], state["prototypes"][tower]
            own = centroids[_episodes.nearest(fixed[other], centroids)]
            logits = scale * losses.products(features[tower], prototypes)
            proto += jnp.mean(self.to_clusters(logits, own, centroids)) / 2
        proto *= state["episodes"] > 0
        clip, metrics = clip_part(
            self.contrastive, images, texts, ctx, implementation=self.implementation
        )
        return clip + self.proto * proto, metrics | {"proto": proto}, state

    def to_clusters(self, logits: jax.Array, own: jax.Array, centroids: jax.Array) -> jax.Array:
        """Loss float32[B] of logits [B, K] over prototypes, for rows whose partners are of the
        clusters ``own`` [B, d] out of all ``centroids`` [K, d]."""
        likeness = losses.products(own, centroids) / self.target_temperature
        return losses.soft_cross_entropy(logits, jax.nn.softmax(likeness))


def _head(params: Params, embeddings: jax.Array) -> jax.Array:
    x = jnp.matmul(embeddings, params["in"], precision="highest")
    x = (x - jnp.mean(x, axis=0)) * jax.lax.rsqrt(jnp.var(x, axis=0) + 1e-5)
    x = jax.nn.relu(x * params["scale"] + params["bias"])
    return unit(jnp.matmul(x, params["out"], precision="highest"))
