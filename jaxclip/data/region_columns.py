"""Columns of regions: boxes that follow the image ops, and a text of each."""

from __future__ import annotations

import threading
from collections import Counter
from typing import Any

import numpy as np

from jaxclip import fields
from jaxclip.data.column import IMAGE, Candidate, Column, Context, Rows, TextColumn, draws
from jaxclip.data.naming import BOXES, REGION_TEXTS
from jaxclip.data.record import BadRecord
from jaxclip.data.view_column import ViewColumn


class BoxesColumn(Column[fields.Boxes]):
    """Boxes that follow the image ops, see :class:`jaxclip.fields.Boxes`."""

    def __init__(self, key: str, field: fields.Boxes, context: Context):
        super().__init__(key, field, context)
        self._lock = threading.Lock()
        self._counts = Counter[str](boxes=0, outside=0)
        if field.count < 1:
            raise ValueError(f"count={field.count} must be at least 1")
        if not 0 <= field.min_visible <= 1:
            raise ValueError(f"min_visible={field.min_visible} must be in [0, 1]")
        view = context.spec.get(IMAGE)
        if not isinstance(view, fields.View):
            raise ValueError(f"boxes are those of batch[{IMAGE!r}], which is not asked for")
        self._view = ViewColumn(IMAGE, view, context)
        self._view.chain.check_moves()

    def check(self) -> None:
        self.find(lambda each: BOXES in each.meta, f"no {BOXES}")

    def examine(self, candidate: Candidate) -> np.ndarray | BadRecord | None:
        if BOXES not in candidate.meta:
            return None
        try:
            boxes = np.asarray(candidate.meta[BOXES], np.float32).reshape(-1, 4)
        except (TypeError, ValueError):
            return candidate.bad("bad_meta", f"{BOXES} is no list of [x0, y0, x1, y1]")
        ordered = np.isfinite(boxes).all() and (boxes[:, :2] <= boxes[:, 2:]).all()
        if not ordered or (np.abs(boxes - 0.5) > 0.501).any():
            return candidate.bad("bad_meta", f"{BOXES} must be x0 <= x1, y0 <= y1 in [0, 1]")
        return boxes[: self.field.count]  # RegionTexts keeps the same ones

    def make(self, rows: Rows) -> np.ndarray:
        result = np.zeros((len(rows.loaded), self.field.count, 4), np.float32)
        u = draws(rows.seed, IMAGE, rows.places, self._view.num_draws)
        for row, loaded in enumerate(rows.loaded):
            boxes = loaded.extras.get(self.key)
            if boxes is not None and len(boxes) and loaded.pixels is not None:
                given = self._view.numbers
                numbers = u[row] if given is None else given(loaded.index, u[row])
                result[row, : len(boxes)] = self._view.chain.boxes(
                    loaded.size, boxes, numbers, min_visible=self.field.min_visible
                )
                there = int(result[row].any(axis=1).sum())
                with self._lock:
                    self._counts.update(boxes=len(boxes), outside=len(boxes) - there)
        return result

    def counts(self) -> dict[str, int]:
        """``boxes`` of the pictures drawn so far, and how many of them fell ``outside``."""
        with self._lock:
            return dict(self._counts)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())


class RegionTextsColumn(TextColumn[fields.RegionTexts]):
    """A text for each box, see :class:`jaxclip.fields.RegionTexts`."""

    def __init__(self, key: str, field: fields.RegionTexts, context: Context):
        super().__init__(key, field, context)
        if field.count < 1:
            raise ValueError(f"count={field.count} must be at least 1")

    def check(self) -> None:
        self.find(lambda each: REGION_TEXTS in each.meta, f"no {REGION_TEXTS}")

    def examine(self, candidate: Candidate) -> tuple[str, ...] | BadRecord | None:
        texts = candidate.meta.get(REGION_TEXTS)
        if texts is None:
            return None
        if not isinstance(texts, list) or not all(isinstance(each, str) for each in texts):
            return candidate.bad("bad_meta", f"{REGION_TEXTS} is no list of texts")
        boxes = candidate.meta.get(BOXES)
        if isinstance(boxes, list) and len(boxes) != len(texts):
            detail = f"{len(texts)} {REGION_TEXTS} of {len(boxes)} {BOXES}"
            return candidate.bad("bad_meta", detail)
        return tuple(texts[: self.field.count])

    def texts(self, rows: Rows) -> list[str | None]:
        result: list[str | None] = []
        for loaded in rows.loaded:
            own = [text.strip() or None for text in loaded.extras.get(self.key, ())]
            result += [*own, *[None] * (self.field.count - len(own))]
        return result
