"""How well captions describe their pictures, by the model: CLIPScore and rewards made of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from jaxclip.evaluate.base import Data, Evaluator, Model
from jaxclip.evaluate.retrieval import check_captions
from jaxclip.shapes import check_shapes


@dataclasses.dataclass(frozen=True)
class CaptionScore(Evaluator):
    """How well do the split's captions describe its pictures?

    CLIPScore (Hessel et al. 2021, arXiv:2104.08718) is 2.5 max(cos, 0) of a picture and a caption
    behind "A photo depicts"; here the mean over pictures of their first caption. RefCLIPScore is
    its harmonic mean with the best cosine of that caption with the picture's other ones, over the
    pictures that have some. A model judges itself kindly: use another one than that which wrote the
    captions.

    Attributes:
      prefix: in front of every caption.
      scale: of the cosines.
    """

    prefix: str = "A photo depicts "
    scale: float = 2.5

    def metric_names(self) -> list[str]:
        return ["clip_score", "ref_clip_score"]

    def check(self, data: Data) -> None:
        """Refuse a split without captions, and a scale that is not positive."""
        if not self.scale > 0:
            raise ValueError(f"scale={self.scale} must be positive")
        check_captions(data)

    def evaluate(self, model: Model, data: Data) -> dict[str, float]:
        """``clip_score``, ``ref_clip_score`` (NaN where no picture has two captions),
        ``num_examples``, ``num_references``."""
        images = data.images(model)
        rows = [row for row, texts in enumerate(images.texts) if texts]
        texts = [self.prefix + text for row in rows for text in images.texts[row]]
        embedded = model.texts(texts) if texts else np.zeros((0, images.embeddings.shape[-1]))
        ends = np.cumsum([len(images.texts[row]) for row in rows], dtype=int)
        each = np.split(embedded, ends[:-1]) if rows else []
        plain = clip_score(
            images.embeddings[rows],
            np.array([captions[0] for captions in each]).reshape(len(rows), -1),
            self.scale,
        )
        pairs = [
            (score, captions[:1], captions[1:])
            for score, captions in zip(plain, each, strict=True)
            if len(captions) > 1
        ]
        refs = [ref_clip_score(np.array([s]), one, [others])[0] for s, one, others in pairs]
        return {
            "clip_score": float(np.mean(plain)) if len(plain) else float("nan"),
            "ref_clip_score": float(np.mean(refs)) if refs else float("nan"),
            "num_examples": len(plain),
            "num_references": len(refs),
        }


def clip_score(images: np.ndarray, captions: np.ndarray, scale: float = 2.5) -> np.ndarray:
    """CLIPScore of pairs, scale * max(cos, 0): float[N].

    Args:
      images: float[N, D], unit rows.
      captions: float[N, D], unit rows.
      scale: of the cosines.

    Raises:
      ValueError: shapes that differ.
    """
    if images.shape != captions.shape:
        raise ValueError(f"{list(images.shape)} images for {list(captions.shape)} captions")
    return scale * np.maximum(np.sum(images * captions, axis=-1), 0.0)


def ref_clip_score(
    scores: np.ndarray, captions: np.ndarray, references: Sequence[np.ndarray]
) -> np.ndarray:
    """RefCLIPScore: the harmonic mean of CLIPScores and the best max(cos, 0) with a reference.

    CLIP-Caption-Reward's code (arXiv:2205.13115) scales the second by 2.5, too; the metric does
    not, nor does this.

    Args:
      scores: float[N], of :func:`clip_score`.
      captions: float[N, D], unit rows.
      references: for each caption float[R, D], unit rows, R at least 1.

    Returns:
      float[N]; 0 where either is 0.

    Raises:
      ValueError: shapes that do not fit, or a caption without a reference.
    """
    check_shapes("ref_clip_score", scores=(scores, "N"), captions=(captions, "N D"))
    if len(references) != len(captions) or not all(len(each) for each in references):
        raise ValueError(
            f"ref_clip_score: {len(references)} lists of references for {len(captions)} captions, "
            "or one of none; each caption needs at least one reference"
        )
    best = np.array(
        [max(float(np.max(r @ c)), 0.0) for c, r in zip(captions, references, strict=True)]
    )
    total = scores + best
    return np.where(total > 0, 2 * scores * best / np.where(total > 0, total, 1.0), 0.0)


def aggregate_text(images: np.ndarray, corpus: np.ndarray, temperature: float) -> np.ndarray:
    """The text vector that an image points to in a corpus: Σ_j softmax_j(t cos) corpus_j.

    CgT-GAN's target (Yu et al. 2023, arXiv:2308.12045), t = 100 for a corpus of the domain, 175 for
    texts of the web. The sum is not of unit length.

    Args:
      images: float[N, D], unit rows.
      corpus: float[M, D], unit rows.
      temperature: t, a factor on cosines.

    Returns:
      float[N, D].

    Raises:
      ValueError: shapes that do not fit, or an empty corpus.
    """
    if not check_shapes("aggregate_text", images=(images, "N D"), corpus=(corpus, "M D"))["M"]:
        raise ValueError("aggregate_text: the corpus is empty")
    logits = temperature * np.asarray(images, np.float64) @ np.asarray(corpus, np.float64).T
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return (weights / weights.sum(axis=1, keepdims=True)) @ np.asarray(corpus, np.float64)


def aggregated_reward(
    images: np.ndarray, captions: np.ndarray, corpus: np.ndarray, temperature: float, scale: float
) -> np.ndarray:
    """CgT-GAN's reward of captions, scale (cos + 1 - mean |difference|) / 2 to their targets.

    Args:
      images: float[N, D], unit rows.
      captions: float[N, D], unit rows.
      corpus: float[M, D], unit rows.
      temperature: of :func:`aggregate_text`.
      scale: s.

    Returns:
      float[N]; a caption by greedy decoding is the baseline to take off (``self_critical``).

    Raises:
      ValueError: shapes that do not fit, or an empty corpus.
    """
    check_shapes("aggregated_reward", images=(images, "N D"), captions=(captions, "N D"))
    target = aggregate_text(images, corpus, temperature)
    length = np.linalg.norm(target, axis=1)
    cosine = np.sum(target * captions, axis=1) / np.where(length > 0, length, 1.0)
    return 0.5 * scale * (cosine + 1.0 - np.mean(np.abs(target - captions), axis=1))
