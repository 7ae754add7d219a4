"""``jaxclip data inspect``: what the records of a split are like, and what reading them costs."""

from __future__ import annotations

import base64
import dataclasses
import functools
import hashlib
import html
import io
import time
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from jaxclip import html_page
from jaxclip.data import decode, image_backend, image_ops, order, sources
from jaxclip.data.image_op import Cut, Size
from jaxclip.data.record import REASONS, BadRecord, Record

_SHEET, _THUMBNAIL, _NAME = 60, 128, 40
# Pictures in boxes of one size, small ones as they are; no more of long names and captions than
# lets rows stay together.
_STYLE = """
img { width: 100%; height: 128px; object-fit: scale-down; background: #8881; }
b { color: #777; font-weight: normal; }
span { display: -webkit-box; -webkit-box-orient: vertical; -webkit-line-clamp: 5;
  overflow: hidden; }
"""
_QUANTILES = (0.0, 0.05, 0.5, 0.95, 1.0)


@dataclasses.dataclass
class Findings:
    """What was found in the records that were looked at.

    Attributes:
      looked_at: number of records.
      total: records of the split.
      bad: numbers of records that can't be used, by reason.
      examples: a record for each reason.
      formats: numbers of pictures by file format.
      widths, heights, sizes: of the pictures, in pixels and bytes.
      captions: number of each record.
      words, tokens: of the captions.
      cut: captions that do not fit into a row of the tokenizer.
      equal_captions, equal_pictures: those that are not the only ones of their kind.
      scripts: captions by the writing system of most of their letters.
      sheet: (key, captions, JPEG) of a few records.
    """

    looked_at: int = 0
    total: int = 0
    bad: Counter[str] = dataclasses.field(default_factory=Counter)
    examples: dict[str, str] = dataclasses.field(default_factory=dict)
    formats: Counter[str] = dataclasses.field(default_factory=Counter)
    widths: list[int] = dataclasses.field(default_factory=list)
    heights: list[int] = dataclasses.field(default_factory=list)
    sizes: list[int] = dataclasses.field(default_factory=list)
    captions: list[int] = dataclasses.field(default_factory=list)
    words: list[int] = dataclasses.field(default_factory=list)
    tokens: list[int] = dataclasses.field(default_factory=list)
    cut: int = 0
    equal_captions: int = 0
    equal_pictures: int = 0
    scripts: Counter[str] = dataclasses.field(default_factory=Counter)
    sheet: list[tuple[str, Sequence[str], bytes]] = dataclasses.field(default_factory=list)


def inspect(name: str, split: str, tokenizer: Any, records: int) -> Findings:
    """Look at records all over a split; each picture is decoded.

    Args:
      name: as :func:`jaxclip.data.sources.open` takes it.
      split: which of its splits.
      tokenizer: captions -> int32[n, L], with ``context_length``.
      records: how many at most; 0 for all.

    Raises:
      FileNotFoundError, ValueError: as :func:`jaxclip.data.sources.open`.
    """
    source = sources.open(name).source(split)
    found = Findings(total=len(source))
    # One more than fits tells a caption that is cut from one that just fits.
    longer = tokenizer.with_length(tokenizer.context_length + 1)
    texts, pictures = Counter[str](), Counter[bytes]()
    chosen = _spread(len(source), records)
    shown = set(chosen[_spread(len(chosen), _SHEET)].tolist())
    for index in chosen.tolist():
        record = source[index]
        found.looked_at += 1
        picture = record if isinstance(record, BadRecord) else _picture(record, found)
        if isinstance(record, BadRecord) or isinstance(picture, BadRecord):
            assert isinstance(picture, BadRecord)
            found.bad[picture.reason] += 1
            where = f"{picture.key or getattr(record, 'key', '') or f'record {index}'}"
            found.examples.setdefault(picture.reason, f"{where}: {picture.detail}"[:200])
            continue
        found.captions.append(len(record.texts))
        texts.update(record.texts)
        pictures[hashlib.blake2b(record.image, digest_size=16).digest()] += 1
        if index in shown:
            found.sheet.append((record.key, record.texts, _thumbnail(picture)))
    for text, count in texts.items():
        found.words += [len(text.split())] * count
        found.scripts[_script(text)] += count
    _count_tokens(list(texts), texts, longer, found)
    found.equal_captions = sum(count for count in texts.values() if count > 1)
    found.equal_pictures = sum(count for count in pictures.values() if count > 1)
    return found


