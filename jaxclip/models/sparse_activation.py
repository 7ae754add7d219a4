"""Activations that are zero for most inputs, clipped so that deep networks stay stable.

Price & Tanner (2024, "Deep Neural Network Initialization with Sparsity Inducing Activations",
arXiv:2402.16184): phi(x) = min(max(x - tau, 0), m). Without the clip the variance map at its fixed
point is unstable, and signals blow up with depth. Norms before MLPs blunt both in a Transformer.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

_NORMAL = statistics.NormalDist()
_NUMBER = r"\d+\.?\d*|\.\d+"
_NAME = re.compile(rf"sparse\(\s*({_NUMBER})\s*,\s*({_NUMBER}|inf)\s*\)$")


class Variances(NamedTuple):
    """Initial variances at which a layer keeps the second moment q = 1.

    Attributes:
      weight: sigma_w^2, times the number of inputs.
      bias: sigma_b^2.
      slope: V'(1) of the variance map, at most 1 where it is stable.
    """

    weight: float
    bias: float
    slope: float


def threshold(sparsity: float) -> float:
    """tau at which that share of normal inputs is zero."""
    return _NORMAL.inv_cdf(sparsity)


def activation(sparsity: float, height: float) -> Callable[[jax.Array], jax.Array]:
    """phi, element by element, with the threshold of a sparsity, and m = ``height``."""
    tau = threshold(sparsity)
    return lambda x: jnp.clip(x - tau, 0.0, None if math.isinf(height) else height)


def parse(name: str) -> Callable[[jax.Array], jax.Array] | None:
    """The activation of a name such as ``"sparse(0.7, 1.0)"``; None for other names."""
    found = _NAME.match(name)
    if not found or not 0 < float(found[1]) < 1 or not float(found[2]) > 0:
        return None
    return activation(float(found[1]), float(found[2]))


def variances(sparsity: float, height: float) -> Variances:
    """Where training should start, at q = 1.

    Args:
      sparsity: share of zeros.
      height: m.
    """
    low = threshold(sparsity)
    high = low + height
    between = _NORMAL.cdf(high) - _NORMAL.cdf(low) if math.isfinite(high) else 1 - sparsity
    top, above = (_NORMAL.pdf(high), 1 - _NORMAL.cdf(high)) if math.isfinite(high) else (0.0, 0.0)
    # E (x - tau)^2 between both, and m^2 above.
    first = _NORMAL.pdf(low) - top
    second = between + low * _NORMAL.pdf(low) - (high * top if top else 0.0)
    moment = second - 2 * low * first + low**2 * between
    moment += height**2 * above if above else 0.0
    weight = 1 / between
    slope = weight * (between - (height * top if top else 0.0))
    return Variances(weight, 1 - weight * moment, slope)
