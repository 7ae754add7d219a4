"""CLIP, and a head on the text tower that tells sound captions from broken ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxclip import fields as field_lib
from jaxclip import losses
from jaxclip.models import CLIPConfig
from jaxclip.objectives._base import Context, Metrics, Objective, Outputs, Params, State
from jaxclip.objectives._checks import check_count, check_number
from jaxclip.objectives._clip import clip_part_if_any

_BROKEN = "broken/text"


@dataclasses.dataclass(frozen=True)
class Grammar(Objective):
    """Cho et al. 2022, CLIP reward (arXiv:2205.13115): CLIP + weight * cross-entropy of the head.

    The head, two linear maps without biases and a ReLU between, reads the text's pooled vector. It
    sees captions and captions that a text op has broken. A captioner that is rewarded by CLIPScore
    alone writes words without grammar; the head's probability of "sound" (:func:`sound`) is the
    other half of its reward (:func:`jaxclip.losses.self_critical.self_critical`).

    Attributes:
      contrastive: weight of CLIP's loss; 0 where a contrastive term of its own is listed.
      grammar_weight: of the head's.
      width: between the two maps.
      ops: that break a caption.
    """

    contrastive: float = 1.0
    grammar_weight: float = 1.0
    width: int = 512
    ops: str = "corrupt_words"

    small: ClassVar[Mapping[str, Any]] = {"width": 8}

    def __post_init__(self) -> None:
        check_number("grammar.contrastive", self.contrastive)
        check_number("grammar.grammar_weight", self.grammar_weight)
        check_count("grammar.width", self.width)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"image", "text"} if self.contrastive else ())

    @property
    def row_needs(self) -> frozenset[str]:
        return frozenset({"text_pooled", f"{_BROKEN}_pooled"})

    @property
    def fields(self) -> field_lib.BatchSpec:
        return {_BROKEN: field_lib.Captions(ops=self.ops)}

    def init_params(self, rng: jax.Array, sizes: CLIPConfig) -> Params:
        first, second = jax.random.split(rng)
        make = jax.nn.initializers.lecun_normal()
        return {
            "in": make(first, (sizes.text.width, self.width)),
            "out": make(second, (self.width, 2)),
        }

    def rows(self, params: Params, outputs: Outputs, ctx: Context) -> dict[str, jax.Array]:
        result = {}
        for name, key, label in (
            ("sound", "text_pooled", 1),
            ("broken", f"{_BROKEN}_pooled", 0),
        ):
            logits = head_logits(params, outputs[key])
            target = jnp.broadcast_to(jax.nn.one_hot(label, 2), logits.shape)
            result[f"{name}_nll"] = losses.soft_cross_entropy(logits, target)
            hits = jnp.argmax(jax.lax.stop_gradient(logits), axis=1) == label
            result[f"{name}_hits"] = hits.astype(jnp.float32)
        return result

    def loss(
        self, params: Params, state: State, outputs: Outputs, ctx: Context
    ) -> tuple[jax.Array, Metrics, State]:
        loss, metrics = clip_part_if_any(self.contrastive, outputs, ctx)
        grammar = (jnp.mean(outputs["sound_nll"]) + jnp.mean(outputs["broken_nll"])) / 2
        hits = (jnp.mean(outputs["sound_hits"]) + jnp.mean(outputs["broken_hits"])) / 2
        metrics |= {"grammar": grammar, "grammar_accuracy": hits}
        return loss + self.grammar_weight * grammar, metrics, state


def head_logits(params: Params, pooled: jax.Array) -> jax.Array:
    """float32[B, 2], broken and sound, of a text tower's pooled vectors [B, C]."""
    x = jax.nn.relu(jnp.matmul(pooled.astype(jnp.float32), params["in"], precision="highest"))
    return jnp.matmul(x, params["out"], precision="highest")


def sound(params: Params, pooled: jax.Array) -> jax.Array:
    """float32[B]: the probability that a text is sound."""
    return jax.nn.softmax(head_logits(params, pooled))[:, 1]
