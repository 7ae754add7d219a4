"""Low-rank additions to kernels: made, and merged into the weights (LoRA)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxclip.models.features import add_low_rank

LowRank = dict[str, tuple[jax.Array, jax.Array]]
QUERY_VALUE = (r"attention/(query|value)/kernel$",)


def init_lora(
    params: Mapping[str, Any],
    rank: int,
    key: jax.Array,
    *,
    patterns: Sequence[str] = QUERY_VALUE,
) -> LowRank:
    """Low-rank factors that change nothing yet (Hu et al., 2021, arXiv:2106.09685).

    ``A`` is normal with variance ``1 / rows``, ``B`` is zero. They go to a tower's ``low_rank``
    (``CLIP.image_features(…, low_rank=…)``) to train, and to :func:`merge_lora` in the end.

    Args:
      params: of one tower, ``params["image"]`` or ``params["text"]``.
      rank: columns of A.
      key: a PRNG key.
      patterns: regular expressions; kernels whose path has one of them get factors. The paper's
        are query and value.

    Returns:
      ``{path: (A float32[in, rank], B float32[rank, out])}``.

    Raises:
      ValueError: no kernel has a pattern, or a rank below 1 or above a kernel's sides.
    """
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if leaf.ndim == 2 and any(re.search(pattern, name) for pattern in patterns):
            found[name] = leaf.shape
    if not found:
        raise ValueError(f"no kernel of the tower has a pattern of {list(patterns)}")
    smallest = min(min(shape) for shape in found.values())
    if not 1 <= rank <= smallest:
        raise ValueError(f"rank={rank} must be from 1 to {smallest}, the smallest side of a kernel")
    keys = jax.random.split(key, len(found))
    return {
        name: (
            jax.random.normal(k, (shape[0], rank)) / shape[0] ** 0.5,
            jnp.zeros((rank, shape[1])),
        )
        for k, (name, shape) in zip(keys, found.items(), strict=True)
    }


def merge_lora(
    params: Mapping[str, Any], low_rank: Mapping[str, Any], *, scale: float = 1.0
) -> dict[str, Any]:
    """``W + scale A B`` for every kernel with factors: a plain tower, as fast as before.

    Args:
      params: of one tower.
      low_rank: as :func:`init_lora` makes it.
      scale: the paper's alpha / rank.

    Returns:
      The tower's tree; other leaves are those of ``params``.

    Raises:
      ValueError: a path that is no kernel, or factors that do not fit.
    """
    return add_low_rank(params, {path: (a, scale * b) for path, (a, b) in low_rank.items()})
