"""What a step of each training method costs, in time and memory, relative to plain CLIP.

    python -m jaxclip.bench methods --to runs/costs --costs_only [--methods slip …] [--rounds 5]
    python -m jaxclip.bench methods --to runs/costs --work_only

Each objective is run by ``configs/methods.py``, with AdamW, at a small batch of made-up data, in
turns with ``contrastive`` in one process: the CPU seconds that all cores work for a step, without
its input (on a shared machine the clock on the wall says more of the others), and the bytes that
the compiled step needs beside its arguments, as ``jaxclip plan`` counts them. A frozen teacher is
stood in for by one that follows the run, so its forward pass is in the cost. What is measured is
kept under ``--to``.

``--work_only`` counts the multiply-adds of the traced step in matrix products and convolutions,
backward passes included, and compiles nothing.
"""

from __future__ import annotations

import json
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from jaxclip.bench.timing import take_turns
from jaxclip.markdown import table

REFERENCE = "contrastive"
BATCH = 32
# Plain, so that a step is mostly the method's own work, and compiles in half of the time.
OPTIMIZER: Mapping[str, Any] = {
    "name": "adamw",
    "learning_rate": 1e-3,
    "clip": {"name": "none"},
    "schedule": {"name": "constant"},
}


def work(configs: pathlib.Path, name: str) -> int:
    """Matrix FLOPs of a step of a method."""
    from jaxclip.plan import model_flops

    experiment = _experiment(configs, name)
    return model_flops.of_function(
        experiment.train_step, experiment.abstract_state, experiment.abstract_batch()
    )


def run_work(to: pathlib.Path, configs: pathlib.Path, names: Sequence[str]) -> int:
    """Count what is not known yet, and print it; returns the exit status."""
    from jaxclip import objectives

    to.mkdir(parents=True, exist_ok=True)
    path = to / "method_work.json"
    known: dict[str, int] = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    chosen = [REFERENCE, *(n for n in names or objectives.REGISTRY.names() if n != REFERENCE)]
    for name in chosen:
        if name in known:
            continue
        try:
            known[name] = work(configs, name)
        except (TypeError, ValueError) as error:  # the others are counted all the same
            print(f"{name} can't be built: {str(error).splitlines()[0]}", flush=True)
            continue
        path.write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")
    rows = [["method", "work of a step"]]
    rows += [[name, f"{known[name] / known[REFERENCE]:.2f}"] for name in chosen if name in known]
    print(table(rows))
    return 0


class Built(NamedTuple):
    """A compiled method.

    Attributes:
      step: does the next step.
      temporary: bytes of the compiled step beside arguments and results.
      state: bytes of the training state.
    """

    step: Callable[[], None]
    temporary: int
    state: int


def run(to: pathlib.Path, configs: pathlib.Path, names: Sequence[str], rounds: int) -> int:
    """Measure what is not known yet, and print the table; returns the exit status."""
    from jaxclip import objectives

    to.mkdir(parents=True, exist_ok=True)
    path = to / "method_costs.json"
    known: dict[str, dict[str, float]] = (
        json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    )
    chosen = [REFERENCE, *(n for n in names or objectives.REGISTRY.names() if n != REFERENCE)]
    todo = [name for name in chosen if name not in known]
    reference = build(configs, REFERENCE) if todo else None
    for name in todo:
        assert reference is not None
        known[name] = measure(configs, name, reference, rounds)
        path.write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")
        print(f"{name}: {known[name]}", flush=True)
    print(describe({name: known[name] for name in chosen}))
    return 0


def measure(configs: pathlib.Path, name: str, reference: Built, rounds: int) -> dict[str, float]:
    """The ratios of a method's step and memory to the reference's.

    Returns:
      ``{"step", "temporary", "state"}``.
    """
    own = reference if name == REFERENCE else build(configs, name)
    if own is reference:
        return {"step": 1.0, "temporary": 1.0, "state": 1.0}
    timings = take_turns(
        {REFERENCE: reference.step, name: own.step},
        reference=REFERENCE,
        rounds=rounds,
        calls=2,
        clock=time.process_time,
    )
    return {
        "step": round(timings[name].ratio, 3),
        "temporary": round(own.temporary / reference.temporary, 3),
        "state": round(own.state / reference.state, 3),
    }


def build(configs: pathlib.Path, name: str) -> Built:
    """Compile the step of a method."""
    import jax

    from jaxclip import parallel
    from jaxclip.train import dry_run

    experiment = _experiment(configs, name)
    made_up = dry_run.made_up_batch(experiment.config, experiment.batch_spec)
    batch = parallel.to_global(made_up, experiment.mesh)
    state = experiment.init_state()
    compiled = experiment.train_step.lower(state, batch).compile()
    memory: Any = compiled.memory_analysis()

    def step() -> None:
        nonlocal state
        state, metrics = compiled(state, batch)
        jax.block_until_ready(metrics)

    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state) if hasattr(leaf, "nbytes"))
    return Built(step, int(memory.temp_size_in_bytes), size)


def _experiment(configs: pathlib.Path, name: str) -> Any:
    """A method as ``configs/methods.py`` has it, at a small batch."""
    import jax

    from jaxclip import config as config_lib
    from jaxclip.train import setup

    given = config_lib.load_file(f"{configs / 'methods.py'}:{name}")
    given["optim"] = {**OPTIMIZER, "groups": given["optim"].get("groups", [])}
    config = config_lib.resolve(given, [f"global_batch_size={BATCH}"])
    if config["teacher"]["kind"] not in ("none", "ema"):
        config = {**config, "teacher": {**config["teacher"], "kind": "ema", "decay": 0.99}}
    return setup.build(config, devices=jax.devices()[:1])


def describe(known: Mapping[str, Mapping[str, float]]) -> str:
    """The table of all methods."""
    rows = [["method", "step", "memory of a step", "state"]]
    for name, costs in known.items():
        rows.append([name, *(f"{costs[key]:.2f}" for key in ("step", "temporary", "state"))])
    return table(rows)
