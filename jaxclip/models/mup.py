"""muP: a parametrisation whose learning rate carries over from a narrow model to a wide one.

Yang et al., 2022, arXiv:2203.03466, for Adam and its like. With m = width / ``mup_base_width`` of a
tower:

================================  ==================  ================  ======================
parameters                        initial variance    learning rate     where
================================  ==================  ================  ======================
hidden kernels                    1 / fan_in          1 / m             here, by their path
patch embedding, positions, …     as at the base      1                 their initialisers
biases, gains                     0, 1                1
projection to the joint space     1 / fan_in          1 / m             as hidden ones are
router of experts                 0.02²               1 / m
================================  ==================  ================  ======================

Attention scores are q·k sqrt(d₀) / d, with d the size of a head and d₀ that at the base. The output
of a tower is made of unit length, so that a multiplier of the projection would change nothing.
Where m = 1 nothing differs from the usual parametrisation.
"""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp

from jaxclip.models.presets import CLIPConfig

# Matrices both of whose sides grow with the width (a router's inputs alone), and the projection.
HIDDEN = (
    r"(attention|cross_attention|mlp)/(experts/)?(query|key|value|out|up|gate|down|router)/kernel$"
)
PROJECTION = r"projection/((hidden|out)/)?kernel$"

# Optimizers whose update does not grow with the gradient, element by element, as the table wants.
OPTIMIZERS = (
    "acclip", "adabelief", "adam", "adamw", "adan", "ademamix", "adopt", "amsgrad", "lion", "nadam",
    "nadamw", "radam", "sign_sgd", "spam", "stable_adamw", "stable_spam", "yogi",
)  # fmt: skip


def multiplier(config: Any) -> float:
    """m of a tower's configuration; 1 without muP."""
    return config.width / config.mup_base_width if config.mup_base_width else 1.0


def base_width(config: Any) -> int:
    """The width whose initial variances the parameters at the input have."""
    return config.mup_base_width or config.width


def input_init(config: Any) -> Any:
    """Initializer of kernels whose inputs do not grow with the width; None for the usual one."""
    if multiplier(config) == 1.0:
        return None

    def init(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        limit = (6.0 / (shape[-2] + base_width(config))) ** 0.5  # Glorot's, at the base
        return jax.random.uniform(key, shape, dtype, -limit, limit)

    return init


def attention_scale(config: Any) -> float:
    """What q·k / sqrt(d) is multiplied by: sqrt(d₀ / d)."""
    if not config.mup_base_heads:
        return 1.0
    base = config.mup_base_width // config.mup_base_heads
    return (base / config.head_size) ** 0.5


def rate_factors(config: CLIPConfig) -> list[tuple[str, float]]:
    """``(pattern, factor)`` of learning rates, by paths such as ``image/blocks_0/mlp/up/kernel``.

    Args:
      config: of both towers.

    Returns:
      The first pattern that matches counts; empty without muP.
    """
    found = []
    for tower in ("image", "text"):
        factor = 1.0 / multiplier(getattr(config, tower))
        if factor != 1.0:
            found += [(rf"^{tower}/(.*/)?{HIDDEN}", factor), (rf"^{tower}/{PROJECTION}", factor)]
    return found


def factor_of(path: str, factors: list[tuple[str, float]]) -> float:
    """The factor of a parameter's path; 1 where none matches."""
    return next((factor for pattern, factor in factors if re.search(pattern, path)), 1.0)
