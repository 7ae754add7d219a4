"""Symile: one contrast of three modalities by the sum of products of their three embeddings."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from jaxclip import fields as field_lib
from jaxclip.objectives._base import Context, Metrics, Objective, Outputs, Params, State
from jaxclip.objectives._checks import check_choice

_THIRD = "texts1/text"
_NOTHING = -1e30


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
    """

    source: str = ""
    negatives: str = "shuffled"

    def __post_init__(self) -> None:
        check_choice("symile.negatives", self.negatives, ("shuffled", "all"))

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
            if self.negatives == "all":
                scores = jnp.einsum("id,jd,kd->ijk", anchor, y, z, precision="highest")
                scores = scores.reshape(len(anchor), -1)
            else:
                scores = _shuffled(anchor, y, z, key)
            own = scale * jnp.sum(anchor * y * z, axis=-1)
            each = jax.nn.logsumexp(scale * scores, axis=1) - own
            metrics[f"anchor_{name.replace('/', '_')}"] = jnp.mean(each)
            total += jnp.mean(each) / 3
        return total, metrics, state


def _shuffled(anchor: jax.Array, y: jax.Array, z: jax.Array, key: jax.Array) -> jax.Array:
    """float32[B, B]: m of row i with random pairs, and with its own pair on the diagonal."""
    place = jnp.arange(len(y))
    first, second = (jax.random.permutation(k, len(y)) for k in jax.random.split(key))
    scores = jnp.matmul(anchor, (y[first] * z[second]).T, precision="highest")
    true = (first == place[:, None]) & (second == place[:, None])
    own = jnp.sum(anchor * y * z, axis=-1, keepdims=True)
    return jnp.where(jnp.eye(len(y), dtype=bool), own, jnp.where(true, _NOTHING, scores))
