"""Which features of a TFDS data set hold the parts of a record, by its ``features.json``."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jaxclip.data.naming import TEXT_FIELDS, say_which_picture
from jaxclip.data.record import FieldNames
from jaxclip.registry import check_options, hint


def field_names(
    features: Mapping[str, Any], name: str, given: Mapping[str, str] = types.MappingProxyType({})
) -> FieldNames:
    """Find image, captions and label among the features of a TFDS ``features.json``.

    Args:
      features: the parsed file.
      name: of the data set, for errors.
      given: part of a record (``image``, ``texts``, ``label``, ``key``, ``meta``) -> feature.

    Returns:
      The names; ``texts`` is empty if the data set has class labels in place of captions.

    Raises:
      ValueError: there is no image feature, or neither captions nor a class label, or a given
        feature is not there.
    """
    known = _leaves(features)
    kinds = {key: leaf.kind for key, leaf in known.items()}
    top = {key.partition("/")[0]: _kind(value) for key, value in _members(features).items()}
    listing = ", ".join(f"{key}: {kind}" for key, kind in top.items()) or "none"
    way = "; where they have other names, tfds:DIR?image=NAME&texts=NAME says which"
    _check_given(given, known, name)
    # One picture a record, at the top, before pictures in lists and within others.
    images = sorted(
        (key for key, kind in kinds.items() if kind == "Image"),
        key=lambda key: (known[key].many, key.count("/"), key != "image"),
    )
    images = [given["image"]] if "image" in given else images
    if not images:
        raise ValueError(
            f"data set {name!r} has no image feature (its features are {listing}); jaxclip needs "
            f"'image' and 'texts', which `jaxclip data import` writes{way}"
        )
    say_which_picture(images, "tfds:DIR?image=NAME takes another")
    texts = [given["texts"]] if "texts" in given else _captions(known, _USUAL)
    labels = [key for key in ("label", "labels") if kinds.get(key) in ("ClassLabel", "Scalar")]
    labels = [key for key in labels if not known[key].many]
    labels = [given["label"]] if "label" in given else labels
    if not texts and not (labels and kinds[labels[0]] == "ClassLabel"):
        texts = _captions(known, TEXT_FIELDS)
    if not texts and not labels:
        labels = [k for k, leaf in known.items() if leaf == _Leaf("ClassLabel") and "/" not in k]
    if not texts and not (labels and kinds[labels[0]] == "ClassLabel"):
        raise ValueError(
            f"data set {name!r} has neither captions nor class labels (its features are "
            f"{listing}); jaxclip needs 'texts', a Sequence of Text{way}"
        )
    return FieldNames(
        image=images[0],
        texts=texts[0] if texts else "",
        label=labels[0] if labels else "",
        key=given.get("key", next((key for key in _KEYS if kinds.get(key) == "Text"), "")),
        meta=given.get("meta", "meta" if kinds.get("meta") == "Text" else ""),
    )


class _Leaf(NamedTuple):
    """A feature that holds values: its kind, and whether a record has a list of them."""

    kind: str
    many: bool = False


# Text features that may name a record.
_KEYS = ("key", "id", "file_name", "filename", "image/filename")
# Names of captions that come before a class label; the others of TEXT_FIELDS stand in for one.
_USUAL = ("texts", "text", "captions", "caption")


def _kind(feature: Mapping[str, Any]) -> str:
    """The kind of a feature; of a bare type such as ``tf.string`` the one that stands for it."""
    kind = str(feature.get("pythonClassName", "")).rsplit(".", 1)[-1]
    tensor = feature.get("tensor")
    if kind in ("Tensor", "Scalar") and isinstance(tensor, Mapping) and not tensor.get("shape"):
        dtype = str(tensor.get("dtype", ""))
        is_integer = dtype.startswith(("int", "uint"))
        return "Text" if dtype == "string" else "Scalar" if is_integer else kind
    return kind


def _members(feature: Mapping[str, Any]) -> dict[str, Any]:
    return dict(feature.get("featuresDict", {}).get("features", {}))


def _leaves(feature: Mapping[str, Any], path: str = "", many: bool = False) -> dict[str, _Leaf]:
    """All features by the names that they have in a ``tf.train.Example``: ``captions/text``."""
    if feature.get("featuresDict"):
        found: dict[str, _Leaf] = {}
        for name, inner in _members(feature).items():
            found |= _leaves(inner, f"{path}/{name}" if path else name, many)
        return found
    inner = feature.get("sequence", {}).get("feature", {})
    languages = feature.get("translation", {}).get("languages")
    if languages and path:
        return {f"{path}/{language}": _Leaf("Text", many) for language in languages}
    if not inner:
        return {path: _Leaf(_kind(feature), many)} if path else {}
    if "sequence" in inner:  # of lists of different lengths
        deepest = inner["sequence"].get("feature", {})
        while "sequence" in deepest:
            deepest = deepest["sequence"].get("feature", {})
        return {f"{path}/ragged_flat_values": _Leaf(_kind(deepest), True)}
    return _leaves(inner, path, True)


def _captions(known: Mapping[str, _Leaf], names: Sequence[str]) -> list[str]:
    """Text features that are called like captions, or are in one that is; at the top first."""
    ranked = []
    for key, leaf in known.items():
        parts = key.removesuffix("/ragged_flat_values").lower().split("/")
        if leaf.kind != "Text":
            continue
        within = len(parts) > 1 and parts[-2] in names and parts[-1] in (*_USUAL, "raw", "en")
        if parts[-1] in names or within:
            rank = names.index(parts[-2] if within else parts[-1])
            ranked.append((len(parts), rank, key))
    return [key for _, _, key in sorted(ranked)]


def _check_given(given: Mapping[str, str], known: Mapping[str, _Leaf], name: str) -> None:
    """Refuse a map of features that names what is not there."""
    what = f"data set {name!r}"
    check_options(given, [field.name for field in dataclasses.fields(FieldNames)], what)
    for part, feature in given.items():
        if feature not in known:
            raise ValueError(f"{what} has no feature {feature!r}{hint(feature, known)}")
        if part == "image" and known[feature].kind != "Image":
            raise ValueError(f"{what}: feature {feature!r} is no Image but {known[feature].kind}")
