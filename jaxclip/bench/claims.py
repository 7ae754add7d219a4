"""Claims of papers in direction, on the built-in pictures: at equal pictures and at equal time.

    python -m jaxclip.bench claims --to runs/claims [--only dcl slip …] [--seeds 0 1] [--steps 240]
    python -m jaxclip.bench claims --to runs/claims --table_only

Each claim of :mod:`jaxclip.bench.claim_list` compares an arm with its baselines. All train on one
drawing style (Noto) and are judged on another one (Twemoji), so that no test split has a part in
it. Equal pictures: both take as many steps. Equal time: the arm takes as many as cost what the
baseline's cost; the cost is the time of all cores for a step with its input, measured in turns
with plain CLIP's in one process, and costs within a tenth count as equal. The learning rate is
constant and the average of the weights is judged, so that one run serves both.

A direction holds where every seed of the arm is beyond every seed of every baseline, it does not
where the reverse is so, and is unclear in between; "kept" holds unless the arm is clearly worse.

What is done is kept under ``--to``: the same command goes on where it was stopped. The table goes
to ``claims.md``, the numbers to ``claims.json``.
"""

from __future__ import annotations

import argparse
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxclip.bench import claim_arm
from jaxclip.bench.claim_list import ARMS, CLAIMS, Claim
from jaxclip.markdown import table
from jaxclip.registry import hint

REFERENCE = "contrastive"
_SAME = 0.1  # share by which costs may differ and count as equal
_SHARES = ("top1", "top5", "long5", "both5", "order")  # shown in percent
_BETTER = {"gap": -1, "uniform": -1}  # by which sign a measure is better; 1 for all others


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m jaxclip.bench claims", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--to", type=pathlib.Path, required=True, help="folder for all runs")
    parser.add_argument("--configs", type=pathlib.Path, default=pathlib.Path("configs"))
    parser.add_argument("--only", nargs="+", default=tuple(CLAIMS), help="claims to try")
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--seeds", type=int, nargs="+", default=(0, 1))
    parser.add_argument("--rounds", type=int, default=3, help="rounds of the measured cost")
    parser.add_argument("--table_only", action="store_true", help="run nothing")
    args = parser.parse_args(arguments)
    for name in args.only:
        if name not in CLAIMS:
            parser.error(f"no claim {name!r}{hint(name, CLAIMS)}")
    place = claim_arm.Place(args.to.resolve(), args.configs.resolve(), args.steps)
    place.to.mkdir(parents=True, exist_ok=True)
    book = Book(place.to / f"cells-{args.steps}.json")
    if not args.table_only:
        compiled_before(place.to / "compiled")
        workshop = Workshop(place, book, args.rounds)
        for name in args.only:
            workshop.try_claim(CLAIMS[name], args.seeds)
            print("\n" + report({name: CLAIMS[name]}, book, args.seeds, args.steps), flush=True)
    text = report(CLAIMS, book, args.seeds, args.steps)
    (place.to / "claims.md").write_text(text + "\n", encoding="utf-8")
    outcome = outcomes(CLAIMS, book, args.seeds, args.steps)
    (place.to / "claims.json").write_text(json.dumps(outcome, indent=2) + "\n", encoding="utf-8")
    print("\n" + text)
    return 0


def compiled_before(folder: pathlib.Path) -> None:
    """Keep compiled programs, so that the reference is compiled once."""
    import jax

    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_compilation_cache_max_size", 1 << 31)  # with a limit JAX locks it


class Book:
    """What is known: costs by arm, and measures by arm, seed and steps; kept in a file."""

    def __init__(self, path: pathlib.Path):
        self.path = path
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        self.costs: dict[str, float] = found.get("costs", {})
        self.seconds: dict[str, float] = found.get("seconds_per_step", {})
        self.cells: dict[str, dict[str, dict[str, float]]] = found.get("cells", {})

    def write(self) -> None:
        """Keep it."""
        all_of_it = {"costs": self.costs, "seconds_per_step": self.seconds, "cells": self.cells}
        new = self.path.with_suffix(".new")
        new.write_text(json.dumps(all_of_it, indent=2) + "\n", encoding="utf-8")
        new.replace(self.path)


