"""Start from weights that are there already, for parameters or for a teacher.

They are another run's, or published ones.
"""

from __future__ import annotations

import os
import pathlib
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxclip import config as config_lib
from jaxclip import objectives, parallel, storage
from jaxclip.config import Config
from jaxclip.models import presets
from jaxclip.models.sparsity import rules as sparsity
from jaxclip.train import low_rank, state_io, towers, workdir_config
from jaxclip.train import workdir as workdir_lib
from jaxclip.train.checkpoint import Checkpointer
from jaxclip.weights import checkpoint, surgery

Params = Any


class Source(NamedTuple):
    """Where weights come from.

    Attributes:
      path: as it was given.
      config: the configuration that they belong to.
      read: ``shardings or None -> params``: the tree of :func:`jaxclip.models.CLIP.init`, low-rank
        additions merged; without shardings as NumPy arrays.
      read_own: ``names -> {name: params}``: what objectives of these names keep beside the towers,
        as far as the run has them, as NumPy arrays; published weights give theirs with ``read``.
      lazy: of published weights, :meth:`jaxclip.weights.checkpoint.Opened.lazy`.
      parts: the towers that there are.
    """

    path: str
    config: Config
    read: Callable[[Any], Params]
    read_own: Callable[[Iterable[str]], Params] = lambda names: {}
    lazy: Callable[[Callable[..., Any]], Params] | None = None
    parts: tuple[str, ...] = ("image", "text")


class Report(NamedTuple):
    """What became of each tensor, by name.

    Attributes:
      taken: as they were.
      resized: positions of another grid, interpolated.
      new: only here, left at their initial values.
      left: only there, or excluded.
    """

    taken: tuple[str, ...]
    resized: tuple[str, ...]
    new: tuple[str, ...]
    left: tuple[str, ...]

    def lines(self, path: str) -> list[str]:
        """For a person to read."""
        counts = ", ".join(f"{len(names)} {kind}" for kind, names in self._asdict().items())
        lines = [f"start from {path}: {counts}"]
        for kind in ("resized", "new", "left"):
            names = getattr(self, kind)
            if names:
                more = f" and {len(names) - 5} more" if len(names) > 5 else ""
                lines.append(f"  {kind}: {', '.join(names[:5])}{more}")
        return lines


def open_source(path: str | os.PathLike[str], what: str = "init_from") -> Source:
    """Find weights.

    Args:
      path: workdir of a run (a folder, or an address), of which the averaged parameters are taken
        where it keeps them; or published weights
        (:func:`jaxclip.weights.checkpoint.open_checkpoint`).
      what: the configuration key, for errors.

    Raises:
      ValueError: there is no such folder or file, or it holds neither.
    """
    place = storage.absolute(path)
    folder = pathlib.Path(place)
    if not exists(place):
        where = "" if place == os.fspath(path) else f" ({folder})"
        if folder.name in presets.names():
            where += f"; model.preset={folder.name} are the sizes, weights are a file or a folder"
        raise ValueError(f"{what}={os.fspath(path)!r}: there is no such folder or file{where}")
    if not is_run(place):
        return _published(folder, os.fspath(path), what)
    try:
        config = config_lib.resolve(workdir_config.read_config(place))
    except ValueError as error:
        way = "" if storage.is_local(place) else "; published weights have to be downloaded first"
        raise ValueError(
            f"{what}={os.fspath(path)!r} is not the workdir of a run: {error}{way}"
        ) from error

    def restored(wanted: Any) -> Params:
        name = "ema_params" if config["ema_decay"] > 0 else "params"
        with Checkpointer(f"{place}/{workdir_lib.CHECKPOINTS}", writable=False) as checkpointer:
            found = checkpointer.restore_latest({name: wanted}, partial=True)
        if found is None:
            raise ValueError(f"{what}={os.fspath(path)!r}: the run has no checkpoint yet")
        return found.state[name]

    def read(shardings: Any) -> Params:
        wanted = _wanted(config, shardings)
        sparse = sparsity.from_config(config["sparsity"], config["total_steps"])
        params = sparse(low_rank.merged(restored(wanted), config))
        if low_rank.KEY not in wanted and not sparse.rules:
            return params
        return (
            jax.tree.map(np.asarray, params)
            if shardings is None
            else jax.device_put(params, shardings)
        )

    def read_own(names: Iterable[str]) -> Params:
        shapes = _own_shapes(config, set(names))
        if not shapes:
            return {}
        empty = jax.tree.map(lambda s: np.empty(s.shape, s.dtype), shapes)
        return restored({"objective": empty})["objective"]

    return Source(os.fspath(path), config, read, read_own)


def _wanted(config: Config, shardings: Any) -> Params:
    """What to restore of a run: the towers, with their low-rank additions where it has any."""

    def init(rng: jax.Array) -> Params:
        params = towers.build_model(config).init(rng)
        section = config[low_rank.KEY]
        own = {low_rank.KEY: low_rank.init(params, section, rng)} if section["rank"] else {}
        sparse = sparsity.from_config(config["sparsity"], config["total_steps"])
        return {**params, **own, **sparse.init(params)}

    shapes = jax.eval_shape(init, jax.random.key(0))
    if shardings is None:
        return jax.tree.map(lambda s: np.empty(s.shape, s.dtype), shapes)
    beside = {key: shapes[key] for key in (low_rank.KEY, sparsity.KEY) if key in shapes}
    if beside:
        whole = parallel.replicated(jax.tree.leaves(shardings)[0].mesh)
        shardings = {**shardings, **jax.tree.map(lambda _: whole, beside)}
    return parallel.abstract(shapes, shardings)


