"""UniPT: a small net beside frozen towers that reads their hidden states."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxclip.models import CLIPConfig, unit
from jaxclip.objectives._base import Context, Metrics, Objective, Outputs, Params, State
from jaxclip.objectives._checks import IMPLEMENTATIONS, as_integers, check_choice, check_count
from jaxclip.objectives._clip import clip_part

_TOWERS = ("image", "text")


@dataclasses.dataclass(frozen=True)
class UniPT(Objective):
    """Diao et al. 2023, UniPT (arXiv:2308.14316): parallel tuning, CLIP's loss on what comes out.

    Of a tower's embedding a0 (not of unit length) and hidden states H_l, with a = W_a relu(a0) and
    h_l = W_l relu(H_l): m_l = Σ_n A_ln h_ln + h_l[class or last token], A_l = relu(a h_lᵀ) of sum 1
    over (real) tokens, and c = softmax_l(w · (a * mean_n h_ln) + b). The new embedding is
    unit(a0 + W_u relu(Σ_l c_l m_l)). W_u starts at zero here, so that the model is at first what it
    was; in the paper it does not. Where a tower has no class token, its mean takes the place.

    Freeze the towers: ``config.optim.groups = [{"pattern": "^(?!objective/)", "frozen": True}]``;
    then no activation of theirs is kept for a backward pass. Learning rate 1e-4. The towers alone
    are evaluated and exported; :meth:`adapted` gives the new embeddings of their features.

    Attributes:
      image_layers: hidden states of the image tower that are read, 0 = after the embedding.
      text_layers: of the text tower.
      reduction: r, the net is D / r wide (paper: 1 for CLIP4Clip).
      zero_start: whether W_u starts at zero (else at random).
      implementation: of CLIP's loss, ``"plain"`` or ``"blockwise"``.
    """

    image_layers: Sequence[int] = tuple(range(13))
    text_layers: Sequence[int] = tuple(range(13))
    reduction: int = 2
    zero_start: bool = True
    implementation: str = "plain"

    # A zero layer hands no gradient on in the first step, which tests look at.
    small: ClassVar[Mapping[str, Any]] = {
        **{"image_layers": (0, 1), "text_layers": (0, 1), "zero_start": False}
    }

    def __post_init__(self) -> None:
        check_count("unipt.reduction", self.reduction)
        check_choice("unipt.implementation", self.implementation, IMPLEMENTATIONS)
        for tower in _TOWERS:
            layers = as_integers(f"unipt.{tower}_layers", self._layers(tower), low=0)
            if not layers or len(set(layers)) < len(layers):
                raise ValueError(f"unipt.{tower}_layers={layers!r} must be some different layers")

    def _layers(self, tower: str) -> Sequence[int]:
        return self.image_layers if tower == "image" else self.text_layers

    @property
    def row_needs(self) -> frozenset[str]:
        hidden = {f"{tower}_hidden_{n}" for tower in _TOWERS for n in self._layers(tower)}
        return frozenset({"image_raw", "text_raw", "text_mask", *hidden})

    def check(self, sizes: CLIPConfig, teacher: CLIPConfig | None) -> None:
        if hasattr(sizes.image, "depths"):
            raise ValueError(
                "unipt reads hidden states of one width, which the stages of "
                f"{sizes.image.kind!r} do not have; set model.image.kind='vit'"
            )
        for tower in _TOWERS:
            depth = getattr(sizes, tower).depth
            if max(self._layers(tower)) > depth:
                raise ValueError(
                    f"unipt.{tower}_layers={tuple(self._layers(tower))!r}: the {tower} tower has "
                    f"{depth} blocks; use 0 to {depth}"
                )

    def init_params(self, rng: jax.Array, sizes: CLIPConfig) -> Params:
        make, params = jax.nn.initializers.lecun_normal(), {}
        size, width = sizes.embed_dim, max(1, sizes.embed_dim // self.reduction)
        for tower, key in zip(_TOWERS, jax.random.split(rng), strict=True):
            keys, layers = jax.random.split(key, 4), len(self._layers(tower))
            channels = getattr(sizes, tower).width
            up = make(keys[3], (width, size))
            params[tower] = {
                "query": make(keys[0], (size, width)),
                "layers": jax.vmap(lambda k, c=channels: make(k, (c, width)))(
                    jax.random.split(keys[1], layers)
                ),
                "gate": 0.02 * jax.random.normal(keys[2], (width,)),
                "up": jnp.zeros_like(up) if self.zero_start else up,
            }
        return params

    def adapted(
        self,
        params: Params,
        raw: jax.Array,
        hidden: Sequence[jax.Array],
        place: jax.Array | None,
        real: jax.Array | None = None,
    ) -> jax.Array:
        """New embeddings float32[B, D] of unit length.

        Args:
          params: of the tower, ``params["image"]`` or ``params["text"]`` of the term.
          raw: float32[B, D], the embeddings before they are of unit length.
          hidden: [B, N, C] of each layer that is read.
          place: int32[B], the class or last token; None for the mean of all.
          real: bool[B, N], which tokens are no padding; None for all.
        """

        def linear(x: jax.Array, kernel: jax.Array) -> jax.Array:
            return jnp.matmul(x, kernel.astype(x.dtype), preferred_element_type=jnp.float32)

        a = linear(jax.nn.relu(raw), params["query"])
        mixed, gates = [], []
        for states, kernel in zip(hidden, params["layers"], strict=True):
            h = linear(jax.nn.relu(states), kernel)
            shown = jnp.ones(h.shape[:2], bool) if real is None else real
            weights = shares(jnp.einsum("bm,bnm->bn", a, h), shown)
            mean = jnp.mean(h, axis=1, where=shown[:, :, None])
            own = mean if place is None else h[jnp.arange(len(h)), place]
            mixed.append(jnp.einsum("bn,bnm->bm", weights, h) + own)
            gates.append(jnp.sum(params["gate"] * a * mean, axis=-1))
        c = jax.nn.softmax(jnp.stack(gates), axis=0)
        added = jnp.einsum("lb,lbm->bm", c, jnp.stack(mixed))
        return unit(raw + linear(jax.nn.relu(added), params["up"]))

    def rows(self, params: Params, outputs: Outputs, ctx: Context) -> dict[str, jax.Array]:
        result = {}
        for tower in _TOWERS:
            hidden = [outputs[f"{tower}_hidden_{n}"] for n in self._layers(tower)]
            raw, real = outputs[f"{tower}_raw"], None
            if tower == "image":
                has_token = getattr(ctx.sizes.image, "has_class_token", False)
                place = jnp.zeros(len(raw), jnp.int32) if has_token else None
            else:
                real = outputs["text_mask"]
                hidden = [states[:, : real.shape[1]] for states in hidden]
                place = jnp.maximum(jnp.sum(real, axis=1, dtype=jnp.int32) - 1, 0)
            result[f"adapted_{tower}"] = self.adapted(params[tower], raw, hidden, place, real)
        return result

    def loss(
        self, params: Params, state: State, outputs: Outputs, ctx: Context
    ) -> tuple[jax.Array, Metrics, State]:
        images, texts = outputs["adapted_image"], outputs["adapted_text"]
        loss, metrics = clip_part(1.0, images, texts, ctx, implementation=self.implementation)
        return loss, metrics, state


def shares(scores: jax.Array, real: jax.Array) -> jax.Array:
    """relu(scores) of sum 1 over the real tokens; zeros where none is positive.

    Args:
      scores: float32[B, N].
      real: bool[B, N].
    """
    kept = jnp.where(real, jax.nn.relu(scores), 0.0)
    return kept / jnp.maximum(jnp.sum(kept, axis=-1, keepdims=True), 1e-6)
