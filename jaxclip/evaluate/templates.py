"""Prompt templates: how a class name becomes the sentences that stand for the class."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

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

TEMPLATES: dict[str, tuple[str, ...]] = {
    "name": ("{}",),
    "photo": ("a photo of a {}.",),
    "clip_7": _CLIP_7,
    "icon": ("{}", "an icon of {}", "an emoji of {}", "a drawing of {}"),
}


def resolve(templates: str | Sequence[str]) -> tuple[str, ...]:
    """Templates by the name of a set, or as given.

    Args:
      templates: ``"name"``, ``"photo"``, ``"clip_7"``, ``"icon"``, or strings with one ``{}`` each.

    Returns:
      At least one template.

    Raises:
      ValueError: an unknown name, no template, or one without exactly one ``{}``.
    """
    if isinstance(templates, str):
        if templates in TEMPLATES:
            return TEMPLATES[templates]
        if "{}" not in templates:
            near = difflib.get_close_matches(templates, TEMPLATES, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; there are {sorted(TEMPLATES)}"
            raise ValueError(f"evaluate.templates={templates!r} is no set of templates{hint}")
        templates = [templates]
    if not templates:
        raise ValueError("evaluate.templates is empty; use ['{}'] for the bare class name")
    for template in templates:
        if template.count("{}") != 1:
            raise ValueError(
                f"evaluate.templates has {template!r}; put exactly one {{}} where the name goes"
            )
    return tuple(templates)


def fill(class_names: Sequence[str], templates: Sequence[str]) -> list[str]:
    """The prompts of all classes, those of one class in a row.

    Args:
      class_names: C names; braces in them are just characters.
      templates: T templates.

    Returns:
      C * T strings.
    """
    return [template.replace("{}", name) for name in class_names for template in templates]
