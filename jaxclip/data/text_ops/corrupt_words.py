"""A caption whose grammar is broken."""

from __future__ import annotations

import numpy as np

from jaxclip.data import order
from jaxclip.data.text_op import TextFn, check_probability, register

WAYS = ("repeat", "remove", "insert", "swap", "shuffle")


@register("corrupt_words", draws=3)
def corrupt_words(p: float = 1.0, longest: int = 3) -> TextFn:
    """Break a caption's grammar in one of five ways (Cho et al. 2022, arXiv:2205.13115).

    A piece of up to ``longest`` words is repeated, left out, put in at another place once more,
    swapped with another piece, or all words are shuffled; which and where is drawn. What would
    change nothing, as in a text of one word, becomes a repetition.

    Args:
      p: probability that anything is done.
      longest: words of a piece at most.
    """
    check_probability(p)
    if longest < 1:
        raise ValueError(f"corrupt_words: longest={longest} must be at least 1")

    def apply(text: str, u: np.ndarray) -> str:
        words = text.split()
        if u[0] >= p or not words:
            return text
        numbers = order.spread(u[1:], len(words) + 4)
        way = WAYS[int(numbers[0] * len(WAYS))]
        size = 1 + int(numbers[1] * min(longest, len(words)))
        start = int(numbers[2] * (len(words) - size + 1))
        piece, rest = words[start : start + size], words[:start] + words[start + size :]
        place = int(numbers[3] * (len(rest) + 1))
        made = [*words[: start + size], *piece, *words[start + size :]]  # repeat
        if way == "remove":
            made = rest
        elif way == "insert":
            made = [*words[:place], *piece, *words[place:]]
        elif way == "swap":
            made = [*rest[:place], *piece, *rest[place:]]
        elif way == "shuffle":
            made = [words[i] for i in np.argsort(numbers[4:], kind="stable")]
        if not made or made == words:
            made = [*words[: start + size], *piece, *words[start + size :]]
        return " ".join(made)

    return apply
