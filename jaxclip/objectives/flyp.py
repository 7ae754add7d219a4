"""Fine-tuning with the pre-training loss, on sentences of class names."""

from __future__ import annotations

import dataclasses

import jax

from jaxclip import fields as field_lib
from jaxclip import losses
from jaxclip.objectives._base import Context, Metrics, Objective, Outputs, Params, State
from jaxclip.objectives._checks import IMPLEMENTATIONS, check_choice


@dataclasses.dataclass(frozen=True)
class FLYP(Objective):
    """Goyal et al. 2023, Finetune like you pretrain (arXiv:2212.00638).

    CLIP's loss on a picture and a sentence of its class, drawn anew each time. Pictures of one
    class in a batch stay wrong answers for each other, as in the paper. The captions of the records
    are to be names of classes.

    Attributes:
      templates: sentences with one ``{}`` each, between semicolons.
      implementation: ``"plain"`` or ``"blockwise"``.
    """

    templates: str = "a photo of a {}."
    implementation: str = "plain"

    def __post_init__(self) -> None:
        sentences = [each for each in self.templates.split(";") if each.strip()]
        if (
            not sentences
            or any(each.count("{}") != 1 for each in sentences)
            or ('"' in self.templates)
        ):
            raise ValueError(
                f"flyp.templates={self.templates!r} must be sentences with one {{}} each, between "
                "semicolons, without double quotes"
            )
        check_choice("flyp.implementation", self.implementation, IMPLEMENTATIONS)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"image", "text"})

    @property
    def fields(self) -> field_lib.BatchSpec:
        return {"text": field_lib.Captions(ops=f'template("{self.templates}")')}

    def loss(
        self, params: Params, state: State, outputs: Outputs, ctx: Context
    ) -> tuple[jax.Array, Metrics, State]:
        loss, metrics = losses.infonce(
            outputs["image"],
            outputs["text"],
            logit_scale=ctx.logit_scale,
            implementation=self.implementation,
            mesh=ctx.mesh,
        )
        return loss, metrics, state
