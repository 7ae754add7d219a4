"""Two words change places."""

from __future__ import annotations

import numpy as np

from jaxclip.data.text_op import TextFn, check_probability, register


@register("swap_words", draws=3)
def swap_words(p: float = 1.0) -> TextFn:
    """Swap two different words, so that the caption says something else with the same words.

    The negatives of NegCLIP (Yuksekgonul et al. 2023, arXiv:2210.01936) swap words of one part of
    speech; without a tagger these are any two. A text with fewer than two different words stays as
    it is.

    Args:
      p: probability that anything is done.
    """
    check_probability(p)

    def apply(text: str, u: np.ndarray) -> str:
        words = text.split()
        if u[0] >= p or len({word.casefold() for word in words}) < 2:
            return text
        one = int(float(u[1]) * len(words))
        others = [i for i, each in enumerate(words) if each.casefold() != words[one].casefold()]
        other = others[int(float(u[2]) * len(others))]
        words[one], words[other] = words[other], words[one]
        return " ".join(words)

    return apply
