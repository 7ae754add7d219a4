"""Tags of an item's captions, such as the language of each."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from jaxclip.data.importer.items import Item
from jaxclip.data.naming import CAPTION_TAGS
from jaxclip.data.record import decode_foreign_texts


def tags_of(item: Item) -> list[Any]:
    """A tag for each caption; none if there are not as many."""
    tags = item.meta.get(CAPTION_TAGS)
    return tags if isinstance(tags, list) and len(tags) == len(item.texts) else []


def in_languages(item: Item, languages: Sequence[str]) -> Item:
    """The item with those captions that are in one of some languages, or do not say.

    A code without a region stands for those with one, too: ``en`` for ``en-US``.
    """
    tags = tags_of(item)

    def is_wanted(tag: Any) -> bool:
        code = str(tag or "").lower().replace("_", "-")
        return not code or any(f"{code}-".startswith(f"{each}-") for each in languages)

    kept = [i for i, tag in enumerate(tags) if is_wanted(tag)]
    if len(kept) == len(tags):
        return item
    meta = {**item.meta, CAPTION_TAGS: [tags[i] for i in kept]}
    return dataclasses.replace(item, texts=tuple(item.texts[i] for i in kept), meta=meta)


def meta_of(item: Item, texts: tuple[str, ...]) -> dict[str, Any]:
    """The item's meta, its tags of captions brought in line with the captions that are kept."""
    values = dict(item.meta)
    tags = values.get(CAPTION_TAGS)
    if isinstance(tags, list) and len(tags) == len(item.texts):
        kept: dict[str, Any] = {}
        for raw, tag in zip(item.texts, tags, strict=True):
            for text in decode_foreign_texts((raw,))[0]:
                kept.setdefault(" ".join(text.split()), tag)
        values[CAPTION_TAGS] = [kept.get(text) for text in texts]
    return values