class Workshop:
    """Runs what is not in the book yet."""

    def __init__(self, place: claim_arm.Place, book: Book, rounds: int):
        self.place, self.book, self.rounds = place, book, rounds
        self._built: dict[str, claim_arm.Runs] = {}
        self._judge: claim_arm.Judge | None = None

    def try_claim(self, claim: Claim, seeds: Sequence[int]) -> None:
        """All cells of a claim."""
        for name in (*claim.baselines, claim.arm):
            if name not in self.book.costs:
                own, reference = self._runs(name), self._runs(REFERENCE)
                self.book.costs[name] = round(claim_arm.cost(own, reference, self.rounds), 3)
                self.book.write()
        for name in (*claim.baselines, claim.arm):
            stops = set(stops_of(claim, self.book.costs, self.place.steps, name))
            for seed in seeds:
                cell = self.book.cells.setdefault(f"{name}-{seed}", {})
                if not all(str(stop) in cell for stop in stops):
                    self._run(name, seed, sorted(stops | {int(stop) for stop in cell}))
        for name in [name for name in self._built if name != REFERENCE]:
            del self._built[name]  # memory: each holds a compiled step

    def _run(self, name: str, seed: int, stops: Sequence[int]) -> None:
        runs = self._runs(name)
        if self._judge is None:  # pictures and texts are the same for all arms
            self._judge = claim_arm.Judge(runs.config, runs.tokenizer)
        found, seconds = runs.run(seed, stops, self._judge)
        cell = {str(stop): {k: round(v, 5) for k, v in m.items()} for stop, m in found.items()}
        self.book.cells[f"{name}-{seed}"] = cell
        self.book.seconds[f"{name}-{seed}"] = round(seconds, 4)
        self.book.write()
        print(f"{name}-{seed}: {seconds:.3f} s a step, {cell[str(max(stops))]}", flush=True)

    def _runs(self, name: str) -> claim_arm.Runs:
        if name not in self._built:
            claim_arm.write_data(self.place)
            if ARMS[name].taught or ARMS[name].goes_on:
                claim_arm.train_teacher(self.place)
            self._built[name] = claim_arm.Runs(self.place, ARMS[name])
        return self._built[name]


def stops_of(claim: Claim, costs: Mapping[str, float], steps: int, name: str) -> list[int]:
    """After which steps an arm of a claim is judged: at equal pictures, then at equal times."""
    own = max(1, round(steps * ARMS[name].share))
    if name != claim.arm:
        return [own]
    return [own, *(equal_time(own, costs[name] / costs[each]) for each in claim.baselines)]


def equal_time(steps: int, ratio: float) -> int:
    """Steps that cost what ``steps`` of a baseline cost, if one costs ``ratio`` times as much."""
    return steps if abs(ratio - 1) < _SAME else max(1, round(steps / ratio))


def verdict(
    wanted: str, measure: str, baselines: Sequence[Sequence[float]], own: Sequence[float]
) -> str:
    """``"holds"``, ``"does not"`` or ``"unclear"``: every seed must agree.

    Args:
      wanted: ``"up"``, ``"down"`` or ``"kept"``.
      measure: its name: by it "kept" knows what is worse.
      baselines: values of each baseline by seed.
      own: values of the arm by seed.
    """
    sign = {"up": 1, "down": -1, "kept": _BETTER.get(measure, 1)}[wanted]
    mine = [sign * value for value in own]
    others = [[sign * value for value in each] for each in baselines]
    worse = any(max(mine) < min(each) for each in others)
    if wanted == "kept":
        return "does not" if worse else "holds"
    if all(min(mine) > max(each) for each in others):
        return "holds"
    return "does not" if worse else "unclear"


