"""CLIP with hard negative captions as further wrong answers for the images."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax

from jaxclip import fields as field_lib
from jaxclip import losses
from jaxclip.objectives import _negatives
from jaxclip.objectives._base import Context, Metrics, Objective, Outputs, Params, State
from jaxclip.objectives._checks import IMPLEMENTATIONS, check_choice, check_count


@dataclasses.dataclass(frozen=True)
class NegCLIP(Objective):
    """Yuksekgonul et al. 2023 (arXiv:2210.01936).

    Every negative caption N of the global batch is a column more for the image rows:
    [CE([s I Tᵀ, s I Nᵀ]) + CE(s T Iᵀ)] / 2; text rows are those of true captions only. The paper's
    batches also hold, for each image, a similar one: that is the data's part.

    Attributes:
      count: negative captions a record.
      ops: chain of text ops that makes one of the caption where the record has none; a caption
        that it does not change has no negative.
      implementation: ``"plain"`` or ``"blockwise"``.
    """

    count: int = 1
    ops: str = "swap_words"
    implementation: str = "plain"

    small: ClassVar[dict[str, Any]] = {"count": 2}

    def __post_init__(self) -> None:
        check_count("negclip.count", self.count)
        check_choice("negclip.implementation", self.implementation, IMPLEMENTATIONS)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"image", "text"}) | _negatives.NEEDS

    @property
    def fields(self) -> field_lib.BatchSpec:
        return {_negatives.KEY: field_lib.Negatives(self.count, self.ops)}

    def loss(
        self, params: Params, state: State, outputs: Outputs, ctx: Context
    ) -> tuple[jax.Array, Metrics, State]:
        valid = _negatives.valid(outputs)
        loss, metrics = losses.infonce(
            outputs["image"],
            outputs["text"],
            logit_scale=ctx.logit_scale,
            negatives=outputs[_negatives.KEY],
            negatives_valid=valid,
            implementation=self.implementation,
            mesh=ctx.mesh,
        )
        return loss, metrics | {"negatives": _negatives.share(valid)}, state
