"""Names of files that a pattern stands for, as shells and WebDataset have them."""

from __future__ import annotations

import errno
import fnmatch
import glob
import logging
import os
import re
import urllib.parse
from collections import Counter
from collections.abc import Iterator

from jaxclip.data import remote
from jaxclip.registry import nearest

_LOG = logging.getLogger(__name__)

_NUMBERS = re.compile(r"(\d+)\.\.(\d+)(?:\.\.(\d+))?")
_VARIABLE = re.compile(r"\$\w+|\$\{\w+\}")
_LETTERS = re.compile(r"([A-Za-z])\.\.([A-Za-z])")


def expand(pattern: str) -> list[str]:
    """File names that a pattern stands for.

    Braces are expanded whether or not the files exist, ``*`` and ``?`` match existing files. ``::``
    may stand between patterns, as WebDataset has it.

    Args:
      pattern: of files.

    Returns:
      Names, in the order of the braces and sorted within wildcards.

    Raises:
      FileNotFoundError: a name that does not exist, or a wildcard without a match.
      ValueError: a ``pipe:`` command.
    """
    if os.path.isfile(pattern):
        return [pattern]  # with braces in its name, perhaps
    names: list[str] = []
    listed: dict[str, set[str]] = {}
    for name in (local_path(name) for part in pattern.split("::") for name in braces(part)):
        if name.startswith("pipe:"):
            raise ValueError(
                f"{name!r}: commands are not run; name files, or gs://, s3:// or https:// addresses"
            )
        if remote.is_remote(name):
            found = _remote_names(name, listed)
        else:
            found = [name] if os.path.isfile(name) else sorted(glob.glob(name, recursive=True))
        if not found:
            if not remote.is_remote(name):
                _check_may_look(os.path.dirname(name))
            of = f" (of {pattern!r})" if name != pattern else ""
            near = _near(name) or _taken_for_choices(pattern)
            raise FileNotFoundError(f"{name!r}: no such file{of}{near}")
        names.extend(found)
    plain = [name if remote.is_remote(name) else os.path.normpath(name) for name in names]
    twice = [name for name, count in Counter(plain).items() if count > 1]
    if twice:
        more = f" and {len(twice) - 1} more" if len(twice) > 1 else ""
        _LOG.warning("%s%s: named several times, so its records come so often", twice[0], more)
    return names


def local_path(name: str) -> str:
    """A ``file:`` address, or a path from somebody's home, as a path."""
    if not name.startswith("file:"):
        return os.path.expanduser(name)
    return urllib.parse.unquote(name.removeprefix("file:").removeprefix("//"))


def _near(name: str) -> str:
    """What is beside a name that is not there, for an error; empty if nothing is like it."""
    if remote.is_remote(name) or set(name) & set("*?["):
        return ""
    folder, last = os.path.split(name.rstrip("/"))
    try:
        near = nearest(last, os.listdir(folder or "."), cutoff=0.6)
    except OSError:
        near = ""
    if "{" in name and "}" not in name:
        return "; a brace is never closed"
    if not near and "," in name:
        return "; put several into braces, {a.tar,b.tar}, or :: between them"
    return f"; did you mean {os.path.join(folder, near)!r}?" if near else ""


def _check_may_look(folder: str) -> None:
    """Raise PermissionError for a folder in which a file can't be seen."""
    if not os.path.isdir(folder) and os.path.dirname(folder) != folder:
        _check_may_look(os.path.dirname(folder))
    elif not os.access(folder or ".", os.R_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), folder)


def _taken_for_choices(pattern: str) -> str:
    """What letters of a pattern were meant for that stand for others, for an error."""
    for variable in _VARIABLE.findall(pattern):
        if (value := os.path.expandvars(variable)) != variable:
            return f"; {variable} is not filled in: write {value} in its place"
    folder = os.path.dirname(pattern)
    if set(folder) & set("*?[{") and os.path.isdir(folder):
        return (
            f"; {folder!r} is there, but *, ?, [ and {{ in a pattern stand for other letters: "
            "name the folder alone"
        )
    return ""


def _remote_names(name: str, listed: dict[str, set[str]]) -> list[str]:
    """Addresses that a name or wildcard stands for; a folder is listed once for all of its names.

    A web server lists nothing: what is named there is taken to be there.
    """
    folder = remote.RemotePath(name).parent
    if name.startswith(("http://", "https://")):
        return [name]
    if str(folder) not in listed:
        listed[str(folder)] = {each.name for each in folder.iterdir()}
    last = name.rpartition("/")[2]
    there = sorted(listed[str(folder)])
    return [f"{folder}/{each}" for each in there if fnmatch.fnmatchcase(each, last)]


def braces(pattern: str) -> Iterator[str]:
    """The names that a pattern stands for: ``{000..009}``, ``{0..9..3}``, ``{a..d}``, ``{a,b}``.

    Braces may stand within braces, and count down. What follows is expanded before the next choice,
    so the last braces run fastest. A brace that nothing closes, or without a choice, stands for
    itself.
    """
    start = pattern.find("{")
    end = _end(pattern, start) if start >= 0 else -1
    if end < 0:
        yield pattern
        return
    before, inside, after = pattern[:start], pattern[start + 1 : end], pattern[end + 1 :]
    for choice in _choices(inside):
        for rest in braces(after):
            yield before + choice + rest


def _end(pattern: str, start: int) -> int:
    depth = 0
    for place in range(start, len(pattern)):
        depth += {"{": 1, "}": -1}.get(pattern[place], 0)
        if depth == 0:
            return place
    return -1


def _choices(inside: str) -> Iterator[str]:
    if numbers := _NUMBERS.fullmatch(inside):
        first, last, step = int(numbers[1]), int(numbers[2]), int(numbers[3] or 1) or 1
        padded = any(len(each) > 1 and each.startswith("0") for each in numbers.group(1, 2))
        width = max(len(numbers[1]), len(numbers[2])) if padded else 0
        down = first > last
        for number in range(first, last - 1, -step) if down else range(first, last + 1, step):
            yield f"{number:0{width}d}"
    elif letters := _LETTERS.fullmatch(inside):
        first, last = ord(letters[1]), ord(letters[2])
        codes = range(first, last - 1, -1) if first > last else range(first, last + 1)
        yield from map(chr, codes)
    elif len(parts := list(_parts(inside))) > 1:
        for part in parts:
            yield from braces(part)
    else:  # no choice: the letters themselves, as in Bash
        yield from (f"{{{each}}}" for each in braces(inside))


def _parts(inside: str) -> Iterator[str]:
    """Pieces between commas that are in no inner brace."""
    depth, begin = 0, 0
    for place, letter in enumerate(inside):
        depth += {"{": 1, "}": -1}.get(letter, 0)
        if letter == "," and depth == 0:
            yield inside[begin:place]
            begin = place + 1
    yield inside[begin:]