def _own_shapes(config: Config, names: set[str]) -> Params:
    """Shapes of what the run's objectives of these names keep."""
    total = objectives.from_config(config["objective"], config["loss"])
    total = objectives.Total(tuple(term for term in total.terms if term.name in names))
    sizes = towers.model_sizes(config)
    return jax.eval_shape(lambda: total.init_params(jax.random.key(0), sizes))


def exists(path: str | os.PathLike[str]) -> bool:
    """Whether there is such a file or folder, or the path is an address, which may be one."""
    place = storage.absolute(path)
    return not storage.is_local(place) or os.path.exists(place)


def is_run(path: str | os.PathLike[str]) -> bool:
    """Whether a folder's config.json is that of a run, which names its batch.

    An address is taken for one: published weights are read from this machine's disks only.
    """
    place = storage.absolute(path)
    if not storage.is_local(place):
        return True
    try:
        return "global_batch_size" in storage.read_json(f"{place}/{workdir_lib.CONFIG_FILE}", {})
    except (OSError, ValueError):
        return False


def _published(folder: pathlib.Path, path: str, what: str) -> Source:
    try:
        opened = checkpoint.open_checkpoint(folder)
    except (ValueError, OSError) as error:
        raise ValueError(
            f"{what}={path!r} is neither the workdir of a run nor published weights: {error}"
        ) from error
    data: dict[str, Any] = {"image_mean": list(opened.preprocess.image_mean)}
    data["image_std"] = list(opened.preprocess.image_std)
    data["eval_image_ops"] = opened.preprocess.image_ops
    model = {"preset": "tiny", **opened.sizes.to_dict()}
    model["text"] = {key: value for key, value in model["text"].items() if key != "pad_id"}
    config = config_lib.resolve(
        {
            "model": model,
            "tokenizer": dict(opened.preprocess.tokenizer),
            "data": data,
            "objective": [dict(term) for term in opened.terms],
        }
    )
    return Source(path, config, opened.read, lazy=opened.lazy, parts=opened.parts)


def merge(
    initial: Params, given: Params, *, exclude: Sequence[str] = (), path: str = ""
) -> tuple[Params, Report]:
    """Put given tensors in the place of initial ones of the same name.

    Args:
      initial: parameters as the run would start without.
      given: what there is, a tree of arrays.
      exclude: patterns of tensors that keep their initial values.
      path: where ``given`` is from, for errors.

    Returns:
      ``(params, report)``; the tree, dtypes and shardings are those of ``initial``.

    Raises:
      ValueError: a tensor of another shape that is neither a table of positions nor excluded, or
        nothing in common.
    """
    ours, theirs = state_io.named_leaves(initial), state_io.named_leaves(given)
    patterns = [re.compile(pattern) for pattern in exclude]
    fates: dict[str, list[str]] = {"taken": [], "resized": [], "new": [], "mismatched": []}
    values = []
    for name, leaf in ours.items():
        value: Any = leaf
        if name not in theirs or any(pattern.search(name) for pattern in patterns):
            fate = "new"
        elif theirs[name].shape == leaf.shape:
            value, fate = theirs[name], "taken"
        elif name.startswith("objective/"):
            fate = "new"  # of another size: a head for other classes
        else:
            value = _resize(name, np.asarray(theirs[name]), leaf.shape)
            fate = "mismatched" if value is None else "resized"
        fates[fate].append(name)
        if value is not leaf and value is not None:
            value = jax.device_put(jnp.asarray(value, leaf.dtype), leaf.sharding)
        values.append(value)
    if fates["mismatched"]:
        raise ValueError(_mismatch(fates["mismatched"], ours, theirs, path))
    taken, resized = tuple(fates["taken"]), tuple(fates["resized"])
    if not taken:
        raise ValueError(
            f"init_from={path!r} has no tensor in common with this model; it has, for instance, "
            f"{', '.join(list(theirs)[:3])}"
        )
    used = {*taken, *resized}
    left = tuple(name for name in theirs if name not in used)
    report = Report(taken, resized, tuple(fates["new"]), left)
    return jax.tree.unflatten(jax.tree.structure(initial), values), report


def _resize(name: str, table: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
    """A table of positions for another grid, or None if the tensor is no such table."""
    if not name.endswith("/positions") or table.ndim != 2 or table.shape[1] != shape[1]:
        return None
    rows = shape[0]
    if name.startswith("text/"):
        if rows < table.shape[0]:
            return table[:rows]
        # Too few to keep Long-CLIP's twenty and stretch the rest: the user has to choose.
        if table.shape[0] < surgery.positions.KEEP + 2:
            return None
        return np.asarray(surgery.stretch_positions(table, rows))
    resized = surgery.resize_table(table, rows)
    return None if resized is None else np.asarray(resized)


def _mismatch(names: Iterable[str], ours: Any, theirs: Any, path: str) -> str:
    lines = [f"{name}: {theirs[name].shape} there, {ours[name].shape} here" for name in names]
    return (
        f"init_from={path!r} has tensors of other shapes:\n  "
        + "\n  ".join(lines[:5])
        + (f"\n  and {len(lines) - 5} more" if len(lines) > 5 else "")
        + "\nuse its model section, or name them in init_from_exclude to start them anew"
    )
