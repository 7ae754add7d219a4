"""``report.html``: what a run did and what it reached, in one file that needs no network."""

from __future__ import annotations

import html
import importlib.resources
import json
import math
import os
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxclip import config as config_lib
from jaxclip import storage
from jaxclip.config import Config
from jaxclip.evaluate import runner
from jaxclip.train import (
    environment,
    metric_names,
    metrics,
    report_charts,
    report_spikes,
    spikes,
    workdir_config,
)
from jaxclip.train import workdir as workdir_lib
from jaxclip.train.metrics import Curves
from jaxclip.train.progress import duration

FILE_NAME = "report.html"


class Run(NamedTuple):
    """What a workdir holds of a run; every part but the configuration may be missing.

    Attributes:
      workdir: the folder.
      name: what the run is called.
      config: the resolved configuration.
      curves: ``{name: (steps, values)}`` of ``metrics.jsonl``.
      results: ``eval.json``: newest evaluation of each kind of weights.
      gallery: ``gallery.json``, or empty.
      environment: ``environment.json``: versions and devices, or empty.
    """

    workdir: pathlib.Path
    name: str
    config: Config
    curves: Curves
    results: dict[str, dict[str, Any]]
    gallery: dict[str, Any]
    environment: dict[str, Any]

    @property
    def step(self) -> int:
        """The last step there are metrics of."""
        steps, _ = self.curves.get("loss", (np.zeros(0, np.int64), None))
        return int(steps[-1]) if len(steps) else 0


def write_report(workdir: str | os.PathLike[str], name: str = "") -> pathlib.Path:
    """Write ``report.html`` of a run, finished or not.

    Args:
      workdir: the run's folder.
      name: of the workdir, where the folder is a copy of it.

    Returns:
      Path of the report.

    Raises:
      workdir.WorkdirError: it is not the workdir of a run.
      OSError: the report can't be written.
    """
    run = read(workdir)
    if name:
        run = run._replace(name=pathlib.PurePath(name).name)
    path = run.workdir / FILE_NAME
    storage.write_text(path, page(run))
    return path


def write_report_at(workdir: str) -> str:
    """:func:`write_report` of a folder or an address; returns where the report is."""

    def wanted(name: str) -> bool:
        return not name.startswith(("tensorboard/", "profile/"))

    workdir_config.read_config(workdir)  # refuses what is none, by its own name
    with workdir_lib.lent(workdir, wanted) as (folder, _):
        path = write_report(folder, workdir)
    return f"{workdir.rstrip('/')}/{path.name}"


def read(workdir: str | os.PathLike[str]) -> Run:
    """Read what is needed from a workdir.

    Raises:
      workdir.WorkdirError: it is not the workdir of a run.
    """
    folder = pathlib.Path(storage.absolute(workdir))
    return Run(
        workdir=folder,
        name=folder.name,
        config=workdir_config.read_config(folder),
        curves=metrics.curves(metrics.read_metrics(folder)),
        results=runner.read_results(folder),
        gallery=storage.read_json(folder / runner.GALLERY_FILE, {}),
        environment=storage.read_json(folder / environment.FILE_NAME, {}),
    )


def page(run: Run) -> str:
    """The whole HTML document."""
    found = spikes_of(run)
    sections = [
        heading(run),
        tiles(run, found),
        section("Training", report_charts.training(run.curves, found)),
        section(
            "Spikes",
            spike_table(found, run.config.get("watch", {})) + report_spikes.events(run.workdir),
        ),
        section("Evaluation", results_table(run) + report_charts.evaluation(run.curves)),
        section("Retrieved for a caption", text_to_image(run.gallery), gallery_note(run)),
        section("Retrieved for a picture", image_to_text(run.gallery), gallery_note(run)),
        section("Configuration", configuration(run.config), changes_note(run)),
        section("Environment", facts(run.environment)),
    ]
    css = importlib.resources.files("jaxclip.train").joinpath("report.css").read_text("utf-8")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(run.name)} · jaxclip</title>\n<style>\n{css.strip()}\n</style>\n"
        "</head>\n<body>\n" + "\n".join(filter(None, sections)) + "\n</body>\n</html>\n"
    )


# Sections. Each returns HTML, empty if there is nothing to show.


def section(title: str, content: str, note: str = "") -> str:
    """A headline and what is below it."""
    if not content:
        return ""
    note = f'<p class="soft">{note}</p>\n' if note else ""
    return f"<section>\n<h2>{escape(title)}</h2>\n{note}{content}\n</section>"


