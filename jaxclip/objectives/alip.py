"""ALIP: a true and a synthetic caption, and gates that weigh rows by how they agree."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from jaxclip import fields as field_lib
from jaxclip import losses
from jaxclip.models import CLIPConfig
from jaxclip.objectives._base import Context, Metrics, Objective, Outputs, Params, State
from jaxclip.objectives._checks import IMPLEMENTATIONS, check_choice, check_number

_PAIRS = ("captions", "true", "synthetic")


@dataclasses.dataclass(frozen=True)
class ALIP(Objective):
    """Yang et al. 2023 (arXiv:2308.08428): adaptive language-image pretraining.

    Of each row the cosines c of the two captions, r of image and true caption, k of image and
    synthetic one, without a gradient; H, the moving average of each one's mean, is updated first.
    With g_x = exp(sharpness (x - H_x)) the weights are w = min(1, g_c), and where g_c < 1
    w_r = g_r, w_k = g_k, else 1, which may exceed 1. The loss is
    mean_i w w_r CLIP_i(I, T) + mean_i w w_k CLIP_i(I, U): of a row its row's and its column's part.

    Attributes:
      sharpness: of the gates; at 0 the loss is the sum of two CLIPs.
      decay: of the averages, which start at 1.
      source: tag of the synthetic captions in the records.
      true_source: tag of the true ones; empty for the record's captions as they are.
      implementation: ``"plain"`` or ``"blockwise"``.
    """

    sharpness: float = 2.0
    decay: float = 0.99
    source: str = "synthetic"
    true_source: str = ""
    implementation: str = "plain"

    def __post_init__(self) -> None:
        check_number("alip.sharpness", self.sharpness)
        check_number("alip.decay", self.decay, 0.0, 1.0)
        check_choice("alip.implementation", self.implementation, IMPLEMENTATIONS)
        if self.source == self.true_source:
            raise ValueError(
                f"alip.source={self.source!r} must be another tag than true_source: the two "
                "captions would be of one kind"
            )

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"image", "text", "texts1/text"})

    @property
    def fields(self) -> field_lib.BatchSpec:
        true = {"text": field_lib.Captions(source=self.true_source)} if self.true_source else {}
        return {**true, "texts1/text": field_lib.Captions(source=self.source)}

    def init_state(self, sizes: CLIPConfig) -> State:
        return {name: jnp.ones((), jnp.float32) for name in _PAIRS}

    def loss(
        self, params: Params, state: State, outputs: Outputs, ctx: Context
    ) -> tuple[jax.Array, Metrics, State]:
        images, true, synthetic = (outputs[key] for key in ("image", "text", "texts1/text"))
        pairs = ((true, synthetic), (true, images), (synthetic, images))
        gates, averages = {}, {}
        for name, (a, b) in zip(_PAIRS, pairs, strict=True):
            cosines = jax.lax.stop_gradient(jnp.sum(a * b, axis=-1))
            mean = jnp.mean(cosines)
            averages[name] = self.decay * state[name] + (1.0 - self.decay) * mean
            gates[name] = jnp.exp(self.sharpness * (cosines - averages[name]))
        sample = jnp.minimum(1.0, gates["captions"])
        total, metrics = jnp.zeros((), jnp.float32), {"sample_weight": jnp.mean(sample)}
        for name, texts in (("true", true), ("synthetic", synthetic)):
            weights = sample * jnp.where(gates["captions"] < 1.0, gates[name], 1.0)
            value, own = losses.infonce(
                images,
                texts,
                logit_scale=ctx.logit_scale,
                weights=weights,
                implementation=self.implementation,
                mesh=ctx.mesh,
            )
            total += value
            own = own | {"weight": jnp.mean(weights)}
            metrics |= {f"{name}_{key}": each for key, each in own.items()}
        return total, metrics, averages
