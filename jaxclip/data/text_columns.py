"""Columns of captions: those of a record by policy, and hard negatives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxclip.data import reinforced, schema, text_op
from jaxclip.data.column import TEXT, Candidate, Context, Rows, TextColumn
from jaxclip.data.dataset import OWN_LANGUAGE
from jaxclip.data.naming import CAPTION_TAGS, HARD_NEGATIVES
from jaxclip.data.record import BadRecord
from jaxclip.fields import Captions, Negatives
from jaxclip.registry import hint

POLICIES = ("random", "distinct", "first", "shortest", "longest")


class CaptionsColumn(TextColumn[Captions]):
    """Captions of the record, see :class:`jaxclip.fields.Captions`."""

    def __init__(self, key: str, field: Captions, context: Context):
        super().__init__(key, field, context)
        if field.policy not in POLICIES:
            raise ValueError(f"unknown policy {field.policy!r}{hint(field.policy, POLICIES)}")
        for name, least in (("count", 1), ("min_words", 0), ("length", 0)):
            if getattr(field, name) < least:
                raise ValueError(f"{name}={getattr(field, name)} must be at least {least}")
        self._chain = text_op.build(field.ops)
        self._is_drawn = field.policy in ("random", "distinct")
        self._chooses = bool(field.source or field.min_words) or not self._is_drawn
        self._reinforced = reinforced.Reinforced(field.folder) if field.folder else None
        self._writes_synthetic = bool(self._reinforced and self._reinforced.index["captioner"])
        tags = [tag for tag, _ in field.shares] or [field.source]
        if field.shares:
            _check_shares(field)
        languages = _languages(context)
        self._of_language = {
            tag: context.data_set.texts_of([tag]) for tag in tags if tag in languages
        }

    @property
    def length(self) -> int:
        return self.field.length

    def check(self) -> None:
        wanted = [tag for tag, _ in self.field.shares] or [self.field.source]
        if not any(wanted):
            self.find(lambda each: bool(self.context.texts_of(each.record)), "no captions")
            return
        tags: set[str] = set()
        for source in wanted:
            if source == reinforced.SYNTHETIC and self._writes_synthetic:
                continue

            def has(candidate: Candidate, source: str = source) -> bool:
                tags.update(tag for each in _tags(candidate) or () for tag in each)
                return bool(self._tagged(candidate, source))

            try:
                self.find(has, f"no captions tagged {source!r}")
            except ValueError as error:
                known = sorted({*tags, *_languages(self.context)})
                raise ValueError(f"{error}{hint(source, known)}") from None

    def examine(self, candidate: Candidate) -> Any:
        if self.field.shares:
            return self._groups(candidate)
        if not self._chooses:
            return None  # the record's own captions
        texts = self.context.texts_of(candidate.record)
        if self.field.source:
            texts = self._tagged(candidate, self.field.source)
            if not texts:
                return _without(candidate, repr(self.field.source))
        texts = self._long_enough(texts)
        if not self._is_drawn and self.field.policy != "first":
            sign = -1 if self.field.policy == "longest" else 1
            texts = tuple(sorted(texts, key=lambda t: (sign * len(t.split()), sign * len(t))))
        return texts

    def possible(self, candidate: Candidate) -> tuple[str, ...] | BadRecord:
        """All captions of a record that may be drawn, or why it has none."""
        found = self.examine(candidate)
        if found is None:
            return self.context.texts_of(candidate.record)
        if isinstance(found, BadRecord) or not self.field.shares:
            return found
        return tuple(text for _, texts in found for text in texts)

    def _long_enough(self, texts: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(t for t in texts if len(t.split()) >= self.field.min_words) or texts

    def _groups(
        self, candidate: Candidate
    ) -> tuple[tuple[float, tuple[str, ...]], ...] | BadRecord:
        """Captions of each tag that the record has, with the share up to it."""
        found, total = [], 0.0
        for tag, share in self.field.shares:
            texts = self._tagged(candidate, tag)
            if texts:
                total += share
                found.append((total, self._long_enough(texts)))
        if not found:
            return _without(candidate, " or ".join(repr(tag) for tag, _ in self.field.shares))
        return tuple((share / total, texts) for share, texts in found)

    def texts(self, rows: Rows) -> list[str | None]:
        count, per_op = self.field.count, self._chain.num_draws
        chosen = count if self._is_drawn else 0
        by_share = count if self.field.shares else 0
        u = self.draws(rows, chosen + count * per_op + by_share)
        result: list[str | None] = []
        for row, loaded in enumerate(rows.loaded):
            known = loaded.extras.get(self.key, loaded.record.texts)
            if by_share:
                groups, known = known, []
                for which, x in zip(u[row, -count:], u[row, :count], strict=True):
                    texts = next(t for share, t in groups if which < share or t is groups[-1][1])
                    known.append(texts[min(int(float(x) * len(texts)), len(texts) - 1)])
                picked = list(range(count))
            elif self.field.policy == "random":
                picked = [min(int(float(x) * len(known)), len(known) - 1) for x in u[row, :count]]
            elif self.field.policy == "distinct":
                picked = _distinct(u[row, :count], len(known))
            else:
                picked = [n % len(known) for n in range(count)]
            for n, index in enumerate(picked):
                start = chosen + n * per_op
                result.append(self._chain(known[index], u[row, start : start + per_op]))
        return result

    def _tagged(self, candidate: Candidate, source: str) -> tuple[str, ...]:
        """Captions of a source or language, and what a captioner has written."""
        written: tuple[str, ...] = ()
        if self._reinforced is not None and source == reinforced.SYNTHETIC:
            written = tuple(self._reinforced.synthetic(candidate.index))
        tags = _tags(candidate)
        if tags is None:
            known = self._of_language.get(source)
            return (known(candidate.record) if known else ()) + written
        if len(tags) != len(candidate.record.texts):
            return written
        own = tuple(
            text for text, each in zip(candidate.record.texts, tags, strict=True) if source in each
        )
        return own + written


class NegativesColumn(TextColumn[Negatives]):
    """Hard negatives, see :class:`jaxclip.fields.Negatives`.

    A caption that its ops can't change (of one word, for instance) has none: a row of padding.
    """

    def __init__(self, key: str, field: Negatives, context: Context):
        super().__init__(key, field, context)
        if field.count < 1:
            raise ValueError(f"count={field.count} must be at least 1")
        if not isinstance(context.spec.get(TEXT), Captions):
            raise ValueError(f"negatives are those of batch[{TEXT!r}], which is not asked for")
        self._chain = text_op.build(field.ops)

    def examine(self, candidate: Candidate) -> tuple[str, ...] | BadRecord | None:
        own = candidate.meta.get(HARD_NEGATIVES)
        if own is None:
            return None
        own = [own] if isinstance(own, str) else own
        if not isinstance(own, list) or not all(isinstance(text, str) for text in own):
            return candidate.bad("bad_meta", f"{HARD_NEGATIVES} is no list of texts")
        return tuple(text for text in own if text.strip()) or None

    def texts(self, rows: Rows) -> list[str | None]:
        count, per_op = self.field.count, self._chain.num_draws
        u = self.draws(rows, count * (1 + per_op))
        result: list[str | None] = []
        for row, (loaded, caption) in enumerate(zip(rows.loaded, rows.captions, strict=True)):
            own = loaded.extras.get(self.key) or ()
            picked = _distinct(u[row, :count], len(own))[: len(own)] if own else []
            for n in range(count):
                if n < len(picked):
                    result.append(own[picked[n]])
                    continue
                start = count + n * per_op
                made = self._chain(caption, u[row, start : start + per_op])
                result.append(None if made == caption else made)
        return result


def _check_shares(field: Captions) -> None:
    if field.source or field.policy != "random":
        raise ValueError(
            f"shares={field.shares!r} say which captions are drawn; they go with no source and "
            f"policy='random', got {field.source!r} and {field.policy!r}"
        )
    if len({tag for tag, _ in field.shares}) < len(field.shares) or any(
        not tag or not 0 < share < float("inf") for tag, share in field.shares
    ):
        raise ValueError(f"shares={field.shares!r} must be positive, one for each tag")


def _without(candidate: Candidate, wanted: str) -> BadRecord:
    """A record without captions of the wanted tags."""
    detail, tags = f"no caption tagged {wanted}", _tags(candidate)
    if tags is not None and len(tags) != len(candidate.record.texts):
        detail = f"{CAPTION_TAGS} is not as long as the list of captions"
    return candidate.bad("empty_caption", detail)


def _distinct(u: np.ndarray, size: int) -> list[int]:
    """Draws from ``range(size)``; none comes again before all have come."""
    result: list[int] = []
    left: list[int] = []
    for x in u:
        left = left or list(range(size))
        result.append(left.pop(min(int(float(x) * len(left)), len(left) - 1)))
    return result


def _tags(candidate: Candidate) -> list[Sequence[str]] | None:
    """Tags of each of the record's captions; None if it has no tags."""
    tags = candidate.meta.get(CAPTION_TAGS)
    if not isinstance(tags, list):
        return None
    return [[tag] if isinstance(tag, str) else list(map(str, tag or ())) for tag in tags]


def _languages(context: Context) -> list[str]:
    """Languages whose captions the data set keeps apart."""
    directory = context.data_set.directory
    others = schema.languages(directory) if directory is not None else []
    return [OWN_LANGUAGE, *others] if others else []
