"""``jaxclip sharpness``: how sharp the minimum of a run is, and the way to another one."""

from __future__ import annotations

import argparse
import functools
import logging
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxclip import storage
from jaxclip.config import Config
from jaxclip.evaluate import sharpness
from jaxclip.evaluate.sharpness.fixed_loss import TOWERS, Loss, Params
from jaxclip.lab import sharpness_page
from jaxclip.train import init_from, spike_files, state_io, towers
from jaxclip.train.fixed_batches import fixed_batches

logger = logging.getLogger("jaxclip")

FOLDER = "sharpness"
FILE_NAME = "sharpness.json"

AVERAGE_RADII = (0.05, 0.1, 0.2)
WORST_RADII = (0.25, 0.5, 1.0)
# Along the way between two models: one radius, and as many places.
_PLACES = 11
_CLIPPED = 0.1  # of the coordinates, in row "clipped" of the directions
_SLICE = 51


class Sharpness:
    """The measures of one architecture on fixed batches, each compiled once."""

    def __init__(self, config: Config, batches: Mapping[str, Any], logit_scale: Any, seed: int = 0):
        """
        Args:
          config: resolved configuration.
          batches: ``image`` uint8[N, B, S, S, 3] and ``text`` int32[N, B, L].
          logit_scale: float32[], log of the factor on the cosines.
          seed: of what is drawn.
        """
        self._encode = towers.from_config(config, towers.build_model(config)).encode
        self._batches = {name: jnp.asarray(batches[name]) for name in TOWERS}
        self._scale = jnp.asarray(logit_scale, jnp.float32)
        self._key = jax.random.key(seed)

    def _compiled(self, measure: Callable[..., Any]) -> Callable[..., Any]:
        """``measure(loss, …)`` as a compiled function of the other arguments."""

        def call(batches: Any, *args: Any) -> Any:
            return measure(sharpness.pair_loss(self._encode, batches, self._scale), *args)

        return functools.partial(jax.jit(call), self._batches)

    @functools.cached_property
    def loss(self) -> Callable[[Params], jax.Array]:
        """The mean contrastive loss."""
        return self._compiled(lambda loss, params: loss(params))

    @functools.cached_property
    def average(self) -> Callable[[Params, Params, Any], jax.Array]:
        """``(params, scale, rho)``: average sharpness, 5 draws with both signs."""
        key = self._key
        return self._compiled(
            lambda loss, params, scale, rho: sharpness.average_sharpness(
                loss, params, scale, key, rho, samples=5
            )
        )

    @functools.cached_property
    def worst(self) -> Callable[[Params, Params, Any], jax.Array]:
        """``(params, scale, rho)``: the mean over batches of their worst-case sharpness."""

        def call(batches: Any, params: Params, scale: Params, rho: Any) -> jax.Array:
            def of_one(batch: Any) -> jax.Array:
                alone = jax.tree.map(lambda x: x[None], batch)
                loss = sharpness.pair_loss(self._encode, alone, self._scale)
                return sharpness.worst_sharpness(loss, params, scale, rho)

            return jnp.mean(jax.lax.map(of_one, batches))

        return functools.partial(jax.jit(call), self._batches)

    def directions(self, params: Params) -> dict[str, dict[str, float]]:
        """Sharpness along three updates: SGD's, its largest coordinates clipped, and signs."""

        def measure(loss: Loss, params: Params) -> Any:
            gradient = jax.grad(loss)(params)
            size = jnp.concatenate([jnp.abs(jnp.ravel(g)) for g in jax.tree.leaves(gradient)])
            limit = jnp.quantile(size, 1 - _CLIPPED)
            updates = {
                "gradient": gradient,
                "gradient, largest tenth clipped": jax.tree.map(
                    lambda g: jnp.clip(g, -limit, limit), gradient
                ),
                "sign of the gradient": jax.tree.map(jnp.sign, gradient),
            }
            found = {}
            for name, update in updates.items():
                along = sharpness.directional_sharpness(
                    loss, params, jax.tree.map(jnp.negative, update)
                )
                found[name] = {
                    "sharpness": along.sharpness,
                    "carried_by": sharpness.share_of_coordinates(along.parts),
                }
            return found

        return jax.tree.map(float, self._compiled(measure)(params))

    def traces(self, params: Params, probes: int) -> dict[str, float]:
        """The trace of the Hessian's block of each layer."""
        diagonal = self._compiled(
            lambda loss, params: sharpness.hessian_diagonal(loss, params, self._key, probes)
        )(params)
        groups = sharpness.groups_of(params)
        return {k: float(v) for k, v in sharpness.trace_by_group(diagonal, groups).items()}

    def adaptive(self, params: Params) -> dict[str, list[list[float]]]:
        """``[radius, value]`` by measure, with c = |w|."""
        scale = sharpness.scales(params, adaptive=True)
        return {
            "average": [[rho, float(self.average(params, scale, rho))] for rho in AVERAGE_RADII],
            "worst": [[rho, float(self.worst(params, scale, rho))] for rho in WORST_RADII],
        }

    def between(self, before: Params, after: Params) -> dict[str, Any]:
        """Losses and sharpness on the way from one to the other, and each layer's barrier."""
        alphas = np.linspace(0.0, 1.0, _PLACES)
        rho, groups = AVERAGE_RADII[1], sharpness.groups_of(after)
        line: dict[str, Any] = {"alpha": [float(a) for a in alphas], "loss": [], "average": []}
        for alpha in alphas:
            params = sharpness.interpolate(before, after, float(alpha))
            scale = sharpness.scales(params, adaptive=True)
            line["loss"].append(float(self.loss(params)))
            line["average"].append(float(self.average(params, scale, rho)))
        barrier = self._compiled(
            lambda loss, before, after: sharpness.layer_barriers(
                loss, before, after, groups, jnp.asarray([0.25, 0.5, 0.75])
            )
        )(before, after)
        layers = {}
        for name, paths in groups.items():
            chosen = frozenset(paths)
            only = sharpness.scales(after, adaptive=True, only=chosen.__contains__)
            layers[name] = {
                "barrier": float(jnp.max(barrier[name])),
                "average": float(self.average(after, only, rho)),
            }
        return {"radius": rho, "line": line, "layers": layers}

    def landscape(
        self, params: Params, other: Params | None, places: int
    ) -> dict[str, dict[str, Any]]:
        """Slices: along one and two random directions, or on the line from ``other`` to it."""
        along, loss = sharpness.grid_losses, self._compiled
        if other is not None:
            x = np.linspace(-0.5, 1.5, _SLICE)
            line = jax.tree.map(jnp.subtract, params, other)
            values = loss(lambda f, p, d: along(f, p, [d], [x]))(other, line)
            return {"between": {"x": x.tolist(), "loss": np.asarray(values).tolist()}}
        keys = jax.random.split(self._key)
        directions = [sharpness.random_direction(params, key) for key in keys]
        x, y = np.linspace(-1, 1, _SLICE), np.linspace(-1, 1, places)
        one = loss(lambda f, p, d: along(f, p, [d], [x]))(params, directions[0])
        two = loss(lambda f, p, d: along(f, p, d, [y, y]))(params, directions)
        return {
            "slice": {"x": x.tolist(), "loss": np.asarray(one).tolist()},
            "plane": {"x": y.tolist(), "loss": np.asarray(two).tolist()},
        }


