"""Symile: one contrast of three modalities by the sum of products of their three embeddings."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from jaxclip import fields as field_lib
from jaxclip import losses
from jaxclip.objectives._base import Context, Metrics, Objective, Outputs, Params, State
from jaxclip.objectives._checks import IMPLEMENTATIONS, check_choice

_THIRD = "texts1/text"


@dataclasses.dataclass(frozen=True)
class Symile(Objective):
    """Saporta et al. 2024 (arXiv:2411.01053), for an image, its text and a second text.

    m(x, y, z) = Σ_d x_d y_d z_d of unit rows. For anchor x the logits s m(x_i, y_j, z_k) have the
    target (i, i); the loss is the mean over the three anchors. ``all`` takes every (j, k): B³
    logits. ``shuffled`` pairs each y with one random z, B² logits, where the true triple stands on
    the diagonal and is left out elsewhere. It sees dependence that no two modalities show.

    m is smaller than a cosine by about √D: allow ``logit_scale_max`` above ln 100.

    Attributes:
      source: tag of the second text, a language say; empty for any caption of the record.
      negatives: ``"shuffled"`` or ``"all"``.
      implementation: ``"plain"``, or with shuffled negatives ``"blockwise"``.
    """

    source: str = ""
    negatives: str = "shuffled"
    implementation: str = "plain"

    def __post_init__(self) -> None:
        check_choice("symile.negatives", self.negatives, ("shuffled", "all"))
        check_choice("symile.implementation", self.implementation, IMPLEMENTATIONS)
        if self.negatives == "all" and self.implementation == "blockwise":
            raise ValueError(
                "symile.implementation='blockwise' is for B² logits, not the B³ of "
                "symile.negatives='all'; use negatives='shuffled' or implementation='plain'"
            )

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"image", "text", _THIRD})

    @property
    def fields(self) -> field_lib.BatchSpec:
        return {_THIRD: field_lib.Captions(source=self.source)}

    def loss(
        self, params: Params, state: State, outputs: Outputs, ctx: Context
    ) -> tuple[jax.Array, Metrics, State]:
        rows = {key: outputs[key] for key in ("image", "text", _THIRD)}
        scale = jnp.exp(ctx.logit_scale)
        total, metrics = jnp.zeros(()), {}
        keys = jax.random.split(ctx.key, 3)
        for (name, anchor), key in zip(rows.items(), keys, strict=True):
            y, z = (value for other, value in rows.items() if other != name)
            own = scale * jnp.sum(anchor * y * z, axis=-1)
            if self.negatives == "all":
                scores = jnp.einsum("id,jd,kd->ijk", anchor, y, z, precision="highest")
                each = jax.nn.logsumexp(scale * scores, axis=(1, 2)) - own
            else:
                others = self._shuffled(anchor, y, z, scale, key, ctx)
                each = jnp.logaddexp(others, own) - own
            metrics[f"anchor_{name.replace('/', '_')}"] = jnp.mean(each)
            total += jnp.mean(each) / 3
        return total, metrics, state

    def _shuffled(
        self,
        anchor: jax.Array,
        y: jax.Array,
        z: jax.Array,
        scale: jax.Array,
        key: jax.Array,
        ctx: Context,
    ) -> jax.Array:
        """float32[B]: log-sum-exp of the logits of row i with the random pairs j ≠ i."""
        first, second = (jax.random.permutation(k, len(y)) for k in jax.random.split(key))
        others, _ = losses.off_diagonal_logsumexp(
            anchor,
            y[first] * z[second],
            scale,
            left_out=jnp.where(first == second, first, -1),  # there the row's own triple stands
            implementation=self.implementation,
            mesh=ctx.mesh,
        )
        return others
