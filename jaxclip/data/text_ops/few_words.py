"""A caption of few words."""

from __future__ import annotations

import json
import pathlib

import numpy as np

from jaxclip.data import order
from jaxclip.data.text_op import TextFn, register
from jaxclip.data.text_ops.drop_words import STOP_WORDS
from jaxclip.registry import hint

WAYS = ("first", "random", "block", "syntax")
_PUNCTUATION = ".,;:!?\"'()[]"
_LAST_RANK = 4


@register("few_words", draws=2)
def few_words(count: int = 6, how: str = "first", ranks: str = "") -> TextFn:
    """Keep some words of a longer caption (CLIPA, Li et al. 2023, arXiv:2305.07017).

    Args:
      count: words that stay; a shorter caption stays as it is.
      how: ``"first"``; ``"random"``: a drawn subset in a drawn order; ``"block"``: neighbours from
        a drawn start; ``"syntax"``: those of the lowest rank, the first of equals, in their order.
      ranks: for ``"syntax"``, a JSON file {word: rank}: CLIPA has nouns 1, adjectives 2, verbs 3,
        all others 4. A word that is not in it is 4. Without a file function words are 4, all
        others 1.

    Raises:
      ValueError: options that can't be, or a file that is no such table.
      FileNotFoundError: there is no such file.
    """
    if count < 1:
        raise ValueError(f"few_words: count={count} must be at least 1")
    if how not in WAYS:
        raise ValueError(f"few_words: unknown how={how!r}{hint(how, WAYS)}")
    if ranks and how != "syntax":
        raise ValueError(f"few_words: ranks={ranks!r} is for how='syntax', not {how!r}")
    table = _read(ranks) if ranks else None

    def rank(word: str) -> float:
        word = word.casefold().strip(_PUNCTUATION)
        if table is None:
            return _LAST_RANK if word in STOP_WORDS else 1
        return table.get(word, _LAST_RANK)

    def apply(text: str, u: np.ndarray) -> str:
        words = text.split()
        if len(words) <= count:
            return text
        if how == "random":
            kept = np.argsort(order.spread(u, len(words)), kind="stable")[:count].tolist()
        elif how == "syntax":
            kept = sorted(sorted(range(len(words)), key=lambda i: rank(words[i]))[:count])
        else:
            start = int(float(u[0]) * (len(words) - count + 1)) if how == "block" else 0
            kept = list(range(start, start + count))
        return " ".join(words[i] for i in kept)

    return apply


def _read(path: str) -> dict[str, float]:
    try:
        table = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
        return {str(word).casefold(): float(rank) for word, rank in table.items()}
    except (ValueError, AttributeError, TypeError) as error:
        raise ValueError(f"few_words: ranks={path!r} is no JSON {{word: rank}}: {error}") from error