def heading(run: Run) -> str:
    """Name of the run, what it trains, how far it came."""
    config, total = run.config, run.config["total_steps"]
    clip = metric_names.of_clip(config)
    what = (
        f"{config['model']['preset']} on {config['data']['name']}: {config['loss']['name']} loss, "
        f"{config['optim']['name']}, clip {clip}, batch {config['global_batch_size']}, "
        f"seed {config['seed']}"
    )
    state = f"finished, {total} steps"
    if run.step < total:
        state = f"step {run.step} of {total}: not finished when this was written"
    written = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    return (
        f"<header>\n<h1>{escape(run.name)}</h1>\n<p>{escape(what)}</p>\n"
        f'<p class="soft">{escape(state)} · report of {written}</p>\n</header>'
    )


def tiles(run: Run, found: dict[str, spikes.Spikes]) -> str:
    """The few numbers one looks for first."""
    reached = [
        (
            metric_names.percent(name, float(value)),
            f"{metric_names.short(last)}, {data.replace('_', ' ')}",
        )
        for result in run.results.values()
        for name, value in result["metrics"].items()
        for head, _, last in [name.rpartition("/")]
        for data in [head.rpartition("/")[0].replace("/", " ") or head]
        if last in ("top1", "image_to_text_r5", "text_to_image_r5")
    ]
    shown: list[tuple[str, str]] = []
    _, loss = run.curves.get("loss", (None, np.zeros(0)))
    if len(loss):
        last = loss[-100:]
        mean = float(np.mean(last[np.isfinite(last)])) if np.isfinite(last).any() else math.nan
        shown.append((number(mean), f"loss, mean of the last {len(last)} steps"))
    if "grad_norm" in found:
        share = 100 * found["grad_norm"].score
        shown.append((f"{share:.3g}%", "spike score of the gradient norm"))
    steps, speed = run.curves.get("images_per_second", (np.zeros(0), np.zeros(0)))
    if len(speed):
        shown.append((f"{np.median(speed):,.0f}".replace(",", " "), "images/s, median"))
        seconds = np.diff(steps, prepend=0) * run.config["global_batch_size"] / speed
        shown.append((duration(float(np.nansum(seconds))), "time training"))
    if parameters := run.environment.get("parameters"):
        shown.append((f"{parameters / 1e6:.2f} M", "parameters"))
    return "\n".join(tile_row(row) for row in (reached, shown) if row)


def tile_row(shown: list[tuple[str, str]]) -> str:
    """Large numbers, each with its name."""
    cells = "".join(
        f'<div class="tile"><b>{escape(value)}</b><span>{escape(name)}</span></div>'
        for value, name in shown
    )
    return f'<div class="tiles">{cells}</div>'


def spikes_of(run: Run) -> dict[str, spikes.Spikes]:
    """The spikes of loss and gradient norm, where these were recorded at the same steps."""
    found = {}
    steps, loss = run.curves.get("loss", (np.zeros(0, np.int64), np.zeros(0)))
    for name in ("loss", "grad_norm"):
        at, values = run.curves.get(name, (np.zeros(0, np.int64), np.zeros(0)))
        if len(at) and np.array_equal(at, steps):
            found[name] = spikes.find_spikes(values, steps=steps, loss=loss)
    return found


def spike_table(found: dict[str, spikes.Spikes], watch: Mapping[str, Any]) -> str:
    """How many spikes, how high, and what they cost."""
    if not found:
        return ""
    header = ("", "spike score", "spikes", "not finite", "largest / median", "steps lost")
    rows = [
        (
            {"loss": "loss", "grad_norm": "gradient norm"}[name],
            f"{100 * s.score:.3g}%",
            str(s.count),
            str(s.nonfinite),
            "-" if math.isnan(s.largest_ratio) else f"{s.largest_ratio:.3g}",
            str(s.steps_lost),
        )
        for name, s in found.items()
    ]
    note = (
        f'<p class="soft">A spike lies more than {spikes.THRESHOLD:g} standard deviations above '
        f"the mean of the {spikes.WINDOW} steps before it; the score is the share of such steps. "
        "Steps lost: until the loss was back where it was."
    )
    own = watch.get("threshold", spikes.THRESHOLD), watch.get("window", spikes.WINDOW)
    if watch.get("enabled") and own != (spikes.THRESHOLD, spikes.WINDOW):
        note += f" The run's own watch went by {own[0]:g} deviations and {own[1]} steps."
    note += "</p>"
    return table(header, rows) + note


def results_table(run: Run) -> str:
    """The newest evaluation, and the best of the run beside it."""
    parts = []
    for weights, result in run.results.items():
        rows: list[tuple[str, ...]] = []
        group = ""
        for name, value in result["metrics"].items():
            head, _, last = name.rpartition("/")
            if head != group:
                rows.append((group_title(head, result["metrics"]),))
                group = head
            if metric_names.is_share(last):
                best = best_of(run.curves, f"eval/{name}")
                rows.append(
                    (metric_names.short(last), metric_names.percent(last, float(value)), best)
                )
        kind = {"model": "", "ema": ", averaged parameters"}.get(weights, f", {weights}")
        parts.append(table(("", f"step {result['step']}{kind}", "best of the run"), rows))
    return "\n".join(parts)


