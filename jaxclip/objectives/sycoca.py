"""SyCoCa: CoCa, and masked patches that are rebuilt from the text."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxclip.models import CLIPConfig, unit
from jaxclip.models.convolutions import patches
from jaxclip.models.heads import CrossAttentionDecoder
from jaxclip.objectives._base import Context, Metrics, Outputs, Params, State
from jaxclip.objectives._checks import check_count, check_heads, check_number, check_square_grid
from jaxclip.objectives.coca import CoCa


@dataclasses.dataclass(frozen=True)
class SyCoCa(CoCa):
    """Ma et al. 2024 (arXiv:2401.02137), recalled: there is no code, and no default of the authors
    is known.

    A patch's score is its cosine with the text, in the joint space, without a gradient. The caption
    is written from the patches with the best scores. Of the image tower's tokens those with the
    best scores are also replaced by mask tokens; a decoder that looks at the text's tokens rebuilds
    the pixels of these patches, each of mean 0 and variance 1: mean squared error over them alone.
    So the text is needed for both. Captions are written of all patches afterwards.

    Attributes (beside those of CoCa):
      rebuild_weight: of the rebuilt patches.
      attend_share: of the patches that the caption is written from; 1 for all.
      mask_share: of the patches that are rebuilt.
      rebuild_depth: layers of the second decoder.
    """

    rebuild_weight: float = 1.0
    attend_share: float = 0.5
    mask_share: float = 0.5
    rebuild_depth: int = 4

    small: ClassVar[Mapping[str, Any]] = {**CoCa.small, "rebuild_depth": 1}

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("sycoca.rebuild_weight", self.rebuild_weight)
        check_number("sycoca.attend_share", self.attend_share, high=1.0, positive=True)
        check_number("sycoca.mask_share", self.mask_share, high=1.0)
        check_count("sycoca.rebuild_depth", self.rebuild_depth)

    @property
    def row_needs(self) -> frozenset[str]:
        own = {"text", "image_projected", "text_tokens", "image_input"}
        return super().row_needs | own

    @property
    def whole_views(self) -> frozenset[str]:
        return frozenset({"image"})

    def check(self, sizes: CLIPConfig, teacher: CLIPConfig | None) -> None:
        super().check(sizes, teacher)
        check_square_grid("sycoca", sizes)

    def _rebuilder(self, sizes: CLIPConfig, dtype: Any) -> CrossAttentionDecoder:
        check_heads("sycoca", sizes)
        image = sizes.image
        shared = {n: getattr(image, n) for n in ("width", "num_heads", "mlp_dim", "norm_eps")}
        return CrossAttentionDecoder(
            **shared,
            depth=self.rebuild_depth,
            vocab_size=3 * image.patch_size**2,
            causal=False,
            dtype=dtype,
        )

    def init_params(self, rng: jax.Array, sizes: CLIPConfig) -> Params:
        first, second, third = jax.random.split(rng, 3)
        shape = (sizes.image.grid**2, sizes.image.width)
        tokens, text = jnp.zeros((1, *shape)), jnp.zeros((1, 2, sizes.text.width))
        rebuilder = self._rebuilder(sizes, tokens.dtype).init(second, tokens, text)["params"]
        # The mask token with the positions of the patches.
        masked = 0.02 * jax.random.normal(third, shape)
        return {**super().init_params(first, sizes), "rebuilder": rebuilder, "masked": masked}

    def rows(self, params: Params, outputs: Outputs, ctx: Context) -> dict[str, jax.Array]:
        tokens = outputs["image_tokens"]
        best = by_score(outputs["image_projected"], outputs["text"])
        seen = outputs
        if self.attend_share < 1.0:
            count = max(1, round(self.attend_share * tokens.shape[1]))
            kept = jnp.take_along_axis(tokens, best[:, :count, None], axis=1)
            seen = {**outputs, "image_tokens": kept}
        result = super().rows(params, seen, ctx)
        count = round(self.mask_share * tokens.shape[1])
        if count:
            result["rebuilt"] = self.rebuilt(params, outputs, best[:, :count], ctx.sizes)
        return result

    def rebuilt(
        self, params: Params, outputs: Outputs, at: jax.Array, sizes: CLIPConfig
    ) -> jax.Array:
        """Mean squared error float32[B] of the pixels of the patches ``at``, int32[B, M]."""
        tokens, row = outputs["image_tokens"], jnp.arange(len(at))[:, None]
        masked = params["masked"].astype(tokens.dtype)[at]
        told: Any = self._rebuilder(sizes, tokens.dtype).apply(
            {"params": params["rebuilder"]},
            tokens.at[row, at].set(masked),
            outputs["text_tokens"],
            image_valid=outputs["text_mask"],
        )
        pixels = outputs["image_input"].astype(jnp.float32) / 255.0
        truth = patches(pixels, sizes.image.patch_size).reshape(*tokens.shape[:2], -1)[row, at]
        truth -= jnp.mean(truth, axis=-1, keepdims=True)
        truth *= jax.lax.rsqrt(jnp.mean(truth**2, axis=-1, keepdims=True) + 1e-6)
        return jnp.mean((told[row, at] - truth) ** 2, axis=(1, 2))

    def loss(
        self, params: Params, state: State, outputs: Outputs, ctx: Context
    ) -> tuple[jax.Array, Metrics, State]:
        loss, metrics, state = super().loss(params, state, outputs, ctx)
        rebuilt = jnp.mean(outputs["rebuilt"]) if "rebuilt" in outputs else jnp.zeros(())
        return loss + self.rebuild_weight * rebuilt, metrics | {"rebuilt": rebuilt}, state


def by_score(tokens: jax.Array, text: jax.Array) -> jax.Array:
    """Patches by their cosine with the text, the best first: int32[B, N].

    Args:
      tokens: float32[B, N, D], in the joint space.
      text: float32[B, D].
    """
    scores = jnp.einsum("bnd,bd->bn", unit(tokens), text, precision="highest")
    return jnp.argsort(-jax.lax.stop_gradient(scores), axis=1)
