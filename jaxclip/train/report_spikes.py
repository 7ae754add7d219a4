"""The spikes of a run in its report: what led to each, and the examples of its batch."""

from __future__ import annotations

import html
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxclip.train import charts, spike_files, watch

_MOST = 10


def events(workdir: pathlib.Path) -> str:
    """HTML of the spikes that were written down and of the times the run went back; or empty."""
    found = spike_files.read(workdir)
    parts = [_rewinds(spike_files.read_rewinds(workdir))]
    parts += [_event(content) for content in found[:_MOST]]
    if len(found) > _MOST:
        parts.append(f'<p class="soft">and {len(found) - _MOST} more in {spike_files.FOLDER}/</p>')
    return "\n".join(filter(None, parts))


def _rewinds(done: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for each in done:
        first, last = each["passed_over"]
        rows.append(
            f"<li>from the spike at step {each['step']} back to step {each['to']}; "
            f"batches {first} to {last} are passed over</li>"
        )
    return f"<h3>The run went back</h3><ul>{''.join(rows)}</ul>" if rows else ""


def _event(content: Mapping[str, Any]) -> str:
    """One spike: a headline, curves before it, tensors, examples."""
    head = (
        f"<h3>Step {content['step']}: a spike of the {_text(content['kind'])}, in batch "
        f"{content['batch']}</h3>"
    )
    return head + _curves(content) + _tensors(content.get("tensors", {})) + _examples(content)


def _curves(content: Mapping[str, Any]) -> str:
    steps, metrics = np.array(content["steps"], np.int64), content["metrics"]
    figures = []
    for name, title, log in (
        ("loss", "loss before the spike", False),
        ("grad_norm", "gradient norm before the spike", True),
        ("watch/rms_max", "largest RMS of a tensor", False),
    ):
        if name not in metrics or len(steps) < 2:
            continue
        values = np.array([np.nan if v is None else v for v in metrics[name]], np.float64)
        svg = charts.chart([charts.Line(steps, values, smooth=False)], title=title, log=log)
        figures.append(f"<figure><h3>{_text(title[0].upper() + title[1:])}</h3>{svg}</figure>")
    return f'<div class="charts">{"".join(figures)}</div>' if figures else ""


def _tensors(tensors: Mapping[str, Any]) -> str:
    parts = []
    grown = [(n, g) for n, g in tensors.get("gradient", []) if g is not None]
    if grown:
        listed = ", ".join(f"{growth:.3g} times {_text(name)}" for name, growth in grown)
        parts.append(f"<p>Gradients that grew most over their median: {listed}</p>")
    early = [e for e in tensors.get("rms", []) if e[1] is not None and e[1] >= watch.RMS_LIMIT]
    if early:
        listed = ", ".join(
            f"{_text(name)} {rms:.3g} ({before} steps before)" for name, rms, before in early
        )
        parts.append(
            f"<p>Second moment behind its gradient (RMS of {watch.RMS_LIMIT:g} and more): "
            f"{listed}</p>"
        )
    return "".join(parts)


def _examples(content: Mapping[str, Any]) -> str:
    if "cosine" not in content:
        return ""
    cosine, shares = content["cosine"], content["share"]
    known = (
        ""
        if cosine is None or None in shares
        else (
            f" The cosine of the two groups' gradients is {cosine:.2f}; they carry "
            f"{shares[0]:.0%} and {shares[1]:.0%} of the length of the batch's."
        )
    )
    note = (
        "<p class=\"soft\">A step down this batch's gradient, as long as the run's last one, helps "
        f"the first examples and hurts the second ones.{known}</p>"
    )
    groups = (("Losses that fall", "falling"), ("Losses that rise", "rising"))
    cards = "".join(_group(title, content[key]) for title, key in groups)
    return f'{note}<div class="queries">{cards}</div>'


def _group(title: str, examples: Sequence[Mapping[str, Any]]) -> str:
    shown = []
    for each in examples:
        change = "" if each["change"] is None else f"{each['change']:+.2g}"
        loss = "" if each["loss"] is None else f"{each['loss']:.3g}"
        shown.append(
            f'<div class="picture" title="{_text(each["key"])}"><img src="{_text(each["picture"])}"'
            f' alt=""><bdi>{_text(each["caption"])}</bdi><br>loss {loss}, {change}</div>'
        )
    return f'<div class="query"><p>{title}</p><div class="found">{"".join(shown)}</div></div>'


def _text(value: Any) -> str:
    return html.escape(str(value), quote=True)
