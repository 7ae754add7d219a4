"""Contrast in which all rows of one label are positives of each other."""

from __future__ import annotations

import dataclasses

import jax

from jaxclip import fields as field_lib
from jaxclip import losses
from jaxclip.objectives._base import Context, Metrics, Objective, Outputs, Params, State
from jaxclip.objectives._checks import IMPLEMENTATIONS, check_choice


@dataclasses.dataclass(frozen=True)
class UniCL(Objective):
    """Yang et al. 2022 (arXiv:2204.03610, equation 3); with unique labels it is CLIP.

    The target of a row is even over the rows of its label: the loss is the mean of their logs, not
    the log of their sum. A label of -1 is that of no other row.

    Attributes:
      labels: ``"class"``: the record's label; ``"caption"``: rows with the same caption in a batch
        are positives of each other, where plain CLIP takes them for negatives.
      implementation: ``"plain"`` or ``"blockwise"``.
    """

    labels: str = "class"
    implementation: str = "plain"

    def __post_init__(self) -> None:
        check_choice("unicl.labels", self.labels, _KEYS)
        check_choice("unicl.implementation", self.implementation, IMPLEMENTATIONS)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"image", "text", _KEYS[self.labels][0]})

    @property
    def fields(self) -> field_lib.BatchSpec:
        return dict([_KEYS[self.labels]])

    def loss(
        self, params: Params, state: State, outputs: Outputs, ctx: Context
    ) -> tuple[jax.Array, Metrics, State]:
        loss, metrics = losses.infonce(
            outputs["image"],
            outputs["text"],
            logit_scale=ctx.logit_scale,
            labels=outputs[_KEYS[self.labels][0]],
            implementation=self.implementation,
            mesh=ctx.mesh,
        )
        return loss, metrics, state


_KEYS: dict[str, tuple[str, field_lib.Field]] = {
    "class": ("label", field_lib.Label()),
    "caption": ("caption_hash", field_lib.CaptionHash()),
}
