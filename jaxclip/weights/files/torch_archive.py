"""torch's files: state dicts of ``torch.save`` and TorchScript archives, without torch.

Both are zip archives of a pickle and raw numbers (:mod:`jaxclip.weights.files.torch_pickle`).
"""

from __future__ import annotations

import functools
import logging
import math
import mmap
import pathlib
import zipfile
from collections.abc import Iterator
from typing import Any

import numpy as np

from jaxclip.weights.files import torch_pickle
from jaxclip.weights.files._base import FileError, Tensor, Tensors, checked_size
from jaxclip.weights.files.torch_pickle import Described, Module, Storage

_DEEPEST = 64
# Entries of a state dict, over all its levels, and the letters of all names.
_MOST = 200_000
_MOST_LETTERS = 2**24
_LONGEST_NAME = 4096
# Where trainers keep moving averages.
_AVERAGES = (
    "ema", "ema_state_dict", "state_dict_ema", "model_ema", "ema_model", "ema_params", "shadow",
    "shadow_params", "averaged_model",
)  # fmt: skip

logger = logging.getLogger("jaxclip")


def open_torch(path: pathlib.Path) -> Tensors:
    """Open a state dict or a TorchScript archive.

    Raises:
      FileError: another kind of file, damaged, or a pickle that asks for code.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = {member.filename: member for member in archive.infolist()}
            pickles = [n for n in members if n == "data.pkl" or n.endswith("/data.pkl")]
            if len(pickles) != 1:
                raise FileError(f"{path} holds no data.pkl: it is not a file of torch.save")
            root = pickles[0].removesuffix("data.pkl")
            if members[pickles[0]].file_size > torch_pickle.LARGEST:
                raise FileError(
                    f"{path}: its data.pkl claims {members[pickles[0]].file_size} bytes"
                )
            endian = members.get(f"{root}byteorder")
            if endian is not None and (endian.file_size > 16 or archive.read(endian) != b"little"):
                raise FileError(f"{path} is big-endian, which is not read")
            content = torch_pickle.load(archive.read(pickles[0]), str(path))
    except FileError:
        raise
    except (zipfile.BadZipFile, NotImplementedError) as error:
        raise FileError(
            f"{path} is no zip archive ({error}); files of torch before 1.6 are not read: load it "
            "there and save it again, best as safetensors"
        ) from error
    except Exception as error:  # whatever a broken pickle makes of itself
        raise FileError(f"{path}: its data.pkl can't be read: {error}") from error
    state = _state_of(content, path)
    if _entries(state, {}) > _MOST:
        raise FileError(f"{path}: its data.pkl holds more than {_MOST} entries")
    described = dict(_flatten(state, "", [0]))
    if not described:
        raise FileError(f"{path} holds no tensors")
    return Tensors(
        path,
        {name: _tensor(path, members, root, name, each) for name, each in described.items()},
    )


def _state_of(content: Any, path: pathlib.Path) -> Any:
    """The state dict, where it is wrapped as trainers do."""
    for key in ("state_dict", "model", "module"):
        inner = content.get(key) if isinstance(content, dict) else None
        if isinstance(inner, dict) and inner:
            averages = [other for other in content if other in _AVERAGES]
            if averages:
                _say_once(str(path), key, str(averages[0]))
            content = inner
    holders = _holders(content) if isinstance(content, dict) else []
    if len(holders) == 1 and holders[0] in _AVERAGES:
        return content[holders[0]]
    return content


def _holders(content: dict[Any, Any]) -> list[Any]:
    """Keys of tensors, and of dicts that hold some themselves; a shared dict is looked at once."""
    known: dict[int, bool] = {}
    for inner in content.values():
        if id(inner) not in known:
            found = inner.values() if isinstance(inner, dict) else (inner,)
            known[id(inner)] = any(isinstance(each, Described) for each in found)
    return [key for key, inner in content.items() if known[id(inner)]]


@functools.lru_cache(maxsize=64)
def _say_once(path: str, key: str, averages: str) -> None:
    said = "%s: the weights of %r are taken; it holds averages, too, as %r"
    logger.warning(said, path, key, averages)


def _items(value: Any) -> dict[Any, Any]:
    """What a value holds under names."""
    items = value.attributes if isinstance(value, Module) else value
    return items if isinstance(items, dict) else {}


def _entries(value: Any, known: dict[int, int], depth: int = 0) -> int:
    """How many entries a value has over all its levels, shared ones each time.

    Some hundred bytes of a program can mean 2^40: each dict is looked at once. ``known`` has the
    numbers of those that were.
    """
    items = _items(value)
    if not items:
        return 0
    if id(items) not in known:
        if depth > _DEEPEST:
            raise FileError(f"a pickle is nested more than {_DEEPEST} deep")
        below = sum(_entries(inner, known, depth + 1) for inner in items.values())
        known[id(items)] = len(items) + below
    return known[id(items)]


def _flatten(
    value: Any, name: str, letters: list[int], depth: int = 0
) -> Iterator[tuple[str, Described]]:
    """Tensors by their names joined with dots; ``letters`` counts those of all names so far."""
    if depth > _DEEPEST:
        raise FileError(f"{name[:80]}… is nested more than {_DEEPEST} deep")
    if len(name) > _LONGEST_NAME:
        raise FileError(f"{name[:80]}… is no name of a tensor: it has {len(name)} characters")
    letters[0] += len(name)
    if letters[0] > _MOST_LETTERS:
        raise FileError(f"{name[:80]}… and the other names have over {_MOST_LETTERS} characters")
    if isinstance(value, Described):
        yield name, value
        return
    for key, inner in _items(value).items():
        yield from _flatten(inner, f"{name}.{key}" if name else str(key), letters, depth + 1)


def _tensor(
    path: pathlib.Path,
    members: dict[str, zipfile.ZipInfo],
    root: str,
    name: str,
    described: Described,
) -> Tensor:
    storage, offset, shape, stride = described
    what = f"{path}: {name}"
    member = None
    if isinstance(storage, Storage):
        places = (f"{root}data/{storage.key}", f"{root}constants/{storage.key}")
        member = next((members[place] for place in places if place in members), None)
    if member is None or not isinstance(offset, int) or offset < 0:
        raise FileError(f"{what}: its numbers are not in the file")
    if member.compress_type != zipfile.ZIP_STORED:
        raise FileError(f"{what} is compressed, which torch never does")
    dtype = storage.dtype
    checked_size(shape, dtype, member.file_size, what)
    checked_size(stride, dtype, 2**63, what)
    if len(shape) != len(stride):
        raise FileError(f"{what} has {len(shape)} dimensions, but {len(stride)} strides")
    reach = offset + sum((n - 1) * s for n, s in zip(shape, stride, strict=True)) + 1
    if math.prod(shape) and reach * dtype.itemsize > member.file_size:
        raise FileError(f"{what} reaches beyond its {member.file_size} bytes")

    def read() -> np.ndarray:
        whole = _map(path, member)[: member.file_size // dtype.itemsize * dtype.itemsize]
        steps = [s * dtype.itemsize for s in stride]
        start = whole.view(dtype)[offset:]
        return np.lib.stride_tricks.as_strided(start, shape, steps, writeable=False)

    return Tensor(tuple(shape), dtype, read)


def _map(path: pathlib.Path, member: zipfile.ZipInfo) -> np.ndarray:
    """uint8 view of an uncompressed member, mapped and not copied."""
    with path.open("rb") as file:
        file.seek(member.header_offset)
        header = file.read(30)
        if len(header) < 30 or header[:4] != b"PK\x03\x04":
            raise FileError(f"{path}: the archive is damaged at {member.filename}")
        skip = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        start = member.header_offset + 30 + skip
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if start + member.file_size > len(mapped):
        raise FileError(f"{path} ends within {member.filename}")
    return np.frombuffer(mapped, np.uint8, member.file_size, start)
