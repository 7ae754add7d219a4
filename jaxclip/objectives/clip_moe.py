"""CLIP with losses that keep the experts of both towers in use."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from jaxclip import losses
from jaxclip.objectives._base import Context, Metrics, Objective, Outputs, Params, State
from jaxclip.objectives._checks import IMPLEMENTATIONS, check_choice, check_number


@dataclasses.dataclass(frozen=True)
class CLIPMoE(Objective):
    """Zhang et al. 2024, CLIP-MoE (arXiv:2409.19291); Wang et al. 2025, CLIP-UP (arXiv:2502.00965).

    CLIP + balance · lb + z · mean logsumexp(router logits)², for towers with experts
    (``model.image.num_experts``); without any it is CLIP. With f the share of the batch's tokens
    whose r-th choice is e and P the mean probability of e, lb of a block is E Σ_{r,e} f_{r,e} P_e,
    which is k where all experts are used alike. Blocks are averaged, after each has its own lb
    (CLIP-MoE's code pools all blocks first, so that imbalances cancel). All places of a text count,
    padding too.

    Attributes:
      balance: weight of lb; image and text towers are added. CLIP-MoE: 0.01, texts half of it.
      z: weight of the router's logits.
      implementation: ``"plain"`` or ``"blockwise"``, of CLIP's loss.
    """

    balance: float = 0.01
    z: float = 0.001
    implementation: str = "plain"

    def __post_init__(self) -> None:
        check_number("clip_moe.balance", self.balance)
        check_number("clip_moe.z", self.z)
        check_choice("clip_moe.implementation", self.implementation, IMPLEMENTATIONS)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"image", "text", "image_router", "text_router"})

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
        balance, z = jnp.zeros(()), jnp.zeros(())
        for tower in ("image", "text"):
            rows = outputs[f"{tower}_router"]
            if rows.shape[1]:
                balance += jnp.mean(balance_of(rows))
                z += jnp.mean(rows[:, :, -1, 0])
        loss = loss + self.balance * balance + self.z * z
        return loss, {**metrics, "balance": balance, "router_z": z}, state


def balance_of(rows: jax.Array) -> jax.Array:
    """float32[blocks], lb of each.

    Args:
      rows: float32[B, blocks, k + 2, E], as :class:`jaxclip.models.experts.Experts` gives of each
        row.
    """
    means = jnp.mean(rows, axis=0)
    chosen, probability = means[:, :-2], means[:, -2]
    return rows.shape[-1] * jnp.einsum("mke,me->m", chosen, probability)
