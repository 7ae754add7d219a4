"""What CLIP_benchmark leaves beside its tars: names of classes, templates, the number of tars."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Any

from jaxclip.data import remote
from jaxclip.data.record import UTF_16

NUMBER_FILE = "nshards.txt"
CLASS_NAMES_FILE = "classnames.txt"
TEMPLATES_FILE = "zeroshot_classification_templates.txt"
_LINE_ENDS = re.compile(r"\r\n|\r|\n")


def class_names(folder: Any) -> list[str] | None:
    """Names of the labels, a line each, in a folder as CLIP_benchmark writes it.

    Args:
      folder: the path of the folder.

    Returns:
      None if there is no such file, or nothing in it.

    Raises:
      ValueError: it is neither UTF-8 nor UTF-16, or a line between others is empty.
    """
    names = lines_of(folder / CLASS_NAMES_FILE)
    if "" in names:
        raise ValueError(
            f"{folder / CLASS_NAMES_FILE}: line {names.index('') + 1} is empty, so the lines after "
            "it may be of other labels; write the name there, or remove the line"
        )
    return names or None


def lines_of(file: Any) -> list[str]:
    """The lines of a file, up to the last that says anything; none if there is no such file.

    Raises:
      ValueError: it is neither UTF-8 nor UTF-16.
    """
    try:
        data = file.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return []
    try:
        text = data.decode("utf-16" if data.startswith(UTF_16) else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8: {error}") from error
    lines = _LINE_ENDS.split(text.rstrip())
    return [line.strip() for line in lines] if text.strip() else []


def captions_by_line(paths: Sequence[Any]) -> list[bool]:
    """Whether each line of a ``.txt`` in each of some tars is a caption of its own, as
    CLIP_benchmark writes it, which leaves ``nshards.txt`` beside them."""
    noted: dict[str, bool] = {}
    for path in paths:
        folder = os.path.dirname(path)
        if folder not in noted:
            noted[folder] = noted_number(remote.path_of(folder or ".") / NUMBER_FILE) > 0
    return [noted[os.path.dirname(path)] for path in paths]


def noted_number(path: Any) -> int:
    """The number of tars that CLIP_benchmark notes beside them; 0 if it does not."""
    try:
        return int(path.read_bytes().decode("utf-8-sig"))
    except (OSError, ValueError):
        return 0
