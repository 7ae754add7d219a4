"""How the originals clean texts before they tokenize them."""

from __future__ import annotations

import html
import importlib.util
import string
import unicodedata
import warnings
from collections.abc import Callable

Fix = Callable[[str], str]

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def fixer(wanted: bool | None) -> Fix | None:
    """``ftfy.fix_text``, or None for none.

    Args:
      wanted: None for where ``ftfy`` is installed; a warning says where it is not.

    Raises:
      ImportError: wanted, but not installed.
    """
    if wanted is False:
        return None
    if importlib.util.find_spec("ftfy") is None:
        if wanted:
            raise ImportError("tokenizer.fix_text=True needs ftfy: pip install ftfy")
        warnings.warn(
            "ftfy is not installed: texts are not repaired as CLIP's own tokenizer does it (plain "
            "text is the same); pip install ftfy, or set tokenizer.fix_text=False",
            stacklevel=3,
        )
        return None
    import ftfy

    fix: Fix = ftfy.fix_text
    return fix


def unescape(text: str, fix: Fix | None) -> str:
    """Repair a text and resolve its HTML entities twice, as CLIP does.

    Args:
      text: any.
      fix: of :func:`fixer`; without one the text is brought to NFC, which ``ftfy`` does, too.
    """
    if text.isascii() and text.isprintable() and "&" not in text:
        return text  # most captions: there is nothing to repair, and ftfy takes its time
    if fix is not None:
        return html.unescape(html.unescape(fix(text)))
    return unicodedata.normalize("NFC", html.unescape(html.unescape(text)))


def canonical(text: str) -> str:
    """SigLIP's form of a text: lower case, no ASCII punctuation, single blanks.

    An underscore becomes a blank. This is big_vision's ``canonicalize_text`` (Zhai et al. 2023,
    arXiv:2303.15343).
    """
    return " ".join(text.replace("_", " ").translate(_NO_PUNCTUATION).lower().split())
