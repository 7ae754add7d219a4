"""The first sentence of a long caption."""

from __future__ import annotations

import numpy as np

from jaxclip.data.text_op import TextFn, register


@register("first_sentence", draws=0)
def first_sentence() -> TextFn:
    """Keep a text up to its first full stop with a blank behind it (Zhang et al. 2024, Long-CLIP,
    arXiv:2403.15378); a text without one stays as it is."""

    def apply(text: str, u: np.ndarray) -> str:
        del u
        return text.partition(". ")[0]

    return apply
