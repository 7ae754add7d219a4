"""What the model finds for some queries, with pictures: the part of an evaluation to look at."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxclip.evaluate import ranking, retrieval

THUMBNAIL_SIDE = 128


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
        self, texts: Sequence[str], pictures: Mapping[int, str], split: str, step: int
    ) -> dict[str, Any]:
        """The gallery as JSON.

        Args:
          texts: the captions.
          pictures: data URI of each image of :meth:`images`.
          split: name of the split.
          step: step of the parameters.

        Returns:
          ``{"split", "step", "pictures": {number: data URI}, "text_to_image": [{"query",
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
            "step": step,
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


def pictures(
    batches: Iterable[Mapping[str, Any]], index: np.ndarray, wanted: Sequence[int]
) -> dict[int, str]:
    """Thumbnails of some images of a split.

    Args:
      batches: all of the split's batches (:func:`jaxclip.data.pipeline.eval_batches`).
      index: int64[N], position in the split of each image.
      wanted: which of the N.

    Returns:
      Data URI of each.
    """
    position = {int(index[i]): i for i in wanted}
    found: dict[int, str] = {}
    for batch in batches:
        for row in np.flatnonzero(np.asarray(batch["mask"], bool)):
            number = position.get(int(batch["index"][row]))
            if number is not None:
                found[number] = data_uri(np.asarray(batch["image"][row]))
        if len(found) == len(position):
            break
    return found


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
