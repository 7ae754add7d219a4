"""Vectors of pictures and captions: from a folder of ``jaxclip embed``, or by a model here."""

from __future__ import annotations

import dataclasses
import functools
import io
import pathlib
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from jaxclip.curate import vectors
from jaxclip.curate.flow import Flow
from jaxclip.curate.numbers import boxes_of, fill_boxes, without_numbers
from jaxclip.curate.rows import Ragged, Rows
from jaxclip.curate.step import Step, check_choice, check_range, path_stamp
from jaxclip.curate.store import REASON
from jaxclip.data import decode
from jaxclip.data.record import BadRecord


@dataclasses.dataclass(frozen=True)
class Embeddings(Step):
    """Columns ``image`` float16[n, D] and ``text``, a vector of unit length for each caption.

    A model runs in this process, which has the accelerator, shard by shard; vectors of a folder are
    joined by key in any worker.

    Attributes:
      folder: of ``jaxclip embed``, for the pictures' vectors.
      weights: a workdir or published weights, for what ``folder`` does not give.
      tokenizer: file or folder of the vocabulary, if none came with the weights.
      images: ``"plain"``, ``"text_masked"`` (T-MARS: text in the picture is painted over first) or
        ``"none"``.
      texts: ``"plain"``, ``"without_numbers"``, ``"masked_numbers"`` or ``"none"``.
      text_boxes: member of the record's meta with the boxes or polygons of text in its picture.
      suffix: behind the names of the columns, to keep several kinds.
      batch_size: of the model.
    """

    folder: str = ""
    weights: str = ""
    tokenizer: str = ""
    images: str = "plain"
    texts: str = "plain"
    text_boxes: str = "text_boxes"
    suffix: str = ""
    batch_size: int = 128

    reasons: ClassVar[tuple[str, ...]] = ("no_embedding", "undecodable")

    def makes(self) -> tuple[str, ...]:
        made = ("image",) * (self.images != "none") + ("text",) * (self.texts != "none")
        return tuple(name + self.suffix for name in made)

    def check(self) -> None:
        check_choice("images", self.images, ("plain", "text_masked", "none"))
        check_choice("texts", self.texts, ("plain", "without_numbers", "masked_numbers", "none"))
        check_range("batch_size", self.batch_size, 1)
        if self.folder:
            vectors.check_folder(self.folder)
            if self.images != "plain":
                raise ValueError(
                    f"images={self.images!r} are not the pictures of folder={self.folder!r}"
                )
        needs = self.texts != "none" or (self.images != "none" and not self.folder)
        if needs and not self.weights:
            missing = "texts" if self.folder else "pictures"
            raise ValueError(
                f"nothing to embed {missing} with: give weights, a workdir or published weights"
                + (", or texts='none'" if self.folder else ", or folder, of `jaxclip embed`")
            )
        check_paths(weights=self.weights, tokenizer=self.tokenizer)

    def stamp(self) -> Any:
        return [path_stamp(path) for path in (self.folder, self.weights, self.tokenizer) if path]

    def run(self, flow: Flow) -> None:
        if self.folder:
            join = functools.partial(self.join, flow.view.source, flow.view.split)
            flow.columns("joined", join)
            found = int(flow.total("found", _count_there).arrays()["there"])
            if not found:
                raise ValueError(
                    f"no record of {flow.view.source}, split {flow.view.split!r}, has its key "
                    f"among the ids of {self.folder}: they are of other pictures"
                )
            flow.note("vectors from the folder", found)
        elif self.images != "none":
            flow.columns("images", self.embed_images, here=True)
        if self.texts != "none":
            flow.columns("texts", self.embed_texts, here=True)
        flow.decide(self.verdict)

    def join(self, source: str, split: str, rows: Rows) -> dict[str, Any]:
        """The pictures' vectors from the folder."""
        prefixed = [f"{split}/{key}" for key in rows.keys]
        numbers = [str(index) for index in rows.index]
        ids = [rows.keys, prefixed, numbers, [f"{split}/{number}" for number in numbers]]
        found, there = vectors.look_up(self.folder, ids)
        return {
            "image" + self.suffix: vectors.unit(found).astype(np.float16),
            "_state": np.where(there, 0, 1).astype(np.uint8),
        }

    def embed_images(self, rows: Rows) -> dict[str, Any]:
        """The pictures' vectors by the model; ``_state`` is 2 where one can't be decoded."""
        model = load_model(self.weights, self.tokenizer)
        found = np.zeros((len(rows), model.sizes.embed_dim), np.float16)
        state = np.zeros(len(rows), np.uint8)
        waiting: list[tuple[int, Any]] = []

        def encode() -> None:
            batch = model.batch([prepared for _, prepared in waiting], self.batch_size)
            rows_of = [row for row, _ in waiting]
            found[rows_of] = np.asarray(model.encode_image(batch))[: len(waiting)]
            waiting.clear()

        boxes = [boxes_of(meta, self.text_boxes) for meta in rows.meta] \
            if self.images == "text_masked" else [()] * len(rows)  # fmt: skip
        for row, data in enumerate(rows.pictures()):
            prepared = data if isinstance(data, BadRecord) else _prepared(model, data, boxes[row])
            if isinstance(prepared, BadRecord):
                state[row] = 2
                continue
            waiting.append((row, prepared))
            if len(waiting) == self.batch_size:
                encode()
        if waiting:
            encode()
        return {"image" + self.suffix: found, "_state": state}

    def embed_texts(self, rows: Rows) -> dict[str, Any]:
        """The captions' vectors; zeros for one of which nothing is left."""
        captions = rows.captions()
        texts = [self.changed(text) for each in rows.texts for text in each]
        found = embed(load_model(self.weights, self.tokenizer), texts, self.batch_size)
        found[[not text for text in texts]] = 0
        return {"text" + self.suffix: Ragged(captions.row, found.astype(np.float16))}

    def changed(self, text: str) -> str:
        """A caption as the model is given it."""
        if self.texts == "plain":
            return text
        return without_numbers(text, "mask" if self.texts == "masked_numbers" else "remove")

    def verdict(self, rows: Rows) -> dict[str, Any]:
        """What is said of each record."""
        return {REASON: rows["_state"] if "_state" in rows else np.zeros(len(rows), np.uint8)}


