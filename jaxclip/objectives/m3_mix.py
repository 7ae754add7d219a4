"""Geodesic mixup within and across modalities: pairs on the way to the next pair."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from jaxclip import losses
from jaxclip.objectives._base import Context, Metrics, Outputs, Params, State
from jaxclip.objectives._checks import check_number
from jaxclip.objectives.m2_mix import M2Mix, slerp


@dataclasses.dataclass(frozen=True)
class M3Mix(M2Mix):
    """Oh et al. 2023 (arXiv:2203.03897), m³-Mix: :class:`M2Mix` and three mixes of pairs.

    Row i's partner r(i) is the batch in reverse. With s CLIP's factor and a λ of Beta(pair_beta,
    pair_beta) drawn for each of the three,

    * V-Mix: images slerp(I_i, I_r(i); λ) against the texts, targets λ for text i, 1 - λ for r(i);
    * L-Mix: texts mixed likewise against the images;
    * VL-Mix: mixed images against texts mixed with the same λ, target 1 for both i and r(i) (a sum
      of 2, as in the authors' code).

    Each is a cross-entropy in both directions. They add
    ``(unimodal · (V + L) + joint · VL) / (epoch + 1)``.

    Attributes:
      beta: of m²-Mix' λ (their script: 0.2).
      unimodal: weight of V-Mix and of L-Mix.
      joint: weight of VL-Mix (theirs: 0.05, 0.1 or 0.2).
      pair_beta: of the distributions of the other λs.
    """

    beta: float = 0.2
    unimodal: float = 0.05
    joint: float = 0.1
    pair_beta: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("m3_mix.unimodal", self.unimodal)
        check_number("m3_mix.joint", self.joint)
        check_number("m3_mix.pair_beta", self.pair_beta, positive=True)

    def loss(
        self, params: Params, state: State, outputs: Outputs, ctx: Context
    ) -> tuple[jax.Array, Metrics, State]:
        total, metrics, state = super().loss(params, state, outputs, ctx)
        keys = jax.random.split(jax.random.fold_in(ctx.key, 1), 3)
        ratios = [jax.random.beta(key, self.pair_beta, self.pair_beta) for key in keys]
        mixes = self.mixed_pairs(outputs["image"], outputs["text"], ratios, ctx)
        vision, language, joint = mixes
        added = self.unimodal * (vision + language) + self.joint * joint
        metrics = metrics | {"vision": vision, "language": language, "joint": joint}
        return total + self.decay(ctx.step) * added, metrics, state

    def mixed_pairs(
        self, images: jax.Array, texts: jax.Array, ratios: list[jax.Array], ctx: Context
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """V-Mix, L-Mix and VL-Mix, float32[] each, for their three λs."""
        log_scale = self.log_scale(ctx)
        by_vision, by_language, by_both = ratios

        def cross_entropy(rows: jax.Array, columns: jax.Array) -> tuple[jax.Array, jax.Array]:
            """Of the pairs themselves, and what a target moved to the partner adds to it."""
            value, _ = losses.infonce(
                rows,
                columns,
                logit_scale=log_scale,
                implementation=self.implementation,
                mesh=ctx.mesh,
            )
            moved = jnp.sum(rows * (columns - columns[::-1]), axis=-1)
            return value, jnp.exp(log_scale) * jnp.mean(moved)

        # r is its own inverse: rows and columns have the same sum of partners' logits.
        vision, moved = cross_entropy(slerp(images, images[::-1], by_vision), texts)
        vision += (1.0 - by_vision) * moved
        language, moved = cross_entropy(images, slerp(texts, texts[::-1], by_language))
        language += (1.0 - by_language) * moved
        both = (slerp(rows, rows[::-1], by_both) for rows in (images, texts))
        joint, moved = cross_entropy(*both)
        return vision, language, 2.0 * joint + moved
