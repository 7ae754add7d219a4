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


def check_image(config: Any) -> None:
    """Refuse sizes of a Vision Transformer that can't be."""
    c = config
    check_cures("image", c)
    check_experts("image", c)
    check_choice("image.first_layer", c.first_layer, ("plain", "tract"))
    check_rate("image.dropout", c.dropout)
    check_rate("image.patch_dropout", c.patch_dropout)
    if c.num_registers < 0:
        raise ValueError(f"model.image.num_registers={c.num_registers} is negative; use 0")
    _check_first_layer(c)
    check_choice("image.kind", c.kind, ("vit",))
    check_choice("image.stem", c.stem, ("patch", "conv", "conv_bn"))
    check_choice("image.pool", c.pool, ("cls", "mean", "map", "queries"))
    check_choice("image.positions", c.positions, ("learned", "sincos", "none"))
    check_choice("image.projection", c.projection, ("linear", "linear_bias", "none"))
    check_activation("image", c.activation)
    check_choice("image.rope", c.rope, ("none", "yx", "xy"))
    check_choice("image.mlp", c.mlp, ("plain", "gated"))
    check_choice("image.norm", c.norm, ("layer", "rms"))
    check_choice("image.norm_place", c.norm_place, ("pre", "post"))
    check_choice("image.qkv_bias", c.qkv_bias, ("all", "qv", "none"))
    _check_pool(c)
    if not math.isfinite(c.rope_offset):
        raise ValueError(f"model.image.rope_offset={c.rope_offset}; use a number of patches")
    if c.rope != "none" and c.head_size % 4:
        raise ValueError(
            f"model.image.rope={c.rope!r} needs heads of a multiple of 4 channels, not "
            f"{c.head_size}"
        )
    if c.image_size % c.patch_size:
        fits = [p for p in (4, 8, 14, 16, 32) if c.image_size % p == 0]
        raise ValueError(
            f"model.image.patch_size={c.patch_size} does not divide image_size="
            f"{c.image_size}; use {' or '.join(map(str, fits)) or 'another image size'}"
        )
    check_heads("image", c)
    if c.max_patches < 0 or (
        c.max_patches and (c.stem != "patch" or c.has_class_token or c.positions != "learned")
    ):
        raise ValueError(
            f"model.image.max_patches={c.max_patches} (patch sequences) needs stem='patch', "
            f"positions='learned' and pool='map' or 'mean', got {c.stem!r}, "
            f"{c.positions!r} and {c.pool!r}; 0 is for square pictures"
        )
    if c.positions == "sincos" and c.width % 4:
        raise ValueError(
            f"model.image.positions='sincos' needs a width divisible by 4, not {c.width}"
        )
    if c.stem != "patch":
        halvings = 2 ** (len(c.stem_widths) - 1) if c.stem_widths else 0
        if not halvings or c.patch_size % halvings:
            raise ValueError(
                f"model.image.stem_widths={c.stem_widths} halve the grid "
                f"{len(c.stem_widths) - 1} times, which patch_size={c.patch_size} does "
                "not allow"
            )


def _check_first_layer(c: Any) -> None:
    if c.first_layer == "tract" and (c.stem != "patch" or not c.tract_lambda > 0):
        raise ValueError(
            "model.image.first_layer='tract' needs model.image.stem='patch' and a tract_lambda "
            f"above 0, got stem={c.stem!r}, tract_lambda={c.tract_lambda}"
        )


def _check_pool(c: Any) -> None:
    if c.norm_after_pool and c.pool != "mean":
        raise ValueError(f"model.image.norm_after_pool=True is for pool='mean', not {c.pool!r}")
    if c.pool_prefix and c.pool == "cls":
        raise ValueError("model.image.pool_prefix=True is for pool='mean' or 'map', not 'cls'")
    for name in ("pool_heads", "pool_mlp_dim", "rope_grid"):
        if getattr(c, name) < 0:
            raise ValueError(f"model.image.{name}={getattr(c, name)} is negative; use 0")
    if c.pool == "queries" and (c.num_queries < 2 or c.projection == "none"):
        raise ValueError(
            f"model.image.pool='queries' needs num_queries of at least 2 and a projection, got "
            f"{c.num_queries} and {c.projection!r}"
        )
    if c.pool != "queries" and c.pool_heads and c.width % c.pool_heads:
        raise ValueError(f"model.image.pool_heads={c.pool_heads} does not divide width={c.width}")
