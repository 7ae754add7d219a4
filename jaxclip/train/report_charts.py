"""Which curves of a run are drawn, and how: the charts of the report."""

from __future__ import annotations

import html
from collections.abc import Mapping

import numpy as np

from jaxclip.train import charts, metric_names, spikes
from jaxclip.train.metrics import Curves

_OWN_CHART = ("loss", "grad_norm", "learning_rate", "logit_scale", "images_per_second")


def training(curves: Curves, found: Mapping[str, spikes.Spikes]) -> str:
    """Loss, gradient norm, what the clippers did, learning rate, logit scale, speed, the rest."""
    figures = [
        figure("Loss", loss(curves, found)),
        *terms(curves),
        figure("Gradient norm", *gradient_norm(curves, found)),
        *clippers(curves),
        figure("Learning rate", simple(curves, "learning_rate", from_zero=True)),
        figure("Logit scale", simple(curves, "logit_scale"), "exponentiated: 1 / temperature"),
        *watched(curves),
        figure("Images a second", simple(curves, "images_per_second", from_zero=True)),
    ]
    for group in others(curves):
        figures.append(figure(title(group[0]), several(curves, group)))
    figures = [part for part in figures if part]
    return f'<div class="charts">{"".join(figures)}</div>' if figures else ""


def terms(curves: Curves) -> list[str]:
    """The loss of each term of the objective, with its weight, and its own metrics."""
    figures = []
    for name in (key.removesuffix("/weight") for key in curves if key.endswith("/weight")):
        if f"{name}/loss" not in curves:
            continue
        weight = curves[f"{name}/weight"][1]
        low, high = float(np.min(weight)), float(np.max(weight))
        note = f"weight {low:.4g}" if low == high else f"weight {low:.4g} to {high:.4g}"
        line = charts.Line(*curves[f"{name}/loss"])
        svg = charts.chart([line], title=f"loss of {name} over steps")
        figures.append(figure(f"Loss of {name}", svg, note))
        start = f"{name}/"
        own = [key for key in curves if key.startswith(start)]
        for group in _groups([k for k in own if k not in (f"{name}/loss", f"{name}/weight")]):
            figures.append(figure(f"{title(group[0])}, {name}", several(curves, group)))
    return figures


def watched(curves: Curves) -> list[str]:
    """The early signs of spikes, where the run recorded them (config.watch)."""
    groups = (
        ("RMS of gradient over second moment", ("rms_max", "rms_first_layer"), "about 1 is usual"),
        ("Update over parameters", ("update_ratio",), "ratio of lengths"),
        ("Largest attention logit", ("attention_logit_image", "attention_logit_text"), ""),
        (
            "Length of embeddings",
            ("embedding_norm_image", "embedding_norm_text"),
            "before they are made unit",
        ),
        (
            "Cosine of different pairs",
            ("embedding_cosine_image", "embedding_cosine_text"),
            "mean within a tower",
        ),
    )
    figures = []
    for name, parts, note in groups:
        lines = [
            charts.Line(*curves[f"watch/{part}"], part.replace("_", " "), color)
            for part, color in zip(parts, charts.COLORS, strict=False)
            if f"watch/{part}" in curves
        ]
        if lines:
            svg = charts.chart(lines, title=name, log=name.startswith("Update"))
            figures.append(figure(name, svg, note))
    return figures


def others(curves: Curves) -> list[list[str]]:
    """Curves without a chart of their own; the shares, such as accuracies, in one."""
    rest = []
    for name, (_, values) in curves.items():
        # A count that never moved is no curve.
        still = name.startswith("nonfinite") and not np.any(values != 0)
        if "/" not in name and name not in (*_OWN_CHART, "time") and not still:
            rest.append(name)
    return _groups(rest)


def _groups(keys: list[str]) -> list[list[str]]:
    """The shares together, all else one by one."""
    shares = [name for name in keys if metric_names.is_share(name)]
    singles = [[name] for name in keys if name not in shares]
    return [shares, *singles] if shares else singles


def evaluation(curves: Curves) -> str:
    """Shares over steps, a chart a split, task and direction; none for a single evaluation."""
    groups: dict[str, list[charts.Line]] = {}
    for name, (steps, values) in curves.items():
        head, _, last = name.rpartition("/")
        if not name.startswith("eval/") or not metric_names.is_share(last) or len(steps) < 2:
            continue
        subject, _, measure = metric_names.short(last).rpartition(" ")
        group = " · ".join(filter(None, [*head.split("/")[1:], subject]))
        lines = groups.setdefault(group.replace("_", " "), [])
        color = charts.COLORS[len(lines) % len(charts.COLORS)]
        lines.append(charts.Line(steps, values, measure, color, dots=True))
    figures = [
        figure(name, charts.chart(lines, title=name, percent=True, from_zero=True))
        for name, lines in groups.items()
    ]
    return f'<div class="charts">{"".join(figures)}</div>' if figures else ""


def loss(curves: Curves, found: Mapping[str, spikes.Spikes]) -> str:
    """The loss, its spikes marked, skipped steps on the upper edge."""
    if "loss" not in curves:
        return ""
    line = charts.Line(*curves["loss"])
    return charts.chart(
        [line], title="loss over steps", marks=[*spike_marks(line, found.get("loss"))]
    )


