"""Prompt templates: how a class name becomes the sentences that stand for the class."""

from __future__ import annotations

import functools
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from jaxclip.evaluate.class_names import read_file
from jaxclip.registry import hint

# A set's name, a file, a template, several, or {class name: its prompts, complete}.
Templates = str | Sequence[str] | Mapping[str, Sequence[str]]

# Where the name goes; the second as in the files of CLIP_benchmark.
_PLACES = ("{}", "{c}")

# Radford et al. (2021) found these seven, of eighty, to carry most of the gain on ImageNet.
_CLIP_7 = (
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)


@functools.cache
def imagenet_80() -> tuple[str, ...]:
    """The 80 templates of Radford et al. (2021) for ImageNet; see ATTRIBUTION.md."""
    path = pathlib.Path(__file__).with_name("imagenet_templates.json")
    return tuple(json.loads(path.read_text(encoding="utf-8")))


TEMPLATES: dict[str, tuple[str, ...]] = {
    "name": ("{}",),
    "photo": ("a photo of a {}.",),
    "clip_7": _CLIP_7,
    "simple": _CLIP_7,  # what open_clip calls them
    "clip_80": imagenet_80(),
    "imagenet_80": imagenet_80(),
    "icon": ("{}", "an icon of {}", "an emoji of {}", "a drawing of {}"),
}


def resolve(templates: Templates) -> tuple[str, ...] | dict[str, tuple[str, ...]]:
    """Templates by the name of a set, from a file, or as given.

    Args:
      templates: a name of :data:`TEMPLATES`; the path of a file, with a template a line or a list
        or object as JSON; strings with one ``{}`` (or ``{c}``) each; or ``{class name: its prompts,
        complete}`` (as CuPL makes them; Pratt et al., 2023, arXiv:2209.03320).

    Returns:
      At least one template with one ``{}``, or the prompts of each class.

    Raises:
      ValueError: an unknown name, no template, one without exactly one ``{}``, or a class without a
        prompt.
      FileNotFoundError: a file that does not exist.
    """
    given: Any = templates
    if isinstance(given, str):
        if given in TEMPLATES:
            return TEMPLATES[given]
        is_template = any(place in given for place in _PLACES)
        where = f"templates={given!r}"
        given = [given] if is_template else read_file(given, where, [*TEMPLATES])
    if not given:
        raise ValueError("templates is empty; use ['{}'] for the bare class name")
    if isinstance(given, Mapping):
        return {str(name): _prompts(str(name), prompts) for name, prompts in given.items()}
    if not isinstance(given, (list, tuple)):
        raise ValueError(f"templates={given!r} must be templates, a mapping, a set or a file")
    result = []
    for template in given:
        if not isinstance(template, str) or sum(map(template.count, _PLACES)) != 1:
            raise ValueError(
                f"templates has {template!r}; put exactly one {{}} where the name goes"
            )
        result.append(template.replace("{c}", "{}"))
    return tuple(result)


def fill(class_names: Sequence[str], templates: Sequence[str]) -> list[str]:
    """The prompts of all classes, those of one class in a row.

    Args:
      class_names: C names; braces in them are just characters.
      templates: T templates.

    Returns:
      C * T strings.
    """
    return [template.replace("{}", name) for name in class_names for template in templates]


def prompts(
    class_names: Sequence[str], templates: Sequence[str] | Mapping[str, Sequence[str]]
) -> list[list[str]]:
    """The prompts of each class.

    Args:
      class_names: C names.
      templates: as :func:`resolve` returns them.

    Returns:
      C lists of at least one string.

    Raises:
      ValueError: a class that ``templates`` has no prompts of; the message names the nearest.
    """
    if not isinstance(templates, Mapping):
        return [fill([name], templates) for name in class_names]
    for name in class_names:
        if name not in templates:
            raise ValueError(
                f"templates has no prompts of class {name!r}{hint(name, templates, cutoff=0.0)}"
            )
    return [list(templates[name]) for name in class_names]


def _prompts(name: str, given: Any) -> tuple[str, ...]:
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, (list, tuple)) or not texts:
        raise ValueError(f"templates has no prompts of class {name!r}")
    if not all(isinstance(text, str) and text.strip() for text in texts):
        raise ValueError(f"templates has a prompt of class {name!r} that is no text")
    return tuple(texts)
