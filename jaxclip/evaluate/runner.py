"""Evaluate parameters on what a configuration names, and keep the results in the workdir."""

from __future__ import annotations

import os
import pathlib
import time
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from jaxclip import storage
from jaxclip.evaluate import tasks as tasks_lib
from jaxclip.evaluate.base import Model
from jaxclip.evaluate.encoding import Encode, EncodedSplit, Tokenize
from jaxclip.evaluate.gallery import GALLERY_FILE as GALLERY_FILE
from jaxclip.registry import hint

RESULTS_FILE = "eval.json"


def evaluate(
    encode_image: Encode,
    encode_text: Encode,
    params: Any,
    config: Mapping[str, Any],
    *,
    tokenizer: Tokenize,
    mesh: Mesh,
    workdir: str | os.PathLike[str] | None = None,
    step: int = 0,
    weights: str = "model",
    encode_tokens: Encode | None = None,
) -> dict[str, float]:
    """All tasks of ``config["evaluate"]``.

    Args:
      encode_image: ``(params, uint8[B, H, W, 3]) -> float32[B, D]``, L2-normalised.
      encode_text: ``(params, int32[B, L]) -> float32[B, D]``, L2-normalised.
      params: parameters, on the mesh.
      config: a resolved configuration; read are ``data`` and ``evaluate``: ``batch_size`` and what
        :func:`jaxclip.evaluate.tasks.from_config` reads.
      tokenizer: ``list of n strings -> int32[n, L]``.
      mesh: the mesh, axes ``data``, ``fsdp``, ``tensor``.
      workdir: where ``eval.json`` and ``gallery.json`` are written (by process 0); None = nowhere.
      step: the step the parameters are of, for these files.
      weights: which parameters these are (``"model"``, ``"ema"``); ``eval.json`` keeps one result
        of each.
      encode_tokens: ``(params, uint8[B, H, W, 3]) -> float32[B, C]``, the mean of the patches'
        tokens, for heads that read these.

    Returns:
      A flat dict: ``<split>/zero_shot/top1``, ``<split>/retrieval/image_to_text_r1``, …; of data
      other than the model's own ``<data>/<split>/zero_shot/top1``. Shares are in 0…1.

    Raises:
      ValueError: as :func:`check`.
    """
    tasks = tasks_lib.from_config(config)
    batch_size = config["evaluate"]["batch_size"]
    model = Model(
        encode_image, encode_text, params, tokenizer, mesh=mesh, batch_size=batch_size,
        encode_tokens=encode_tokens,
    )  # fmt: skip
    metrics: dict[str, float] = {}
    cache: dict[str, dict[str, EncodedSplit]] = {}
    for task in tasks:
        if workdir is None and task.evaluator.writes and not task.evaluator.metric_names():
            continue
        with tasks_lib.saying(task.where):
            data = task.open(cache)
            prefix = task.prefix(config["data"]["name"])
            found = task.evaluator.evaluate(model, data)
            metrics |= {f"{prefix}/{name}": value for name, value in found.items()}
            files = task.evaluator.files(model, data) if workdir is not None else {}
        for name, content in files.items():
            if jax.process_index() == 0 and workdir is not None:
                storage.write_json(pathlib.Path(workdir) / name, {"step": step, **content})
    if workdir is not None and jax.process_index() == 0:
        write_results(workdir, metrics, step=step, weights=weights)
    return metrics


def check(config: Mapping[str, Any]) -> None:
    """Refuse what :func:`evaluate` would fail on, so that it comes to light before the training.

    Args:
      config: a resolved configuration.

    Raises:
      FileNotFoundError: a data set or a file of names or templates that does not exist.
      ValueError: an unknown evaluator or option, an unknown or empty split, a data set without
        class names or another number of them, a bad template, or a ``checkpoint.best_metric`` that
        no evaluation yields.
    """
    tasks = tasks_lib.from_config(config)
    for task in tasks:
        with tasks_lib.saying(task.where):
            task.evaluator.check(task.open())
    best, known = config["checkpoint"]["best_metric"], metric_names(config)
    if best and best not in known:
        near = hint(best, known, cutoff=0.3) if known else "; nothing is evaluated"
        raise ValueError(f"checkpoint.best_metric={best!r} is not what is evaluated{near}")


def metric_names(config: Mapping[str, Any]) -> list[str]:
    """Names of the metrics of :func:`evaluate` by which the best checkpoint may be chosen."""
    return [
        f"{task.prefix(config['data']['name'])}/{name}"
        for task in tasks_lib.from_config(config)
        for name in task.evaluator.metric_names()
    ]


def write_results(
    workdir: str | os.PathLike[str], metrics: Mapping[str, float], *, step: int, weights: str
) -> None:
    """Put results into ``eval.json``, beside those of other weights.

    The file is ``{weights: {"step": …, "time": seconds since 1970, "metrics": {name: value}}}``;
    NaN is the string ``"NaN"``.

    Args:
      workdir: the run's folder.
      metrics: flat dict of :func:`evaluate`.
      step: the step the parameters are of.
      weights: which parameters these are.
    """
    path = pathlib.Path(workdir) / RESULTS_FILE
    results = read_results(workdir)
    results[weights] = {
        "step": step,
        "time": round(time.time(), 3),
        "metrics": {name: float(value) for name, value in metrics.items()},
    }
    for result in results.values():
        result["metrics"] = storage.encode_floats(result["metrics"])
    storage.write_json(path, results)


def read_results(workdir: str | os.PathLike[str]) -> dict[str, dict[str, Any]]:
    """What :func:`write_results` wrote; empty if there is nothing readable."""
    results = storage.read_json(pathlib.Path(workdir) / RESULTS_FILE, {})
    if not all(
        isinstance(result, dict) and isinstance(result.get("metrics"), dict)
        for result in results.values()
    ):
        return {}
    for result in results.values():
        result["metrics"] = storage.decode_floats(result["metrics"])
    return results