def outcomes(
    claims: Mapping[str, Claim], book: Book, seeds: Sequence[int], steps: int
) -> dict[str, Any]:
    """Of each claim whose cells are all there: values and verdicts by measure and basis."""
    result: dict[str, Any] = {}
    for name, claim in claims.items():
        arms = (*claim.baselines, claim.arm)
        if not all(arm in book.costs for arm in arms):
            continue
        stops = {arm: stops_of(claim, book.costs, steps, arm) for arm in arms}
        cells = {arm: [book.cells.get(f"{arm}-{seed}", {}) for seed in seeds] for arm in arms}
        if not all(str(s) in cell for arm in arms for cell in cells[arm] for s in stops[arm]):
            continue
        result[name] = {
            "says": claim.says,
            "source": claim.source,
            "speaks_of_equal": claim.basis,
            "cost": {arm: book.costs[arm] for arm in arms},
            "measures": {
                measure: _compare(claim, measure, stops, cells) for measure in claim.wanted
            },
        }
    return result


def _compare(
    claim: Claim,
    measure: str,
    stops: Mapping[str, Sequence[int]],
    cells: Mapping[str, Sequence[Mapping[str, Mapping[str, float]]]],
) -> dict[str, Any]:
    wanted = claim.wanted[measure]
    baselines = [[c[str(stops[b][0])][measure] for c in cells[b]] for b in claim.baselines]
    pictures = [cell[str(stops[claim.arm][0])][measure] for cell in cells[claim.arm]]
    # Each baseline has a time of its own; the verdict is the worst one.
    times = [[c[str(stop)][measure] for c in cells[claim.arm]] for stop in stops[claim.arm][1:]]
    found = [verdict(wanted, measure, [b], t) for b, t in zip(baselines, times, strict=True)]
    return {
        "wanted": wanted,
        "baselines": dict(zip(claim.baselines, baselines, strict=True)),
        "pictures": {
            "steps": stops[claim.arm][0],
            "values": pictures,
            "verdict": verdict(wanted, measure, baselines, pictures),
        },
        "time": {
            "steps": list(stops[claim.arm][1:]),
            "values": times,
            "verdict": max(found, key=("holds", "unclear", "does not").index),
        },
    }


def report(claims: Mapping[str, Claim], book: Book, seeds: Sequence[int], steps: int) -> str:
    """The table of the claims that are done, and how many are not.

    In bold is the verdict at equal pictures or at equal time, whichever the paper speaks of.
    """
    done = outcomes(claims, book, seeds, steps)
    head = ["claim", "paper", "measure", "baseline", "arm", "equal pictures", "cost", "steps"]
    rows = [[*head, "arm then", "equal time"]]
    for name, found in done.items():
        claim = claims[name]
        for number, (measure, each) in enumerate(found["measures"].items()):
            show = _shower(measure)
            first = not number
            ratios = [
                f"{found['cost'][claim.arm] / found['cost'][base]:.2f}" for base in claim.baselines
            ]
            rows.append(
                [
                    claim.says if first else "",
                    claim.source if first else "",
                    f"{measure} {each['wanted']}",
                    "; ".join(f"{base} {show(v)}" for base, v in each["baselines"].items()),
                    f"{claim.arm} {show(each['pictures']['values'])}",
                    _bold(each["pictures"]["verdict"], claim.basis == "pictures"),
                    ", ".join(dict.fromkeys(ratios)) if first else "",
                    ", ".join(dict.fromkeys(map(str, each["time"]["steps"]))),
                    "; ".join(dict.fromkeys(show(v) for v in each["time"]["values"])),
                    _bold(each["time"]["verdict"], claim.basis == "time"),
                ]
            )
    text = f"{len(done)} of {len(claims)} claims, {steps} steps, seeds {', '.join(map(str, seeds))}"
    return f"{text}\n\n{table(rows)}"


def _bold(text: str, it_is: bool) -> str:
    return f"**{text}**" if it_is else text


def _shower(measure: str) -> Callable[[Sequence[float]], str]:
    if measure in _SHARES:
        return lambda values: ", ".join(f"{100 * value:.1f}" for value in values)
    return lambda values: ", ".join(f"{value:.2f}" for value in values)
