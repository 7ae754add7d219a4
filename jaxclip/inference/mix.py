"""Models made of models: ``jaxclip weights wise-ft``, ``soup`` and ``merge-lora``."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxclip import objectives
from jaxclip.config import Config
from jaxclip.inference import convert
from jaxclip.registry import hint
from jaxclip.train import init_from, state_io, towers
from jaxclip.weights import export, surgery

Params = Any
PathLike = str | os.PathLike[str]


def wise_ft(before: PathLike, after: PathLike, to: PathLike, alpha: float) -> str:
    """Write the model between one before and one after fine-tuning, as a workdir.

    Args:
      before: a workdir or published weights.
      after: likewise, of the same architecture; the configuration is its.
      to: a new folder, or an empty one.
      alpha: from 0 (before) to 1 (after).

    Returns:
      What was done, in one line.

    Raises:
      ValueError: other architectures, alpha out of range, or the folder holds something.
    """
    target = export.check_free(to)
    if not 0 <= alpha <= 1:
        raise ValueError(f"--alpha {alpha} must be from 0 (before) to 1 (after)")
    sources, models = _read([before, after], ("--before", "--after"))
    mixed = surgery.wise_ft(models[0], models[1], alpha)
    count = convert.write_workdir(sources[1].config, mixed, target)
    return (
        f"{target}: {1 - alpha:g} x {sources[0].path} + {alpha:g} x {sources[1].path}, "
        f"{count:,} parameters"
    )


def soup(paths: Sequence[PathLike], to: PathLike, *, task: str = "", metric: str = "") -> str:
    """Write the average of models, as a workdir.

    Args:
      paths: workdirs or published weights of one architecture; the configuration is the first's.
      to: a new folder, or an empty one.
      task: an evaluation as of ``jaxclip eval --task``, on held-out data: models are added, the
        best first, as long as it gets no worse (a greedy soup). Empty for the mean of all.
      metric: of the task, by the end of its name; empty for its top-1 or recall.

    Returns:
      What was done, a line for each model.

    Raises:
      ValueError: other architectures, a task or metric that is not there, or the folder holds
        something.
    """
    target = export.check_free(to)
    sources, models = _read(paths)
    config = sources[0].config
    lines = []
    if task:
        result = surgery.greedy_soup(models, scorer(config, task, metric))
        params = result.params
        lines = [f"  {sources[i].path}" for i in result.chosen]
        lines.append(f"score {result.score:.4f}, {len(result.chosen)} of {len(models)} models")
    else:
        params = surgery.uniform_soup(models)
        lines = [f"  {source.path}" for source in sources]
    convert.write_workdir(config, params, target)
    return "\n".join([f"{target}: the mean of", *lines])


def merge_lora(source: PathLike, to: PathLike) -> str:
    """Write a run with low-rank additions as a workdir of plain kernels.

    Raises:
      ValueError: the run has none, or the folder holds something.
    """
    target = export.check_free(to)
    found = init_from.open_source(source, "--from")
    rank = found.config["low_rank"]["rank"]
    if not rank:
        raise ValueError(
            f"--from {os.fspath(source)} has no low-rank additions (low_rank.rank=0); it is merged "
            "already"
        )
    count = convert.write_workdir(found.config, found.read(None), target)
    return f"{target}: {count:,} parameters, additions of rank {rank} merged"


def scorer(config: Config, task: str, metric: str = "") -> Callable[[Params], float]:
    """A function of parameters that evaluates them.

    Args:
      config: that they belong to.
      task: as of ``jaxclip eval --task``.
      metric: as of :func:`chosen`.

    Raises:
      ValueError: the task can't be evaluated; from the function, there is no such metric.
    """
    from jaxclip.evaluate import runner
    from jaxclip.train import checks, evaluation

    none: dict[str, Any] = {"zero_shot": [], "retrieval": [], "gallery_split": ""}
    tasks = {**config["evaluate"], **none, "tasks": [evaluation.parse_task(task)]}
    plain = {
        **config,
        "evaluate": tasks,
        "ema_decay": 0.0,
        "low_rank": {**config["low_rank"], "rank": 0},
        "sparsity": [],
        "checkpoint": {**config["checkpoint"], "best_metric": ""},
    }
    runner.check(plain)
    experiment, tokenizer = checks.build(plain), checks.load_tokenizer(plain)

    def score(params: Params) -> float:
        shardings = {key: experiment.state_shardings.params[key] for key in params}
        metrics = runner.evaluate(
            experiment.encode_image,
            experiment.encode_text,
            jax.device_put(params, shardings),
            plain,
            tokenizer=tokenizer,
            mesh=experiment.mesh,
            encode_tokens=experiment.encode_tokens,
        )
        return chosen(metrics, task, metric)

    return score


def chosen(metrics: Mapping[str, float], task: str, metric: str = "") -> float:
    """The one number of a task that models are compared by.

    Args:
      metrics: of the task, by name.
      task: for the error.
      metric: end of a name; empty for the top-1, or the mean recall of a retrieval.

    Raises:
      ValueError: there is no such metric.
    """
    end = metric or "top1"
    for name, value in metrics.items():
        if name == end or name.endswith(f"/{end}"):
            return float(value)
    recalls = [value for name, value in metrics.items() if re.search(r"_r\d+$", name)]
    if recalls and not metric:
        return float(np.mean(recalls))
    raise ValueError(f"--task {task!r} has no metric {end!r}{hint(end, list(metrics))}")


def _read(
    paths: Sequence[PathLike], options: Sequence[str] = ()
) -> tuple[list[init_from.Source], list[Params]]:
    """Models of one architecture, with the heads of objectives that all of them have.

    Args:
      paths: workdirs, or published weights.
      options: which option of the command line named each, for errors; default: ``--from``.

    Raises:
      ValueError: they differ; names the first difference.
    """
    options = options or ["--from"] * len(paths)
    sources = [init_from.open_source(*each) for each in zip(paths, options, strict=True)]
    first = towers.model_sizes(sources[0].config)
    for source in sources[1:]:
        sizes = towers.model_sizes(source.config)
        if state_io.named_leaves(sizes.to_dict()) != state_io.named_leaves(first.to_dict()):
            ours, theirs = (state_io.named_leaves(x.to_dict()) for x in (first, sizes))
            key = next(k for k in {**ours, **theirs} if ours.get(k) != theirs.get(k))
            raise ValueError(
                f"{source.path} has model.{key.replace('/', '.')}={theirs.get(key)!r}, "
                f"{sources[0].path} has {ours.get(key)!r}: only models of one architecture mix"
            )
    models = [source.read(None) for source in sources]
    names = {term.name for term in objectives.listed(sources[0].config["objective"])}
    own = [source.read_own(names) for source in sources]
    if own[0] and all(_alike(each, own[0]) for each in own):
        models = [{**model, "objective": each} for model, each in zip(models, own, strict=True)]
    return sources, models


def _alike(tree: Any, other: Any) -> bool:
    """Whether two trees have leaves of the same names and shapes."""
    shapes = [
        {name: np.shape(leaf) for name, leaf in state_io.named_leaves(each).items()}
        for each in (tree, other)
    ]
    return shapes[0] == shapes[1]
