"""``jaxclip weights prune``: a smaller model out of a trained one."""

from __future__ import annotations

import math
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxclip import objectives
from jaxclip.config import Config
from jaxclip.evaluate import sharpness
from jaxclip.inference import convert, mix
from jaxclip.models.presets import CLIPConfig
from jaxclip.objectives.tinyclip import TinyCLIP
from jaxclip.train import init_from, towers
from jaxclip.train.fixed_batches import fixed_batches
from jaxclip.weights import export, surgery
from jaxclip.weights.surgery.masks import TOWERS

Params = Any

SCORES = ("magnitude", "hap", "mope", "masks")
# Pairs that the Hessian of `hap` is estimated on, and products with it.
_PAIRS, _PROBES = 256, 50


def prune(
    source: str | os.PathLike[str],
    to: str | os.PathLike[str],
    *,
    score: str = "magnitude",
    heads: float = 1.0,
    units: float = 1.0,
    layers: float = 1.0,
    tower: str = "both",
    task: str = "",
    metric: str = "",
    groups: int = 8,
) -> str:
    """Write a model with fewer heads, MLP units and layers, as a workdir.

    First width, then depth, each encoder on its own, as MoPE-CLIP does (arXiv:2403.07839).

    Args:
      source: a workdir or published weights.
      to: a new folder, or an empty one.
      score: what modules are worth: ``"magnitude"``, ``"hap"`` (the Hessian of the loss on the
        run's training data), ``"mope"`` (what the task loses without them), or ``"masks"``: what
        the run's objective ``tinyclip`` has masked goes, and no share is given.
      heads: share of the heads of each layer that stays.
      units: share of the MLP units of each layer.
      layers: share of the layers.
      tower: ``"image"``, ``"text"`` or ``"both"``.
      task: for ``"mope"``: an evaluation as of ``jaxclip eval --task``, on held-out data.
      metric: of the task; empty for its top-1 or recall.
      groups: into how many groups, by magnitude, ``"mope"`` divides the units of a layer.

    Returns:
      What was done, a line for each tower.

    Raises:
      ValueError: shares out of range, a tower that can't be pruned, a missing task, or the folder
        holds something.
    """
    target = export.check_free(to)
    for name, share in (("heads", heads), ("units", units), ("layers", layers)):
        if not 0 < share <= 1:
            raise ValueError(f"--keep_{name} {share:g} must be above 0 and at most 1")
    if score not in SCORES:
        raise ValueError(f"--score {score!r} is none of {', '.join(SCORES)}")
    if score == "mope" and not task:
        raise ValueError(
            "--score mope needs a --task on held-out data, such as 'retrieval split=val'"
        )
    found = init_from.open_source(source, "--from")
    sizes = towers.model_sizes(found.config)
    chosen = TOWERS if tower == "both" else (tower,)
    for name in chosen:
        surgery.check_prunable(sizes, name)
    if score == "masks":
        if (heads, units, layers, tower) != (1.0, 1.0, 1.0, "both"):
            raise ValueError("--score masks takes out what is masked: give no shares and no tower")
        smaller, pruned = surgery.remove_soft(found.read(None), sizes, _trained_masks(found))
        # The masks have done their work: the next stage begins with new ones.
        return _written({**found.config, "objective": []}, sizes, smaller, pruned, target, score)
    params = found.read(None)
    judge = _judge(score, found.config, params, sizes, task, metric, groups)
    masks = surgery.full_masks(sizes, chosen)
    for name in chosen:
        masks = _choose(masks, judge, name, (heads, units, layers))
    smaller, pruned = surgery.remove_masked(params, sizes, masks)
    return _written(found.config, sizes, smaller, pruned, target, score, chosen)


def _written(
    config: Config,
    sizes: CLIPConfig,
    smaller: Params,
    pruned: CLIPConfig,
    target: pathlib.Path,
    score: str,
    chosen: Sequence[str] = TOWERS,
) -> str:
    """Write the smaller model as a workdir; returns what was done, a line for each tower."""
    shapes = jax.eval_shape(towers.build_model(config).init, jax.random.key(0))
    total = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
    count = convert.write_workdir(_with_sizes(config, pruned), smaller, target)
    lines = [f"{target}: {count:,} of {total:,} parameters, by {score}"]
    for name in chosen:
        before, after = getattr(sizes, name), getattr(pruned, name)
        lines.append(
            f"  {name}: heads {before.num_heads} -> {after.num_heads}, MLP {before.mlp_dim} -> "
            f"{after.mlp_dim}, layers {before.depth} -> {after.depth}"
        )
    return "\n".join(lines)


