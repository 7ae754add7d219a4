"""What a run says of itself in words: what is about to run, and what its captions are like."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import jax

from jaxclip.train import metric_names, setup
from jaxclip.train import workdir as workdir_lib

logger = logging.getLogger("jaxclip")


def describe(
    experiment: setup.Experiment,
    workdir: workdir_lib.Workdir,
    start: int,
    changes: Mapping[str, tuple[Any, Any]],
    say: Callable[[str], None] = print,
) -> None:
    """Print what is about to run, in a few lines, and what is ``{key: (before, now)}`` changed."""
    if jax.process_index() != 0:
        return
    config, mesh = experiment.config, experiment.mesh
    count = setup.parameter_count(experiment.abstract_state.params)
    clip = metric_names.of_clip(config)
    objective = " + ".join(term.name for term in experiment.total.terms)
    if not config["objective"]:
        objective = config["loss"]["name"]
    axes = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items() if size > 1)
    say(
        f"model {config['model']['preset']}: {count / 1e6:.2f} M parameters, "
        f"compute {config['precision']['compute_dtype']}\n"
        f"batch {config['global_batch_size']} on {mesh.size} x {mesh.devices.flat[0].device_kind}"
        f"{f' ({axes})' if axes else ''}, {jax.process_count()} process(es)\n"
        f"objective {objective}, optimizer {config['optim']['name']}, clip {clip}\n"
        f"workdir {workdir.name}: "
        + (f"going on after step {start}" if start else "a new run")
        + f" of {config['total_steps']} steps"
        + (f", staged in {workdir.path}" if workdir.copy else "")
    )
    for key, (before, now) in changes.items():
        logger.info("changed after step %d: %s: %r -> %r", start, key, before, now)


def describe_captions(counts: Mapping[str, int]) -> str:
    """What the captions met so far are like: those that may be cut, and false negatives.

    They are no metrics: how far this process has read ahead is not the same in every run.
    """
    drawn = counts.get("drawn", 0)
    if not drawn:
        return "  captions: none drawn yet"
    full, equal = counts["fill"] / drawn, counts["equal"] / drawn
    return (
        f"  captions so far: {full:.1%} fill their row, so may be cut; "
        f"{equal:.1%} equal another one of their batch"
    )
