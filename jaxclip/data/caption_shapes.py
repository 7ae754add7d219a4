"""Captions in the shapes that other people's JSON, tables and columns have them.

A text or a number, a list of them, objects with a text inside (``{"raw": "a cat", "lang": "en"}``),
texts by language (``{"en": "a cat", "de": ["eine Katze"]}``), and conversations, of which the first
answer is the caption. Lists and objects may be written as text, as JSON, Python or NumPy do it. A
number is its text, which a program took for one, but a list of nothing but numbers is none of
captions. Neither are true and false, null and NaN captions.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from jaxclip.data import written_values
from jaxclip.data.naming import TEXT_FIELDS, find, first_filled, is_among, is_filled

# Members of an object that say in which language its text is.
_LANGUAGE_FIELDS = ("lang", "language", "locale")
_TEXTS_WITHIN = (*TEXT_FIELDS, "raw")
_NUMBERED = re.compile(r"(.*[^\W\d_])[_.]?(\d{1,2})")
_LARGEST_WHOLE = 1e15  # floats above need not be the number that was meant
# Names of lists of the turns of a conversation.
CONVERSATIONS = ("conversations", "messages", "conversation")
_CODE = re.compile(r"[a-z]{2}([-_][A-Za-z]{2,4})?")
_NAMES = frozenset((
    "arabic", "chinese", "dutch", "english", "french", "german", "greek", "hebrew", "hindi",
    "italian", "japanese", "korean", "polish", "portuguese", "russian", "spanish", "swedish",
    "turkish", "ukrainian", "vietnamese",
))  # fmt: skip


class Said(NamedTuple):
    """One caption and its language; empty where nothing says which."""

    text: str | bytes
    language: str = ""


def said_in(value: Any) -> list[Said]:
    """All captions in a value, in order; what is None, NaN, true or an empty list has none.

    Raises:
      TypeError: an object in it has none, as the message says, or it is nested too deep.
    """
    try:
        return list(_said(value, ""))
    except RecursionError:
        raise TypeError("lists within lists without end are no captions") from None


def captioned(values: Mapping[str, Any]) -> str | None:
    """The first usual name under which there are captions; None if there is none.

    Numbers count only where there is no text, and conversations where there is neither.
    """
    numbers = None
    for name in find(values, TEXT_FIELDS):
        with contextlib.suppress(TypeError):
            if is_filled(values[name]) and said_in(values[name]):
                if not _is_number(values[name]):
                    return name
                numbers = numbers or name
    if numbers:
        return numbers
    return next((n for n in find(values, CONVERSATIONS) if _has_answer(values[n])), None)


def _has_answer(value: Any) -> bool:
    """Whether a value is a conversation, perhaps written as text, with an answer in it."""
    turns = written_values.read(value) if isinstance(value, str | bytes) else value
    return isinstance(turns, list) and bool(answer(turns))


def joined_numbers(values: Mapping[str, Any]) -> dict[str, Any] | None:
    """An object whose captions are in members of one name with numbers (``raw``, ``raw_1``, …),
    with a list of them, by the numbers, under the name without one.

    Returns:
      None if it has no such captions, or others that go before.
    """
    more: dict[str, tuple[str, int]] = {}
    for name in values:
        match = _NUMBERED.fullmatch(name)
        if match and is_among(match[1], TEXT_FIELDS) and isinstance(values[name], str | bytes):
            more[name] = (match[1], int(match[2]))
    bases = {base for base, _ in more.values()}
    if len(bases) != 1 or len(find(values, TEXT_FIELDS)) > 1:
        return None
    (base,) = bases
    own = values.get(base)
    if (own is None and find(values, TEXT_FIELDS)) or not isinstance(own, str | bytes | None):
        return None  # another caption goes before them
    numbered = sorted(more, key=lambda name: more[name][1])
    captions = [*([own] if own is not None else []), *(values[name] for name in numbered)]
    rest = {name: value for name, value in values.items() if name not in more and name != base}
    return {**rest, base: captions}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _spelled(number: int | float) -> str:
    """A number as people write it; that of a column with gaps, in pandas, is whole, too."""
    if isinstance(number, float) and not math.isfinite(number):
        return ""
    is_whole = isinstance(number, float) and number.is_integer()
    return str(int(number) if is_whole and abs(number) < _LARGEST_WHOLE else number)


def _said(value: Any, language: str) -> Iterator[Said]:
    if value is None or isinstance(value, bool):
        return
    if _is_number(value):
        spelled = _spelled(value)
        if spelled:
            yield Said(spelled, language)
        return
    if isinstance(value, str | bytes):
        yield from _of_text(value, language)
    elif isinstance(value, Mapping):
        yield from _of_object(value, language)
    elif isinstance(value, Sequence):
        if not (value and all(map(_is_number, value))):
            yield from _of_list(value, language)
    elif value == value:  # pandas' NaT, no time, is not equal to itself
        raise TypeError(f"{type(value).__name__} is no caption")


def _of_text(text: str | bytes, language: str) -> Iterator[Said]:
    """The captions in a list or an object that is written as text; else the text."""
    value = written_values.read(text)
    if value is not None:
        with contextlib.suppress(TypeError):
            found = list(_said(value, language))
            if found:
                yield from found
                return
    yield Said(text, language)


def _of_object(value: Mapping[str, Any], language: str) -> Iterator[Said]:
    name = first_filled(value, _TEXTS_WITHIN)
    if name:
        own = [value[each] for each in _LANGUAGE_FIELDS if isinstance(value.get(each), str)]
        yield from _said(value[name], own[0] if own else language)
    elif is_by_language(value):
        for code, inner in value.items():
            if is_filled(inner):
                yield from _said(inner, code)
    else:
        members = ", ".join(map(repr, list(value)[:6]))
        raise TypeError(f"an object with the members {members} is no caption")


def _of_list(values: Sequence[Any], language: str) -> Iterator[Said]:
    first = answer(values)
    if first is not None:
        yield from _said(first, language)
    elif values and all(isinstance(each, tuple) and len(each) == 2 for each in values):
        yield from _said(dict(values), language)  # a map of Arrow
    else:
        for each in values:
            yield from _said(each, language)


def is_by_language(value: Any) -> bool:
    """Whether a value is an object of texts by language."""
    return (
        isinstance(value, Mapping)
        and bool(value)
        and all(
            isinstance(name, str) and (_CODE.fullmatch(name) or name.lower() in _NAMES)
            for name in value
        )
        and all(each is None or isinstance(each, str | list | Mapping) for each in value.values())
    )


def answer(turns: Sequence[Any]) -> Any:
    """What the assistant first says in a conversation; None if it is none."""
    for turn in turns:
        if not isinstance(turn, Mapping):
            continue
        if turn.get("from", turn.get("role")) in ("gpt", "assistant", "model"):
            said = turn.get("value", turn.get("content"))
            if isinstance(said, list):  # of parts, some of which are pictures
                parts = [part.get("text") for part in said if isinstance(part, Mapping)]
                said = " ".join(part for part in parts if isinstance(part, str))
            return said
        if "assistant" in turn:  # {"user": …, "assistant": …}
            return turn["assistant"]
    return None