def _trained_masks(found: init_from.Source) -> Params:
    """Masks of the run's objective ``tinyclip``, without chance.

    Raises:
      ValueError: it has none.
    """
    for term in objectives.listed(found.config["objective"]):
        if isinstance(term.objective, TinyCLIP):
            own = found.read_own([term.name])
            if term.name in own:
                return term.objective.masks(own[term.name])
    raise ValueError(
        f"--from {found.path} has no trained masks: its objective is not 'tinyclip'; use --score "
        "magnitude, hap or mope"
    )


# (masks so far, tower, "heads" | "units" | "layers") -> scores of these
Judge = Callable[[Any, str, str], np.ndarray]


def _judge(
    score: str,
    config: Config,
    params: Params,
    sizes: CLIPConfig,
    task: str,
    metric: str,
    groups: int,
) -> Judge:
    if score == "mope":
        return _mope(config, params, sizes, task, metric, groups)
    diagonal = _hessian(config, params) if score == "hap" else None

    def judge(masks: Any, tower: str, kind: str) -> np.ndarray:
        if diagonal is None:
            found = surgery.magnitude_scores(params, tower, sizes)
        else:
            found = surgery.hap_scores(params, diagonal, tower, sizes)
        return np.asarray(getattr(found, kind))

    return judge


def _hessian(config: Config, params: Params) -> Params:
    """The diagonal of the Hessian of the contrastive loss on training data, estimated."""
    size = min(_PAIRS, int(config["global_batch_size"]))
    batches = fixed_batches(config, "", max(1, _PAIRS // size), size)
    encode = towers.from_config(config, towers.build_model(config)).encode
    own = {name: jax.tree.map(jnp.asarray, params[name]) for name in TOWERS}

    scale = jnp.asarray(params["logit_scale"])

    def diagonal(params: Params, batches: Any) -> Params:
        loss = sharpness.pair_loss(encode, batches, scale)
        return sharpness.hessian_diagonal(loss, params, jax.random.key(0), _PROBES)

    found: Params = jax.jit(diagonal)(own, jax.tree.map(jnp.asarray, batches))
    return found


def _mope(
    config: Config, params: Params, sizes: CLIPConfig, task: str, metric: str, groups: int
) -> Judge:
    score = mix.scorer(config, task, metric)

    def judge(masks: Any, tower: str, kind: str) -> np.ndarray:
        shape = np.shape(getattr(masks[tower], kind))
        if kind == "units":
            order = np.argsort(-surgery.magnitude_scores(params, tower, sizes).units, axis=1)
            pieces = [np.array_split(row, min(groups, shape[1])) for row in order]
            places: list[Any] = [(i, p) for i, row in enumerate(pieces) for p in row]
        else:
            places = list(np.ndindex(shape))
        drops = surgery.mope_scores(score, params, masks, sizes, tower, {kind: places})[kind]
        result = np.zeros(shape)
        for place, drop in zip(places, drops, strict=True):
            result[place] = drop
        if kind == "units":  # within a group by magnitude: scores differ by far less than drops
            rank = np.argsort(order, axis=1)
            result = result - 1e-9 * rank
        return result

    return judge


def _choose(
    masks: Any, judge: Judge, tower: str, shares: tuple[float, float, float]
) -> dict[str, surgery.TowerMasks]:
    """Masks of a tower: the best heads and units of each layer, then the best layers."""
    for kind, share in zip(("heads", "units", "layers"), shares, strict=True):
        if share < 1:
            scores = judge(masks, tower, kind)
            count = max(1, round(share * scores.shape[-1]))
            kept = surgery.keep_best(scores, count)
            masks = {**masks, tower: masks[tower]._replace(**{kind: kept})}
    result: dict[str, surgery.TowerMasks] = masks
    return result


def _with_sizes(config: Config, sizes: CLIPConfig) -> Config:
    return {**config, "model": {**config["model"], **sizes.to_dict()}}
