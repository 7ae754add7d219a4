"""The report of a grid: ``report.html`` for a person, ``tables.md`` and a picture to be quoted."""

from __future__ import annotations

import importlib.resources
import pathlib

import numpy as np

from jaxclip import storage
from jaxclip.lab import config as config_lib
from jaxclip.lab import figure, policy_table, tables
from jaxclip.lab.config import Cell, Config
from jaxclip.lab.tables import Results, Table
from jaxclip.train import charts, report, report_charts

FILE_NAME = "report.html"
TABLES = "tables.md"

# Lines that a chart can hold and still be read.
_LINES = len(charts.COLORS)


def write(config: Config, workdir: pathlib.Path, name: str) -> pathlib.Path:
    """Write all three files of the cells that are finished.

    Args:
      config: resolved.
      workdir: where the cells are.
      name: of the config file, for the commands that are shown.

    Returns:
      Path of ``report.html``.

    Raises:
      OSError: a file can't be written.
    """
    results = tables.read(config, workdir)
    made = tables.all_tables(config, results)
    of_policies = policy_table.policies(config, results)
    made += [of_policies] if of_policies else []
    storage.write_text(workdir / TABLES, "\n".join(markdown(table) for table in made))
    figure.write(config, results, workdir / figure.FILE_NAME)
    path = workdir / FILE_NAME
    storage.write_text(path, page(config, results, made, name))
    return path


def page(config: Config, results: Results, made: list[Table], name: str) -> str:
    """The whole HTML document."""
    title = config["title"] or name
    total = len(config_lib.cells(config))
    seconds = sum(r.about.get("cpu_seconds", 0.0) for r in results.values())
    css = importlib.resources.files("jaxclip.train").joinpath("report.css").read_text("utf-8")
    heading = (
        f"<header>\n<h1>{report.escape(title)}</h1>\n<p>{report.escape(config['note'])}</p>\n"
        f'<p class="soft">{len(results)} of {total} cells, {seconds:.0f} CPU seconds · '
        f"<code>jaxclip lab --config {report.escape(name)} --workdir …</code></p>\n</header>"
    )
    parts = [heading, report.section("Curves", curves(config, results))]
    parts += [
        report.section(
            table.title, report.table(table.header, table.rows), report.escape(table.note)
        )
        for table in made
    ]
    parts.append(report.section("Cells", cell_list(config, results, name)))
    body = "\n".join(filter(None, parts))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{report.escape(title)} · jaxclip lab</title>\n<style>\n{css.strip()}\n</style>\n"
        f"</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def curves(config: Config, results: Results) -> str:
    """A chart of the mean loss over seeds for each precision, model, rate and injector."""
    groups: dict[tuple[str, ...], dict[str, list[np.ndarray]]] = {}
    for cell, result in results.items():
        key = (cell.injector, f"{cell.rate:g}", cell.precision, cell.model)
        groups.setdefault(key, {}).setdefault(cell.rule, []).append(result.curves["loss"])
    figures = []
    for (injector, rate, precision, model), rules in groups.items():
        for start in range(0, len(rules), _LINES):
            some = list(rules.items())[start : start + _LINES]
            lines = [
                charts.Line(np.arange(len(losses[0])), np.mean(losses, axis=0), rule, color)
                for (rule, losses), color in zip(some, charts.COLORS, strict=False)
            ]
            title = f"Loss, {injector}, rate {rate}"
            note = f"{precision}, {model}; mean over {len(some[0][1])} seeds"
            svg = charts.chart(lines, title=title)
            figures.append(report_charts.figure(title, svg, note))
    return f'<div class="charts">{"".join(figures)}</div>' if any(figures) else ""


def cell_list(config: Config, results: Results, name: str) -> str:
    """How to run each cell alone, folded up."""
    rows = [
        (command(name, cell), f"{r.numbers['final_loss']:.4f}", f"{r.about.get('seconds', 0):.1f}")
        for cell, r in results.items()
    ]
    if not rows:
        return ""
    listed = report.table(("command", "final loss", "seconds"), rows)
    return f"<details><summary>Each cell alone, by its command</summary>{listed}</details>"


def command(name: str, cell: Cell) -> str:
    """The command that runs a cell alone."""
    return f"jaxclip lab --config {name} --cell {cell}"


def markdown(table: Table) -> str:
    """A table with its title and note."""
    lines = [f"### {table.title}", "", table.note, ""]
    lines.append("| " + " | ".join(table.header) + " |")
    lines.append("|---|" + "---:|" * (len(table.header) - 1))
    for row in table.rows:
        headline = len(row) == 1 < len(table.header)
        cells = (f"**{row[0]}**", *[""] * (len(table.header) - 1)) if headline else row
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
