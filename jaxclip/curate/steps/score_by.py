"""Scores by a function of your own: safety, watermarks, aesthetics, a captioner's agreement, …"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from jaxclip.curate.flow import Flow
from jaxclip.curate.rows import Rows
from jaxclip.curate.step import Step, check_range, path_stamp
from jaxclip.data.record import BadRecord


@dataclasses.dataclass(frozen=True)
class ScoreBy(Step):
    """Columns that a function makes of a batch; ``where`` or ``top`` behind it choose.

    ``function(batch) -> {column: numbers}`` is given lists of the same length: ``key``, ``texts``
    (captions that are left), ``meta`` (dicts) and, with ``pictures``, ``image`` (encoded bytes,
    empty where it can't be read), and arrays of columns. No model is shipped.

    Attributes:
      function: ``"package.module:name"``, importable wherever the workers run. Its scores are made
        anew if its file changes, not if another file does that it imports.
      columns: names of what it makes.
      pictures: whether it wants the pictures.
      inputs: columns that it wants beside.
      batch_size: records of a call.
      here: run in this process only, which has the accelerator.
    """

    function: str = ""
    columns: tuple[str, ...] = ()
    pictures: bool = True
    inputs: tuple[str, ...] = ()
    batch_size: int = 256
    here: bool = False

    reasons: ClassVar[tuple[str, ...]] = ()

    def wants(self) -> tuple[str, ...]:
        return tuple(self.inputs)

    def makes(self) -> tuple[str, ...]:
        return tuple(self.columns)

    def check(self) -> None:
        check_range("batch_size", self.batch_size, 1)
        if not self.columns:
            raise ValueError("columns is missing: name what the function makes")
        _imported(self.function)

    def stamp(self) -> Any:
        file = getattr(importlib.import_module(self.function.partition(":")[0]), "__file__", None)
        return path_stamp(file) if file else None

    def run(self, flow: Flow) -> None:
        flow.columns("scores", self.scores, here=self.here)

    def scores(self, rows: Rows) -> dict[str, Any]:
        """The columns.

        Raises:
          ValueError: the function left out a column, or made another number of values.
        """
        function = _imported(self.function)
        pictures = iter(rows.pictures()) if self.pictures else None
        found: dict[str, list[Any]] = {name: [] for name in self.columns}
        texts, metas = rows.texts, rows.meta
        for start in range(0, len(rows), self.batch_size):
            part = slice(start, min(start + self.batch_size, len(rows)))
            batch: dict[str, Any] = {
                "key": rows.keys[part],
                "texts": texts[part],
                "meta": metas[part],
                **{name: rows[name][part] for name in self.inputs},
            }
            if pictures is not None:
                data = [next(pictures) for _ in batch["key"]]
                batch["image"] = [b"" if isinstance(each, BadRecord) else each for each in data]
            made = function(batch)
            if not isinstance(made, Mapping):
                raise ValueError(f"{self.function} made {made!r:.60}, not a dict of columns")
            for name in self.columns:
                if name not in made or len(made[name]) != len(batch["key"]):
                    raise ValueError(
                        f"{self.function} made {sorted(made)} for {len(batch['key'])} records; it "
                        f"must make {name!r}, a number for each"
                    )
                found[name].append(np.asarray(made[name], np.float32))
        empty = np.zeros(0, np.float32)
        return {name: np.concatenate([empty, *parts]) for name, parts in found.items()}


def _imported(name: str) -> Any:
    module, colon, member = name.partition(":")
    if not colon:
        raise ValueError(f"function={name!r} must be 'package.module:name'")
    try:
        found = getattr(importlib.import_module(module), member)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"function={name!r} can't be imported: {error}") from error
    if not callable(found):
        raise ValueError(f"function={name!r} is no function, but {found!r}")
    return found
