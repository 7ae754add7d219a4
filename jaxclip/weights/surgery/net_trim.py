"""Net-Trim: the sparsest layer that gives nearly the same outputs (Aghasi et al., 2018).

"Fast Convex Pruning of Deep Neural Networks", arXiv:1806.06457: layer by layer, by ADMM, from the
layer's inputs and outputs on some data.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def net_trim(
    inputs: Any,
    outputs: Any,
    epsilon: float,
    *,
    relu: bool = False,
    rho: float = 10.0,
    steps: int = 500,
    tolerance: float = 5e-9,
) -> np.ndarray:
    """min |U|_1 with |X U - Y| <= epsilon (Frobenius).

    With ``relu`` the equation is for outputs above 0 alone, and where they are 0 it is
    (X U) <= 0. A bias is a column of ones in X.

    Args:
      inputs: float[P, N], X: what comes into the layer, an example a row.
      outputs: float[P, M], Y: what it gave, behind the ReLU if there is one.
      epsilon: how far the outputs may be from that.
      relu: whether Y is behind a ReLU.
      rho: ADMM's penalty.
      steps: at most.
      tolerance: of the mean square change of U in a step, at which it stops.

    Returns:
      float64[N, M], U.

    Raises:
      ValueError: shapes that don't fit, or a negative epsilon.
    """
    x, y = np.asarray(inputs, np.float64), np.asarray(outputs, np.float64)
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y):
        raise ValueError(f"inputs {x.shape} and outputs {y.shape} must be [P, N] and [P, M]")
    if epsilon < 0:
        raise ValueError(f"epsilon={epsilon} is negative")
    gram = x.T @ x
    scale = np.sqrt(max(float(np.max(np.abs(gram))), 1e-30)) * 0.3
    x, y, radius = x / scale, y / scale, epsilon / scale
    above = y > 0 if relu else np.ones(y.shape, bool)
    # Once for all steps; the identity keeps it well-conditioned.
    inverse = np.linalg.inv(x.T @ x + np.eye(x.shape[1]))
    sparse = np.zeros((x.shape[1], y.shape[1]))
    dual_u, dual_z = np.zeros_like(sparse), np.zeros_like(y)
    z = y.copy()
    for _ in range(steps):
        # U and Z = X U are split; the least-squares step ties them together.
        dense = inverse @ (x.T @ (z - dual_z) + (sparse - dual_u))
        made = x @ dense
        z = _into_set(made + dual_z, y, above, radius)
        before, moved = sparse, dense + dual_u
        sparse = np.sign(moved) * np.maximum(np.abs(moved) - 1 / rho, 0)
        dual_u += dense - sparse
        dual_z += made - z
        if np.mean((sparse - before) ** 2) < tolerance**2 and np.allclose(dense, sparse, atol=1e-6):
            break
    return sparse


def _into_set(z: np.ndarray, y: np.ndarray, above: np.ndarray, radius: float) -> np.ndarray:
    """The nearest outputs that are allowed: a ball around y, and below 0 where a ReLU gave 0."""
    away = np.where(above, z - y, 0.0)
    length = float(np.linalg.norm(away))
    inside = y + away * min(1.0, radius / max(length, 1e-30))
    return np.where(above, inside, np.minimum(z, 0.0))
