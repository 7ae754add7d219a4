"""CLIP's loss within groups of the batch."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from jaxclip import losses
from jaxclip.objectives._base import Context, Metrics, Objective, Outputs, Params, State
from jaxclip.objectives._checks import check_count, check_number


@dataclasses.dataclass(frozen=True)
class M2Encoder(Objective):
    """Guo et al. 2024, M2-Encoder (arXiv:2401.15896): grouped aggregation.

    The batch is cut into ``num_groups`` parts, neighbours in the batch, and the loss is the mean of
    CLIP's over them: each row has B / num_groups - 1 wrong answers. The paper does so to gather
    less between devices. It is another objective, not a cheaper way to the same one (that is
    ``implementation="blockwise"`` of ``contrastive``). Which rows are together is drawn anew in
    each epoch, as the order of the data is.

    Attributes:
      num_groups: G; 1 is CLIP's loss. It divides the batch.
      label_smoothing: share of the target spread evenly over the group.
    """

    num_groups: int = 4
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        check_count("m2_encoder.num_groups", self.num_groups)
        check_number("m2_encoder.label_smoothing", self.label_smoothing, high=0.99)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"image", "text"})

    def check_run(self, global_batch_size: int, teacher: str) -> None:
        size, groups = global_batch_size, self.num_groups
        if size % groups:
            divisors = [n for n in range(1, size) if not size % n]
            near = min(divisors, key=lambda n: abs(n - groups), default=1)
            raise ValueError(
                f"m2_encoder.num_groups={groups} does not divide the batch of {size}; use {near}, "
                "or another global_batch_size"
            )
        if size == groups > 1:
            raise ValueError(
                f"m2_encoder.num_groups={groups} leaves one row to a group: there is no wrong "
                "answer to learn from; use fewer groups or a larger global_batch_size"
            )

    def loss(
        self, params: Params, state: State, outputs: Outputs, ctx: Context
    ) -> tuple[jax.Array, Metrics, State]:
        images, texts = outputs["image"], outputs["text"]
        self.check_run(len(images), "none")

        def one(images: jax.Array, texts: jax.Array) -> tuple[jax.Array, Metrics]:
            return losses.infonce(
                images, texts, logit_scale=ctx.logit_scale, label_smoothing=self.label_smoothing
            )

        shape = (self.num_groups, len(images) // self.num_groups, -1)
        values, metrics = jax.vmap(one)(images.reshape(shape), texts.reshape(shape))
        return jnp.mean(values), {key: jnp.mean(x) for key, x in metrics.items()}, state
