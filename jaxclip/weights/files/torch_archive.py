"""torch's files: state dicts of ``torch.save`` and TorchScript archives, without torch.

Both are zip archives of a pickle and raw numbers. A pickle is a program; this reader runs one that
can do nothing but build dicts, lists and descriptions of tensors: every name that it asks for is
looked up in a short table, and what is not in it is refused.
"""

from __future__ import annotations

import io
import math
import mmap
import pathlib
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from jaxclip.weights.files._base import FileError, Tensor, Tensors, checked_size

_LARGEST_PICKLE = 256 * 2**20
_STORAGES = {
    "DoubleStorage": np.float64, "FloatStorage": np.float32, "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16, "LongStorage": np.int64, "IntStorage": np.int32,
    "ShortStorage": np.int16, "CharStorage": np.int8, "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}  # fmt: skip
_DEEPEST = 64


class _Storage(NamedTuple):
    """Numbers of a tensor, by the archive's name for them."""

    dtype: np.dtype[Any]
    key: str


class _Described(NamedTuple):
    """A tensor as the pickle describes it."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class _Module:
    """An object of a TorchScript archive: attributes and nothing else."""

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.__dict__.update({str(key): value for key, value in state.items()})


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
            if members[pickles[0]].file_size > _LARGEST_PICKLE:
                raise FileError(
                    f"{path}: its data.pkl claims {members[pickles[0]].file_size} bytes"
                )
            endian = members.get(f"{root}byteorder")
            if endian is not None and archive.read(endian)[:8] != b"little":
                raise FileError(f"{path} is big-endian, which is not read")
            content = _Reader(io.BytesIO(archive.read(pickles[0])), str(path)).load()
    except FileError:
        raise
    except (zipfile.BadZipFile, NotImplementedError) as error:
        raise FileError(
            f"{path} is no zip archive ({error}); files of torch before 1.6 are not read: load it "
            "there and save it again, best as safetensors"
        ) from error
    except Exception as error:  # whatever a broken pickle makes of itself
        raise FileError(f"{path}: its data.pkl can't be read: {error}") from error
    described = dict(_flatten(_state_of(content), "", 0))
    if not described:
        raise FileError(f"{path} holds no tensors")
    return Tensors(
        path,
        {name: _tensor(path, members, root, name, each) for name, each in described.items()},
    )


class _Reader(pickle.Unpickler):
    """An unpickler that builds descriptions only."""

    def __init__(self, file: io.BytesIO, path: str):
        super().__init__(file)
        self._path = path

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _STORAGES:
            return name
        if module == "torch._utils" and name in ("_rebuild_tensor_v2", "_rebuild_tensor"):
            return _describe
        if module == "torch._utils" and name == "_rebuild_parameter":
            return lambda data, *rest: data
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch", "Size"):
            return tuple
        if module.startswith("__torch__"):
            return _Module
        if module == "torch.jit._pickle" and name.startswith("build_"):
            return lambda data, *rest: data
        raise FileError(
            f"{self._path} asks for {module}.{name}: only tensors are read, nothing is run; save "
            "its state dict, best as safetensors"
        )

    def persistent_load(self, pid: Any) -> Any:
        if not isinstance(pid, tuple) or len(pid) < 3 or pid[0] != "storage":
            raise FileError(f"{self._path} refers to {str(pid)[:80]}, which is no storage")
        kind, key = pid[1], pid[2]
        if kind not in _STORAGES or not isinstance(key, str):
            raise FileError(f"{self._path} has a storage of kind {str(kind)[:40]}")
        return _Storage(np.dtype(_STORAGES[kind]), key)


def _describe(storage: Any, offset: Any, shape: Any, stride: Any, *rest: Any) -> _Described:
    return _Described(storage, offset, tuple(shape), tuple(stride))


def _state_of(content: Any) -> Any:
    """The state dict, where it is wrapped as trainers do."""
    for key in ("state_dict", "model", "module"):
        inner = content.get(key) if isinstance(content, dict) else None
        if isinstance(inner, dict) and inner:
            content = inner
    return content


def _flatten(value: Any, name: str, depth: int) -> Iterator[tuple[str, _Described]]:
    if depth > _DEEPEST:
        raise FileError(f"{name[:80]}… is nested more than {_DEEPEST} deep")
    if isinstance(value, _Described):
        yield name, value
        return
    items = value.__dict__ if isinstance(value, _Module) else value
    if isinstance(items, dict):
        for key, inner in items.items():
            yield from _flatten(inner, f"{name}.{key}" if name else str(key), depth + 1)


def _tensor(
    path: pathlib.Path,
    members: dict[str, zipfile.ZipInfo],
    root: str,
    name: str,
    described: _Described,
) -> Tensor:
    storage, offset, shape, stride = described
    what = f"{path}: {name}"
    member = None
    if isinstance(storage, _Storage):
        places = (f"{root}data/{storage.key}", f"{root}constants/{storage.key}")
        member = next((members[place] for place in places if place in members), None)
    if member is None or not isinstance(offset, int) or offset < 0:
        raise FileError(f"{what}: its numbers are not in the file")
    if member.compress_type != zipfile.ZIP_STORED:
        raise FileError(f"{what} is compressed, which torch never does")
    dtype = storage.dtype
    checked_size(shape, dtype, member.file_size, what)
    checked_size(stride, dtype, 2**63, what)
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
