"""Data sets by the name that TFDS knows them by, with a map of their features where it is needed.

``tfds:NAME``, ``tfds:NAME/CONFIG:VERSION``, ``tfds:NAME?texts=description&image=photo``. What TFDS
has prepared is read from its folder, ``~/tensorflow_datasets`` or ``TFDS_DATA_DIR``; nothing is
downloaded, and TFDS itself is not needed. In place of the name there may be a directory.
"""

from __future__ import annotations

import json
import os
from typing import Any

from jaxclip.data import remote
from jaxclip.data.dataset import DataSet
from jaxclip.data.tfds_directory import open_directory
from jaxclip.registry import hint

_INFO = "dataset_info.json"


def open_name(written: str) -> DataSet:
    """Open what stands behind ``tfds:``.

    Raises:
      FileNotFoundError: it is not prepared, or not in this version or configuration.
      ValueError: a map that can't be, or features that no record can be made of.
    """
    name, _, query = written.partition("?")
    fields = _fields(query, written)
    where = remote.path_of(os.path.expanduser(name)) if is_path(name) else _prepared(name)
    return open_directory(where, f"tfds:{written}", fields)


def is_path(name: str) -> bool:
    """Whether what stands behind ``tfds:`` is a directory and not a name."""
    return name.startswith(("/", ".", "~")) or remote.is_remote(name)


def _fields(query: str, written: str) -> dict[str, str]:
    """The part of a record -> the feature it is."""
    fields = {}
    for pair in query.split("&") if query else ():
        part, equals, feature = pair.partition("=")
        if not equals or not part or not feature:
            raise ValueError(
                f"data set 'tfds:{written}': {pair!r} is not PART=FEATURE, as in "
                "tfds:NAME?texts=description&image=photo"
            )
        fields[part] = feature
    return fields


def _prepared(written: str) -> Any:
    """The directory of a prepared data set."""
    base = remote.path_of(
        os.environ.get("TFDS_DATA_DIR") or os.path.expanduser("~/tensorflow_datasets")
    )
    name, _, version = written.partition(":")
    name, _, config = name.partition("/")
    folder = base / name
    found = sorted(folder.glob(f"*/{_INFO}")) + sorted(folder.glob(f"*/*/{_INFO}"))
    if not name or not found:
        known = sorted({each.name for each in base.iterdir()}) if base.is_dir() else []
        near = hint(name, known) if known else ""
        raise FileNotFoundError(
            f"data set 'tfds:{written}' is not prepared in {base}: `tfds build {written}` does "
            f"that, TFDS_DATA_DIR names another folder{near}"
        )
    versions = [each.parent for each in found]
    configs = sorted({each.parent.name for each in versions if each.parent != folder})
    if configs or config:
        config = config or (configs[0] if len(configs) == 1 else _default_config(folder))
        versions = [each for each in versions if config and each.parent == folder / config]
    if version:
        versions = [each for each in versions if each.name == version]
    if not versions:
        what = f"configurations: {', '.join(configs)}; " if configs else ""
        there = ", ".join(sorted({each.parent.name for each in found}))
        raise FileNotFoundError(
            f"data set 'tfds:{written}' is not in {folder}, which has {what}versions: {there}"
        )
    return max(versions, key=lambda each: _number(each.name))


def _default_config(folder: Any) -> str:
    """The configuration that TFDS takes for this name; empty where it did not note one."""
    try:
        noted = json.loads((folder / ".config" / "metadata.json").read_text())
        return str(noted["default_config_name"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) if part.isdigit() else -1 for part in version.split("."))
