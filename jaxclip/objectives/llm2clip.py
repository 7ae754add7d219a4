"""LLM2CLIP: images against the stored text vectors of a large language model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxclip import fields as field_lib
from jaxclip.models import CLIPConfig
from jaxclip.objectives._base import Context, Metrics, Objective, Outputs, Params, State
from jaxclip.objectives._checks import IMPLEMENTATIONS, check_choice, check_count
from jaxclip.objectives._clip import clip_part


@dataclasses.dataclass(frozen=True)
class LLM2CLIP(Objective):
    """Huang et al. 2024 (arXiv:2411.04997): CLIP's loss, with no tokens on the text side.

    A record keeps a vector of its caption, made once by a language model that was tuned to tell
    captions apart (that tuning is not done here; any sentence encoder serves). The text tower is an
    adapter on it: ``config.model.text = {"kind": "vector", "width": size, "depth": 4, "mlp_dim":
    2 * size, "num_heads": 1, "projection": "linear_bias"}``
    (:class:`jaxclip.models.text_towers.vector.Vector`). With several keys, for a short and a long
    caption say, the loss is their mean; the paper draws one each time.

    The paper's recipe: learning rate 1e-5, weight decay 0.05, clip 5, layer decay 0.85 in the image
    tower and none in the adapter, batch 4096, no warm-up, logit scale from ln(1 / 0.07).

    Attributes:
      keys: names of the vectors in the records.
      size: their length.
      implementation: ``"plain"`` or ``"blockwise"``.
    """

    keys: Sequence[str] = ("text_embedding",)
    size: int = 4096
    implementation: str = "plain"

    small: ClassVar[Mapping[str, Any]] = {"size": 16}
    small_model: ClassVar[Mapping[str, Any]] = {"text": {"kind": "vector"}}

    def __post_init__(self) -> None:
        check_count("llm2clip.size", self.size)
        check_choice("llm2clip.implementation", self.implementation, IMPLEMENTATIONS)
        given = isinstance(self.keys, Sequence) and not isinstance(self.keys, str) and self.keys
        strings = given and all(isinstance(key, str) and key for key in self.keys)
        if not strings or len(set(self.keys)) < len(self.keys):
            raise ValueError(f"llm2clip.keys={self.keys!r} must be a list of different names")

    @property
    def _texts(self) -> list[str]:
        return ["text", *(f"texts{k}/text" for k in range(1, len(self.keys)))]

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"image", *self._texts})

    @property
    def fields(self) -> field_lib.BatchSpec:
        vectors = [field_lib.Stored(key, self.size) for key in self.keys]
        return dict(zip(self._texts, vectors, strict=True))

    def check(self, sizes: CLIPConfig, teacher: CLIPConfig | None) -> None:
        text = sizes.text
        if text.kind != "vector" or text.width != self.size:
            raise ValueError(
                f"llm2clip hands the text tower vectors of {self.size} numbers; set "
                f"model.text.kind='vector' and model.text.width={self.size}, got {text.kind!r} and "
                f"{text.width}"
            )

    def loss(
        self, params: Params, state: State, outputs: Outputs, ctx: Context
    ) -> tuple[jax.Array, Metrics, State]:
        total, every = jnp.zeros(()), []
        for name in self._texts:
            value, metrics = clip_part(
                1.0, outputs["image"], outputs[name], ctx, implementation=self.implementation
            )
            total += value / len(self._texts)
            every.append(metrics)
        first, *others = every
        more = {f"{key}_{n + 1}": x for n, each in enumerate(others) for key, x in each.items()}
        return total, first | more, state
