"""Captions: names and keywords put into a few short phrases.

Each string is a caption of one idea only. So no picture has a caption that is just as right for
another, and what is said about the ideas kept for testing is said nowhere else.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence, Set

from jaxclip.data.emoji.ideas import unit_hash

MAX_SINGLE_KEYWORDS = 2


@dataclasses.dataclass(frozen=True)
class Candidates:
    """What might be said about an idea.

    Attributes:
      name: its name.
      phrases: the name with keywords, or several keywords.
      keywords: single keywords, the better first.
    """

    name: str
    phrases: tuple[str, ...] = ()
    keywords: tuple[str, ...] = ()


def phrase(key: str, name: str, keywords: Sequence[str]) -> Candidates:
    """Make phrases out of a name and keywords.

    Args:
      key: of the idea; keywords are shuffled by a hash of it.
      name: the idea's name.
      keywords: what else it is known for.

    Returns:
      The name with the first keywords, with the next ones before it, keywords alone, and what is
      needed for single keywords.
    """
    spoken = set(_words(name))
    # A keyword that only repeats words of the name adds nothing to it.
    words = [word for word in dict.fromkeys(keywords) if not spoken.issuperset(_words(word))]
    words.sort(key=lambda word: unit_hash(key, word))
    phrases = []
    if not words:
        # All there is are the words of the name: as a list they are at least another wording.
        phrases.append(sorted(dict.fromkeys(keywords), key=lambda word: unit_hash(key, word)))
    else:
        phrases.append([name, *words[:2]])
    if len(words) > 2:
        phrases.append([*words[2:5], name])
    if len(words) > 1:
        phrases.append(words[:4])
    joined = tuple(", ".join(parts) for parts in phrases if parts)
    return Candidates(name, joined, tuple(words))


def assign(
    candidates: Mapping[str, Candidates], held_out: Set[str] = frozenset()
) -> dict[str, list[str]]:
    """Give every caption to one idea, or to none.

    A name stays with the idea it names. Any other string that could be said of several ideas is
    said of none. If several ideas have the same name (translations are not always careful), each
    keeps it, unless some are held out and some are not: then only the held-out ones do.

    Args:
      candidates: by idea key.
      held_out: keys of the ideas kept for testing.

    Returns:
      Captions by idea key, the name first; an idea may be left with none.
    """
    owners: dict[str, set[str]] = {}
    uses: Counter[str] = Counter()
    for key, each in candidates.items():
        owners.setdefault(each.name.casefold(), set()).add(key)
        uses.update({text.casefold() for text in (*each.phrases, *each.keywords)})

    def is_own(text: str) -> bool:
        return uses[text.casefold()] == 1 and text.casefold() not in owners

    assigned: dict[str, list[str]] = {}
    for key, each in candidates.items():
        same = owners[each.name.casefold()]
        lost = key not in held_out and not same.isdisjoint(held_out)
        own = [text for text in each.keywords if is_own(text) and len(text) > 1]
        texts = [
            *([] if lost else [each.name]),
            *(text for text in each.phrases if is_own(text)),
            *own[:MAX_SINGLE_KEYWORDS],
        ]
        assigned[key] = list(dict.fromkeys(texts))
    return assigned


def _words(text: str) -> list[str]:
    return "".join(c if c.isalnum() else " " for c in text.casefold()).split()
