"""The report of a curation as an HTML page: counts, histograms as SVG, tables, pictures."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from typing import Any

from jaxclip import html_page
from jaxclip.curate import source
from jaxclip.curate.store import View
from jaxclip.data import decode
from jaxclip.data.record import BadRecord

_WIDTH, _HEIGHT = 320, 90
_THUMBNAIL = 128


def page(content: Mapping[str, Any], text: Sequence[str], view: View) -> str:
    """The page.

    Args:
      content: of :func:`jaxclip.curate.report.collect`.
      text: its counts as lines.
      view: where its pictures are.
    """
    title = f"Curation of {content['source']}, {content['split']}"
    sections = []
    for step in content["steps"][1:]:
        parts = [_histogram(name, shape) for name, shape in step["histograms"].items()]
        parts += [
            _table(name, value)
            for name, value in step["notes"].items()
            if isinstance(value, Mapping)
        ]
        options = ", ".join(f"{key}={value!r}" for key, value in step["options"].items())
        head = f"<h2>{html.escape(step['step'])}</h2><p>{html.escape(options)}</p>"
        sections.append(f"{head}<div>{_counts(step)}{''.join(parts)}</div>")
    body = "\n".join([*sections, *_pictures(content["examples"], view)])
    return html_page.page(title, "\n".join(text), body, _STYLE)


def _counts(step: Mapping[str, Any]) -> str:
    rows = [["in", f"{step['in']:,}"], ["out", f"{step['out']:,}"]]
    rows += [[reason, f"{count:,}"] for reason, count in step["dropped"].items() if count]
    return _rows(rows)


def _histogram(name: str, shape: Mapping[str, Any]) -> str:
    """Bars of all values, and of those whose records the step left, in front of them."""
    before, after = shape["before"], shape["after"]
    top, width = max(max(before), 1), _WIDTH / len(before)
    bars = []
    for values, kind in ((before, "all"), (after, "left")):
        for place, value in enumerate(values):
            height = _HEIGHT * value / top
            bars.append(
                f'<rect class="{kind}" x="{place * width:.1f}" y="{_HEIGHT - height:.1f}" '
                f'width="{width - 0.5:.1f}" height="{height:.1f}"/>'
            )
    return (
        f"<figure><svg viewBox='0 0 {_WIDTH} {_HEIGHT}' role='img' "
        f"aria-label='{html.escape(name)}'>{''.join(bars)}</svg>"
        f"<figcaption>{html.escape(name)}: {shape['least']:.4g} to {shape['most']:.4g}, "
        f"{sum(before):,} values, {sum(after):,} left</figcaption></figure>"
    )


def _table(name: str, table: Mapping[str, Any]) -> str:
    head = "".join(f"<th>{html.escape(str(each))}</th>" for each in table["head"])
    return (
        f"<section><h3>{html.escape(name)}</h3>" + _rows(table["rows"], f"<tr>{head}</tr>")
    ) + "</section>"


def _rows(rows: Sequence[Sequence[Any]], head: str = "") -> str:
    cells = "".join(
        "<tr>" + "".join(f"<td>{html.escape(_text(cell))}</td>" for cell in row) + "</tr>"
        for row in rows
    )
    return f"<table>{head}{cells}</table>"


def _text(cell: Any) -> str:
    if isinstance(cell, float):
        return f"{cell:.4g}"
    return f"{cell:,}" if isinstance(cell, int) else str(cell)


def _pictures(examples: Sequence[tuple[str, str, int]], view: View) -> list[str]:
    found: list[str] = []
    last = None
    for step, reason, index in examples:
        if (step, reason) != last:
            if last is not None:
                found.append("</main>")
            found.append(f"<h2>{html.escape(f'{step}: {reason}' if reason else step)}</h2><main>")
            last = (step, reason)
        found.append(_picture(view, index))
    return [*found, "</main>"] if found else found


def _picture(view: View, index: int) -> str:
    record = source.record(view.source, view.split, index)
    if isinstance(record, BadRecord):
        said = f"{record.key} {record.reason}: {record.detail}"
        return f"<figure><figcaption>{html.escape(said[:200])}</figcaption></figure>"
    captions = "".join(f"<li>{html.escape(text[:300])}</li>" for text in record.texts[:5])
    image = decode.decode(record.image)
    shown = ""
    if not isinstance(image, BadRecord):
        image.thumbnail((_THUMBNAIL, _THUMBNAIL))
        stream = io.BytesIO()
        image.save(stream, "JPEG", quality=80)
        data = base64.b64encode(stream.getvalue()).decode("ascii")
        shown = f'<img alt="" src="data:image/jpeg;base64,{data}">'
    return (
        f"<figure>{shown}<figcaption>{html.escape(record.key)}<ul>{captions}</ul></figcaption>"
        "</figure>"
    )


_STYLE = f"""\
div {{ display: flex; flex-wrap: wrap; gap: 1.2rem; align-items: flex-start; }}
svg {{ width: {_WIDTH}px; max-width: 100%; border-bottom: 1px solid #999; }}
.all {{ fill: #c9ccd1; }}
.left {{ fill: #2f6fb2; }}
table {{ border-collapse: collapse; font-size: .85rem; }}
td, th {{ padding: .1rem .8rem .1rem 0; text-align: left; }}
"""