def _spread(count: int, wanted: int) -> np.ndarray:
    """Whole numbers below ``count``, evenly spread."""
    if not wanted or wanted >= count:
        return np.arange(count)
    return np.unique(np.linspace(0, count - 1, wanted).astype(np.int64))


def _picture(record: Record, found: Findings) -> Image.Image | BadRecord:
    decoded = decode.decode_mended(record.image)
    if isinstance(decoded, BadRecord):
        return decoded
    image = decoded.image
    with Image.open(io.BytesIO(decoded.data)) as opened:
        found.formats[opened.format or "unknown"] += 1
    found.widths.append(image.width)
    found.heights.append(image.height)
    found.sizes.append(len(record.image))
    return image


def _thumbnail(image: Image.Image) -> bytes:
    image.thumbnail((_THUMBNAIL, _THUMBNAIL))
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=80)
    return stream.getvalue()


def _count_tokens(
    distinct: Sequence[str], times: Mapping[str, int], longer: Any, found: Findings
) -> None:
    pad = getattr(longer, "pad_id", 0)
    for start in range(0, len(distinct), 1024):
        some = list(distinct[start : start + 1024])
        ids = np.asarray(longer(some))
        # Padding is at the end; the last other token ends the caption.
        place = np.where(ids != pad, np.arange(ids.shape[1]), -1).max(axis=1) + 1
        for text, length in zip(some, place.tolist(), strict=True):
            found.tokens += [length] * times[text]
            found.cut += times[text] * (length > longer.context_length - 1)


def _script(text: str) -> str:
    """Writing system of most letters: the first word of their names in Unicode."""
    letters = [character for character in text[:200] if character.isalpha()]
    names = Counter(unicodedata.name(letter, "unknown").split()[0].title() for letter in letters)
    return names.most_common(1)[0][0] if names else "no letters"


def lines(name: str, split: str, found: Findings, tokenizer: Any) -> list[str]:
    """The findings as lines of text."""
    looked = f"{found.looked_at:,} of {found.total:,} records looked at"
    result = [f"{name}, split {split!r}: {looked}"]
    bad = sum(found.bad.values())
    result.append(f"unusable       {bad:,} ({bad / max(1, found.looked_at):.1%})")
    for reason, count in found.bad.most_common():
        result.append(f"  {reason:<14} {count:,}  {REASONS[reason]}; {found.examples[reason]}")
    if not found.widths:
        return result
    count = len(found.widths)
    formats = ", ".join(f"{k} {v / count:.0%}" for k, v in found.formats.most_common())
    result.append(f"pictures       {formats}; {found.equal_pictures / count:.1%} not the only ones")
    for label, values in (
        ("  width", found.widths),
        ("  height", found.heights),
        ("  bytes", found.sizes),
    ):
        result.append(f"{label:<14} {_quantiles(values)}")
    if not found.words:
        return [*result, "captions       none"]
    total = len(found.words)
    scripts = ", ".join(f"{k} {v / total:.0%}" for k, v in found.scripts.most_common(5))
    result.append(
        f"captions       {total / count:.1f} a record; {scripts}; "
        f"{found.equal_captions / total:.1%} not the only ones"
    )
    result.append(f"{'  words':<14} {_quantiles(found.words)}")
    result.append(
        f"{'  tokens':<14} {_quantiles(found.tokens)}; {found.cut / total:.1%} are cut at "
        f"{tokenizer.context_length}"
    )
    return result


