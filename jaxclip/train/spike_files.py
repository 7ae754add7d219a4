"""``workdir/spikes/``: what is known of a spike, so that its cause can be looked for.

``step_<n>.json`` holds the metrics of the steps before it, clippers' decisions among them, the
tensors that stand out, and the examples of its batch that oppose each other, with pictures and
captions. ``step_<n>.npz`` holds the numbers of each tensor in these steps. Nothing of the batch is
kept while training: it is a function of (seed, step), and is made again.
"""

from __future__ import annotations

import collections
import contextlib
import logging
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxclip import config_check, optim, parallel, storage
from jaxclip.train import grad_cache, multihost, outputs, setup, watch
from jaxclip.train import state as state_lib
from jaxclip.train.opposition import WEIGHT, Opposition, example_losses, opposition

logger = logging.getLogger("jaxclip")

FOLDER = "spikes"
REWINDS_FILE = "rewinds.json"
_KINDS = {1: "loss", 2: "gradient norm", 3: "loss and gradient norm"}
# Events closer than this are one, told at the first.
_APART = 10
_SHOWN_TENSORS = 5
_GROUP = 8
_NORMS = ("gradient_norm", "update_norm", "parameter_norm", "rms")


class SpikeFiles:
    """Remembers the last steps, and writes a spike's files."""

    def __init__(self, experiment: setup.Experiment, tokenizer: Any, workdir: pathlib.Path):
        """
        Args:
          experiment: of the run.
          tokenizer: of the run.
          workdir: the run's folder.
        """
        self._experiment, self._config = experiment, experiment.config
        self._tokenizer, self._folder = tokenizer, workdir / FOLDER
        options = self._config["watch"]
        self.enabled = options["enabled"]
        self._steps: collections.deque[tuple[int, Mapping[str, Any]]] = collections.deque(
            maxlen=options["steps_kept"] + 1  # one more is under way when a step is looked at
        )
        self._last = -_APART
        self._left = options["max_events"]
        if self.enabled:
            count = len(list(self._folder.glob("step_*.json")))
            self._left -= int(multihost.broadcast(np.asarray(count)))
        self._probe: Any = None
        if self.enabled and options["probe_every_steps"]:
            keys = list(experiment.batch_spec)
            self._probe = watch.make_probe(experiment.towers, keys, options["probe_examples"])

    def probe(self, step: int, params: Any, batch: Mapping[str, jax.Array]) -> dict[str, Any]:
        """Metrics of the activations where they are due; else none."""
        if self._probe is None or step % self._config["watch"]["probe_every_steps"]:
            return {}
        return self._probe(self._experiment.sparse(params, step), batch)

    def add(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Remember a step; device arrays are not waited for."""
        if self.enabled:
            self._steps.append((step, metrics))

    def forget_after(self, step: int) -> None:
        """The run went back to a step."""
        kept = [entry for entry in self._steps if entry[0] <= step]
        self._steps.clear()
        self._steps.extend(kept)

    def is_due(self, step: int, kind: int) -> bool:
        """Whether a step is an event that is to be written; the same on all processes."""
        if not self.enabled or not kind or self._left <= 0 or 0 <= step - self._last < _APART:
            return False
        self._left -= 1
        self._last = step
        return True

    def write(self, step: int, kind: int, params: Any, batch: int) -> None:
        """Write the files of a spike; called by all processes.

        Args:
          step: of the spike.
          kind: ``watch/spike`` of its metrics.
          params: at hand now: those after the step, or one later.
          batch: number of its batch.
        """
        kept = [entry for entry in self._steps if entry[0] <= step]
        kept = kept[-self._config["watch"]["steps_kept"] :]
        fetched = [(at, jax.device_get(dict(metrics))) for at, metrics in kept]
        names = optim.tensor_names(self._experiment.abstract_state.params)
        params = self._experiment.sparse(params, step)
        found = self._opposition(params, batch, fetched[-1][1] if fetched else {})
        if jax.process_index() != 0:
            return
        content: dict[str, Any] = {
            "step": step,
            "batch": batch,
            "kind": _KINDS[kind],
            "steps": [at for at, _ in fetched],
            "metrics": scalars([m for _, m in fetched]),
            "tensors": outstanding(names, [m for _, m in fetched]),
        }
        if found is not None:
            content |= self._examples(batch, found)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            path = self._folder / f"step_{step:08d}"
            arrays: dict[str, Any] = dict(vectors([m for _, m in fetched]))
            steps = np.array([at for at, _ in fetched], np.int64)
            np.savez_compressed(path.with_suffix(".npz"), steps=steps, names=names, **arrays)
            storage.write_json(path.with_suffix(".json"), without_nan(content))
        except OSError as error:  # what a run leaves for people to look at does not end it
            logger.warning("the files of the spike at step %d can't be written: %s", step, error)

    def _opposition(self, params: Any, batch: int, metrics: Mapping[str, Any]) -> Opposition | None:
        """Which examples of the batch oppose; None where the batch has no pairs."""
        if not {"image", "text"} <= set(self._experiment.batch_spec):
            return None
        updates = metrics.get(f"{watch.TENSORS}update_norm")
        length = float(np.linalg.norm(updates)) if updates is not None else 0.0
        try:
            with self._batch(batch) as arrays:
                keys = ("image", "image_grid", "text")
                pair = {key: arrays[key] for key in keys if key in arrays}
                if pair["text"].ndim == 3:
                    pair["text"] = pair["text"][:, 0]
                return jax.device_get(self._compare(params, pair, length or 1e-2))
        except jax.errors.JaxRuntimeError as error:  # it takes memory beside the training state
            reason = str(error).strip().splitlines()[0]
            logger.warning("the examples of the spike can't be compared: %s", reason)
            return None

    def _compare(self, params: Any, batch: Mapping[str, jax.Array], length: float) -> Any:
        config, towers = self._config, self._experiment.towers
        group = max(1, min(_GROUP, config["global_batch_size"] // 4))

        def forward(params: Any, rows: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
            params = state_lib.stop_frozen_gradients(
                params, lambda path: config_check.is_frozen(config, path)
            )
            return {
                name: towers.encode(params, name, outputs.tower_input(rows, name))
                for name in ("image", "text")
            }

        def loss(params: Any, made: Any, rows: Mapping[str, jax.Array]) -> Any:
            losses = example_losses(made["image"], made["text"], params["logit_scale"])
            return jnp.mean(rows[WEIGHT] * losses), losses

        value_and_grad = grad_cache.value_and_grad(
            forward,
            loss,
            num_micro_batches=config["num_micro_batches"],
            mesh=self._experiment.mesh,
        )
        whole = jax.sharding.NamedSharding(self._experiment.mesh, jax.sharding.PartitionSpec())
        compare = jax.jit(
            lambda params, batch, length: opposition(
                value_and_grad, params, batch, length=length, group=group
            ),
            out_shardings=whole,
        )
        return compare(params, batch, length)

    @contextlib.contextmanager
    def _batch(self, batch: int) -> Iterator[dict[str, jax.Array]]:
        """The arrays of a batch, made again."""
        from jaxclip.data import pipeline

        config, mesh = self._config, self._experiment.mesh
        share, count = parallel.process_share(mesh)
        records = pipeline.train_iterator(
            {**config["data"], "prefetch": 1, "cache_decoded_mb": 0},
            tokenizer=self._tokenizer,
            global_batch_size=config["global_batch_size"],
            seed=config["seed"],
            start_step=batch,
            process_index=share,
            process_count=count,
            spec=self._experiment.batch_spec,
        )
        with contextlib.closing(records):
            yield parallel.to_global(next(records), mesh)

    def _examples(self, batch: int, found: Opposition) -> dict[str, Any]:
        """The opposing examples for people to look at."""
        from jaxclip.data import pipeline
        from jaxclip.evaluate import gallery

        rows = [int(row) for row in dict.fromkeys([*found.falling, *found.rising])]
        looked_up = pipeline.look_up(
            self._config["data"],
            tokenizer=self._tokenizer,
            global_batch_size=self._config["global_batch_size"],
            seed=self._config["seed"],
            batch=batch,
            rows=rows,
            spec=self._experiment.batch_spec,
        )
        by_row = {each["row"]: each for each in looked_up}

        def shown(row: Any) -> dict[str, Any]:
            each = by_row[int(row)]
            return {
                "row": int(row),
                "record": each["record"],
                "key": each["key"],
                "caption": each["caption"],
                "loss": float(found.loss[row]),
                "change": float(found.change[row]),
                "picture": gallery.data_uri(each["image"]),
            }

        return {
            "falling": [shown(row) for row in found.falling],
            "rising": [shown(row) for row in found.rising],
            "cosine": float(found.cosine),
            "share": [float(part) for part in found.share],
        }


def scalars(steps: Sequence[Mapping[str, Any]]) -> dict[str, list[float | None]]:
    """Every scalar metric of some steps, None where a step has none that is finite."""
    names = dict.fromkeys(name for metrics in steps for name in metrics)
    result: dict[str, list[float | None]] = {}
    for name in names:
        if name.startswith(watch.TENSORS):
            continue
        values = [float(metrics.get(name, np.nan)) for metrics in steps]
        result[name] = [value if np.isfinite(value) else None for value in values]
    return result


def vectors(steps: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """The numbers of each tensor, float32[steps, …]; NaN in steps that did not probe."""
    names = dict.fromkeys(n for metrics in steps for n in metrics if n.startswith(watch.TENSORS))
    result = {}
    for name in names:
        known = [np.asarray(metrics[name]) for metrics in steps if name in metrics]
        nothing = np.full_like(known[0], np.nan)
        stacked = np.stack([np.asarray(metrics.get(name, nothing)) for metrics in steps])
        result[name.removeprefix(watch.TENSORS)] = stacked
    return result


def outstanding(names: Sequence[str], steps: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The tensors whose gradient grew most over its median of before, and those of largest RMS.

    Args:
      names: of the tensors.
      steps: metrics of the steps up to the spike.

    Returns:
      ``{"gradient": [[name, growth], …], "rms": [[name, rms, steps before the spike], …]}``.
    """
    arrays = {name: value for name, value in vectors(steps).items() if name in _NORMS}
    result: dict[str, Any] = {"gradient": [], "rms": []}
    norms = arrays.get("gradient_norm")
    if norms is not None and len(norms) > 1:
        growth = norms[-1] / np.maximum(np.median(norms[:-1], axis=0), 1e-30)
        order = np.argsort(-np.nan_to_num(growth, nan=-1.0))[:_SHOWN_TENSORS]
        result["gradient"] = [[names[i], float(growth[i])] for i in order]
    rms = arrays.get("rms")
    if rms is not None and np.isfinite(rms).any():
        last = rms[-_APART:]
        largest = np.nanmax(np.where(np.isfinite(last), last, -1.0), axis=0)
        when = np.argmax(np.where(np.isfinite(last), last, -1.0), axis=0)
        for i in np.argsort(-largest)[:_SHOWN_TENSORS]:
            result["rms"].append([names[i], float(largest[i]), len(last) - 1 - int(when[i])])
    return result


def without_nan(value: Any) -> Any:
    """JSON knows no numbers that are not finite: None for them."""
    if isinstance(value, dict):
        return {key: without_nan(each) for key, each in value.items()}
    if isinstance(value, list):
        return [without_nan(each) for each in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def read(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """The spikes of a run, in order; unreadable files are left out."""
    found = []
    for path in sorted((workdir / FOLDER).glob("step_*.json")):
        content = storage.read_json(path, {})
        if isinstance(content, dict) and "step" in content:
            found.append(content)
    return found


def read_rewinds(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """``{"step", "to", "passed_over"}`` of each time the run went back."""
    return storage.read_json(workdir / FOLDER / REWINDS_FILE, [])


def write_rewinds(workdir: pathlib.Path, done: Sequence[Mapping[str, Any]]) -> None:
    """Write what :func:`read_rewinds` reads; process 0 does."""
    if jax.process_index() == 0:
        (workdir / FOLDER).mkdir(parents=True, exist_ok=True)
        storage.write_json(workdir / FOLDER / REWINDS_FILE, list(done))
