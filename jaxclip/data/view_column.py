"""The column of a picture."""

from __future__ import annotations

import numpy as np

from jaxclip import fields
from jaxclip.data import embedded, image_chain
from jaxclip.data.column import Candidate, Column, Context, Rows
from jaxclip.data.record import BadRecord


class ViewColumn(Column[fields.View]):
    """A picture, see :class:`jaxclip.fields.View`."""

    def __init__(self, key: str, field: fields.View, context: Context):
        super().__init__(key, field, context)
        if field.size < 0:
            raise ValueError(f"size={field.size} must not be negative")
        ops = field.ops or context.config["image_ops"]
        self._reinforced = None
        if field.replay:
            self._reinforced = embedded.checked(field.replay, context)
            ops = self._reinforced.index["image_ops"]
        self.chain = image_chain.build(ops, field.size or context.config["image_size"])
        # (number of the record, what it draws) -> the numbers of its ops; None: these are drawn.
        self.numbers = None if self._reinforced is None else self._reinforced.numbers

    def check(self) -> None:
        if self._reinforced is not None:
            embedded.check_pixels(self._reinforced, self.chain, self.context)

    def examine(self, candidate: Candidate) -> BadRecord | None:
        if self._reinforced is not None and not self._reinforced.is_good(candidate.index):
            return candidate.bad("bad_vector", "it could not be embedded when it was reinforced")
        return None

    @property
    def num_draws(self) -> int:
        """Random numbers of a row: one that chooses among augmentations, or those of the ops."""
        return self.chain.num_draws if self.numbers is None else 1

    def make(self, rows: Rows) -> np.ndarray:
        return rows.views[self.key]
