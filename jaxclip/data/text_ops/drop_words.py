"""Words of a list are left out."""

from __future__ import annotations

import numpy as np

from jaxclip.data.text_op import TextFn, check_probability, register

# English words that say little about a picture.
_STOP_WORDS = """
a an the this that these those some any each every all both no not only own same so than too
very i me my myself we our ours ourselves you your yours yourself he him his himself she her
hers herself it its itself they them their theirs themselves what which who whom whose is am
are was were be been being have has had having do does did doing will would shall should can
could may might must and but or nor if because as until while of at by for with about against
between into through during before after above below to from up down in out on off over under
again further then once here there when where why how more most other such just also
"""
STOP_WORDS = frozenset(_STOP_WORDS.split())
_PUNCTUATION = ".,;:!?\"'()[]"


@register("drop_words", draws=1)
def drop_words(p: float = 0.8, words: str = "") -> TextFn:
    """Leave out all stop words (as a view of the text: Fini et al. 2023, arXiv:2305.08675).

    A text of nothing but such words stays as it is.

    Args:
      p: probability that they are left out.
      words: which, separated by blanks or commas; empty for English function words.
    """
    check_probability(p)
    listed = frozenset(words.lower().replace(",", " ").split()) or STOP_WORDS

    def apply(text: str, u: np.ndarray) -> str:
        if u[0] >= p:
            return text
        kept = [each for each in text.split() if each.lower().strip(_PUNCTUATION) not in listed]
        return " ".join(kept) or text

    return apply
