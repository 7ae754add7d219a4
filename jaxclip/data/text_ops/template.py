"""A class name becomes a sentence about a picture."""

from __future__ import annotations

import numpy as np

from jaxclip.data.text_op import TextFn, register


@register("template", draws=1)
def template(texts: str = "a photo of a {}.") -> TextFn:
    """Put the caption, a class name, into a sentence (Goyal et al. 2023, FLYP, arXiv:2212.00638).

    Args:
      texts: sentences with one ``{}`` each, between semicolons; one of them is drawn.
    """
    sentences = [each.strip() for each in texts.split(";") if each.strip()]
    if not sentences or any(each.count("{}") != 1 for each in sentences):
        raise ValueError(f"template: texts={texts!r} must be sentences with one {{}} each")

    def apply(text: str, u: np.ndarray) -> str:
        sentence = sentences[min(int(u[0] * len(sentences)), len(sentences) - 1)]
        return sentence.replace("{}", text)

    return apply
