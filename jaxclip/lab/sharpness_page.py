"""What ``jaxclip sharpness`` found, for a person: a table, pictures, a short page."""

from __future__ import annotations

import importlib.resources
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxclip import storage
from jaxclip.lab.figure import dress
from jaxclip.train import charts, report

PAGE = "index.html"
SUMMARY = "sharpness.png"
LANDSCAPE = "landscape.png"

_LAYERS = 16  # that a picture shows, those of the largest value


def table(result: Mapping[str, Any]) -> list[str]:
    """Lines of name and value."""
    rows: list[tuple[str, float]] = [("loss", result["loss"])]
    for kind, values in result["adaptive"].items():
        rows += [(f"adaptive sharpness, {kind}, radius {rho:g}", value) for rho, value in values]
    for name, along in result["directions"].items():
        rows.append((f"sharpness along the {name}", along["sharpness"]))
        rows.append(("  share of coordinates with 90% of it", along["carried_by"]))
    rows.append(("trace of the Hessian", sum(result["trace"].values())))
    if "between" in result:
        line = result["between"]["line"]
        rows.append(("highest loss on the way", max(line["loss"])))
        for name, layer in ranked(result["between"]["layers"], "barrier")[:3]:
            rows.append((f"barrier of {name}", layer["barrier"]))
    return [f"  {name:<52} {value:10.4g}" for name, value in rows]


def ranked(layers: Mapping[str, Any], key: str) -> list[tuple[str, Any]]:
    """Layers, those of the largest value first."""
    return sorted(layers.items(), key=lambda item: -item[1][key])


def write(result: Mapping[str, Any], folder: pathlib.Path) -> pathlib.Path:
    """Draw the pictures and write the page; returns its path."""
    panels: list[Callable[[Any], None]] = [
        lambda axes: _adaptive(axes, result["adaptive"]),
        lambda axes: _bars(axes, result["trace"], "trace of the Hessian, by layer"),
    ]
    between = result.get("between")
    if between:
        barriers = {name: each["barrier"] for name, each in between["layers"].items()}
        panels += [
            lambda axes: _line(axes, between["line"]),
            lambda axes: _bars(axes, barriers, "largest barrier, by layer"),
        ]
    _draw(panels, folder / SUMMARY)
    pictures = [SUMMARY]
    slices = result.get("landscape", {})
    if slices:
        drawn: list[Callable[[Any], None]] = []
        if "between" in slices:
            drawn.append(lambda axes: _slice(axes, slices["between"], "0 = other, 1 = this model"))
        if "slice" in slices:
            drawn.append(lambda axes: _slice(axes, slices["slice"], "random direction"))
        if "plane" in slices:
            drawn.append(lambda axes: _plane(axes, slices["plane"]))
        _draw(drawn, folder / LANDSCAPE)
        pictures.append(LANDSCAPE)
    path = folder / PAGE
    storage.write_text(path, _page(result, pictures))
    return path


def _page(result: Mapping[str, Any], pictures: list[str]) -> str:
    css = importlib.resources.files("jaxclip.train").joinpath("report.css").read_text("utf-8")
    lines = report.escape("\n".join(table(result)))
    shown = "\n".join(
        f'<img src="{name}" alt="{name}" style="max-width:100%">' for name in pictures
    )
    what = (
        f"{result['workdir']}: {result['batches']} batches of {result['batch_size']} pairs of "
        f"split {result['split']}, seed {result['seed']}"
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8">'
        f"<title>Sharpness</title>\n<style>{css}</style></head>\n<body>\n<header>"
        f'<h1>Sharpness</h1>\n<p class="soft">{report.escape(what)}</p></header>\n'
        f"<pre>{lines}</pre>\n{shown}\n</body>\n</html>\n"
    )


def _draw(panels: list[Callable[[Any], None]], path: pathlib.Path) -> None:
    from matplotlib.figure import Figure

    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(5.4 * columns, 3.9 * rows), layout="constrained", facecolor="white")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for each, panel in zip(axes, panels, strict=False):
        panel(each)
    for unused in axes[len(panels) :]:
        unused.set_visible(False)
    figure.savefig(path, dpi=110, metadata={"Software": None})


def _adaptive(axes: Any, adaptive: Mapping[str, Any]) -> None:
    for (kind, values), color in zip(adaptive.items(), charts.COLORS, strict=False):
        radii, found = np.asarray(values).T
        axes.plot(radii, found, marker="o", markersize=3.5, color=color, label=kind)
    axes.set_xscale("log")
    rises = [value for found in adaptive.values() for _, value in found]
    axes.set_yscale("log" if min(rises) > 0 else "linear")
    axes.legend(frameon=False, fontsize=8.5)
    dress(axes, "adaptive sharpness", "radius")


def _bars(axes: Any, values: Mapping[str, float], title: str) -> None:
    shown = sorted(values.items(), key=lambda item: -item[1])[:_LAYERS][::-1]
    axes.barh([name for name, _ in shown], [value for _, value in shown], color=charts.COLORS[0])
    dress(axes, title, "")
    axes.tick_params(axis="y", labelsize=7)


def _line(axes: Any, line: Mapping[str, Any]) -> None:
    axes.plot(line["alpha"], line["loss"], color=charts.COLORS[0], label="loss")
    ends = [line["loss"][0], line["loss"][-1]]
    axes.plot([0, 1], ends, color="black", linestyle=":", linewidth=1.0)
    axes.plot(line["alpha"], line["average"], color=charts.COLORS[1], label="average sharpness")
    axes.legend(frameon=False, fontsize=8.5)
    dress(axes, "on the way from the other model", "0 = other, 1 = this model")


def _slice(axes: Any, values: Mapping[str, Any], below: str) -> None:
    axes.plot(values["x"], values["loss"], color=charts.COLORS[0])
    dress(axes, "loss along a line", below)


def _plane(axes: Any, values: Mapping[str, Any]) -> None:
    losses = np.asarray(values["loss"], np.float64)
    drawn = axes.contourf(values["x"], values["x"], losses.T, levels=24, cmap="viridis")
    axes.contour(values["x"], values["x"], losses.T, levels=12, colors="white", linewidths=0.4)
    axes.plot([0], [0], marker="+", color="white", markersize=9)
    axes.figure.colorbar(drawn, ax=axes)
    dress(axes, "loss on a plane of two random directions", "first direction")
    axes.set_ylabel("second direction", fontsize=9)
    axes.grid(False)
