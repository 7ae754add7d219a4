"""Names of classes: out of the data set, tidied; or from a list, a file or a built-in set."""

from __future__ import annotations

import functools
import json
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from jaxclip.registry import hint

ClassNames = str | Sequence[str] | Mapping[str, str]

# Sets by name; `imagenet` is that of Radford et al. (2021), see ATTRIBUTION.md.
SETS = ("imagenet",)

_WORDNET_ID = re.compile(r"n\d{8}")


@functools.cache
def imagenet() -> dict[str, str]:
    """``{WordNet id: name}`` of the 1000 classes of ImageNet, in the order of the labels."""
    path = pathlib.Path(__file__).with_name("imagenet_names.json")
    return json.loads(path.read_text(encoding="utf-8"))


def tidy(name: str) -> str:
    """A class name as it stands in a sentence, out of one as data sets store it.

    ``american_bulldog`` becomes ``american bulldog``, ``/a/apartment_building/outdoor`` (SUN397)
    ``apartment building outdoor``, ``001.Black_footed_Albatross`` (CUB) ``Black footed Albatross``,
    ``n02085620-Chihuahua`` (Stanford Dogs) ``Chihuahua``. A WordNet id alone gets its name in
    ImageNet; of a second class of one name, ``missile #2``, the number goes; other names stay as
    they are.
    """
    if _WORDNET_ID.fullmatch(name):
        return imagenet().get(name, name)
    result = re.sub(r"^/[a-z]/(?=.)", "", name)
    result = re.sub(r"^(n\d{8}-|\d{3}\.)(?=[^\d\s])", "", result)
    result = re.sub(r" #\d+$", "", result)
    result = re.sub(r"[_/\s]+", " ", result).strip()
    return result or name


def resolve(
    given: ClassNames,
    labels: Sequence[str] | None,
    occurring: Sequence[int] | None = None,
    *,
    what: str = "the data set",
) -> dict[int, str]:
    """The classes that compete: label -> name.

    Args:
      given: ``""`` for the data set's own names, tidied; ``"imagenet"``; the path of a file; a list
        with a name for each label; or a mapping from label (as an int or a string of digits) or the
        data set's own name to the name to use. Of a mapping only its classes compete. A file holds
        a name a line, or a list or an object as JSON.
      labels: names by label as the data set has them; None if it has none.
      occurring: labels that can occur in the split; None if not known. A mapping wins over it.
      what: the data set, for errors.

    Raises:
      ValueError: no names, another number of names than the data set has classes, an unknown class,
        or WordNet ids without a name.
      FileNotFoundError: the file does not exist.
    """
    if isinstance(given, str):
        where, given = f"class_names={given!r}", _load(given)
    else:
        where = "class_names"
    if isinstance(given, Mapping):
        return _of_mapping(given, labels, where, what)
    if not isinstance(given, (list, tuple)):
        raise ValueError(f"class_names={given!r} must be names, a mapping or a file")
    if not given:
        if labels is None:
            raise ValueError(
                f"{what} has no class names; take it out of the zero-shot tasks, or give "
                "class_names (a list, or a file with a name a line)"
            )
        names = [tidy(name) for name in labels]
        bare = [name for name in names if _WORDNET_ID.fullmatch(name)]
        if bare:
            raise ValueError(
                f"{what} has the WordNet id {bare[0]!r} for a class name, which is none of "
                "ImageNet's; give class_names (a JSON file: {id: name})"
            )
    else:
        names = _strings(given, where)
        if labels is not None and len(names) != len(labels):
            raise ValueError(
                f"{where} has {len(names)} names, but {what} has {len(labels)} classes "
                f"({_few(labels)}); give one for each label, or a mapping of those that compete"
            )
    chosen = range(len(names)) if occurring is None else sorted(occurring)
    return {label: names[label] for label in chosen}


def _load(given: str) -> list[str] | Mapping[str, str]:
    if not given:
        return []
    if given in SETS:
        return list(imagenet().values())
    loaded = read_file(given, f"class_names={given!r}", SETS)
    if not loaded:
        raise ValueError(f"class_names={given!r}: the file is empty")
    return loaded


def read_file(path: str, where: str, sets: Sequence[str]) -> list[str] | dict[str, Any]:
    """Lines of a text file, or the list or object of a JSON file.

    Args:
      path: of the file; JSON if it ends in ``.json``.
      where: what names it, for errors.
      sets: names that could have been meant.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: a line without text between others (the lines after it would stand for other
        labels), bytes that are no UTF-8, JSON that is damaged or of another form; also a bare word
        that names neither file nor set.
    """
    file = pathlib.Path(path).expanduser()
    if not file.is_file():
        if os.sep not in path and "." not in path:
            raise ValueError(f"{where} is neither a set nor a file{hint(path, sets)}")
        raise FileNotFoundError(f"{where}: no such file; the built-in sets are {', '.join(sets)}")
    try:
        text = file.read_text(encoding="utf-8-sig")
        if file.suffix != ".json":
            lines = [line.strip() for line in text.rstrip().splitlines()]
            if "" in lines:
                raise ValueError(f"line {lines.index('') + 1} is empty")
            return lines
        value = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    if not isinstance(value, (list, dict)):
        raise ValueError(f"{where}: a JSON file holds a list or an object")
    return value


def _of_mapping(
    given: Mapping[str, str], labels: Sequence[str] | None, where: str, what: str
) -> dict[int, str]:
    if not given:
        raise ValueError(f"{where} is empty: no class competes")
    result: dict[int, str] = {}
    number = {name: label for label, name in enumerate(labels or ())}
    for key, name in zip(given, _strings(given.values(), where), strict=True):
        if str(key) in number:
            label = number[str(key)]
        elif str(key).isdecimal():
            label = int(key)
            if labels is not None and label >= len(labels):
                raise ValueError(f"{where}: label {label} is none of {what}: {len(labels)} classes")
        else:
            known = f"{hint(str(key), number, cutoff=0.0)}" if number else "; it has no class names"
            raise ValueError(f"{where}: {str(key)!r} is no class of {what}{known}")
        result[label] = name
    return dict(sorted(result.items()))


def _strings(names: object, where: str) -> list[str]:
    result = list(names)  # type: ignore[call-overload]
    for name in result:
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"{where} holds {name!r}; a name is a string that is not empty")
    return result


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
