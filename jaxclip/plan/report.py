"""Plans as text for a terminal, as JSON for programs, as one HTML page for people."""

from __future__ import annotations

import html
import json
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

from jaxclip.plan.planner import Change, Plan

RANKED = "Times are a model, not a measurement; ranked by its slow end."
_GIB = 2**30
Rows = list[tuple[str, ...]]


def to_dict(plan: Plan) -> dict[str, Any]:
    """Plain data of a plan; kernels are left out, sizes are bytes, times seconds."""
    memory, cost, seconds = plan.memory, plan.cost, plan.roofline
    return {
        "topology": plan.topology,
        "chip": {
            "name": plan.chip.name,
            "hbm_bytes": plan.chip.hbm_bytes,
            "matmul_flops": plan.chip.matmul_flops,
            "hbm_bandwidth": plan.chip.hbm_bandwidth,
            "link_bandwidth": plan.chip.link_bandwidth,
            "sources": list(plan.chip.sources),
        },
        "num_devices": plan.num_devices,
        "mesh": plan.mesh,
        "switches": plan.switches,
        "parameters": plan.parameters,
        "fits": plan.fits,
        "refusal": None if plan.refusal is None else plan.refusal._asdict(),
        "memory": None if memory is None else memory._asdict(),
        "lower_seconds": plan.lower_seconds,
        "compile_seconds": plan.compile_seconds,
        "flops": None if cost is None else cost.flops,
        "bytes": None if cost is None else cost.bytes,
        "bytes_sent": None if cost is None else cost.sent,
        "model_flops": plan.model_flops,
        "recomputed": plan.recomputed,
        "model": None
        if seconds is None
        else {
            **seconds._asdict(),
            "best": seconds.best,
            "worst": seconds.worst,
            "images_per_second": plan.images_per_second,
            "mfu": plan.mfu,
        },
        "collectives": [vars(traffic) for traffic in plan.traffic],
        "parts": [vars(part) for part in plan.parts],
        "not_modelled": [] if cost is None else list(cost.opaque),
        "unknown_loops": [] if cost is None else list(cost.unknown_loops),
    }


def milliseconds(seconds: float) -> str:
    """A time in ms, to three digits, but no finer than 10 µs."""
    value = 1e3 * seconds
    decimals = 0 if value >= 99.95 else 1 if value >= 9.995 else 2
    return f"{value:,.{decimals}f}"


def text(plan: Plan) -> str:
    """A plan for a terminal."""
    lines = [f"Plan for {plan.topology}: {', '.join(f'{k}={v}' for k, v in plan.mesh.items())}", ""]
    for title, rows in sections(plan):
        lines += [title, *aligned(rows), ""]
    return "\n".join(lines)


def sections(plan: Plan) -> list[tuple[str, Rows]]:
    """Tables of a plan: title and rows of cells."""
    switches: Rows = [(key, str(value)) for key, value in plan.switches.items()]
    switches.append(("parameters", f"{plan.parameters / 1e6:,.1f} M"))
    compiled = f"{plan.compile_seconds:.0f} s (and {plan.lower_seconds:.0f} s to trace)"
    switches.append(("compile time", compiled))
    result = [("Step", switches), ("Memory of a device, GiB", memory_rows(plan))]
    if plan.roofline is not None:
        result.append(("Time of a step (a model, not a measurement)", time_rows(plan)))
        result.append(("Where it goes, ms at its own limit", part_rows(plan)))
        result.append(("Collectives of a step", traffic_rows(plan)))
    return result


def memory_rows(plan: Plan) -> Rows:
    """Memory against the chip's."""
    limit = plan.chip.hbm_bytes
    room = [] if limit is None else [("available", _gib(limit))]
    if plan.refusal is not None:
        needed, there = plan.refusal.needed, plan.refusal.limit or limit
        rows: Rows = [("refused by the compiler", plan.refusal.message.splitlines()[0][:160])]
        if needed is not None:
            rows.append(("wanted", _gib(needed)))
            if there is not None:
                rows.append(("too much by", _gib(needed - there)))
        return [*rows, *room]
    assert plan.memory is not None
    m = plan.memory
    rows = [
        ("arguments (state, batch)", _gib(m.arguments)),
        ("results in their own place", _gib(m.outputs - m.aliased)),
        ("temporaries, not all at one time", _gib(m.temporaries)),
        ("program", _gib(m.code)),
        ("peak", _gib(m.peak)),
        *room,
    ]
    if limit is not None:
        left = limit - m.peak
        rows.append(("fits" if left >= 0 else "DOES NOT FIT", f"{left / _GIB:+.2f}"))
    return rows


def time_rows(plan: Plan) -> Rows:
    """The roofline, and what follows from it."""
    assert plan.roofline and plan.cost and plan.mfu and plan.images_per_second
    r = plan.roofline
    rows: Rows = [
        ("matrix products at the chip's peak", f"{milliseconds(r.compute)} ms"),
        ("bytes at the memory's bandwidth", f"{milliseconds(r.memory)} ms"),
        ("collectives at the links' bandwidth", f"{milliseconds(r.network)} ms"),
        ("kernels one after another", f"{milliseconds(r.kernels)} ms"),
        ("step if nothing overlaps", f"{milliseconds(r.worst)} ms"),
        ("step if everything overlaps", f"{milliseconds(r.best)} ms"),
        ("images/s", " to ".join(f"{x:,.0f}" for x in plan.images_per_second)),
        ("model-FLOPs utilisation", " to ".join(f"{x:.1%}" for x in plan.mfu)),
        ("recomputed beyond the model's FLOPs", f"{plan.recomputed:.1%}"),
    ]
    if plan.cost.unknown_loops:
        rows.append(("loops of unknown length, counted once", "; ".join(plan.cost.unknown_loops)))
    if plan.cost.opaque:
        rows.append(("kernels whose FLOPs are not known", ", ".join(plan.cost.opaque)))
    return rows


