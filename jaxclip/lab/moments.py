"""RMS of a tensor's step: how far Adam's second moment is behind the gradient.

RMS = sqrt(mean(g² / max(v, ε²))), v being the bias-corrected second moment with g in it (Wortsman
et al., 2023, arXiv:2304.13013). It is read from the optimizer's states before and after the update,
g² being (v' - β2 v) / (1 - β2): so it is of the gradient that Adam saw, behind all clippers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxclip import optim
from jaxclip.train.state import parameter_path

# What optimizers take for β2 where a configuration says nothing.
_DEFAULT_B2 = {"adam": 0.999, "adamw": 0.999, "nadamw": 0.999, "stable_adamw": 0.99}
_EPS = 1e-8


def rms(
    before: Any, after: Any, section: Mapping[str, Any], watch: Sequence[str]
) -> dict[str, jax.Array]:
    """``{"rms/<path>": float32[]}`` of some tensors; empty for optimizers without this moment.

    Args:
      before: the optimizer's state before the update.
      after: and after it.
      section: ``optim`` of the configuration.
      watch: patterns of paths; of the tensors that match the largest counts.
    """
    if section["name"] not in _DEFAULT_B2:
        return {}
    if section["name"] == "stable_adamw":
        return _reported(after, watch)
    b2 = section.get("b2", _DEFAULT_B2[section["name"]])
    old, new = (_adam_state(state) for state in (before, after))
    if old is None or new is None:
        return {}
    correction = 1.0 - b2 ** new.count.astype(jnp.float32)
    leaves = jax.tree_util.tree_leaves_with_path(new.nu)
    found: dict[str, list[jax.Array]] = {}
    for (path, v), was in zip(leaves, jax.tree.leaves(old.nu), strict=True):
        name = parameter_path(path)
        for pattern in watch:
            if re.search(pattern, name):
                square = jnp.maximum(v - b2 * was, 0.0) / (1.0 - b2)
                mean = jnp.mean(square / jnp.maximum(v / correction, _EPS**2))
                found.setdefault(pattern, []).append(jnp.sqrt(mean))
    return {f"rms/{pattern}": jnp.max(jnp.stack(values)) for pattern, values in found.items()}


def _reported(state: Any, watch: Sequence[str]) -> dict[str, jax.Array]:
    """What StableAdamW says of itself: the RMS that it divides by."""
    found = _find(state, lambda node: isinstance(node, optim.StableAdamState))
    if found is None:
        return {}
    paths = jax.tree_util.tree_leaves_with_path(found.nu)
    names = [parameter_path(path) for path, _ in paths]
    result = {}
    for pattern in watch:
        places = [i for i, name in enumerate(names) if re.search(pattern, name)]
        if places:
            result[f"rms/{pattern}"] = jnp.max(found.norm[jnp.asarray(places)])
    return result


def _adam_state(state: Any) -> Any:
    return _find(state, lambda node: isinstance(node, optax.ScaleByAdamState))


def _find(tree: Any, wanted: Callable[[Any], bool]) -> Any:
    """The first node of a state that is wanted, or None."""
    nodes = jax.tree.leaves(tree, is_leaf=wanted)
    return next((node for node in nodes if wanted(node)), None)
