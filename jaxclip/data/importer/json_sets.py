"""Objects in the JSON of particular data sets, under the names by which all others have them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from jaxclip.data.caption_shapes import joined_numbers
from jaxclip.data.naming import TEXT_FIELDS, find

Values = dict[str, Any]


def renamed(entry: Mapping[str, Any]) -> Values:
    """The values of an object; those of a known data set under usual names."""
    values = {str(name): value for name, value in entry.items()}
    for each in _SETS:
        found = each(values)
        if found is not None:
            return found
    return values


def _visual_genome(values: Values) -> Values | None:
    """``region_descriptions.json``: what is said of the regions of a picture.

    As ViLT, ALBEF and BLIP do, each is taken for a caption of the whole picture.
    """
    regions = values.get("regions")
    if not isinstance(regions, list) or not all(isinstance(each, Mapping) for each in regions):
        return None
    phrases = [each["phrase"] for each in regions if isinstance(each.get("phrase"), str)]
    if not phrases:
        return None
    number = values.get("id", regions[0].get("image_id"))
    rest = {name: value for name, value in values.items() if name not in ("regions", "id")}
    return {"image_id": number, **rest, "captions": phrases}


def _crossmodal(values: Values) -> Values | None:
    """Crossmodal-3600: ``{"image/key": …, "en": {"caption": […], …}, "de": …}``."""
    key = values.get("image/key")
    said = {
        name: value["caption"]
        for name, value in values.items()
        if isinstance(value, Mapping) and "caption" in value
    }
    if not isinstance(key, str) or not said:
        return None
    return {"image": key, "captions": said}


def _diffusion_db(values: Values) -> Values | None:
    """DiffusionDB: ``{"p": the prompt, "se": the seed, …}``."""
    if not isinstance(values.get("p"), str) or "se" not in values or find(values, TEXT_FIELDS):
        return None
    return {"prompt" if name == "p" else name: value for name, value in values.items()}


_SETS: tuple[Callable[[Values], Values | None], ...] = (
    _visual_genome, _crossmodal, _diffusion_db, joined_numbers,
)  # fmt: skip