def run(args: argparse.Namespace) -> int:
    """Measure, write the files and print a table; returns the exit status.

    Raises:
      ValueError: no such model, other architectures, or data that lack what is asked.
    """
    for name in ("batches", "batch_size", "probes", "places"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name} {getattr(args, name)} must be at least 1")
    if args.to:
        storage.check_place(args.to)
    source, params = _read(args.workdir, "--workdir")
    other = _read(args.between, "--between")[1] if args.between else None
    if other is not None:
        _check_alike(params, other, args)
    if not args.to and not pathlib.Path(args.workdir).is_dir():
        raise ValueError(f"--to is missing: {args.workdir} is no folder, name one for the results")
    folder = pathlib.Path(args.to or pathlib.Path(args.workdir) / FOLDER)
    batches = fixed_batches(
        source.config, args.split, args.batches, args.batch_size, seed=args.seed
    )
    count, size = batches["text"].shape[:2]
    tool = Sharpness(source.config, batches, params.pop("logit_scale"), args.seed)
    if other is not None:
        other.pop("logit_scale")
    measures: dict[str, tuple[str, Callable[[], Any]]] = {
        "loss": ("loss", lambda: float(tool.loss(params))),
        "adaptive": ("adaptive sharpness", lambda: tool.adaptive(params)),
        "directions": ("sharpness along updates", lambda: tool.directions(params)),
        "trace": ("trace of the Hessian", lambda: tool.traces(params, args.probes)),
    }
    if other is not None:
        measures["between"] = (f"way from {args.between}", lambda: tool.between(other, params))
    if args.landscape:
        measures["landscape"] = ("landscape", lambda: tool.landscape(params, other, args.places))
    result: dict[str, Any] = {
        "workdir": str(args.workdir),
        "split": args.split or source.config["data"]["train_split"],
        "batches": int(count),
        "batch_size": int(size),
        "seed": args.seed,
    }
    for number, (key, (what, measure)) in enumerate(measures.items(), start=1):
        logger.info("%d of %d: %s", number, len(measures), what)  # each compiles for a while
        result[key] = measure()
    if other is not None:
        result["between"] = {"other": str(args.between), **result["between"]}
    folder.mkdir(parents=True, exist_ok=True)
    storage.write_json(folder / FILE_NAME, spike_files.without_nan(result))
    page = sharpness_page.write(result, folder)
    print("\n".join(sharpness_page.table(result)))
    print(page)
    return 0


def _read(path: str, what: str) -> tuple[init_from.Source, dict[str, Any]]:
    """A model with the parameters of its towers and its temperature, on the device."""
    source = init_from.open_source(path, what)
    params = source.read(None)
    for tower in TOWERS:
        if tower not in params:
            raise ValueError(f"{what} {path} has no {tower} tower, so that it has no pairs")
    kept = (*TOWERS, "logit_scale")
    return source, {name: jax.tree.map(jnp.asarray, params[name]) for name in kept}


def _check_alike(params: Params, other: Params, args: argparse.Namespace) -> None:
    ours, theirs = (
        {name: np.shape(leaf) for name, leaf in state_io.named_leaves(tree).items()}
        for tree in (params, other)
    )
    for name in {**ours, **theirs}:
        if ours.get(name) != theirs.get(name):
            raise ValueError(
                f"--between {args.between} has {name} {theirs.get(name)}, {args.workdir} has "
                f"{ours.get(name)}: only models of one architecture have a way between them"
            )
