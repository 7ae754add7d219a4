"""What a configuration asks to evaluate: a list of tasks, each an evaluator and its data."""

from __future__ import annotations

import contextlib
import json
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from jaxclip.evaluate import EVALUATORS
from jaxclip.evaluate.base import Evaluator
from jaxclip.evaluate.encoding import EncodedSplit
from jaxclip.evaluate.stored import StoredData
from jaxclip.registry import check_numbers, check_options, option_names

# Keys of a task beside the options of its evaluator.
_KEYS = ("name", "data", "split", "label", "image_ops")


class Task(NamedTuple):
    """One evaluation.

    Attributes:
      where: the configuration key it comes from, for errors.
      name: of the evaluator.
      evaluator: with its options.
      data_config: section ``data`` with the task's own data set and image ops.
      split: name of the split; empty for the only one of the data set.
      label: what stands for the data in the names of metrics; empty: derived of data and split.
    """

    where: str
    name: str
    evaluator: Evaluator
    data_config: dict[str, Any]
    split: str
    label: str

    def open(self, cache: dict[str, dict[str, EncodedSplit]] | None = None) -> StoredData:
        """The task's data.

        Args:
          cache: shared by all tasks of one evaluation, so that each split is encoded once.

        Raises:
          FileNotFoundError: there is no such data set.
          ValueError: it is none, or has no such split, or an empty one.
        """
        key = json.dumps(self.data_config, sort_keys=True, default=str)
        data = StoredData(
            self.data_config, self.split, None if cache is None else cache.setdefault(key, {})
        )
        if not data.split:
            if len(data.splits()) != 1:
                has = ", ".join(data.splits()) or "none"
                raise ValueError(f"'split' is missing; data set {data.name!r} has: {has}")
            data.split = data.splits()[0]
        data.check_split(data.split)
        return data

    def prefix(self, own_data: str) -> str:
        """What the names of its metrics begin with, such as ``test/zero_shot``.

        Args:
          own_data: name of the data set that the model is trained on; it goes without saying.
        """
        data = str(self.data_config["name"])
        parts = [self.label] if self.label else [self.split]
        if not self.label and data != own_data:
            parts.insert(0, short_name(data))
        return "/".join(filter(None, [*parts, self.name]))


def from_config(config: Mapping[str, Any]) -> list[Task]:
    """The tasks of a resolved configuration.

    ``evaluate.zero_shot``, ``retrieval`` and ``gallery_split`` name splits of the data that the
    model is trained on; each stands for a task. Those of ``evaluate.tasks`` follow.

    Raises:
      ValueError: an unknown evaluator or option (naming the nearest), two tasks whose metrics have
        the same names, or that write the same file.
    """
    options = config["evaluate"]
    gallery = options.get("gallery_split") or ""
    given: list[tuple[str, Any]] = []
    splits = [*options["zero_shot"], *options["retrieval"], *([gallery] if gallery else [])]
    for split in dict.fromkeys(splits):
        if split in options["zero_shot"]:
            task = {"name": "zero_shot", "split": split, "templates": options["templates"]}
            given.append(("evaluate.zero_shot", task))
        if split in options["retrieval"]:
            given.append(("evaluate.retrieval", {"name": "retrieval", "split": split}))
        if split == gallery:
            given.append(("evaluate.gallery_split", {"name": "gallery", "split": split}))
    tasks_given = options.get("tasks") or []
    for number, task in enumerate([tasks_given] if isinstance(tasks_given, str) else tasks_given):
        given.append((f"evaluate.tasks[{number}]", task))
    tasks = [_task(where, task, config["data"]) for where, task in given]
    _check_distinct(tasks, str(config["data"]["name"]))
    return tasks


def short_name(data: str) -> str:
    """What to call a data set in names of metrics: of a path the last part that is no version."""
    bare = data.removeprefix("webdataset:")
    parts = [part for part in pathlib.PurePath(bare).parts if not re.fullmatch(r"[\d.]+|/", part)]
    if len(parts) > 1 and re.search(r"[*?{]|\.tar", parts[-1]):
        parts.pop()
    return re.sub(r"[^\w.-]+", "_", parts[-1]) if parts else "data"


@contextlib.contextmanager
def saying(where: str) -> Iterator[None]:
    """Put the place in front of what a mistake is said to be."""
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
        raise kind(f"{where}: {error}") from error


def _task(where: str, given: Any, data: Mapping[str, Any]) -> Task:
    given = {"name": given} if isinstance(given, str) else given
    if not isinstance(given, Mapping) or "name" not in given:
        known = ", ".join(EVALUATORS.names())
        raise ValueError(f"{where}: a task is a dict with a 'name'; known: {known}")
    options = dict(given)
    name = options["name"]
    with saying(where):
        factory = EVALUATORS.get(name)
        check_options(options, [*_KEYS, *option_names(factory)], f"evaluator {name!r}")
        own = {key: options.pop(key, "") for key in _KEYS}
        for key in _KEYS:
            if not isinstance(own[key], str):
                raise ValueError(f"{key}={own[key]!r} must be a string")
        evaluator = factory(**options)
        check_numbers(evaluator, f"evaluator {name!r}")
    data_config = dict(data)
    if own["data"] and own["data"] != data["name"]:
        data_config["name"] = own["data"]
        if "languages" in data_config:  # those of the training data; others have their own only
            data_config["languages"] = ["en"]
    if own["image_ops"]:
        data_config["eval_image_ops"] = own["image_ops"]
    return Task(
        f"{where} ({name})", name.rpartition(":")[2], evaluator, data_config, own["split"],
        own["label"],
    )  # fmt: skip


def _check_distinct(tasks: Sequence[Task], own_data: str) -> None:
    prefixes: dict[str, str] = {}
    files: dict[str, str] = {}
    for task in tasks:
        prefix = task.prefix(own_data)
        if prefix in prefixes:
            raise ValueError(
                f"{task.where} and {prefixes[prefix]} would both call their metrics {prefix}/…; "
                "give one of them another 'label'"
            )
        prefixes[prefix] = task.where
        for file in task.evaluator.writes:
            if file in files:
                raise ValueError(f"{task.where} and {files[file]} both write {file}; keep one")
            files[file] = task.where
