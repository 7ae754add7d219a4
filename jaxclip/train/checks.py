"""What is wrong with a configuration on this machine, said in one line before anything is written.

:mod:`jaxclip.config_check` looks at values alone. Here they are built and traced (shapes only,
nothing is compiled), and what that takes is held against the devices and the memory at hand.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import math
import os
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from jaxclip import config as config_lib
from jaxclip import config_check, objectives
from jaxclip import fields as field_lib
from jaxclip.config import Config
from jaxclip.errors import RunError
from jaxclip.train import init_from, setup, tokenizer_check
from jaxclip.train.checkpoint_folder import CheckpointFolder

logger = logging.getLogger("jaxclip")

# Mistakes that say what they are.
_PLAIN = (ValueError, OSError, RunError, ModuleNotFoundError)
_SCALE = "logit_scale"
# What a run imports after its last step only.
_AT_THE_END = ("matplotlib",)
# Longer than any schedule.
_MANY_STEPS = 2**40


def build(config: Config) -> setup.Experiment:
    """:func:`jaxclip.train.setup.build` on all devices, but every failure is one clear line.

    Raises:
      ModuleNotFoundError: a package is missing that only the report needs.
      ValueError: a configuration that can't be built here, or is too large for the memory.
    """
    for name in _AT_THE_END:
        if importlib.util.find_spec(name) is None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    platform = jax.devices()[0].platform
    if config["attention_implementation"] == "cudnn" and platform != "gpu":
        raise ValueError(
            f"attention_implementation='cudnn' needs an NVIDIA GPU, this is a {platform}; use None"
        )
    with in_one_line("this configuration can't be built"):
        check_batch_memory(config)
        experiment = setup.build(config)
    warn_of_squares(config)
    check_state_memory(experiment)
    return experiment


def load_tokenizer(config: Config) -> Any:
    """The tokenizer of a configuration, checked against the text tower.

    Raises:
      FileNotFoundError: its vocabulary is missing.
      ValueError: it has more tokens than the text tower embeds.
    """
    from jaxclip.data import tokenizers

    tokenizer = tokenizers.load(config["tokenizer"])
    embedded = config["model"]["text"]["vocab_size"]
    if tokenizer.vocab_size > embedded:
        raise ValueError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, model.text.vocab_size={embedded}; "
            f"set model.text.vocab_size={tokenizer.vocab_size}"
        )
    return tokenizer


def check_data(
    config: Config,
    spec: field_lib.BatchSpec = field_lib.PAIR,
    owners: Mapping[str, str] | None = None,
) -> None:
    """Refuse what training or evaluation would trip over, before anything is compiled.

    Args:
      config: resolved configuration.
      spec: what a batch holds.
      owners: who wants which key of it, for errors.

    Raises:
      FileNotFoundError: the data set does not exist.
      ValueError: a missing or empty split, an unknown image op or language, a field that the data
        set can't have, or as :func:`jaxclip.evaluate.runner.check`.
    """
    from jaxclip.data import pipeline
    from jaxclip.evaluate import runner

    check_ops(config)
    data = pipeline.complete(config["data"])
    data_set = pipeline.training_data(data)
    data_set.source(data["train_split"])
    data_set.texts_of(data["languages"])
    pipeline.check_spec(config["data"], spec, owners=owners)
    runner.check(config)


def check_names(config: Config) -> None:
    """Refuse methods, and options of them, that do not exist; needs no data and no device.

    Whether values fit together is for the run itself to see: here it may be a matter of printing
    them.

    Raises:
      ValueError: names the thing and the nearest one.
      FileNotFoundError: the same of a data set that is neither built in nor a path.
    """
    with in_one_line("this configuration can't be built"):
        _check_names(config)


def _check_names(config: Config) -> None:
    from jaxclip import losses, objectives, optim
    from jaxclip.data import sources, tokenizers
    from jaxclip.data.image_backend import BACKENDS
    from jaxclip.evaluate import tasks
    from jaxclip.models import remat
    from jaxclip.models.sparsity import rules as sparsity
    from jaxclip.train import writers

    losses.from_config(config["loss"])
    objectives.from_config(config["objective"], config["loss"])
    optim.from_config(config["optim"], _MANY_STEPS)
    sparsity.from_config(config["sparsity"], _MANY_STEPS)
    if config["remat"] != "none":
        remat.remat_policy(config["remat"])
    tokenizers.check_kind(config["tokenizer"]["kind"])
    BACKENDS.get(config["data"]["image_backend"])
    check_ops(config)
    for part in (config["data"], *config["data"]["mixture"]):
        if isinstance(part, Mapping) and isinstance(part.get("name"), str):
            sources.check_name(part["name"])
    writers.from_config(config["writers"])
    with contextlib.suppress(FileNotFoundError):  # names and templates may be elsewhere
        tasks.from_config(config)
    for task in config["evaluate"]["tasks"]:
        if isinstance(task, Mapping) and task.get("data"):
            sources.check_name(task["data"])


def check_ops(config: Config) -> None:
    """Refuse image ops that do not exist or have other options; needs no data.

    Raises:
      ValueError: names the op and the nearest one.
    """
    from jaxclip.data import image_ops, pipeline

    data = pipeline.complete(config["data"])
    for ops in (data["image_ops"], data["eval_image_ops"]):
        image_ops.build(ops, data["image_size"])


def check_start(config: Config, checkpoints: str | os.PathLike[str] | None = None) -> None:
    """Refuse an ``init_from`` that is not there, unless the run has begun and needs it no more.

    Args:
      config: resolved configuration.
      checkpoints: folder of the run's; None for a run without.

    Raises:
      ValueError: as :func:`jaxclip.train.init_from.open_source`, or the tokenizer can't be the one
        of the weights.
    """
    if not config["init_from"]:
        return
    if checkpoints is not None:
        with contextlib.closing(CheckpointFolder(checkpoints)) as folder:
            if folder.steps():
                return
    tokenizer_check.check_start(init_from.open_source(config["init_from"]), config)


def trace(experiment: setup.Experiment) -> None:
    """Trace the training step, which finds wrong options of its parts; the first call reuses it.

    Raises:
      ValueError: it can't be traced.
    """
    with in_one_line("the training step can't be built from this configuration"):
        batch = experiment.abstract_batch()
        jax.eval_shape(experiment.train_step, experiment.abstract_state, batch)


@contextlib.contextmanager
def in_one_line(what: str) -> Iterator[None]:
    """Turn any other error than those that speak for themselves into a ValueError of one line.

    Args:
      what: what failed, to begin the line.
    """
    try:
        yield
    except _PLAIN:
        raise
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        raise ValueError(
            f"{what}: {type(error).__name__}: {lines[0]} (JAXCLIP_TRACEBACK=1 shows where)"
        ) from error


def check_batch_memory(config: Config) -> None:
    """Refuse a batch whose pictures and tokens alone do not fit into this machine's memory."""
    available = host_memory()
    side, length = config["data"]["image_size"], config["tokenizer"]["context_length"]
    example = 3 * side * side + 4 * length
    for key, batch in (
        ("global_batch_size", config["global_batch_size"] // jax.process_count()),
        ("evaluate.batch_size", config["evaluate"]["batch_size"] // jax.process_count()),
    ):
        if batch * example > available:
            raise ValueError(
                f"{key}={batch * jax.process_count()}: this process's share of the uint8 images "
                f"and tokens has {_gib(batch * example)}, this machine {_gib(available)} of memory"
            )


def check_state_memory(experiment: setup.Experiment) -> None:
    """Refuse a model whose state alone does not fit into the memory of its devices.

    Raises:
      ValueError: names the size, the memory, and what makes it smaller.
    """
    needed = 0
    for leaf in jax.tree.leaves(experiment.abstract_state):
        if leaf.sharding.memory_kind in (None, "device", "unpinned_host"):
            size = getattr(leaf.dtype, "itemsize", 4)
            needed += math.prod(leaf.sharding.shard_shape(leaf.shape)) * size
    device = experiment.mesh.local_devices[0]
    limit = (device.memory_stats() or {}).get("bytes_limit", 0)
    if device.platform == "cpu":
        limit = host_memory() // len(experiment.mesh.local_devices)
    if limit and needed > limit:
        raise ValueError(
            f"parameters and optimizer state have {_gib(needed)} a device, which has "
            f"{_gib(limit)}: shard them (sharding='fsdp', mesh.fsdp), or use a smaller model"
        )


def explain_memory(error: BaseException) -> str:
    """What to tell the user of an error that says a device is out of memory; else empty."""
    text = str(error)
    if "RESOURCE_EXHAUSTED" not in text and "Out of memory" not in text:
        return ""
    asked = re.search(r"(?:allocate|allocating) ([\d.]+ ?\w*)", text)
    size = f" (it asked for {asked[1].strip()} at once)" if asked else ""
    return (
        f"out of memory on the device{size}; raise num_micro_batches, set remat, lower "
        "global_batch_size, or use more devices: `jaxclip plan` says what fits"
    )


def warn_of_frozen_scale(config: Config, params: Any) -> None:
    """Say that a frozen ``logit_scale`` above ``logit_scale_max`` stays where it is."""
    if not config_check.is_frozen(config, _SCALE) or _SCALE not in params:
        return
    value, limit = float(params[_SCALE]), config["logit_scale_max"]
    if value > limit and jax.process_index() == 0:
        logger.warning(
            "logit_scale is frozen (by optim) at %.4g, above logit_scale_max=%.4g: it is left as "
            "it is",
            value,
            limit,
        )


def warn_of_training(config: Config, experiment: setup.Experiment) -> None:
    """Say what trains otherwise than who wrote the configuration may believe."""
    warn_of_unused(config, experiment)
    warn_of_lone_pairs(config, experiment.total)


def warn_of_unused(config: Config, experiment: setup.Experiment) -> None:
    """Say which keys are set without effect, because of the value of another key."""
    lines = config_lib.unused(config)
    total, kind = experiment.total, config["teacher"]["kind"]
    asked = any(name.startswith("teacher/") for name in total.needs | total.row_needs)
    if kind in ("frozen", "ema", "stored") and not asked:
        names = ", ".join(repr(term.name) for term in total.terms)
        lines.append(f"teacher.kind={kind!r} has no effect: {names} learns from no teacher")
    if jax.process_index() == 0:
        for line in lines:
            logger.warning("%s", line)


def warn_of_squares(config: Config) -> None:
    """Say that the pipeline makes squares of pictures for a model that takes them as they are."""
    patches = config["model"]["image"].get("max_patches", 0)  # conv towers have none
    counts = config["data"]["patch_counts"]
    if patches and not counts and jax.process_index() == 0:
        side = config["data"]["image_size"]
        logger.warning(
            "the model is NaFlex (model.image.max_patches=%d), but this pipeline makes squares of "
            "%d x %d pixels: the aspect ratio is lost; set data.patch_counts to keep it",
            patches,
            side,
            side,
        )


def warn_of_lone_pairs(config: Config, total: objectives.Total) -> None:
    """Say that a loss that compares the pairs of a batch gets only one.

    What counts is the global batch: losses see all of it, into however many micro-batches and over
    however many devices it is cut.
    """
    if config["global_batch_size"] == 1 and total.comparing and jax.process_index() == 0:
        logger.warning(
            "global_batch_size=1: %s compares the pairs of a batch, and a lone pair has no other "
            "to be told from (a softmax over it is 0, whatever the model does); use at least 2",
            ", ".join(map(repr, total.comparing)),
        )


def host_memory() -> int:
    """Bytes of memory of this machine, or of the container if it has a limit."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with contextlib.suppress(OSError, ValueError):  # "max": none
        total = min(total, int(pathlib.Path("/sys/fs/cgroup/memory.max").read_text()))
    return total


def _gib(size: int) -> str:
    return f"{size / 2**30:,.1f} GiB"
