"""The built-in data set: pictures of emoji in three hands, with what Unicode says about them.

Splits:

- ``train``: Noto and Twemoji.
- ``test_style``: Fluent, a hand never seen in training; every idea is also in ``train``.
- ``test_concept``: about a tenth of the ideas, in all three styles; none of their pictures and
  captions is in another split.

:func:`directory` is a TFDS data set like any other (see :mod:`jaxclip.data.schema`), made by
``python -m jaxclip.data.emoji.build``. Sources and licences are in ATTRIBUTION.md beside this file.
"""

from __future__ import annotations

import pathlib

NAME = "emoji"
VERSION = "1.0.0"
IMAGE_SIZE = 64


def directory() -> pathlib.Path:
    """Directory of the data set as shipped with the package.

    Raises:
      FileNotFoundError: the package was installed without its data.
    """
    path = pathlib.Path(__file__).parent / VERSION
    if not (path / "dataset_info.json").is_file():
        raise FileNotFoundError(
            f"the built-in data set is missing from {path}; reinstall jaxclip, or build it: "
            f"python -m jaxclip.data.emoji.build --fetch --packages DIR --to {path}"
        )
    return path


def tokenizer_file() -> pathlib.Path:
    """Byte-level BPE trained on the captions of ``train`` (see :mod:`jaxclip.data.tokenizers`)."""
    return pathlib.Path(__file__).parent / "tokenizer.json"
