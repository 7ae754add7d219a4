"""The tables of a grid: means over seeds, with their deviation, of what cells measured."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxclip.lab import cells as cells_lib
from jaxclip.lab import config as config_lib
from jaxclip.lab import events, injectors, measures
from jaxclip.lab.config import Cell, Config
from jaxclip.lab.injectors import stale_v


class Result(NamedTuple):
    """A finished cell.

    Attributes:
      cell: which.
      curves: arrays by name.
      numbers: as of :func:`jaxclip.lab.measures.of_cell`.
      about: what else is known.
    """

    cell: Cell
    curves: dict[str, np.ndarray]
    numbers: dict[str, float]
    about: dict[str, Any]


class Table(NamedTuple):
    """Rows of text; a row of one cell is a headline across the table."""

    title: str
    note: str
    header: tuple[str, ...]
    rows: list[tuple[str, ...]]


Results = dict[Cell, Result]

# Of the running mean and deviation that loss events are judged by. The paper's is longer; in runs
# of the lab's length the fall of the loss from its start would be in the deviation.
EVENT_WINDOW = 200


def read(config: Config, workdir: pathlib.Path) -> Results:
    """All finished cells of a grid."""
    found = {}
    for cell in config_lib.cells(config):
        known = cells_lib.read(cells_lib.path_of(workdir, config, cell))
        if known is not None:
            numbers = measures.of_cell(known[0], config["last_steps"])
            numbers |= _fixed_clip(config, cell, known[0]["grad_norm"])
            found[cell] = Result(cell, known[0], numbers, known[1])
    return found


def all_tables(config: Config, results: Results) -> list[Table]:
    """Every table that the finished cells are enough for."""
    made = [
        over_rates(config, results),
        logits_over_rates(config, results),
        injections(config, results),
        at_best_rate(config, results),
        second_moment(config, results),
    ]
    return [table for table in made if table is not None and table.rows]


def over_rates(config: Config, results: Results) -> Table | None:
    """Final loss of clean runs over learning rates, with LR sensitivity and stable range."""
    clean = {cell: r for cell, r in results.items() if cell.injector == "none"}
    rates = sorted({cell.rate for cell in clean})
    if len(rates) < 2:
        return None
    rows: list[tuple[str, ...]] = []
    for group, members in _grouped(clean, lambda cell: (cell.precision, cell.model)):
        best = min(
            (measures.spread(_of(by_rate[rate], "final_loss"))[0])
            for _, by_rate in _by_rule_and_rate(members)
            for rate in by_rate
        )
        rows += _headline(config, clean, group)
        for rule, by_rate in _by_rule_and_rate(members):
            cells = [
                plus_minus(_of(by_rate[rate], "final_loss")) if rate in by_rate else ""
                for rate in rates
            ]
            rows.append((rule, *cells, *_range_columns(by_rate, best)))
    return Table(
        "Final loss over learning rates, nothing injected",
        "Mean of the last steps' loss ± deviation over seeds. Sensitivity: mean over the rates of "
        "the loss above the rule's own best, none counted above the loss at the start. Stable "
        "range: largest over smallest rate that comes within a tenth of the way from the start to "
        "the best loss of the group, without a spike in any seed; 0 for none.",
        ("rule", *(f"{rate:g}" for rate in rates), "sensitivity", "stable range"),
        rows,
    )


def logits_over_rates(config: Config, results: Results) -> Table | None:
    """Largest attention logit at the end of clean runs: the sign of rates that are too high."""
    clean = {cell: r for cell, r in results.items() if cell.injector == "none"}
    rates = sorted({cell.rate for cell in clean})
    if len(rates) < 2:
        return None
    rows: list[tuple[str, ...]] = []
    for group, members in _grouped(clean, lambda cell: (cell.precision, cell.model)):
        rows += _headline(config, clean, group)
        for rule, by_rate in _by_rule_and_rate(members):
            logits = [_of(by_rate.get(rate, []), "attention_logit") for rate in rates]
            rows.append((rule, *(plus_minus(each, 1) if each else "" for each in logits)))
    return Table(
        "Largest attention logit at the end",
        "Of the image tower, over 16 held-out pictures; before the softmax and before a soft cap.",
        ("rule", *(f"{rate:g}" for rate in rates)),
        rows,
    )


def injections(config: Config, results: Results) -> Table | None:
    """What injections cost beside the same runs without them."""
    hit = {c: r for c, r in results.items() if c.injector != "none" and c.clean() in results}
    if not hit:
        return None
    names = [name for name in config["injectors"] if any(c.injector == name for c in hit)]
    header = ["rule", "clean"]
    for name in names:
        header += [f"{name}", "over clean", "damage"]
    rows: list[tuple[str, ...]] = []
    for group, members in _grouped(hit, lambda c: (c.precision, c.model, c.rate)):
        rows += _headline(config, hit, group)
        for rule, runs in _grouped(members, lambda c: c.rule):
            clean = {c.clean(): results[c.clean()] for c in runs}
            row = [rule, plus_minus(_of(clean.values(), "final_loss"))]
            for name in names:
                pairs = [(r, results[c.clean()]) for c, r in runs.items() if c.injector == name]
                row += _cost(config, pairs)
            rows.append(tuple(row))
    return Table(
        "What injections cost",
        "Loss at the end; how far that is over the same rule's clean run; and the damage: the sum "
        f"over {config['damage_steps']} steps from the first injection on of the loss above that "
        "of the same seed's clean run. ± is the deviation over seeds.",
        tuple(header),
        rows,
    )


def at_best_rate(config: Config, results: Results) -> Table | None:
    """Each rule's clean run at its best rate: speed, spikes, what it clipped."""
    clean = {cell: r for cell, r in results.items() if cell.injector == "none"}
    rows: list[tuple[str, ...]] = []
    for group, members in _grouped(clean, lambda cell: (cell.precision, cell.model)):
        rows += _headline(config, clean, group)
        best = {rule: _best(by_rate) for rule, by_rate in _by_rule_and_rate(members)}
        baseline = best.get(config["baseline"])
        for rule, (rate, runs) in best.items():
            rows.append(
                (
                    rule,
                    f"{rate:g}",
                    plus_minus(_of(runs, "final_loss")),
                    plus_minus(_of(runs, "held_out_loss")),
                    _steps_ratio(runs, baseline[1] if baseline else []),
                    percent(_of(runs, "spikes"), 2),
                    percent(_of(runs, "spikes_7"), 2),
                    plus_minus(_of(runs, "norm_spread")),
                    plus_minus(_of(runs, "attention_logit"), 1),
                    clipped(runs),
                )
            )
    return Table(
        "Clean runs at each rule's best rate",
        "Steps: until the trailing median of 25 losses is at "
        f"{config['baseline']}'s last one, as a share of its steps (mean over the seeds "
        "that got there). Spikes: share of the steps with a loss 10 and 7 deviations above the "
        "trailing mean. Norm spread: deviation of the log of the gradient's norm. Clipped: share "
        "of steps (of tensors, for rules that look at tensors).",
        (
            "rule", "rate", "loss", "held out", "steps", "spikes 10", "spikes 7", "norm spread",
            "attention logit", "clipped",
        ),
        rows,
    )  # fmt: skip


