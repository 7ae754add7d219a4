"""Ideas: what an emoji stands for, whoever draws it; their names, groups and splits.

An idea is an emoji in its default skin tone. Its skin-tone variants are the same idea and are left
out: they would make up half of the pictures while adding one property. Variants by gender, hair or
direction are ideas of their own, since CLDR gives them names of their own, but they stay on one
side of the concept split, see :func:`families`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jaxclip.data.emoji.pictures import hexcode_key

CONCEPT_FRACTION = 0.1

# Parts of a code point sequence that vary an idea: gender signs, hair styles, direction, joiner.
_VARIATIONS = {"2640", "2642", "1f9b0", "1f9b1", "1f9b2", "1f9b3", "27a1", "200d"}
_PEOPLE = {"1f468": "1f9d1", "1f469": "1f9d1"}  # man, woman -> person
# The same by name, for pairs whose code points are unrelated (prince, princess).
_GENDERED = re.compile(
    r"\b(wo)?(man|men)\b|\b(person|people|boy|girl|child|adult|mr\.?|mrs\.?|mx\.?)\b"
)
_SAME_FAMILY = (
    ("prince", "princess", "person with crown"),
    ("Santa Claus", "Mrs. Claus", "Mx Claus"),
    ("old man", "old woman", "older person"),
    ("baby", "child", "boy", "girl", "person", "man", "woman"),
    ("pregnant woman", "pregnant man", "pregnant person"),
    ("man dancing", "woman dancing"),
    (
        "people holding hands",
        "women holding hands",
        "men holding hands",
        "woman and man holding hands",
    ),
)

_TYPEWRITER = str.maketrans("\u2018\u2019\u201c\u201d", "''\"\"")


@dataclasses.dataclass(frozen=True)
class Idea:
    """One emoji.

    Attributes:
      key: code points in lower case joined by ``-``, without variation selectors.
      emoji: the characters.
      name: CLDR short name in English.
      keywords: CLDR keywords in English.
      group: Unicode's group, for example ``"food-drink"``.
      subgroup: Unicode's subgroup, for example ``"food-fruit"``.
    """

    key: str
    emoji: str
    name: str
    keywords: tuple[str, ...]
    group: str
    subgroup: str


def plain(text: str) -> str:
    """Typographic quotes to those on a keyboard, white space to single blanks."""
    text = text.translate(_TYPEWRITER)
    return " ".join(text.split())


def load(data: Sequence[Mapping[str, Any]], groups: Mapping[str, Any]) -> list[Idea]:
    """Read emojibase's English data.

    Args:
      data: ``en/data.json``.
      groups: ``meta/groups.json``.

    Returns:
      Ideas in Unicode's order. Components (skin tones, hair, single regional indicators) are no
      ideas.
    """
    ideas = []
    for entry in data:
        if "group" not in entry or groups["groups"][str(entry["group"])] == "component":
            continue
        ideas.append(
            Idea(
                key=hexcode_key(entry["hexcode"]),
                emoji=entry["emoji"],
                name=plain(entry["label"]),
                keywords=tuple(plain(tag) for tag in entry.get("tags", [])),
                group=groups["groups"][str(entry["group"])],
                subgroup=groups["subgroups"][str(entry["subgroup"])],
            )
        )
    return ideas


def families(
    ideas: Sequence[Idea], alike: Iterable[tuple[str, str]] = ()
) -> list[tuple[Idea, ...]]:
    """Group ideas that must not be on two sides of the concept split.

    Ideas are of one family if they differ in gender, hair or direction only, by code points or by
    name, or if somebody draws them alike.

    Args:
      ideas: all ideas.
      alike: pairs of idea keys with (nearly) the same picture.

    Returns:
      The families; each idea is in exactly one.
    """
    parent = {idea.key: idea.key for idea in ideas}

    def root(key: str) -> str:
        while parent[key] != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    def join(keys: Sequence[str]) -> None:
        for one, other in itertools.pairwise(keys):
            first, second = sorted((root(one), root(other)))
            parent[second] = first

    shared: dict[str, list[str]] = {}
    by_name = {idea.name: idea.key for idea in ideas}
    for idea in ideas:
        shared.setdefault("code " + _code_stem(idea.key), []).append(idea.key)
        shared.setdefault("name " + _name_stem(idea.name), []).append(idea.key)
        if idea.subgroup == "family":
            shared.setdefault("family " + _family_stem(idea.name), []).append(idea.key)
    for keys in shared.values():
        join(keys)
    for names in _SAME_FAMILY:
        join([by_name[name] for name in names if name in by_name])
    for pair in alike:
        join(pair)
    found: dict[str, list[Idea]] = {}
    for idea in ideas:
        found.setdefault(root(idea.key), []).append(idea)
    return [tuple(members) for members in found.values()]


def concepts(families_: Iterable[Sequence[Idea]], complete: set[str]) -> set[str]:
    """Choose the ideas that are kept out of training.

    A family is chosen by a hash of its first code points, so the choice depends on nothing else and
    survives additions to Unicode. Only families whose every member has a picture in all styles are
    candidates.

    Args:
      families_: see :func:`families`.
      complete: keys of the ideas with a picture in every style.

    Returns:
      Keys of the chosen ideas.
    """
    chosen: set[str] = set()
    for family in families_:
        keys = sorted(idea.key for idea in family)
        if (
            all(key in complete for key in keys)
            and unit_hash("concept", keys[0]) < CONCEPT_FRACTION
        ):
            chosen.update(keys)
    return chosen


def unit_hash(*parts: str) -> float:
    """A number in [0, 1) that depends on the strings alone."""
    digest = hashlib.sha256("\0".join(parts).encode("utf-8")).digest()
    return int.from_bytes(digest[:8], "big") / 2.0**64


def _code_stem(key: str) -> str:
    parts = [_PEOPLE.get(part, part) for part in key.split("-")]
    return "-".join(part for part in parts if part not in _VARIATIONS)


def _name_stem(name: str) -> str:
    stem = " ".join(_GENDERED.sub(" ", name.lower()).split())
    # Nothing but gender in the name: leave it to the code points.
    return stem if len(stem) > 3 else name


def _family_stem(name: str) -> str:
    """``"kiss: woman, man"`` -> ``"kiss"``."""
    return name.partition(":")[0]
