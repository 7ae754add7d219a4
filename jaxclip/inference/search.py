"""Find and sort pictures by what they show: rankings and classes from embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxclip.evaluate import templates as templates_lib
from jaxclip.evaluate import zero_shot
from jaxclip.inference.model import Model

_ROWS = 65_536  # embeddings that are compared at once


class Hit(NamedTuple):
    """A picture that was found.

    Attributes:
      id: of the picture.
      score: cosine of the angle between picture and query.
    """

    id: str
    score: float


def rank(query: np.ndarray, embeddings: np.ndarray, top: int) -> list[tuple[int, float]]:
    """The rows nearest to a query.

    Args:
      query: float32[D], of unit length.
      embeddings: float32[N, D], of unit length.
      top: how many at most.

    Returns:
      ``(row, cosine)``, best first; of equals the earlier row is first.

    Raises:
      ValueError: ``top`` is below 1.
    """
    if top < 1:
        raise ValueError(f"--top {top} must be at least 1")
    parts = [
        embeddings[start : start + _ROWS] @ query for start in range(0, len(embeddings), _ROWS)
    ]
    scores = np.concatenate(parts) if parts else np.zeros(0, np.float32)
    order = np.argsort(-scores, kind="stable")[:top]
    return [(int(row), float(scores[row])) for row in order]


def search(
    model: Model, text: str, ids: Sequence[str], embeddings: np.ndarray, *, top: int = 10
) -> list[Hit]:
    """The pictures that a text describes best.

    Args:
      model: which made the embeddings.
      text: the query.
      ids: N ids of pictures.
      embeddings: float32[N, D].
      top: how many at most.

    Raises:
      ValueError: the embeddings are of another size than the model's.
    """
    if embeddings.shape[1:] != (model.sizes.embed_dim,):
        raise ValueError(
            f"the embeddings have {embeddings.shape[1]} numbers, those of {model.path} have "
            f"{model.sizes.embed_dim}: they are of another model"
        )
    query = np.asarray(model.encode_text(model.tokenize(text)))[0]
    return [Hit(ids[row], score) for row, score in rank(query, embeddings, top)]


def check_classes(class_names: Sequence[str]) -> None:
    """Raise ValueError for fewer than two classes."""
    if len(class_names) < 2:
        raise ValueError(f"--classes {','.join(class_names)!r}: name at least two, with commas")


def class_probabilities(
    model: Model,
    class_names: Sequence[str],
    embeddings: np.ndarray,
    *,
    templates: templates_lib.Templates = "photo",
) -> np.ndarray:
    """Zero-shot probabilities (Radford et al., 2021, arXiv:2103.00020, section 3.1).

    Args:
      model: which made the embeddings.
      class_names: C names.
      embeddings: float32[N, D].
      templates: as of :func:`jaxclip.evaluate.templates.resolve`.

    Returns:
      float32[N, C]; rows sum to 1. The logits are scaled as in training.

    Raises:
      ValueError: fewer than two classes, or bad templates.
    """
    check_classes(class_names)
    prompts = templates_lib.prompts(class_names, templates_lib.resolve(templates))
    texts = [prompt for each in prompts for prompt in each]
    encoded = [
        np.asarray(model.encode_text(model.tokenize(texts[start : start + 128])))
        for start in range(0, len(texts), 128)
    ]
    classes = zero_shot.class_embeddings(np.concatenate(encoded), [len(each) for each in prompts])
    logits = np.exp(np.float32(model.params["logit_scale"])) * embeddings @ classes.T
    exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponents / exponents.sum(axis=1, keepdims=True)
