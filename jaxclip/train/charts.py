"""Curves as inline SVG that takes the page's text colour, so that it suits light and dark."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

# Distinguishable with any kind of colour vision, on white and on near-black.
COLORS = ("#3987e5", "#e8823a", "#22a884", "#d45fa5", "#9673d8", "#b5a100")
ALERT = "#e5484d"

_BINS = 300
_MAX_MARKS = 400
# Stands for the page's text colour until the SVG is done: matplotlib knows no `currentColor`.
_INK = "#123456"


class Line(NamedTuple):
    """A curve to draw.

    Attributes:
      steps: int[N], ascending.
      values: float[N]; what is not finite is left out.
      label: name in the legend; empty = none.
      color: CSS colour.
      dots: draw every point as a dot (for the few points of evaluations).
      dashed: draw dashed.
      smooth: draw a moving average over it; not where single steps are what one looks for.
    """

    steps: np.ndarray
    values: np.ndarray
    label: str = ""
    color: str = COLORS[0]
    dots: bool = False
    dashed: bool = False
    smooth: bool = True


class Marks(NamedTuple):
    """Points to stand out.

    Attributes:
      steps: int[M].
      values: float[M], height of each; NaN = on the upper edge.
      label: name in the legend.
      color: CSS colour.
      marker: a matplotlib marker.
    """

    steps: np.ndarray
    values: np.ndarray
    label: str
    color: str = ALERT
    marker: str = "."


def chart(
    lines: Sequence[Line],
    *,
    title: str,
    marks: Sequence[Marks] = (),
    log: bool = False,
    percent: bool = False,
    from_zero: bool = False,
) -> str:
    """Draw curves over steps.

    Long curves are drawn as the mean and the range over about 300 stretches of steps.

    Args:
      lines: the curves; one without a finite point is left out.
      title: what is shown, also for screen readers.
      marks: points to stand out.
      log: logarithmic heights, if all are positive and they span more than a factor of 20.
      percent: heights are shares; label them in per cent.
      from_zero: let the heights begin at zero.

    Returns:
      An ``<svg>`` element, or an empty string if there is nothing to draw.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    lines = [line for line in map(_finite, lines) if len(line.steps)]
    if not lines:
        return ""
    with rc_context(_STYLE):
        figure = Figure(figsize=(5.4, 3.0), layout="constrained")
        axes = figure.add_subplot()
        for line in lines:
            _draw(axes, line)
        everything = np.concatenate([line.values for line in lines])
        low, high = everything.min(), everything.max()
        if low == high == 0:
            axes.set_ylim(0, 1)  # a count or a share of nothing: no heights below zero
        elif log and low > 0 and high > 20 * low:
            axes.set_yscale("log")
        elif from_zero and low >= 0:
            axes.set_ylim(bottom=0)
        for mark in marks:
            _mark(axes, mark)
        if percent:
            axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g}%")
        axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True, steps=[1, 2, 5, 10]))
        axes.xaxis.set_major_formatter(lambda value, _: short_count(value))
        axes.set_xlabel("step")
        axes.margins(x=0.01)
        if any(line.label for line in lines) or any(mark.label for mark in marks):
            axes.legend(loc="best")
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return _embed(buffer.getvalue(), title)


def binned(
    steps: np.ndarray, values: np.ndarray, bins: int = _BINS
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Summarise a curve over stretches of about equally many points.

    Args:
      steps: int[N], ascending.
      values: float[N], finite.
      bins: number of stretches; no more points than that come back as they are.

    Returns:
      ``(steps, mean, smallest, largest)`` of each stretch.
    """
    if len(steps) <= bins:
        return steps, values, values, values
    starts = np.linspace(0, len(steps), bins, endpoint=False).astype(int)
    sizes = np.diff([*starts, len(steps)])
    return (
        np.add.reduceat(steps, starts) / sizes,
        np.add.reduceat(values, starts) / sizes,
        np.minimum.reduceat(values, starts),
        np.maximum.reduceat(values, starts),
    )


def smoothed(values: np.ndarray, points: int = 25) -> np.ndarray:
    """Centred moving average of float[n] over about ``points`` values, shorter at the ends."""
    half = min(points, len(values)) // 2
    sums = np.concatenate([[0.0], np.cumsum(values)])
    place = np.arange(len(values))
    # As many values on either side, so that a slope is not bent at the ends.
    reach = np.minimum(half, np.minimum(place, place[::-1]))
    return (sums[place + reach + 1] - sums[place - reach]) / (2 * reach + 1)


def short_count(value: float) -> str:
    """``1500`` -> ``1.5k``; for axes."""
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= unit:
            return f"{value / unit:.4g}{name}"
    return f"{value:.4g}"


_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "jaxclip",
    "font.family": "sans-serif",
    "font.size": 9.5,
    "text.color": _INK,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": _INK,
    "grid.alpha": 0.13,
    "grid.linewidth": 0.6,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.5,
    "path.simplify": True,
}


def _finite(line: Line) -> Line:
    keep = np.isfinite(line.values)
    return line._replace(steps=np.asarray(line.steps)[keep], values=np.asarray(line.values)[keep])


def _draw(axes: Any, line: Line) -> None:
    style = {"color": line.color, "label": line.label or None}
    if line.dots or len(line.steps) == 1:
        axes.plot(line.steps, line.values, marker="o", markersize=3.5, **style)
        return
    steps, mean, low, high = binned(line.steps, line.values)
    if len(line.steps) > _BINS:
        axes.fill_between(steps, low, high, color=line.color, alpha=0.22, linewidth=0)
    else:
        axes.plot(steps, mean, color=line.color, alpha=0.3, linewidth=0.9)
    axes.plot(
        steps,
        smoothed(mean, len(mean) // 25 + 1) if line.smooth and not line.dashed else mean,
        linestyle="--" if line.dashed else "-",
        **style,
    )


def _mark(axes: Any, mark: Marks) -> None:
    steps, values = np.asarray(mark.steps), np.asarray(mark.values, float)
    if not len(steps):
        return
    if len(steps) > _MAX_MARKS:  # the highest ones, they are what one looks for
        order = np.argsort(-np.nan_to_num(values, nan=np.inf))[:_MAX_MARKS]
        steps, values = steps[order], values[order]
    top = axes.get_ylim()[1]
    heights = np.where(np.isfinite(values), values, top)
    axes.scatter(
        steps,
        heights,
        s=12,
        marker=mark.marker,
        color=mark.color,
        label=mark.label or None,
        linewidths=0,
        zorder=3,
        clip_on=False,
    )


def _embed(svg: str, title: str) -> str:
    """Cut the file's prologue off, let the page rule size and text colour, add a title."""
    svg = svg[svg.index("<svg") :].replace(_INK, "currentColor")
    opening, rest = svg.split(">", 1)
    box = re.search(r'viewBox="[^"]*"', opening)
    assert box is not None
    label = html.escape(title, quote=True)
    # The document's metadata names a vocabulary's address; nothing outside is to be named.
    rest = re.sub(r"<metadata>.*?</metadata>", "", rest, flags=re.DOTALL)
    return f'<svg class="chart" {box[0]} role="img" aria-label="{label}" ' + (
        'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">'
        f"{rest.strip()}"
    )