def second_moment(config: Config, results: Results) -> Table | None:
    """RMS of watched tensors, and whether loss events follow RMS events."""
    watch = config["watch"]
    seen = {
        cell: r for cell, r in results.items() if any(f"rms/{path}" in r.curves for path in watch)
    }
    if not seen:
        return None
    rows: list[tuple[str, ...]] = []
    for group, members in _grouped(seen, lambda c: (c.precision, c.model, c.rate)):
        rows += _headline(config, seen, group)
        for (rule, injector), runs in _grouped(members, lambda c: (c.rule, c.injector)):
            row = [rule, injector, _closed_form(config, next(iter(runs)))]
            for path in watch:
                curves = [r.curves[f"rms/{path}"] for r in runs.values()]
                tops = [_rms_at(r, c) for r, c in zip(runs.values(), curves, strict=True)]
                row.append(plus_minus(tops, 1))
            rows.append((*row, *_leads(runs, watch[0])))
    return Table(
        "RMS of the step, and the loss events behind it",
        "RMS where it is largest within 3 steps of the injection, or behind the first quarter of a "
        "clean run. Expected: k / sqrt(b + (1 - b) k²), of a constant gradient that grows k-fold. "
        f"Loss events (sums over seeds): above the mean of the {EVENT_WINDOW} steps before by "
        f"{events.DEVIATIONS} deviations, twice within 10 steps; led: 1 to 8 steps behind an RMS "
        f"of the first tensor of at least {events.RMS_THRESHOLD}; p: the share of random "
        "placements with as many.",
        (
            "rule", "injector", "expected",
            *(f"RMS {path.strip('^')}" for path in watch),
            "RMS events", "loss events", "led", "p",
        ),
        rows,
    )  # fmt: skip


