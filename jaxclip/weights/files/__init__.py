"""Files of tensors, read one tensor at a time: safetensors, torch's archives, NumPy's, Flax's.

A file from a stranger is data, never code: nothing of it is executed, and no size that it claims is
believed before it is checked against the file's own.
"""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Callable
from typing import Any

from jaxclip.weights.files import _others
from jaxclip.weights.files._base import FileError, Tensor, Tensors
from jaxclip.weights.files.msgpack import open_msgpack
from jaxclip.weights.files.npz import open_npz
from jaxclip.weights.files.safetensors import open_safetensors
from jaxclip.weights.files.torch_archive import open_torch

__all__ = ["FileError", "Tensor", "Tensors", "open_file", "open_folder", "read_json"]

_OPENERS: dict[str, Callable[[pathlib.Path], Tensors]] = {
    ".safetensors": open_safetensors,
    ".npz": open_npz,
    ".pt": open_torch,
    ".pth": open_torch,
    ".bin": open_torch,
    ".ckpt": open_torch,  # Lightning's
    ".msgpack": open_msgpack,
}
# Of several files in one folder, the first of these that is there.
_NAMES = (
    "model.safetensors",
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "open_clip_pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_LARGEST_JSON = 8 * 2**20


def open_file(path: str | os.PathLike[str]) -> Tensors:
    """Open a file of tensors by its ending, or by what it begins with where that says otherwise.

    Raises:
      FileError: not of a known kind, or damaged.
    """
    file = pathlib.Path(path)
    if file.name.endswith(".index.json"):
        return _open_index(file)
    if file.suffix not in _OPENERS:
        known = f"no known kind of file; known: {', '.join(_OPENERS)}"
        raise FileError(f"{file}: {_others.KINDS.get(file.suffix, known)}")
    if not file.is_file():
        raise FileError(f"{file} does not exist")
    _others.refuse(file)
    opener = _OPENERS[file.suffix]
    if opener is open_torch and _others.is_safetensors(file):
        opener = open_safetensors  # renamed
    return opener(file)


def open_folder(path: str | os.PathLike[str]) -> Tensors:
    """Open the file of tensors, or the several, in a folder.

    Raises:
      FileError: there is none, or several that could be meant.
    """
    folder = pathlib.Path(path)
    for name in _NAMES:
        if (folder / name).is_file():
            return open_file(folder / name)
    files = sorted(file for file in folder.iterdir() if file.suffix in _OPENERS)
    # The hub has Flax's beside others that hold the same.
    found = [file for file in files if file.suffix != ".msgpack"] or files
    if len(found) == 1:
        return open_file(found[0])
    if not found:
        there = ", ".join(sorted(f.name for f in folder.iterdir())[:6]) or "nothing"
        more = _others.hint(folder, [*_NAMES, *(f"*{end}" for end in _OPENERS)])
        raise FileError(f"{folder} holds no weights ({', '.join(_OPENERS)}), but {there}{more}")
    raise FileError(
        f"{folder} holds several files of weights: {', '.join(f.name for f in found[:6])}; name one"
    )


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """A JSON object of a file; empty if there is no file.

    Raises:
      FileError: it is no JSON object, or absurdly large.
    """
    if not path.is_file():
        return {}
    if path.stat().st_size > _LARGEST_JSON:
        raise FileError(f"{path} has {path.stat().st_size} bytes, too many for a configuration")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise FileError(f"{path} is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise FileError(f"{path} holds {type(value).__name__}, not a JSON object")
    return value


def _open_index(path: pathlib.Path) -> Tensors:
    """Several files, and a table of which tensor is in which."""
    table = read_json(path).get("weight_map")
    if not isinstance(table, dict) or not table:
        raise FileError(f"{path} has no 'weight_map'")
    shards: dict[str, Tensors] = {}
    tensors: dict[str, Tensor] = {}
    for name, file in table.items():
        # A name, not a way out of the folder.
        if not isinstance(file, str) or pathlib.PurePath(file).name != file or len(file) > 255:
            raise FileError(
                f"{path} names {str(file)[:80]!r} for {name[:80]!r}, which is no file beside it"
            )
        if file.endswith(".index.json"):  # perhaps this one
            raise FileError(f"{path} names {file!r} for {name[:80]!r}, which is an index itself")
        if file not in shards:
            shards[file] = open_file(path.parent / file)
        if name not in shards[file].tensors:
            raise FileError(f"{path} says that {name[:80]!r} is in {file}, but it is not")
        tensors[name] = shards[file].tensors[name]
    return Tensors(path, tensors)
