"""OHD-Caps: captions with invented or missing objects as hard negatives."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxclip import fields as field_lib
from jaxclip import losses
from jaxclip.objectives import _negatives
from jaxclip.objectives._base import Context, Metrics, Objective, Outputs, Params, State
from jaxclip.objectives._checks import IMPLEMENTATIONS, check_choice, check_count, check_number

_NOTHING = -1e30


@dataclasses.dataclass(frozen=True)
class OHDCaps(Objective):
    """Liu et al. 2024 (arXiv:2410.03176): object hallucinations in CLIP.

    With a_im = s I_i·n_im for the negatives n of a record and S = s I Tᵀ the loss is
    [CE(S) + CE([Sᵀ, a])] / 2
    + true_margin · mean relu(threshold + x - S_ii), over x = s T_i·I_j (j ≠ i) and a_im,
    + batch_margin · mean relu(threshold + a_im - max_{j≠i} s T_i·I_j).
    Missing negatives are left out. As released, they extend the *text* rows. The threshold is in
    units of logits: 5 is a cosine of 0.05 at a scale of 100. Released recipe: learning rate 1e-5,
    3 epochs, 27 negatives.

    Attributes:
      count: negatives a record.
      ops: text ops that make them of the caption where the record has none.
      rows_extended: which rows the record's own negatives extend, ``"text"`` or ``"image"``.
      true_margin: weight of the margin below the true pair.
      batch_margin: weight of the margin below the hardest other image of the batch.
      threshold: of both.
      implementation: ``"plain"`` or ``"blockwise"``.
    """

    count: int = 27
    ops: str = "swap_words"
    rows_extended: str = "text"
    true_margin: float = 0.2
    batch_margin: float = 0.2
    threshold: float = 5.0
    implementation: str = "plain"

    small: ClassVar[dict[str, Any]] = {"count": 2}

    def __post_init__(self) -> None:
        check_count("ohd_caps.count", self.count)
        check_choice("ohd_caps.rows_extended", self.rows_extended, ("text", "image"))
        check_choice("ohd_caps.implementation", self.implementation, IMPLEMENTATIONS)
        for name in ("true_margin", "batch_margin", "threshold"):
            check_number(f"ohd_caps.{name}", getattr(self, name))

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"image", "text"}) | _negatives.NEEDS

    @property
    def fields(self) -> field_lib.BatchSpec:
        return {_negatives.KEY: field_lib.Negatives(self.count, self.ops)}

    def loss(
        self, params: Params, state: State, outputs: Outputs, ctx: Context
    ) -> tuple[jax.Array, Metrics, State]:
        images, texts, wrong = (outputs[key] for key in ("image", "text", _negatives.KEY))
        how: Any = {"implementation": self.implementation, "mesh": ctx.mesh}
        scale = jnp.exp(ctx.logit_scale)
        own = scale * jnp.sum(images * texts, axis=-1)
        others = losses.off_diagonal_logsumexp(images, texts, scale, **how)
        against = scale * jnp.einsum("bd,bmd->bm", images, wrong, precision="highest")
        valid = _negatives.valid(outputs)
        against = jnp.where(valid, against, _NOTHING)
        rows, columns = (jnp.logaddexp(each, own) for each in others)
        by_row = {"image": rows, "text": columns}
        extended = jnp.concatenate([by_row[self.rows_extended][:, None], against], axis=1)
        by_row[self.rows_extended] = jax.nn.logsumexp(extended, axis=1)
        base = jnp.mean(by_row["image"] + by_row["text"] - 2 * own) / 2

        # Of text i with all other images.
        above, hardest = losses.hinge(texts, images, scale, self.threshold - own, **how)
        above_wrong = jax.nn.relu(self.threshold + against - own[:, None])
        number = len(own) * (len(own) - 1) + jnp.sum(valid)
        true_margin = (jnp.sum(above) + jnp.sum(above_wrong)) / number
        above_hardest = jax.nn.relu(self.threshold + against - hardest[:, None])
        batch_margin = jnp.sum(above_hardest) / jnp.maximum(jnp.sum(valid), 1)
        metrics = {
            "base": base,
            "negatives": _negatives.share(valid),
            "true_margin": true_margin,
            "batch_margin": batch_margin,
            "accuracy_against_negatives": jnp.mean(
                own > jnp.max(against, axis=1), dtype=jnp.float32
            ),
        }
        loss = base + self.true_margin * true_margin + self.batch_margin * batch_margin
        return loss, metrics, state