def gradient_norm(curves: Curves, found: Mapping[str, spikes.Spikes]) -> tuple[str, str]:
    """The global norm, its spikes, and the threshold of a clipper that looks at this very norm."""
    if "grad_norm" not in curves:
        return "", ""
    line = charts.Line(*curves["grad_norm"], label="norm")
    lines, note = [line], "before clipping"
    for name in clipper_names(curves):
        if judges_global_norm(curves, name):
            threshold = curves[f"{name}/threshold"]
            lines.append(charts.Line(*threshold, "threshold", charts.COLORS[1], dashed=True))
            note = f"before clipping; threshold of {name.removeprefix('optim/')}"
            break
    svg = charts.chart(
        lines,
        title="gradient norm over steps",
        log=True,
        marks=[*spike_marks(line, found.get("grad_norm"))],
    )
    return svg, note


def clippers(curves: Curves) -> list[str]:
    """How often each clipper acted and, if it has norms of its own, these and its threshold."""
    figures = []
    for name in clipper_names(curves):
        short = name.removeprefix("optim/")
        if f"{name}/clipped" in curves:
            steps, clipped = curves[f"{name}/clipped"]
            share = float(np.mean(clipped[np.isfinite(clipped)])) if len(clipped) else 0.0
            line = charts.Line(steps, trailing_share(clipped), color=charts.COLORS[2])
            svg = charts.chart([line], title=f"{short} clipped", percent=True, from_zero=True)
            note = f"{share:.2%} of the whole run{locked(curves, name)}"
            figures.append(figure(f"Clipped by {short}", svg, note))
        if not judges_global_norm(curves, name):
            lines = [
                charts.Line(*curves[f"{name}/norm"], label="norm"),
                charts.Line(
                    *curves[f"{name}/threshold"], "threshold", charts.COLORS[1], dashed=True
                ),
            ]
            svg = charts.chart(lines, title=f"norm and threshold of {short}", log=True)
            figures.append(figure(f"What {short} sees", svg, "means over its tensors"))
    return figures


def locked(curves: Curves, name: str) -> str:
    """What to say of a rule that clipped without a break, long enough to be no spike."""
    _, streak = curves.get(f"{name}/streak", (None, np.zeros(1)))
    longest = int(np.nanmax(streak, initial=0))
    return f"; {longest} steps in a row: norms have risen for good" if longest >= 50 else ""


def clipper_names(curves: Curves) -> list[str]:
    """``optim/zclip`` and the like: what reported a norm and a threshold."""
    heads = (name.removesuffix("/threshold") for name in curves if name.endswith("/threshold"))
    return [head for head in heads if f"{head}/norm" in curves]


def judges_global_norm(curves: Curves, name: str) -> bool:
    """Whether a clipper's norm is the gradient's norm, so that one chart shows both."""
    steps, norm = curves[f"{name}/norm"]
    global_steps, global_norm = curves.get("grad_norm", (steps[:0], norm[:0]))
    if not np.array_equal(steps, global_steps):
        return False
    both = np.isfinite(norm) & np.isfinite(global_norm)
    return bool(np.median(np.isclose(norm[both], global_norm[both], rtol=1e-3)) == 1)


def trailing_share(clipped: np.ndarray) -> np.ndarray:
    """Decisions of single steps say little: the mean over about a fiftieth of the run."""
    return charts.smoothed(np.nan_to_num(clipped), max(1, len(clipped) // 50))


def spike_marks(line: charts.Line, found: spikes.Spikes | None) -> list[charts.Marks]:
    """The spikes of a curve, if any."""
    if found is None or not found.count:
        return []
    places = np.searchsorted(line.steps, found.steps)
    return [charts.Marks(found.steps, line.values[places], f"{found.count} spike(s)")]


def simple(curves: Curves, name: str, *, from_zero: bool = False) -> str:
    """One curve as it is."""
    if name not in curves:
        return ""
    line = charts.Line(*curves[name], smooth=False)
    return charts.chart([line], title=title(name), from_zero=from_zero)


def several(curves: Curves, group: list[str]) -> str:
    """Curves of one kind."""
    share = metric_names.is_share(group[0])
    lines = [
        charts.Line(*curves[name], metric_names.short(_last(name)) if len(group) > 1 else "", color)
        for name, color in zip(group, charts.COLORS, strict=False)
    ]
    return charts.chart(lines, title=title(group[0]), percent=share, from_zero=share)


def figure(name: str, svg: str, note: str = "") -> str:
    """A titled chart."""
    if not svg:
        return ""
    caption = f"<figcaption>{html.escape(note)}</figcaption>" if note else ""
    return f"<figure><h3>{html.escape(name)}</h3>{svg}{caption}</figure>"


def title(name: str) -> str:
    """``images_per_second`` -> ``Images per second``."""
    words = _last(name).replace("_", " ")
    if metric_names.is_share(name):
        words = "Accuracy within the batch"
    return words[:1].upper() + words[1:]


def _last(name: str) -> str:
    """The part of a name behind its term's."""
    return name.rpartition("/")[2]
