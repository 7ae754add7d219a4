"""Which entries of a list occur in a text: MetaCLIP's substring matching, by an automaton.

Of 2309.16671: an entry matches a text if it stands in it between spaces, after seven punctuation
marks have been put between spaces. Brackets, quotes and hyphens are not, and letter case counts, as
in the paper's code.
"""

from __future__ import annotations

import functools
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

_MARKS = str.maketrans(
    {**{mark: f" {mark} " for mark in ",.;:?!`"}, "\t": " ", "\r": " ", "\n": " "}
)


def spaced(text: str, lowercase: bool = False) -> str:
    """The text as entries are looked for in it."""
    text = f" {text} ".translate(_MARKS)
    return text.lower() if lowercase else text


def read_entries(path: str) -> list[str]:
    """The entries of a file: a JSON list of strings, or one a line; each once.

    A folder with WordNet's ``data.noun``, … (Debian: ``wordnet-base``) stands for the numbers 0 to
    99 and the first words of all synsets, the part of MetaCLIP's list that can be made anywhere.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is empty, not UTF-8, or no list of strings.
    """
    file = pathlib.Path(path).expanduser()
    if (file / "data.noun").is_file():
        return wordnet_entries(file)
    if not file.is_file():
        raise FileNotFoundError(
            f"entries {path!r}: no such file; give one with an entry a line, or WordNet's folder"
        )
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"entries {path!r} is not UTF-8, so they would match nothing: {error}"
        ) from error
    if text.lstrip().startswith("["):
        try:
            found = json.loads(text)
        except ValueError as error:
            raise ValueError(f"entries {path!r} is no JSON list: {error}") from error
        if not all(isinstance(each, str) for each in found):
            raise ValueError(f"entries {path!r} must be a list of strings")
    else:
        found = text.splitlines()
    entries = list(dict.fromkeys(each.strip() for each in found if each.strip()))
    if not entries:
        raise ValueError(f"entries {path!r} holds no entries")
    return entries


def wordnet_entries(folder: pathlib.Path) -> list[str]:
    """The numbers 0 to 99, then the first word of every synset, with blanks for ``_``."""
    found = [str(number) for number in range(100)]
    for part in ("noun", "verb", "adj", "adv"):
        with (folder / f"data.{part}").open(encoding="utf-8", errors="replace") as lines:
            # The licence stands on lines that begin with blanks; the fifth field is the first word,
            # behind which adjectives may have their place in brackets.
            heads = (line.split(" ", 5)[4] for line in lines if not line.startswith(" "))
            found += [head.partition("(")[0].replace("_", " ") for head in heads]
    return list(dict.fromkeys(found))


class Matcher:
    """Finds entries in texts.

    Args:
      entries: what is looked for.
      lowercase: whether letter case does not count.

    Attributes:
      entries: as given.

    Raises:
      ImportError: the library is not installed.
    """

    def __init__(self, entries: Sequence[str], lowercase: bool = False):
        try:
            import ahocorasick_rs
        except ImportError as error:
            raise ImportError(
                "matching entries needs ahocorasick_rs: pip install ahocorasick_rs, or, in a "
                "clone of jaxclip: pip install '.[curate]'"
            ) from error
        self.entries = list(entries)
        self._lowercase = lowercase
        patterns = [f" {each.lower() if lowercase else each} " for each in entries]
        self._automaton: Any = ahocorasick_rs.AhoCorasick(
            patterns, matchkind=ahocorasick_rs.MatchKind.Standard
        )

    def __call__(self, text: str) -> set[int]:
        """Numbers of the entries that occur in a text, each once."""
        found = self._automaton.find_matches_as_indexes(
            spaced(text, self._lowercase), overlapping=True
        )
        return {number for number, _, _ in found}

    def of_all(self, texts: Sequence[str]) -> np.ndarray:
        """int64[m], ascending: the entries that occur in any of some texts."""
        return np.array(sorted(set().union(*map(self, texts))), np.int64)


@functools.lru_cache(maxsize=2)
def load(path: str, stamp: str, lowercase: bool) -> Matcher:
    """The matcher of a file of entries; each process builds it once."""
    return Matcher(read_entries(path), lowercase)
