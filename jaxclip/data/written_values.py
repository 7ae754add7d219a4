"""Lists and objects that a table keeps as text, as JSON, Python or NumPy write them."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import re
import tokenize
from typing import Any

# How such a text begins: a list of texts or of objects, or an object. Others are captions.
_BEGIN = re.compile(r"\[\s*[\"'{]|\{\s*[\"']")
_ENDS = {"[": "]", "{": "}"}
# Letters; what is longer is left as it is. Python's own parsers take a second for so many.
_LONGEST, _LONGEST_OF_PYTHON = 1 << 20, 1 << 16
# Backslashes that stand for themselves, of which Python would warn.
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_ESCAPES = "\n\\'\"abfnrtvxNuU01234567"


def read(text: str | bytes) -> Any:
    """The list or object that a text stands for.

    Args:
      text: such as ``["a cat", "a kitten"]``, ``['a cat' 'a kitten']`` (NumPy puts no commas
        between them) or ``{"en": "a cat"}``.

    Returns:
      A list of nothing but texts or of nothing but objects, or an object; None if it is neither.
    """
    if text[:1] not in ("[", "{", b"[", b"{", " ", b" ") or len(text) > _LONGEST:
        return None
    if isinstance(text, bytes):
        try:
            text = text.decode("utf-8")
        except UnicodeDecodeError:
            return None
    text = text.strip()
    begin = _BEGIN.match(text)
    if begin is None or not text.endswith(_ENDS[text[0]]):
        return None
    # Python would join texts without a comma between them.
    of_python = ast.literal_eval if "{" in begin[0] else _strings
    for parse in (json.loads, of_python):
        if parse is of_python:
            if len(text) > _LONGEST_OF_PYTHON:
                return None
            text = _ESCAPE.sub(lambda at: at[0] if at[1] in _ESCAPES else f"\\{at[0]}", text)
        with contextlib.suppress(ValueError, SyntaxError, MemoryError, RecursionError):
            value = parse(text)
            return value if _is_meant(value) else None
    return None


def _is_meant(value: Any) -> bool:
    if isinstance(value, list):
        return any(all(isinstance(each, kind) for each in value) for kind in (str, dict))
    return isinstance(value, dict)


def _strings(text: str) -> list[str]:
    """The texts of a list, with commas between them or without.

    Raises:
      ValueError: there is anything else in it.
    """
    try:
        tokens = list(tokenize.generate_tokens(io.StringIO(text).readline))
    except tokenize.TokenError as error:
        raise ValueError(str(error)) from error
    texts = [ast.literal_eval(each.string) for each in tokens if each.type == tokenize.STRING]
    others = [each.string for each in tokens if each.type != tokenize.STRING]
    if "".join("".join(others).replace(",", "").split()) != "[]":
        raise ValueError("not a list of texts alone")
    return texts
