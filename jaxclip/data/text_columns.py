"""Columns of captions: those of a record by policy, and hard negatives."""

from __future__ import annotations

from collections.abc import Sequence

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
        self._of_language = None
        if field.source and field.source in _languages(context):
            self._of_language = context.data_set.texts_of([field.source])

    @property
    def length(self) -> int:
        return self.field.length

    def check(self) -> None:
        if not self.field.source:
            self.find(lambda each: bool(self.context.texts_of(each.record)), "no captions")
            return
        tags: set[str] = set()

        if self._reinforced is not None and self._reinforced.index["captioner"]:
            return

        def has(candidate: Candidate) -> bool:
            tags.update(tag for each in _tags(candidate) or () for tag in each)
            return bool(self._tagged(candidate))

        try:
            self.find(has, f"no captions tagged {self.field.source!r}")
        except ValueError as error:
            known = sorted({*tags, *_languages(self.context)})
            raise ValueError(f"{error}{hint(self.field.source, known)}") from None

    def examine(self, candidate: Candidate) -> tuple[str, ...] | BadRecord | None:
        if not self._chooses:
            return None  # the record's own captions
        texts = self.context.texts_of(candidate.record)
        if self.field.source:
            texts = self._tagged(candidate)
            if self._reinforced is not None and self.field.source == reinforced.SYNTHETIC:
                texts = (*texts, *self._reinforced.synthetic(candidate.index))
            if not texts:
                detail = f"no caption tagged {self.field.source!r}"
                tags = _tags(candidate)
                if tags is not None and len(tags) != len(candidate.record.texts):
                    detail = f"{CAPTION_TAGS} is not as long as the list of captions"
                return candidate.bad("empty_caption", detail)
        long = tuple(text for text in texts if len(text.split()) >= self.field.min_words)
        texts = long or texts
        if not self._is_drawn and self.field.policy != "first":
            sign = -1 if self.field.policy == "longest" else 1
            texts = tuple(sorted(texts, key=lambda t: (sign * len(t.split()), sign * len(t))))
        return texts

    def texts(self, rows: Rows) -> list[str | None]:
        count, per_op = self.field.count, self._chain.num_draws
        chosen = count if self._is_drawn else 0
        u = self.draws(rows, chosen + count * per_op)
        result: list[str | None] = []
        for row, loaded in enumerate(rows.loaded):
            known = loaded.extras.get(self.key, loaded.record.texts)
            if self.field.policy == "random":
                picked = [min(int(float(x) * len(known)), len(known) - 1) for x in u[row, :count]]
            elif self.field.policy == "distinct":
                picked = _distinct(u[row, :count], len(known))
            else:
                picked = [n % len(known) for n in range(count)]
            for n, index in enumerate(picked):
                start = chosen + n * per_op
                result.append(self._chain(known[index], u[row, start : start + per_op]))
        return result

    def _tagged(self, candidate: Candidate) -> tuple[str, ...]:
        """Captions of the wanted source or language."""
        tags = _tags(candidate)
        if tags is None:
            return self._of_language(candidate.record) if self._of_language else ()
        if len(tags) != len(candidate.record.texts):
            return ()
        return tuple(
            text
            for text, each in zip(candidate.record.texts, tags, strict=True)
            if self.field.source in each
        )


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
