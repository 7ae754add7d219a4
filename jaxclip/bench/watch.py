"""What the watch and the policies against spikes cost: steps with and without them, in turn.

    python -m jaxclip.bench watch                                     # the tiny preset
    python -m jaxclip.bench watch --preset vit_b32 --batch_size 64 precision.compute_dtype=bfloat16

Arguments of the form ``key=value`` change the configuration, as for ``bench step``. All steps run
in one process, in turn, so that what else the machine does meets all of them alike.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

from jaxclip.bench import timing
from jaxclip.bench.step import make_trainer, resolve_preset
from jaxclip.config import Config
from jaxclip.train import allocator

VARIANTS: dict[str, tuple[str, ...]] = {
    "plain": (),
    "skip": ("on_spike.actions=skip",),
    "watch": ("watch.enabled=True",),
    "watch and skip": ("watch.enabled=True", "on_spike.actions=skip"),
    "qk_clip": ("optim.qk_clip={'threshold': 100.0}",),
}


def report(
    given: Config, overrides: Sequence[str], rounds: int, variants: Sequence[str]
) -> dict[str, timing.Timing]:
    """Measure and print each variant.

    Args:
      given: the configuration.
      overrides: for all variants.
      rounds: measured steps of each.
      variants: of :data:`VARIANTS`, beside ``plain``.

    Returns:
      Timings by variant; ``ratio`` is that to the plain step.
    """
    steps = {}
    for name in dict.fromkeys(["plain", *variants]):
        config = resolve_preset(dict(given), [*overrides, *VARIANTS[name]])
        steps[name] = make_trainer(config).step
    # On a CPU that others use, too, the time of the process says more than that of the clock.
    clock = time.process_time if allocator.runs_on_cpu() else time.perf_counter
    timings = timing.take_turns(steps, reference="plain", rounds=rounds, clock=clock)
    rows = [["step", "median ms", "fastest ms", "ratio to plain"]]
    for name, t in timings.items():
        rows.append([name, f"{1e3 * t.median:.1f}", f"{1e3 * t.low:.1f}", f"{t.ratio:.3f}"])
    print(timing.table(rows))
    return timings


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
        "--variants", default="watch|watch and skip", help=f"of {' | '.join(VARIANTS)}"
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
    try:
        report(given, options.overrides, options.rounds, names)
    except ValueError as error:
        parser.exit(2, f"jaxclip.bench watch: error: {error}\n")
    return 0