# Columns.


def plus_minus(values: Iterable[float], digits: int = 3) -> str:
    """``"1.234 ± 0.005"``; ``inf`` where a value is not finite."""
    mean, deviation = measures.spread(list(values))
    if not math.isfinite(mean):
        return "inf"
    return f"{mean:.{digits}f}" + (f" ± {deviation:.{digits}f}" if math.isfinite(deviation) else "")


def percent(values: Iterable[float], digits: int = 1) -> str:
    """Mean as ``"1.2%"``."""
    mean, _ = measures.spread(list(values))
    return f"{100 * mean:.{digits}f}%" if math.isfinite(mean) else "inf"


def clipped(runs: Sequence[Result]) -> str:
    """What the rules of a run clipped, each by its name if there are several."""
    names = sorted({name for r in runs for name in r.numbers if name.startswith("clipped/")})
    shares = [(name.removeprefix("clipped/"), percent(_of(runs, name))) for name in names]
    if len(shares) == 1:
        return shares[0][1]
    return ", ".join(f"{name} {share}" for name, share in shares)


def _fixed_clip(config: Config, cell: Cell, norms: np.ndarray) -> dict[str, float]:
    """What optax's clip by the global norm did, which it does not tell itself."""
    section = config_lib.training(config, cell.model, cell.rule)["optim"].get("clip")
    if not isinstance(section, dict) or section.get("name") != "global_norm":
        return {}
    return {"clipped/global_norm": float(np.mean(~(norms <= section["max_norm"])))}


def _cost(config: Config, pairs: Sequence[tuple[Result, Result]]) -> list[str]:
    """Final loss, its excess over the clean one, and the damage."""
    if not pairs:
        return ["", "", ""]
    ends = [hit.numbers["final_loss"] for hit, _ in pairs]
    over = [hit.numbers["final_loss"] / clean.numbers["final_loss"] - 1 for hit, clean in pairs]
    damages = [
        measures.damage(
            hit.curves["loss"], clean.curves["loss"], hit.curves["active"], config["damage_steps"]
        )
        for hit, clean in pairs
    ]
    known = [value for value in damages if value is not None]
    sign = "+" if math.isfinite(np.mean(over)) and np.mean(over) >= 0 else ""
    return [plus_minus(ends), sign + percent(over), plus_minus(known, 1) if known else ""]


def _range_columns(by_rate: dict[float, list[Result]], best: float) -> tuple[str, str]:
    rates = sorted(by_rate)
    seeds = sorted(set.intersection(*({r.cell.seed for r in by_rate[x]} for x in rates)))
    sensitivity = []
    for seed in seeds:
        runs = [next(r for r in by_rate[rate] if r.cell.seed == seed) for rate in rates]
        losses = [r.numbers["final_loss"] for r in runs]
        sensitivity.append(measures.lr_sensitivity(losses, runs[0].numbers["start_loss"]))
    everything = [r for rate in rates for r in by_rate[rate]]
    wide = measures.stable_range(
        rates,
        [measures.spread(_of(by_rate[rate], "final_loss"))[0] for rate in rates],
        float(np.mean(_of(everything, "start_loss"))),
        best=best,
        spiked=[any(r.numbers["spikes"] > 0 for r in by_rate[rate]) for rate in rates],
    )
    return (plus_minus(sensitivity) if seeds else ""), f"{wide:g}"


