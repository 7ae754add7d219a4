"""Heads, MLP units and whole layers: masks over them as data, scores of them, and their removal.

A masked model runs in the unchanged towers: a mask multiplies the rows of output maps, so that what
is masked adds nothing. :func:`remove_masked` then takes it out, which gives the same numbers.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxclip.models.presets import CLIPConfig

Array = Any
Params = Mapping[str, Any]

TOWERS = ("image", "text")
_INPUTS = ("query", "key", "value")
_BLOCK = re.compile(r"blocks_\d+$")


class TowerMasks(NamedTuple):
    """What runs of a tower: 1, or 0 for what is masked.

    Attributes:
      heads: [depth, H].
      units: [depth, F], of the MLPs.
      layers: [depth], whole blocks.
    """

    heads: Array
    units: Array
    layers: Array


Masks = dict[str, TowerMasks]


def full_masks(sizes: CLIPConfig, towers: Sequence[str] = TOWERS) -> Masks:
    """Masks that mask nothing, float32.

    Args:
      sizes: of the model.
      towers: those that are to be masked.

    Raises:
      ValueError: as :func:`check_prunable`.
    """
    masks = {}
    for name in towers:
        check_prunable(sizes, name)
        c = getattr(sizes, name)
        masks[name] = TowerMasks(
            np.ones((c.depth, c.num_heads), np.float32),
            np.ones((c.depth, c.mlp_dim), np.float32),
            np.ones(c.depth, np.float32),
        )
    return masks


def check_prunable(sizes: CLIPConfig, tower: str) -> None:
    """Refuse towers whose parts can't be taken out one by one.

    Raises:
      ValueError: says which and why.
    """
    c = getattr(sizes, tower)
    if c.kind not in ("vit", "transformer"):
        raise ValueError(f"model.{tower}.kind={c.kind!r} has no pre-norm Transformer blocks")
    if getattr(c, "num_experts", 0):
        raise ValueError(
            f"model.{tower}.num_experts={c.num_experts}: experts have no units to mask"
        )
    if getattr(c, "norm_place", "pre") != "pre" or getattr(c, "sub_norm", False):
        raise ValueError(
            f"model.{tower}: with a norm behind the branches (norm_place='post', sub_norm=True) "
            "what is masked still adds the norm's bias"
        )


def apply_masks(params: Params, masks: Mapping[str, TowerMasks], sizes: CLIPConfig) -> Params:
    """Parameters with which the unchanged model runs as the masks say; differentiable in them.

    Args:
      params: of :meth:`jaxclip.models.CLIP.init`.
      masks: of one tower or both.
      sizes: of the model.
    """
    result = dict(params)
    for name, mask in masks.items():
        c = getattr(sizes, name)
        tower = dict(params[name])
        for i in range(c.depth):
            block = dict(tower[f"blocks_{i}"])
            layer = jnp.asarray(mask.layers)[i]
            heads = jnp.repeat(jnp.asarray(mask.heads)[i], c.head_size)
            block["attention"] = _scaled(block["attention"], "out", layer * heads, layer)
            units = jnp.asarray(mask.units)[i]
            block["mlp"] = _scaled(block["mlp"], "down", layer * units, layer)
            tower[f"blocks_{i}"] = block
        result[name] = tower
    return result


def _scaled(module: Params, name: str, rows: Array, bias: Array) -> Params:
    """A module whose output map has rows times ``rows`` and a bias times ``bias``."""
    layer = {key: jnp.asarray(value) * bias for key, value in module[name].items()}
    layer["kernel"] = jnp.asarray(module[name]["kernel"]) * rows[:, None]
    return {**module, name: layer}


def remove_masked(
    params: Params, sizes: CLIPConfig, masks: Mapping[str, TowerMasks]
) -> tuple[dict[str, Any], CLIPConfig]:
    """Take out what is masked.

    Args:
      params: of :meth:`jaxclip.models.CLIP.init`.
      sizes: of the model.
      masks: of one tower or both; in all layers that stay as many heads, and as many units.

    Returns:
      Parameters and sizes of the smaller model, whose outputs are those of the masked one.

    Raises:
      ValueError: other numbers in other layers, or nothing left of a tower.
    """
    result: dict[str, Any] = dict(params)
    for name, mask in masks.items():
        check_prunable(sizes, name)
        tower, config = _pruned_tower(params[name], name, getattr(sizes, name), mask)
        result[name], sizes = tower, dataclasses.replace(sizes, **{name: config})
    return result, sizes


def _pruned_tower(tower: Params, name: str, c: Any, mask: TowerMasks) -> tuple[Params, Any]:
    layers = np.flatnonzero(np.asarray(mask.layers))
    heads, units = (np.asarray(m)[layers] != 0 for m in (mask.heads, mask.units))
    counts = {
        what: sorted({*m.sum(1).tolist()}) for what, m in (("heads", heads), ("units", units))
    }
    for what, found in counts.items():
        if len(found) != 1 or not found[0]:
            raise ValueError(
                f"{name} tower: {what} that stay in its layers are {found or 'none'}; a model has "
                "as many in each, and at least one"
            )
    fewer = counts["heads"][0] < c.num_heads or counts["units"][0] < c.mlp_dim
    if fewer and name == "text" and c.pool == "map":
        raise ValueError(
            "model.text.pool='map' has heads and units of the blocks' numbers; prune its layers "
            "alone"
        )
    rest = {key: value for key, value in tower.items() if not _BLOCK.match(key)}
    for new, old in enumerate(layers):
        columns = np.flatnonzero(np.repeat(heads[new], c.head_size))
        rest[f"blocks_{new}"] = _pruned_block(
            tower[f"blocks_{old}"], columns, np.flatnonzero(units[new])
        )
    changes: dict[str, Any] = {
        "depth": len(layers), "num_heads": counts["heads"][0], "mlp_dim": counts["units"][0]
    }  # fmt: skip
    if counts["heads"][0] < c.num_heads:
        changes["head_dim"] = c.head_size
    if fewer and name == "image" and c.pool in ("map", "queries"):
        # Pools have the blocks' numbers unless they have their own.
        changes["pool_heads"] = c.pool_heads or c.num_heads
        changes["pool_mlp_dim"] = c.pool_mlp_dim or c.mlp_dim
    return rest, dataclasses.replace(c, **changes)


def _pruned_block(block: Params, columns: np.ndarray, units: np.ndarray) -> dict[str, Any]:
    attention, mlp = dict(block["attention"]), dict(block["mlp"])
    for key in _INPUTS:
        attention[key] = {n: np.asarray(x)[..., columns] for n, x in attention[key].items()}
    for key in ("up", "gate"):
        if key in mlp:
            mlp[key] = {n: np.asarray(x)[..., units] for n, x in mlp[key].items()}
    for module, key, rows in ((attention, "out", columns), (mlp, "down", units)):
        module[key] = {**module[key], "kernel": np.asarray(module[key]["kernel"])[rows]}
    return {**block, "attention": attention, "mlp": mlp}


def sums_by_module(tree: Params, tower: str, sizes: CLIPConfig) -> TowerMasks:
    """Sums of a tree like the parameters over each head, unit and layer of a tower, float64.

    A head is its columns of queries, keys and values (biases among them) and its rows of the output
    map; a unit its columns of ``up`` and ``gate`` and its row of ``down``; a layer all of these.

    Args:
      tree: shaped as parameters: squares of weights, say, or the diagonal of a Hessian.
      tower: its name.
      sizes: of the model.
    """
    c = getattr(sizes, tower)
    heads, units = [], []
    for i in range(c.depth):
        block = tree[tower][f"blocks_{i}"]
        columns = sum(_columns(block["attention"][key]) for key in _INPUTS)
        columns = columns + _rows(block["attention"]["out"])
        heads.append(columns.reshape(c.num_heads, -1).sum(1))
        own = sum(_columns(block["mlp"][key]) for key in ("up", "gate") if key in block["mlp"])
        units.append(own + _rows(block["mlp"]["down"]))
    by_layer = np.sum(heads, axis=1) + np.sum(units, axis=1)
    return TowerMasks(np.stack(heads), np.stack(units), by_layer)


def _columns(layer: Params) -> Any:
    arrays = [np.asarray(x, np.float64) for x in layer.values()]
    return sum(x.reshape(-1, x.shape[-1]).sum(0) for x in arrays)


def _rows(layer: Params) -> Any:
    return np.asarray(layer["kernel"], np.float64).sum(1)