def part_rows(plan: Plan) -> Rows:
    """Time by part of the step."""
    head = ("part", "matrix", "memory", "kernels")
    return [
        head,
        *(
            (p.name, *(milliseconds(s) for s in (p.compute, p.memory, p.kernels)))
            for p in plan.parts
        ),
    ]


def traffic_rows(plan: Plan) -> Rows:
    """Collectives by kind and axes."""
    rows: Rows = [("kind", "axes", "dtype", "runs", "MB", "MB sent", "ms", "hideable")]
    for t in plan.traffic:
        numbers = (f"{t.bytes / 1e6:,.2f}", f"{t.sent / 1e6:,.2f}", milliseconds(t.seconds))
        hideable = "yes" if t.asynchronous else "no"
        rows.append((t.kind, "+".join(t.axes), t.dtype, str(t.runs), *numbers, hideable))
    return rows if plan.traffic else [("none", "")]


def sweep_rows(ranked: Sequence[tuple[Change, Plan]]) -> Rows:
    """What fitted in a sweep, best first."""
    rows: Rows = [("mesh", "remat", "micro-batches", "peak GiB", "ms", "images/s", "MFU")]
    for change, plan in ranked:
        assert plan.roofline and plan.images_per_second and plan.mfu and plan.memory
        mesh = "x".join(f"{size}" for size in plan.mesh.values()) + f" {change['sharding']}"
        rows.append(
            (
                mesh,
                str(change["remat"]),
                str(change["num_micro_batches"]),
                _gib(plan.memory.peak),
                f"{milliseconds(plan.roofline.worst)} to {milliseconds(plan.roofline.best)}",
                " to ".join(f"{x:,.0f}" for x in plan.images_per_second),
                " to ".join(f"{x:.1%}" for x in plan.mfu),
            )
        )
    return rows


def write(folder: str | pathlib.Path, plan: Plan, notes: Iterable[str] = ()) -> list[pathlib.Path]:
    """Write ``plan.json`` and ``plan.html``; returns their paths."""
    target = pathlib.Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    notes = list(notes)
    paths = [target / "plan.json", target / "plan.html"]
    data = {**to_dict(plan), "notes": notes}
    paths[0].write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    paths[1].write_text(page(plan, notes), encoding="utf-8")
    return paths


def write_sweep(
    folder: str | pathlib.Path, ranked: Sequence[tuple[Change, Plan]]
) -> list[pathlib.Path]:
    """Write ``sweep.json`` (all that fitted) and ``sweep.html`` (their table, and the best)."""
    target = pathlib.Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    paths = [target / "sweep.json", target / "sweep.html"]
    data = [{"change": change, **to_dict(plan)} for change, plan in ranked]
    paths[0].write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    notes = [f"{len(ranked)} combinations fit. {RANKED} Below the table the first of them."]
    ranking = [("Ranking", sweep_rows(ranked))]
    paths[1].write_text(page(ranked[0][1], notes, ranking), encoding="utf-8")
    return paths


def page(plan: Plan, notes: Iterable[str] = (), tables: Iterable[tuple[str, Rows]] = ()) -> str:
    """One self-contained HTML page: notes, tables, then the plan."""
    body = [f"<h1>{html.escape(str(plan.switches['model']))} on {html.escape(plan.topology)}</h1>"]
    body += [f"<p>{html.escape(note)}</p>" for note in notes]
    for title, rows in (*tables, *sections(plan)):
        body.append(f"<h2>{html.escape(title)}</h2>{_html_table(rows)}")
    sources = "; ".join(plan.chip.sources)
    body.append(
        f"<p class=small>Peaks of {html.escape(plan.chip.name)}: {html.escape(sources)}.</p>"
    )
    style = (
        "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
        "table{border-collapse:collapse}td{padding:.15rem 1rem .15rem 0;"
        "border-bottom:1px solid #8884;font-variant-numeric:tabular-nums}"
        "td+td{text-align:right}.small{font-size:.8rem}"
        "@media(prefers-color-scheme:dark){body{background:#111;color:#ddd}}"
    )
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        f"<title>jaxclip plan</title><style>{style}</style><body>{''.join(body)}</body></html>\n"
    )


def _html_table(rows: Rows) -> str:
    lines = ("".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows)
    return "<table>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"


def aligned(rows: Rows) -> list[str]:
    """Lines of a table for a terminal."""
    columns = max(map(len, rows))
    widths = [max(len(row[n]) for row in rows if n < len(row)) for n in range(columns)]
    return [
        "  "
        + "  ".join(
            cell.ljust(width) if n == 0 or columns == 2 else cell.rjust(width)
            for n, (cell, width) in enumerate(zip(row, widths, strict=False))
        ).rstrip()
        for row in rows
    ]


def _gib(size: float) -> str:
    return f"{size / _GIB:.2f}"
