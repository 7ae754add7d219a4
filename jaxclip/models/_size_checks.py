"""What sizes of towers can't be, said in one line each."""

from __future__ import annotations

import math
from typing import Any

from jaxclip.models import sparse_activation

ACTIVATIONS = ("gelu", "gelu_tanh", "quick_gelu", "silu")


def check_choice(name: str, value: str, known: tuple[str, ...]) -> None:
    """Refuse a value that is none of those known."""
    if value not in known:
        raise ValueError(f"model.{name}={value!r}; use {', '.join(map(repr, known))}")


def check_activation(tower: str, name: str) -> None:
    """Refuse an activation that there is not."""
    if name in ACTIVATIONS or sparse_activation.parse(name):
        return
    raise ValueError(
        f"model.{tower}.activation={name!r}; use {', '.join(map(repr, ACTIVATIONS))}, or "
        "'sparse(0.7, 1.0)' (share of zeros, largest value)"
    )


def check_experts(tower: str, config: Any) -> None:
    """Refuse numbers of experts that can't be."""
    c = config
    if not 0 <= c.expert_blocks <= c.depth or not 0 <= c.expert_capacity < math.inf:
        raise ValueError(
            f"model.{tower}.expert_blocks={c.expert_blocks} must be 0 (all) to depth={c.depth}, "
            f"and expert_capacity={c.expert_capacity} 0 (no limit) or more"
        )
    if not c.num_experts:
        return
    if c.num_experts < 2 or not 1 <= c.experts_per_token <= c.num_experts:
        raise ValueError(
            f"model.{tower}.num_experts={c.num_experts}, experts_per_token={c.experts_per_token}: "
            "use at least two experts, of which a token takes one to all"
        )
    if getattr(c, "mlp", "plain") != "plain" or getattr(c, "sub_norm", False):
        raise ValueError(f"model.{tower}: experts are plain MLPs; use mlp='plain', sub_norm=False")


def check_rate(name: str, value: float) -> None:
    """Refuse a share outside [0, 1)."""
    if not 0 <= value < 1:
        raise ValueError(f"model.{name}={value}; use a rate from 0 (none) to below 1")


def check_cures(tower: str, config: Any) -> None:
    """Refuse options of attention and residual branches that can't be."""
    cap, scale = config.attention_soft_cap, config.layer_scale
    if not 0 <= cap < math.inf:
        raise ValueError(f"model.{tower}.attention_soft_cap={cap}; use 50, say, or 0 for none")
    if scale is not None and not 0 <= scale < math.inf:
        raise ValueError(
            f"model.{tower}.layer_scale={scale} is negative or infinite; use 1e-4, say, or None "
            "for no gains"
        )
    base, heads = config.mup_base_width, config.mup_base_heads
    given = config.qk_norm or cap or scale is not None or heads
    if given and getattr(config, "kind", "") == "roberta":
        raise ValueError(
            f"model.{tower}.kind='roberta' has no qk_norm, attention_soft_cap, layer_scale or "
            "mup_base_heads; leave them out"
        )
    if base < 0 or heads < 0 or (heads and (not base or base % heads)):
        raise ValueError(
            f"model.{tower}.mup_base_heads={heads}, mup_base_width={base}: use a width and a "
            "number of heads that divides it, or 0 for both"
        )


def check_heads(tower: str, config: Any) -> None:
    """Refuse heads that do not divide the width, unless they have a size of their own."""
    c = config
    if c.head_dim < 0 or (c.head_dim and (c.kind == "roberta" or c.mup_base_width)):
        raise ValueError(
            f"model.{tower}.head_dim={c.head_dim} must be 0 or more, and 0 with kind='roberta' and "
            "with mup_base_width"
        )
    if not c.head_dim and c.width % c.num_heads:
        raise ValueError(f"model.{tower}.num_heads={c.num_heads} does not divide width={c.width}")
