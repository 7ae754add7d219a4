"""EuCLIP: contrast by distances of embeddings that are not brought to unit length."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxclip import losses
from jaxclip.models import unit
from jaxclip.objectives._base import Context, Metrics, Objective, Outputs, Params, State
from jaxclip.objectives._checks import IMPLEMENTATIONS, check_choice, check_number


@dataclasses.dataclass(frozen=True)
class EuCLIP(Objective):
    """Chou & Alam 2024 (arXiv:2409.13079): embedding geometries; the hyperbolic one is left out.

    With x, y the raw embeddings over √D, CLIP's loss on the logits -s |x - y|² (``squared``, the
    paper's choice), -s |x - y| (``euclidean``), s x·y (``inner``) or, of unit rows, -s arccos x·y
    (``elliptic``). Entailment adds mean relu(angle(x - y, y) - asin(min(1, aperture / |y|))): an
    image lies in the cone of its text y.

    Start with ``model.logit_scale_init=0``, or -1 with entailment. The paper also leaves out the
    towers' final norm, which is no option here. Evaluation by cosines does not know this metric.

    Attributes:
      geometry: of the logits.
      entailment: weight of the entailment, not for ``elliptic``.
      aperture: of the cones at length 1.
      implementation: ``"plain"``, or ``"blockwise"`` for ``squared`` and ``inner``.
    """

    geometry: str = "squared"
    entailment: float = 0.0
    aperture: float = 0.1
    implementation: str = "plain"

    def __post_init__(self) -> None:
        check_choice("euclip.geometry", self.geometry, _GEOMETRIES)
        check_number("euclip.entailment", self.entailment)
        check_number("euclip.aperture", self.aperture, positive=True)
        check_choice("euclip.implementation", self.implementation, IMPLEMENTATIONS)
        if self.implementation == "blockwise" and self.geometry not in _PRODUCTS:
            raise ValueError(
                f"euclip.implementation='blockwise' needs logits that are products; geometry="
                f"{self.geometry!r} has none, use {' or '.join(map(repr, _PRODUCTS))}"
            )
        if self.entailment and self.geometry == "elliptic":
            raise ValueError(
                "euclip.geometry='elliptic' has no lengths for entailment; use entailment=0 or "
                "another geometry"
            )

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"image_raw", "text_raw"})

    def loss(
        self, params: Params, state: State, outputs: Outputs, ctx: Context
    ) -> tuple[jax.Array, Metrics, State]:
        images, texts = (
            outputs[key].astype(jnp.float32) * outputs[key].shape[-1] ** -0.5
            for key in ("image_raw", "text_raw")
        )
        if self.implementation == "blockwise":
            clip, _ = losses.infonce(
                *_PRODUCTS[self.geometry](images, texts),
                logit_scale=ctx.logit_scale,
                implementation=self.implementation,
                mesh=ctx.mesh,
            )
        else:
            logits = jnp.exp(ctx.logit_scale) * _GEOMETRIES[self.geometry](images, texts)
            own = jnp.diagonal(logits)
            rows, columns = (jax.nn.logsumexp(logits, axis=axis) for axis in (1, 0))
            clip = jnp.mean(rows + columns - 2.0 * own) / 2
        entailment = self._entailment(images, texts)
        metrics = {"clip": clip, "entailment": entailment}
        metrics["length"] = jnp.mean(jnp.linalg.norm(jax.lax.stop_gradient(images), axis=-1))
        return clip + self.entailment * entailment, metrics, state

    def _entailment(self, images: jax.Array, texts: jax.Array) -> jax.Array:
        outside = _arccos(jnp.sum(unit(images - texts) * unit(texts), axis=-1))
        length = jnp.sqrt(jnp.maximum(jnp.sum(texts * texts, axis=-1), 1e-12))
        cone = jnp.arcsin(jnp.minimum(1.0 - 1e-6, self.aperture / length))
        return jnp.mean(jax.nn.relu(outside - cone))


def _squared(a: jax.Array, b: jax.Array) -> jax.Array:
    """float32[B, B]: -|a_i - b_j|², which rounding must not make positive."""
    lengths = jnp.sum(a * a, axis=-1)[:, None] + jnp.sum(b * b, axis=-1)
    return -jnp.maximum(lengths - 2.0 * losses.products(a, b), 0.0)


def _squared_as_products(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Rows with two more numbers, whose products are -|a_i - b_j|²."""
    ones = jnp.ones_like(a[:, :1])
    lengths = [-jnp.sum(x * x, axis=-1, keepdims=True) for x in (a, b)]
    return (
        jnp.concatenate([2.0 * a, lengths[0], ones], axis=-1),
        jnp.concatenate([b, ones, lengths[1]], axis=-1),
    )


def _arccos(cosines: jax.Array) -> jax.Array:
    """arccos with finite gradients: within 1e-6 of 1 and -1 there is none."""
    return jnp.arccos(jnp.clip(cosines, -1.0 + 1e-6, 1.0 - 1e-6))


_GEOMETRIES = {
    "squared": _squared,
    "euclidean": lambda a, b: -jnp.sqrt(jnp.maximum(-_squared(a, b), 1e-12)),
    "inner": losses.products,
    "elliptic": lambda a, b: -_arccos(losses.products(unit(a), unit(b))),
}

# Rows whose products are the logits.
_PRODUCTS: dict[str, Callable[..., tuple[jax.Array, jax.Array]]] = {
    "squared": _squared_as_products,
    "inner": lambda a, b: (a, b),
}