def group_title(head: str, results: dict[str, float]) -> str:
    """Split and task, and among how many it was."""
    sizes = [
        f"{int(value)} {name.removeprefix(f'{head}/num_')}"
        for name, value in results.items()
        if name.startswith(f"{head}/num_") and math.isfinite(value)
    ]
    return " · ".join([*head.replace("_", " ").split("/"), ", ".join(sizes)]).rstrip(" ·")


def best_of(curves: Curves, name: str) -> str:
    """The largest value of a curve and its step."""
    steps, values = curves.get(name, (np.zeros(0, np.int64), np.zeros(0)))
    if not np.isfinite(values).any():
        return "-"
    place = int(np.nanargmax(values))
    return f"{metric_names.percent(name, float(values[place]))} (step {steps[place]})"


def changes_note(run: Run) -> str:
    """What ``--extend`` changed on the way."""
    parts = [
        f"after step {entry['step']}: "
        + ", ".join(f"{key} {before} → {now}" for key, (before, now) in entry["changes"].items())
        for entry in workdir_config.read_history(run.workdir)
    ]
    return escape("Changed " + "; ".join(parts)) if parts else ""


def gallery_note(run: Run) -> str:
    """Where the pictures come from."""
    if not run.gallery:
        return ""
    return (
        f"Among all of {escape(run.gallery['split'])} at step {run.gallery['step']}; queries drawn "
        'at random, the same ones for every model. <span class="mark right">✓</span> is right, '
        '<span class="mark wrong">✗</span> is not; the number is the cosine similarity.'
    )


def text_to_image(gallery: dict[str, Any]) -> str:
    """Captions and the pictures found for them."""
    cards = []
    for item in gallery.get("text_to_image", ()):
        found = "".join(
            picture(gallery, result["picture"], result["right"], f"{result['score']:.2f}")
            for result in item["results"]
        )
        asked = f"<p>{escape(item['query'])}</p>"
        cards.append(f'<div class="query">{asked}<div class="found">{found}</div></div>')
    return f'<div class="queries">{"".join(cards)}</div>' if cards else ""


def image_to_text(gallery: dict[str, Any]) -> str:
    """Pictures and the captions found for them."""
    cards = []
    for item in gallery.get("image_to_text", ()):
        found = "".join(
            f"<li>{mark(result['right'])}<bdi>{escape(result['text'])}</bdi>"
            f'<span class="soft">{result["score"]:.2f}</span></li>'
            for result in item["results"]
        )
        cards.append(
            f'<div class="query caption-query">{picture(gallery, item["picture"])}'
            f"<ol>{found}</ol></div>"
        )
    return f'<div class="queries">{"".join(cards)}</div>' if cards else ""


def configuration(config: Config) -> str:
    """What differs from the defaults, and the whole of it folded up."""
    changed = config_lib.changed_from_defaults(config)
    rows = [(key, json.dumps(new), json.dumps(old)) for key, old, new in changed]
    whole = escape(json.dumps(config, indent=2, ensure_ascii=False))
    return (
        table(("key", "value", "default"), rows, kind="facts")
        + f"<details><summary>The whole configuration</summary><pre>{whole}</pre></details>"
    )


def facts(values: dict[str, Any]) -> str:
    """Names and values."""
    rows = [(name.replace("_", " "), str(value)) for name, value in values.items()]
    return table(("", ""), rows, kind="facts") if rows else ""


# Small parts.


def table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]], kind: str = "") -> str:
    """A table; a row of one cell is a headline across it."""
    body = []
    for row in rows:
        if len(row) == 1 < len(header):
            body.append(f'<tr><td class="group" colspan="{len(header)}">{escape(row[0])}</td></tr>')
        else:
            body.append("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>")
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    head = f"<thead><tr>{head}</tr></thead>" if any(header) else ""
    content = f'<table class="{kind}">{head}<tbody>{"".join(body)}</tbody></table>'
    return f'<div class="scroll">{content}</div>'


def picture(gallery: dict[str, Any], key: str, right: bool | None = None, label: str = "") -> str:
    """A thumbnail, with a mark unless it is a query."""
    uri = gallery["pictures"].get(key, "")
    kind = "" if right is None else " right" if right else " wrong"
    below = "" if right is None else f"{mark(right)} {escape(label)}"
    return f'<div class="picture{kind}"><img src="{escape(uri)}" alt="">{below}</div>'


def mark(right: bool) -> str:
    """✓ or ✗."""
    name, sign = ("right", "✓") if right else ("wrong", "✗")
    return f'<span class="mark {name}" title="{name}">{sign}</span>'


def number(value: float) -> str:
    """Four digits; ``n/a`` for NaN."""
    return f"{value:.4g}" if math.isfinite(value) else "n/a"


def escape(text: str) -> str:
    return html.escape(str(text), quote=True)
