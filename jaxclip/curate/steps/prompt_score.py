"""How well records fit some texts: class names, findings, whatever a subset is to be about."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from typing import Any, ClassVar

import numpy as np

from jaxclip.curate import vectors
from jaxclip.curate.flow import Flow
from jaxclip.curate.rows import Ragged, Rows
from jaxclip.curate.step import Step, check_range, path_stamp
from jaxclip.curate.steps.clip_score import reduced
from jaxclip.curate.steps.embeddings import check_paths, embed, load_model
from jaxclip.curate.store import Stored


@dataclasses.dataclass(frozen=True)
class PromptScore(Step):
    """A column with the largest cosine of a record to any of some prompts; ``top`` or ``where``
    behind it choose.

    PathGen (2407.00203) chooses patches by findings so, with a pathology CLIP; CiT (2301.02241)
    keeps captions with ``on="text"`` and a cosine of more than 0.55 to the name of a class.

    Attributes:
      prompts: file with a prompt a line, or a list of prompts.
      weights: workdir or published weights, those of the step ``embeddings``.
      tokenizer: file or folder of the vocabulary, if none came with the weights.
      on: column with vectors; of several captions the best counts.
      column: name of the score; ``COLUMN_prompt`` is the number of the prompt, from 0.
    """

    prompts: tuple[str, ...] = ()
    weights: str = ""
    tokenizer: str = ""
    on: str = "image"
    column: str = "prompt_score"

    reasons: ClassVar[tuple[str, ...]] = ()

    def wants(self) -> tuple[str, ...]:
        return (self.on,)

    def makes(self) -> tuple[str, ...]:
        return self.column, f"{self.column}_prompt"

    def check(self) -> None:
        check_range("number of prompts", len(self.texts()), 1)
        if not self.weights:
            raise ValueError("weights is missing: name the workdir or weights of 'embeddings'")
        check_paths(weights=self.weights, tokenizer=self.tokenizer)

    def stamp(self) -> Any:
        paths = [path for path in (self.weights, self.tokenizer) if path]
        return [self.texts(), *map(path_stamp, paths)]

    def texts(self) -> list[str]:
        """The prompts: those of a file, where one alone names a file."""
        file = pathlib.Path(self.prompts[0]).expanduser() if len(self.prompts) == 1 else None
        if file is None or not file.is_file():
            return list(self.prompts)
        lines = file.read_text(encoding="utf-8-sig").splitlines()
        return [line.strip() for line in lines if line.strip()]

    def run(self, flow: Flow) -> None:
        prompts = flow.save("prompts", self.embed_prompts)
        flow.columns("scores", functools.partial(self.scores, prompts))
        best = flow.counts("best", self.best, len(self.texts()))
        rows = [[text, int(count)] for text, count in zip(self.texts(), best, strict=True)][:100]
        flow.note("nearest prompts", {"head": ["prompt", "records"], "rows": rows})

    def embed_prompts(self) -> dict[str, np.ndarray]:
        """float32[m, D] of unit length."""
        model = load_model(self.weights, self.tokenizer)
        return {"vectors": vectors.unit(embed(model, self.texts(), 128))}

    def scores(self, stored: Stored, rows: Rows) -> dict[str, Any]:
        """The largest cosine of each record, and to which prompt.

        Raises:
          ValueError: the prompts' vectors have another length.
        """
        prompts, value = stored.arrays()["vectors"], rows[self.on]
        own = value.value if isinstance(value, Ragged) else value
        if own.shape[1] != prompts.shape[1]:
            raise ValueError(
                f"step 'prompt_score': {self.on!r} has vectors of {own.shape[1]}, the prompts of "
                f"{prompts.shape[1]}: weights={self.weights!r} are not those of 'embeddings'"
            )
        cosines = vectors.unit(own) @ prompts.T
        row = value.row if isinstance(value, Ragged) else np.arange(len(rows))
        most = cosines.max(axis=1, initial=-1)
        score = reduced(Ragged(row, most), len(rows), "max")
        which = np.full(len(rows), -1, np.int32)
        # Of several captions the first with the record's score tells the prompt.
        best = np.flatnonzero(most == score[row])[::-1]
        which[row[best]] = cosines[best].argmax(axis=1)
        return {self.column: score, f"{self.column}_prompt": which}

    def best(self, rows: Rows) -> np.ndarray:
        """The nearest prompt of each record that has one."""
        which = rows[f"{self.column}_prompt"]
        return which[which >= 0]
