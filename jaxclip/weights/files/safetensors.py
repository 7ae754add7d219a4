"""safetensors files, read by the library of that name."""

from __future__ import annotations

import functools
import json
import pathlib

import ml_dtypes  # NumPy knows bfloat16 and float8 by it
import numpy as np

from jaxclip.weights.files._base import FileError, Tensor, Tensors

_DTYPES = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16,
    "I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8, "U8": np.uint8,
    "BOOL": np.bool_,
}  # fmt: skip

# The library's own limit.
_LARGEST_HEADER = 100_000_000


def open_safetensors(path: pathlib.Path) -> Tensors:
    """Open a file; its header alone is read, and checked by the library.

    Raises:
      FileError: damaged, or a dtype that is no weight's; ImportError names the extra.
    """
    try:
        import safetensors
    except ImportError as error:
        raise ImportError(
            "safetensors files need the extra 'weights', in a clone of jaxclip: "
            "pip install '.[weights]'"
        ) from error
    try:
        file = safetensors.safe_open(path, framework="numpy")
        tensors = {}
        for name in file.keys():  # noqa: SIM118 (no mapping)
            part = file.get_slice(name)
            kind = part.get_dtype()
            if kind not in _DTYPES:
                raise FileError(f"{path}: {name} is of dtype {kind}, which is not read")
            dtype: np.dtype = np.dtype(_DTYPES[kind])
            shape = tuple(part.get_shape())
            tensors[name] = Tensor(shape, dtype, functools.partial(file.get_tensor, name))
    except FileError:
        raise
    except Exception as error:  # SafetensorError, OSError: whatever the library meets
        raise FileError(f"{path} is no safetensors file: {error}{_cut(path)}") from error
    return Tensors(path, tensors)


def _cut(path: pathlib.Path) -> str:
    """What to do where the file ends before its header, or its tensors, do; else nothing."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = file.read(length) if 1 < length < min(size, _LARGEST_HEADER) else b""
        # What a text begins with is a far larger number.
        wanted = 8 + length if length < _LARGEST_HEADER else 0
        if header and len(header) == length:
            parts = [part for name, part in json.loads(header).items() if name != "__metadata__"]
            wanted += max((int(part["data_offsets"][1]) for part in parts), default=0)
    except Exception:  # whatever a header is that was written to be wrong
        return ""
    if size >= wanted:
        return ""
    return f" (it has {size:,} of {wanted:,} bytes: the download was cut short; fetch it again)"