def _quantiles(values: Sequence[int]) -> str:
    least, low, middle, high, most = np.quantile(values, _QUANTILES, method="nearest")
    return f"{least:,} to {most:,}, median {middle:,}, 90% in {low:,} to {high:,}"


def contact_sheet(title: str, text: Sequence[str], found: Findings) -> str:
    """A page with the findings and some pictures with their captions; needs no other file."""
    cells = []
    for key, captions, jpeg in found.sheet:
        data = base64.b64encode(jpeg).decode("ascii")
        said = "".join(map(_caption_item, captions))
        # Of the path of a file the end says most.
        name = html.escape(key if len(key) <= _NAME else f"…{key[-_NAME:]}")
        cells.append(
            f'<figure><img alt="" src="data:image/jpeg;base64,{data}">'
            f'<figcaption><b title="{html.escape(key)}">{name}</b>'
            f"<ul>{said}</ul></figcaption></figure>"
        )
    grid = "\n".join(["<main>", *cells, "</main>"])
    return html_page.page(title, "\n".join(text), grid, _STYLE)


def _caption_item(caption: str) -> str:
    """A caption in its own direction; what does not fit shows under the mouse."""
    text = html.escape(caption)
    return f'<li title="{text}"><span dir="auto">{text}</span></li>'


def stages(config: Mapping[str, Any], tokenizer: Any, records: int) -> list[tuple[str, float]]:
    """CPU time of each stage for a record, one thread, in seconds.

    Args:
      config: complete data config of a run.
      tokenizer: captions -> int32[n, L].
      records: how many are read.

    Returns:
      (stage, seconds a usable record), in the order of the stages.

    Raises:
      ValueError: none of the records can be used.
    """
    source = sources.open(config["name"]).source(config["train_split"])
    chain = image_ops.build(config["image_ops"], config["image_size"])
    backend = image_backend.BACKENDS.build(config["image_backend"])
    chosen = _spread(len(source), records)
    spent: dict[str, float] = dict.fromkeys(("read", "decode", "image ops", "tokenize"), 0.0)
    used = 0

    def timed(stage: str, function: Callable[..., Any], *args: Any) -> Any:
        began = time.thread_time()
        result = function(*args)
        spent[stage] += time.thread_time() - began
        return result

    for place, index in enumerate(chosen.tolist()):
        record = timed("read", source.__getitem__, index)
        if isinstance(record, BadRecord):
            continue
        u = order.uniforms(0, np.array([place]), chain.num_draws)
        picture = timed("decode", backend.decode, record.image, functools.partial(_cuts, chain, u))
        if isinstance(picture, BadRecord):
            continue
        used += 1
        timed("image ops", _run, backend, chain, picture, u)
        timed("tokenize", tokenizer, list(record.texts[:1]) or [""])
    if not used:
        raise ValueError(f"none of {len(chosen)} records looked at can be used")
    return [(stage, seconds / used) for stage, seconds in spent.items()]


def _cuts(chain: Any, u: np.ndarray, size: Size) -> list[Cut]:
    cut = chain.first_cut(size, u[0])
    return [] if cut is None else [cut]


def _run(backend: Any, chain: Any, picture: Any, u: np.ndarray) -> np.ndarray:
    cut = chain.first_cut(picture.size, u[0])
    if backend.cut is None or cut is None:
        return chain([picture.pixels], u)
    return chain([backend.cut(picture, cut)], u, first_done=True)


def stage_lines(spent: Sequence[tuple[str, float]], cpus: int) -> list[str]:
    """The stages as lines of text, the slowest one named."""
    total = sum(seconds for _, seconds in spent)
    slowest = max(spent, key=lambda each: each[1])
    return [
        *(f"  {stage:<12} {1e3 * s:7.3f} ms  {s / total:4.0%}" for stage, s in spent),
        f"  {'together':<12} {1e3 * total:7.3f} ms of one core: {1 / total:,.0f} records/s a core, "
        f"{cpus / total:,.0f} on the {cpus} of this process",
        f"most of it is spent in: {slowest[0]}",
    ]