def _steps_ratio(runs: Sequence[Result], baseline: Sequence[Result]) -> str:
    of_seed = {r.cell.seed: r.curves["loss"] for r in baseline}
    ratios = []
    for r in runs:
        loss = of_seed.get(r.cell.seed)
        if loss is None:
            continue
        target = float(measures.trailing_median(loss)[-1])
        first, own = measures.steps_to(loss, target), measures.steps_to(r.curves["loss"], target)
        if first is not None and own is not None:
            ratios.append(own / first)
    if not ratios:
        return "never" if of_seed else ""
    some = f" ({len(ratios)} of {len(runs)})" if len(ratios) < len(runs) else ""
    return f"{np.mean(ratios):.2f}{some}"


def _rms_at(result: Result, curve: np.ndarray) -> float:
    at = np.flatnonzero(result.curves["active"])
    if len(at):
        return float(np.max(curve[at[0] : at[0] + 3]))
    return float(np.max(curve[len(curve) // 4 :]))


def _closed_form(config: Config, cell: Cell) -> str:
    for one in injectors.build(config["injectors"][cell.injector]):
        if isinstance(one, stale_v.StaleV):
            optim = config_lib.training(config, cell.model, cell.rule)["optim"]
            return f"{stale_v.rms_after(one.k, optim.get('b2', 0.999), one.start):.1f}"
    return ""


def _leads(runs: dict[Cell, Result], path: str) -> tuple[str, ...]:
    """RMS events, loss events, led ones, and the p-value; seeds are laid behind one another."""
    rms_steps: list[int] = []
    loss_steps: list[int] = []
    offset = 0
    for r in runs.values():
        total = len(r.curves["loss"])
        start = total // 4
        of_rms = events.rms_events(r.curves[f"rms/{path}"], start=start)
        of_loss = events.loss_events(r.curves["loss"], start=start, window=EVENT_WINDOW)
        rms_steps += [offset + int(step) for step in of_rms]
        loss_steps += [offset + int(step) for step in of_loss]
        offset += total
    found = events.lead_lag(rms_steps, loss_steps, range(offset))
    p = f"{found.p_value:.3f}" if found.loss_events else ""
    return str(found.rms_events), str(found.loss_events), str(found.led), p


# Groups.


def _grouped(results: Results, key: Callable[[Cell], Any]) -> list[tuple[Any, Results]]:
    groups: dict[Any, Results] = {}
    for cell, result in results.items():
        groups.setdefault(key(cell), {})[cell] = result
    return list(groups.items())


def _by_rule_and_rate(results: Results) -> list[tuple[str, dict[float, list[Result]]]]:
    return [
        (rule, {rate: list(some.values()) for rate, some in _grouped(runs, lambda c: c.rate)})
        for rule, runs in _grouped(results, lambda c: c.rule)
    ]


def _best(by_rate: dict[float, list[Result]]) -> tuple[float, list[Result]]:
    rate = min(by_rate, key=lambda x: measures.spread(_of(by_rate[x], "final_loss"))[0])
    return rate, by_rate[rate]


def _of(runs: Iterable[Result], name: str) -> list[float]:
    return [r.numbers.get(name, math.nan) for r in runs]


def _headline(config: Config, results: Results, group: tuple[Any, ...]) -> list[tuple[str, ...]]:
    """What a group has in common, where there are several groups."""
    names = ("precision", "model", "rate")[: len(group)]
    parts = [
        f"{value:g}" if name == "rate" else str(value)
        for name, value in zip(names, group, strict=True)
        if len({getattr(cell, name) for cell in results}) > 1
    ]
    return [(", ".join(parts),)] if parts else []
