"""What a data set of image-text records looks like on disk.

A data set is a directory that ``tfds.builder_from_directory`` reads, with these features:

=======  ==================  ==========================================================
feature  type                meaning
=======  ==================  ==========================================================
image    Image               encoded bytes (PNG, JPEG, …), RGB
texts    Sequence(Text)      captions of the picture, at least one; the first is its name
label    ClassLabel, Scalar  class of the picture, -1 = none
key      Text                unique name of the record
meta     Text                JSON object with whatever else is known, may be empty
=======  ==================  ==========================================================

Two optional files beside them say more, both plain JSON:

- ``split_classes.json``: for each split, the class ids that can occur in it. They are what a
  zero-shot classifier chooses among, see :func:`split_classes`.
- ``translations/<language>.json.gz``: captions in another language by class id, see
  :func:`translations`.
"""

from __future__ import annotations

import gzip
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

IMAGE = "image"
TEXTS = "texts"
LABEL = "label"
KEY = "key"
META = "meta"

NO_LABEL = -1

SPLIT_CLASSES_FILE = "split_classes.json"
TRANSLATIONS_DIR = "translations"


def features(
    class_names: Sequence[str] | None = None,
    *,
    image_shape: tuple[int | None, int | None, int] = (None, None, 3),
    encoding: str | None = None,
) -> Any:
    """The features of a data set.

    Args:
      class_names: names of the classes by label; without them ``label`` is a bare integer.
      image_shape: (height, width, channels), None where records differ.
      encoding: ``"png"`` or ``"jpeg"`` if all records are encoded so; None if they differ.

    Returns:
      A ``tfds.features.FeaturesDict``.
    """
    from jaxclip.data._tfds import tensorflow, tensorflow_datasets

    tf, tfds = tensorflow(), tensorflow_datasets()
    label = (
        tfds.features.ClassLabel(names=list(class_names))
        if class_names is not None
        else tfds.features.Scalar(dtype=tf.int64)
    )
    return tfds.features.FeaturesDict(
        {
            IMAGE: tfds.features.Image(shape=image_shape, encoding_format=encoding),
            TEXTS: tfds.features.Sequence(tfds.features.Text()),
            LABEL: label,
            KEY: tfds.features.Text(),
            META: tfds.features.Text(),
        }
    )


def example(
    image: bytes,
    texts: Sequence[str],
    *,
    key: str,
    label: int = NO_LABEL,
    meta: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """One record, ready for TFDS to encode.

    Args:
      image: encoded bytes, stored as they are.
      texts: captions, at least one.
      key: unique name of the record.
      label: class id, -1 = none.
      meta: whatever else is known, must be JSON.

    Returns:
      Values by feature name.

    Raises:
      ValueError: there is no caption or no picture.
    """
    if not image:
        raise ValueError(f"record {key!r} has no image bytes")
    if not texts:
        raise ValueError(f"record {key!r} has no captions; give at least one")
    return {
        IMAGE: image,
        TEXTS: list(texts),
        LABEL: label,
        KEY: key,
        META: json.dumps(meta, ensure_ascii=False, sort_keys=True) if meta else "",
    }


def split_classes(directory: str | os.PathLike[str]) -> dict[str, list[int]] | None:
    """Class ids that can occur in each split, in ascending order.

    Labels are the same in all splits (a class has one id), but a split may hold only some of the
    classes. A zero-shot classifier over a split chooses among these.

    Args:
      directory: of the data set.

    Returns:
      Ids by split name, or None if any class may occur anywhere.
    """
    path = pathlib.Path(directory) / SPLIT_CLASSES_FILE
    if not path.is_file():
        return None
    return json.loads(path.read_text(encoding="utf-8"))


def languages(directory: str | os.PathLike[str]) -> list[str]:
    """Languages, besides that of ``texts``, in which a data set has captions, sorted."""
    folder = pathlib.Path(directory) / TRANSLATIONS_DIR
    return sorted(path.name.removesuffix(".json.gz") for path in folder.glob("*.json.gz"))


def translations(directory: str | os.PathLike[str], language: str) -> dict[int, list[str]]:
    """Captions in another language by class id; the first of each is the name of the class.

    Args:
      directory: of the data set.
      language: one of :func:`languages`.

    Returns:
      Captions by class id. A class without any is left out.

    Raises:
      ValueError: the data set has no captions in this language.
    """
    path = pathlib.Path(directory) / TRANSLATIONS_DIR / f"{language}.json.gz"
    if not path.is_file():
        known = ", ".join(languages(directory)) or "none"
        raise ValueError(
            f"data set {os.fspath(directory)!r} has no captions in language {language!r}; "
            f"besides its own it has: {known}"
        )
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return {int(label): texts for label, texts in json.load(file).items()}
