"""``summary.png``: what an injection does to each rule, and how it bears learning rates."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np

from jaxclip.lab import measures
from jaxclip.lab.config import Config
from jaxclip.lab.tables import Results
from jaxclip.train import charts

FILE_NAME = "summary.png"


def write(config: Config, results: Results, path: pathlib.Path) -> bool:
    """Draw the picture of a grid: at most as many rules as there are colours.

    Args:
      config: resolved.
      results: of the finished cells.
      path: of the file.

    Returns:
      Whether there was anything to draw.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    rules = list(config["rules"])[: len(charts.COLORS)]
    colors = dict(zip(rules, charts.COLORS, strict=False))
    curves, rates = _injected(config, results), _over_rates(config, results)
    drawn = [part for part in (curves, rates) if part]
    if not drawn:
        return False
    figure = Figure(figsize=(5.0 * len(drawn), 3.8), layout="constrained", facecolor="white")
    axes = list(figure.subplots(1, len(drawn), squeeze=False)[0])
    if curves:
        _draw_curves(axes[0], curves, colors, config["baseline"])
    if rates:
        _draw_rates(axes[-1], rates, colors)
    shown = {**(curves["rules"] if curves else {}), **rates}
    lines = [(Line2D([], [], color=colors[rule]), rule) for rule in colors if rule in shown]
    figure.legend(
        *zip(*lines, strict=True), loc="outside lower center", ncols=3 * len(drawn),
        frameon=False, fontsize=8.5,
    )  # fmt: skip
    figure.savefig(path, dpi=110, metadata={"Software": None})
    return True


def _injected(config: Config, results: Results) -> dict[str, Any]:
    """Mean loss by rule under the first injector that was run, and the baseline's clean one."""
    for name in config["injectors"]:
        hit = {cell: r for cell, r in results.items() if cell.injector == name != "none"}
        if not hit:
            continue
        first = next(iter(hit))
        same = {c: r for c, r in hit.items() if c[:2] == first[:2] and c.rate == first.rate}
        by_rule: dict[str, list[np.ndarray]] = {}
        for cell, r in same.items():
            by_rule.setdefault(cell.rule, []).append(r.curves["loss"])
        clean = [
            results[c.clean()].curves["loss"]
            for c in same
            if c.rule == config["baseline"] and c.clean() in results
        ]
        return {"name": name, "rate": first.rate, "rules": by_rule, "clean": clean}
    return {}


def _over_rates(config: Config, results: Results) -> dict[str, dict[float, float]]:
    """Final loss of clean runs by rule and rate, of the first model and precision."""
    model, precision = next(iter(config["models"])), config["precisions"][0]
    by_rule: dict[str, dict[float, list[float]]] = {}
    for cell, r in results.items():
        if cell.injector == "none" and (cell.model, cell.precision) == (model, precision):
            by_rate = by_rule.setdefault(cell.rule, {})
            bounded = min(r.numbers["final_loss"], r.numbers["start_loss"])
            by_rate.setdefault(cell.rate, []).append(bounded)
    means = {
        rule: {rate: measures.spread(by_rate[rate])[0] for rate in sorted(by_rate)}
        for rule, by_rate in by_rule.items()
    }
    return means if any(len(by_rate) > 1 for by_rate in means.values()) else {}


def _draw_curves(axes: Any, curves: dict[str, Any], colors: dict[str, str], baseline: str) -> None:
    def line(losses: list[np.ndarray], **style: Any) -> None:
        mean = charts.smoothed(np.mean(losses, axis=0), 9)
        axes.plot(np.arange(len(mean)), mean, **style)

    for rule, color in colors.items():
        if rule in curves["rules"]:
            line(curves["rules"][rule], color=color, linewidth=1.6)
    if curves["clean"]:
        line(curves["clean"], color="black", linewidth=1.0, linestyle=":")
        axes.plot([], [], color="black", linestyle=":", label=f"{baseline}, nothing injected")
        axes.legend(loc="upper right", frameon=False, fontsize=8.5)
    dress(axes, f"training loss, injected: {curves['name']} (rate {curves['rate']:g})", "step")


def _draw_rates(axes: Any, rates: dict[str, Any], colors: dict[str, str]) -> None:
    for rule, color in colors.items():
        if rule in rates:
            by_rate = rates[rule]
            axes.plot(
                list(by_rate), list(by_rate.values()), color=color, marker="o", markersize=3.5,
                linewidth=1.6,
            )  # fmt: skip
    axes.set_xscale("log")
    dress(axes, "final loss, nothing injected", "learning rate")


def dress(axes: Any, title: str, below: str) -> None:
    """Title, label and grid of a panel, as all pictures of the lab have them."""
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_xlabel(below, fontsize=9)
    axes.tick_params(labelsize=8.5)
    axes.grid(alpha=0.2, linewidth=0.6)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
