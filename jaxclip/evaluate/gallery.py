"""What the model finds for some queries, with pictures: the part of an evaluation to look at."""

from __future__ import annotations

import base64
import dataclasses
import io
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import numpy as np

from jaxclip.evaluate import ranking, retrieval
from jaxclip.evaluate.base import Data, Evaluator, Model

GALLERY_FILE = "gallery.json"
THUMBNAIL_SIDE = 128


@dataclasses.dataclass(frozen=True)
class Gallery(Evaluator):
    """Images and captions that are retrieved for some queries, for the report; no metrics.

    Attributes:
      num_text_queries: captions that ask.
      num_image_queries: images that ask.
      num_results: how many are retrieved for each.
      seed: of the draw: the same queries whatever the model.
    """

    num_text_queries: int = 12
    num_image_queries: int = 8
    num_results: int = 5
    seed: int = 0

    writes: ClassVar[tuple[str, ...]] = (GALLERY_FILE,)

    def metric_names(self) -> list[str]:
        return []

    def check(self, data: Data) -> None:
        """Refuse sizes below 1 and a split without captions."""
        for name in ("num_text_queries", "num_image_queries", "num_results"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        retrieval.check_captions(data)

    def evaluate(self, model: Model, data: Data) -> dict[str, float]:
        """No metrics."""
        return {}

    def files(self, model: Model, data: Data) -> dict[str, Any]:
        """``gallery.json``; see :meth:`Picks.content`."""
        images = data.images(model)
        captions = retrieval.captions_of(images.texts, data)
        embedded = model.texts(captions.texts)
        if jax.process_index() != 0:
            return {}
        picked = pick(images.embeddings, embedded, captions, **dataclasses.asdict(self))
        # A second pass over the split: the pictures shown are known only now.
        found = data.pictures(picked.images())
        pictures = {number: data_uri(picture) for number, picture in found.items()}
        return {GALLERY_FILE: picked.content(captions.texts, pictures, data.split)}


class Picks(NamedTuple):
    """Queries and what was retrieved for them; numbers refer to a split's images and captions.

    Attributes:
      text_queries: int64[Q] captions that asked.
      found_images: int64[Q, K] images, best first; ``image_scores`` and ``image_right`` alike.
      image_scores: float32[Q, K].
      image_right: bool[Q, K].
      image_queries: int64[R] images that asked.
      found_texts: int64[R, K] captions, best first; ``text_scores`` and ``text_right`` alike.
      text_scores: float32[R, K].
      text_right: bool[R, K].
    """

    text_queries: np.ndarray
    found_images: np.ndarray
    image_scores: np.ndarray
    image_right: np.ndarray
    image_queries: np.ndarray
    found_texts: np.ndarray
    text_scores: np.ndarray
    text_right: np.ndarray

    def images(self) -> list[int]:
        """The images that are shown."""
        return sorted(
            {int(i) for i in np.ravel(self.found_images)} | {*map(int, self.image_queries)}
        )

    def content(
        self, texts: Sequence[str], pictures: Mapping[int, str], split: str
    ) -> dict[str, Any]:
        """The gallery as JSON.

        Args:
          texts: the captions.
          pictures: data URI of each image of :meth:`images`.
          split: name of the split.

        Returns:
          ``{"split", "pictures": {number: data URI}, "text_to_image": [{"query",
          "results": [{"picture", "score", "right"}]}], "image_to_text": [{"picture", "results":
          [{"text", "score", "right"}]}]}``.
        """
        text_to_image = [
            {
                "query": texts[query],
                "results": [
                    {"picture": str(i), "score": round(float(s), 4), "right": bool(r)}
                    for i, s, r in zip(*row, strict=True)
                ],
            }
            for query, *row in zip(
                self.text_queries,
                self.found_images,
                self.image_scores,
                self.image_right,
                strict=True,
            )
        ]
        image_to_text = [
            {
                "picture": str(query),
                "results": [
                    {"text": texts[i], "score": round(float(s), 4), "right": bool(r)}
                    for i, s, r in zip(*row, strict=True)
                ],
            }
            for query, *row in zip(
                self.image_queries,
                self.found_texts,
                self.text_scores,
                self.text_right,
                strict=True,
            )
        ]
        return {
            "split": split,
            "pictures": {str(number): uri for number, uri in pictures.items()},
            "text_to_image": text_to_image,
            "image_to_text": image_to_text,
        }


def pick(
    images: np.ndarray,
    embedded: np.ndarray,
    captions: retrieval.Captions,
    *,
    num_text_queries: int = 12,
    num_image_queries: int = 8,
    num_results: int = 5,
    seed: int = 0,
) -> Picks:
    """Choose queries, the same ones whatever the model, and retrieve.

    Args:
      images: float32[N, D] image embeddings.
      embedded: float32[C, D] embeddings of the distinct captions.
      captions: the captions and who owns them.
      num_text_queries: captions that ask (the first caption of images drawn at random).
      num_image_queries: images that ask.
      num_results: how many are retrieved for each.
      seed: of the draw.

    Returns:
      :class:`Picks`.
    """
    owners, first = np.unique(captions.pairs[:, 0], return_index=True)
    order = np.random.default_rng(seed).permutation(len(owners))
    # Captions that many images share would fill the page with right answers of no interest twice.
    asking = np.array(
        list(dict.fromkeys(int(captions.pairs[first[i], 1]) for i in order)), np.int64
    )[:num_text_queries]
    image_scores, found_images = ranking.top_k(embedded[asking], images, num_results)
    shown = owners[order[::-1][:num_image_queries]]
    text_scores, found_texts = ranking.top_k(images[shown], embedded, num_results)
    return Picks(
        asking,
        found_images,
        image_scores,
        retrieval.owned(asking, found_images, captions.pairs[:, ::-1]),
        shown,
        found_texts,
        text_scores,
        retrieval.owned(shown, found_texts, captions.pairs),
    )


def data_uri(image: np.ndarray) -> str:
    """A picture as ``data:image/…;base64,…``: PNG if small, else a JPEG thumbnail.

    Args:
      image: uint8[H, W, 3].
    """
    from PIL import Image

    picture = Image.fromarray(image)
    kind = "png"
    options: dict[str, Any] = {"optimize": True}
    if max(picture.size) > THUMBNAIL_SIDE:
        picture.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
        kind, options = "jpeg", {"quality": 85}
    buffer = io.BytesIO()
    picture.save(buffer, format=kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
