"""What the watch and the policies against spikes cost: steps with and without them, in turn.

    python -m jaxclip.bench watch                                     # the tiny preset
    python -m jaxclip.bench watch --preset vit_b32 --batch_size 64 precision.compute_dtype=bfloat16

Arguments of the form ``key=value`` change the configuration, as for ``bench step``. All steps run
in one process, in turn, so that what else the machine does meets all of them alike; ratios are
medians over rounds of a step to the plain one beside it. Three measures stand side by side: the
clock; on a CPU the process's own CPU time, which says more where others compute, too; and XLA's
count of operations and of bytes that the compiled step reads and writes, which no load changes.
The probe of activations, which runs every ``watch.probe_every_steps``, is timed by itself.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from jaxclip import parallel
from jaxclip.bench import timing
from jaxclip.bench.step import Trainer, make_trainer, resolve_preset
from jaxclip.config import Config
from jaxclip.markdown import table
from jaxclip.train import allocator

VARIANTS: dict[str, tuple[str, ...]] = {
    "plain": (),
    "skip": ("on_spike.actions=skip",),
    "watch": ("watch.enabled=True",),
    "watch and skip": ("watch.enabled=True", "on_spike.actions=skip"),
    "watch and policies": (
        "watch.enabled=True",
        "on_spike.actions=clip|lower_rate|reset_moments",
    ),
    "qk_clip": ("optim.qk_clip={'threshold': 100.0}",),
}
_PROBE = "probe"
_CLOCK, _CPU = "clock", "CPU time"


class Costs(NamedTuple):
    """What was measured.

    Attributes:
      timings: clock -> variant -> times of a step, ``ratio`` to the plain one; ``"probe"`` is one
        run of the probe, if a variant watches.
      flops: variant -> operations of a step over those of the plain one.
      bytes_accessed: variant -> bytes, likewise.
      probe_every: steps from one probe to the next; 0 for none.
    """

    timings: dict[str, dict[str, timing.Timing]]
    flops: dict[str, float]
    bytes_accessed: dict[str, float]
    probe_every: int

    def whole(self, variant: str, clock: str) -> float:
        """Time of a step with its share of the probe, over that of the plain step."""
        found = self.timings[clock]
        share = found[_PROBE].ratio / self.probe_every if self.probes(variant) else 0.0
        return found[variant].ratio + share

    def probes(self, variant: str) -> bool:
        """Whether a variant has a probe."""
        return self.probe_every > 0 and any("watch.enabled" in each for each in VARIANTS[variant])


def measure(given: Config, overrides: Sequence[str], rounds: int, variants: Sequence[str]) -> Costs:
    """Measure each variant.

    Args:
      given: the configuration.
      overrides: for all variants.
      rounds: measured steps of each.
      variants: of :data:`VARIANTS`, beside ``plain``.
    """
    trainers: dict[str, Trainer] = {}
    probe: Callable[[], object] | None = None
    every = 0
    for name in dict.fromkeys(["plain", *variants]):
        config = resolve_preset(dict(given), [*overrides, *VARIANTS[name]])
        trainers[name] = make_trainer(config)
        if config["watch"]["enabled"] and probe is None and config["watch"]["probe_every_steps"]:
            probe, every = _probe(config, trainers[name]), config["watch"]["probe_every_steps"]
    candidates: dict[str, Callable[[], object]] = {n: t.step for n, t in trainers.items()}
    if probe is not None:
        candidates[_PROBE] = probe
    clocks = {_CLOCK: time.perf_counter}
    if allocator.runs_on_cpu():
        clocks[_CPU] = time.process_time
    timings = timing.take_turns_by(clocks, candidates, reference="plain", rounds=rounds)
    plain = trainers["plain"]
    return Costs(
        timings,
        {name: t.flops / plain.flops for name, t in trainers.items()},
        {name: _over(t.bytes_accessed, plain.bytes_accessed) for name, t in trainers.items()},
        every,
    )


def _probe(config: Config, trainer: Trainer) -> Callable[[], object]:
    """One run of the probe, waited for."""
    from jaxclip.train import setup, watch

    experiment = setup.build(config)
    options = config["watch"]
    look = watch.make_probe(
        experiment.towers, list(experiment.batch_spec), options["probe_examples"]
    )
    params: Any = jax.device_put(trainer.params)
    batch: Mapping[str, jax.Array] = parallel.to_global(trainer.batch, experiment.mesh)
    return lambda: jax.block_until_ready(look(params, batch))


def _over(value: float, reference: float) -> float:
    return value / reference if reference else float("nan")


def report(costs: Costs) -> None:
    """Print the table and what it comes to."""
    clocks = list(costs.timings)
    header = ["step"]
    for clock in clocks:
        header += [f"{clock}, ms", "over plain"]
    rows = [[*header, "operations", "bytes"]]
    for name in costs.flops:
        row = [name]
        for clock in clocks:
            t = costs.timings[clock][name]
            change = "" if name == "plain" else f"{_percent(t.ratio)} ± {100 * t.error:.2f}"
            row += [f"{1e3 * t.median:.1f}", change]
        row += ["" if name == "plain" else _percent(costs.flops[name])]
        row += ["" if name == "plain" else _percent(costs.bytes_accessed[name])]
        rows.append(row)
    print(table(rows))
    judge = _CPU if _CPU in clocks else _CLOCK
    if _PROBE in costs.timings[judge]:
        ratio = costs.timings[judge][_PROBE].ratio
        print(
            f"probe: {100 * ratio:.2f}% of a plain step by {judge}, every {costs.probe_every} "
            f"steps: {_percent(1 + ratio / costs.probe_every)}"
        )
    for name in costs.flops:
        if costs.probes(name):
            print(f"{name}, with its probe: {_percent(costs.whole(name, judge))} by {judge}")


def _percent(ratio: float) -> str:
    return f"{100 * (ratio - 1):+.2f}%"


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m jaxclip.bench watch",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--preset", default="tiny", help="model preset (default: tiny)")
    parser.add_argument("--batch_size", type=int, default=128, help="global batch (default: 128)")
    parser.add_argument("--rounds", type=int, default=20, help="measured steps (default: 20)")
    parser.add_argument(
        "--variants",
        default="watch|watch and skip|watch and policies",
        help=f"of {' | '.join(VARIANTS)}",
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="config overrides")
    options = parser.parse_args(list(arguments))
    if allocator.runs_on_cpu():
        allocator.keep_freed_memory()
    given = {"model": {"preset": options.preset}, "global_batch_size": options.batch_size}
    names = [name.strip() for name in options.variants.split("|")]
    unknown = [name for name in names if name not in VARIANTS]
    if unknown:
        parser.error(f"no variant {unknown[0]!r}; known: {', '.join(VARIANTS)}")
    if options.rounds < 1:
        parser.error(f"--rounds {options.rounds}: at least 1")
    try:
        report(measure(given, options.overrides, options.rounds, names))
    except ValueError as error:
        parser.exit(2, f"jaxclip.bench watch: error: {error}\n")
    return 0