def check_paths(**paths: str) -> None:
    """Raise FileNotFoundError for an option that names a file or folder that is not there."""
    for option, path in paths.items():
        if path and not pathlib.Path(path).expanduser().exists():
            raise FileNotFoundError(f"{option} {path!r}: no such file or folder")


def embed(model: Any, texts: Sequence[str], batch_size: int) -> np.ndarray:
    """float32[n, D] of texts."""
    found = np.zeros((len(texts), model.sizes.embed_dim), np.float32)
    for start in range(0, len(texts), batch_size):
        some = list(texts[start : start + batch_size])
        # Filled up, so that one program serves all.
        tokens = model.tokenize(some + [""] * (batch_size - len(some)))
        found[start : start + len(some)] = np.asarray(model.encode_text(tokens))[: len(some)]
    return found


def _prepared(model: Any, data: bytes, boxes: Any) -> Any:
    if not len(boxes):
        return model.prepare(data)
    image = decode.decode(data)
    if isinstance(image, BadRecord):
        return image
    stream = io.BytesIO()
    Image.fromarray(fill_boxes(np.asarray(image), boxes)).save(stream, "PNG", compress_level=1)
    return model.prepare(stream.getvalue())


def _count_there(rows: Rows) -> dict[str, np.ndarray]:
    return {"there": np.sum(rows["_state"] == 0)}


@functools.lru_cache(maxsize=1)
def load_model(weights: str, tokenizer: str) -> Any:
    """The model of a path; it stays loaded."""
    # The one place where curation needs a model; nothing is imported where vectors are given.
    from jaxclip.inference.model import load

    return load(weights, tokenizer={"path": tokenizer} if tokenizer else None)
