"""Random words are left out."""

from __future__ import annotations

import numpy as np

from jaxclip.data.order import spread
from jaxclip.data.text_op import TextFn, check_probability, register


@register("delete_words", draws=3)
def delete_words(rate: float = 0.1, p: float = 1.0) -> TextFn:
    """Leave out each word with probability ``rate``; one at least stays.

    Args:
      rate: share of the words that go.
      p: probability that anything is done.
    """
    check_probability(p)
    if not 0.0 <= rate <= 1.0:
        raise ValueError(f"rate={rate} must be between 0 and 1")

    def apply(text: str, u: np.ndarray) -> str:
        words = text.split()
        if u[0] >= p or not words:
            return text
        numbers = spread(u[1:], len(words))
        keep = numbers >= rate
        keep[np.argmax(numbers)] = True
        return " ".join(word for word, kept in zip(words, keep, strict=True) if kept)

    return apply
