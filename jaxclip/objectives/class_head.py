"""A linear classifier on the image tower: linear probing, full fine-tuning, one after the other."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxclip import fields as field_lib
from jaxclip import losses
from jaxclip.models.presets import CLIPConfig
from jaxclip.objectives._base import Context, Metrics, Objective, Outputs, Params, State
from jaxclip.objectives._checks import check_choice, check_count, check_number

_FEATURES = ("image", "image_tokens")


@dataclasses.dataclass(frozen=True)
class ClassHead(Objective):
    """Softmax cross-entropy of W · norm(x) + b, with x from the image tower.

    ``features="image_tokens"`` is FT-CLIP's head (Dong et al. 2022, arXiv:2212.06138): the mean of
    the patches' tokens, no projection. ``"image"`` takes the unit embedding, times √D so that its
    numbers are near 1, and no norm: the linear probe of LP-FT (Kumar et al. 2022,
    arXiv:2202.10054), whose second phase trains the towers from the probe's weights
    (``init_from``). Records whose label is -1 do not count.

    Attributes:
      num_classes: labels are 0 to ``num_classes - 1``. A data set that declares more is refused; a
        record with a larger one is replaced and counted, and a row with one does not count.
      features: ``"image"`` or ``"image_tokens"``.
      label_smoothing: share of the target spread evenly.
      init_scale: of the random kernel, beside 1 / √D.
    """

    num_classes: int = 1000
    features: str = "image"
    label_smoothing: float = 0.1
    init_scale: float = 0.001

    small: ClassVar[dict[str, Any]] = {"num_classes": 10}

    def __post_init__(self) -> None:
        check_count("class_head.num_classes", self.num_classes, 2)
        check_choice("class_head.features", self.features, _FEATURES)
        check_number("class_head.label_smoothing", self.label_smoothing, 0.0, 1.0)
        check_number("class_head.init_scale", self.init_scale)

    @property
    def row_needs(self) -> frozenset[str]:
        return frozenset({self.features, "label"})

    @property
    def fields(self) -> field_lib.BatchSpec:
        return {"label": field_lib.Label(num_classes=self.num_classes)}

    def init_params(self, rng: jax.Array, sizes: CLIPConfig) -> Params:
        size = sizes.embed_dim if self.features == "image" else sizes.image.width
        kernel = jax.random.normal(rng, (size, self.num_classes)) * size**-0.5
        params = {"kernel": self.init_scale * kernel, "bias": jnp.zeros(self.num_classes)}
        if self.features == "image_tokens":
            params["norm"] = {"scale": jnp.ones(size), "bias": jnp.zeros(size)}
        return params

    def rows(self, params: Params, outputs: Outputs, ctx: Context) -> dict[str, jax.Array]:
        x = outputs[self.features].astype(jnp.float32)
        logits = class_logits(params, x if self.features == "image" else jnp.mean(x, axis=1))
        label = outputs["label"]
        counts = (label >= 0) & (label < self.num_classes)
        smooth = self.label_smoothing
        target = (1.0 - smooth) * jax.nn.one_hot(label, self.num_classes)
        nll = losses.soft_cross_entropy(logits, target + smooth / self.num_classes)
        hits = jnp.argmax(jax.lax.stop_gradient(logits), axis=-1) == label
        sums = {"nll": nll, "hits": hits, "count": jnp.ones_like(nll)}
        return {key: jnp.where(counts, x, 0).astype(jnp.float32) for key, x in sums.items()}

    def loss(
        self, params: Params, state: State, outputs: Outputs, ctx: Context
    ) -> tuple[jax.Array, Metrics, State]:
        counted = jnp.sum(outputs["count"])
        count = jnp.maximum(counted, 1.0)
        metrics = {
            "top1": jnp.sum(outputs["hits"]) / count,
            "left_out": len(outputs["count"]) - counted,
        }
        return jnp.sum(outputs["nll"]) / count, metrics, state


def class_logits(params: Params, x: jax.Array) -> jax.Array:
    """float32[B, num_classes] of unit embeddings, or of means of tokens where there is a norm.

    Args:
      params: of the head, ``params["objective"]["class_head"]``.
      x: float32[B, C].
    """
    if "norm" in params:
        centred = x - jnp.mean(x, axis=-1, keepdims=True)
        variance = jnp.mean(centred**2, axis=-1, keepdims=True)
        norm = params["norm"]
        x = centred * jax.lax.rsqrt(variance + 1e-6) * norm["scale"] + norm["bias"]
    else:
        x = x * x.shape[-1] ** 0.5
    return jnp.matmul(x, params["kernel"], precision="highest") + params["bias"]
