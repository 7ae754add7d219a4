"""CE-CLIP: NegCLIP with a rank between pair and negatives, and a contrast among captions."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxclip import fields as field_lib
from jaxclip import losses
from jaxclip.models import CLIPConfig
from jaxclip.objectives import _negatives
from jaxclip.objectives._base import Context, Metrics, Objective, Outputs, Params, State
from jaxclip.objectives._checks import IMPLEMENTATIONS, check_choice, check_count, check_number


@dataclasses.dataclass(frozen=True)
class CEClip(Objective):
    """Zhang et al. 2024, contrasting intra-modal and ranking cross-modal (arXiv:2306.08832).

    ``negclip``'s loss + rank · mean relu(th_m + a_im - s S_ii), with a_im = s I_i·n_im the logit of
    the record's m-th negative, + intra · mean CE of the caption's logits
    [s T_i·I_i, s T_i·n_i1, ...] with the first as target. th_m is the mean gap s S_ii - a_im of
    the step before, never below 0, and the first step's is 0: that start is ours, the authors' was
    not checked. Their labels in the caption part make the first negative the positive; here it is
    the image.

    Attributes:
      count: negatives a record; each position is a type with a threshold of its own.
      ops: text ops that make them of the caption where the record has none.
      rank: weight of the rank.
      intra: weight of the contrast among captions.
      implementation: of ``negclip``'s part, ``"plain"`` or ``"blockwise"``.
    """

    count: int = 4
    ops: str = "swap_words"
    rank: float = 0.2
    intra: float = 0.2
    implementation: str = "plain"

    small: ClassVar[dict[str, Any]] = {"count": 2}

    def __post_init__(self) -> None:
        check_count("ce_clip.count", self.count)
        check_number("ce_clip.rank", self.rank)
        check_number("ce_clip.intra", self.intra)
        check_choice("ce_clip.implementation", self.implementation, IMPLEMENTATIONS)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"image", "text"}) | _negatives.NEEDS

    @property
    def fields(self) -> field_lib.BatchSpec:
        return {_negatives.KEY: field_lib.Negatives(self.count, self.ops)}

    def init_state(self, sizes: CLIPConfig) -> State:
        return {"threshold": jnp.zeros(self.count, jnp.float32)}

    def loss(
        self, params: Params, state: State, outputs: Outputs, ctx: Context
    ) -> tuple[jax.Array, Metrics, State]:
        images, texts, wrong = (outputs[key] for key in ("image", "text", _negatives.KEY))
        valid = _negatives.valid(outputs)
        scale = jnp.exp(ctx.logit_scale)
        base, metrics = losses.infonce(
            images,
            texts,
            logit_scale=ctx.logit_scale,
            negatives=wrong,
            negatives_valid=valid,
            implementation=self.implementation,
            mesh=ctx.mesh,
        )
        own = scale * jnp.sum(images * texts, axis=-1)
        of_image, of_text = (
            scale * jnp.einsum("bd,bmd->bm", rows, wrong, precision="highest")
            for rows in (images, texts)
        )
        gap = own[:, None] - of_image
        share = valid / jnp.maximum(jnp.sum(valid), 1)
        rank = jnp.sum(share * jax.nn.relu(state["threshold"] - gap))
        captions = jnp.concatenate([own[:, None], jnp.where(valid, of_text, -jnp.inf)], axis=1)
        intra = jnp.mean(jax.nn.logsumexp(captions, axis=1) - own)
        counts = jnp.sum(valid, axis=0)
        mean_gap = jnp.sum(gap, axis=0, where=valid) / jnp.maximum(counts, 1)
        threshold = jnp.where(counts > 0, jnp.maximum(mean_gap, 0.0), state["threshold"])
        metrics |= {
            "negatives": _negatives.share(valid),
            "base": base,
            "rank": rank,
            "intra": intra,
            "threshold": jnp.mean(threshold),
        }
        loss = base + self.rank * rank + self.intra * intra
        return loss, metrics, {"threshold": threshold}
