"""NumPy's ``.npz`` files."""

from __future__ import annotations

import functools
import pathlib
import zipfile
from typing import Any

import ml_dtypes
import numpy as np
from numpy.lib import format as npy

from jaxclip.weights.files._base import FileError, Tensor, Tensors, checked_size

_VOID = np.dtype("V2")
# Zeros shrink a thousandfold; numbers of a model hardly do. What would unpack to this much from so
# little is no weight.
_BOMB_BYTES = 64 * 2**20
_BOMB_RATIO = 200


def open_npz(path: pathlib.Path) -> Tensors:
    """Open an archive of arrays; their headers alone are read.

    Raises:
      FileError: damaged, or with arrays of Python objects.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            tensors = {}
            for member in members:
                shape, dtype = _header(archive, member, path)
                name = member.filename.removesuffix(".npy")
                tensors[name] = Tensor(
                    shape, dtype, functools.partial(_read, path, member.filename)
                )
    except FileError:
        raise
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, ValueError) as error:
        raise FileError(f"{path} is no .npz file: {error}") from error
    return Tensors(path, tensors)


def _header(
    archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: pathlib.Path
) -> tuple[tuple[int, ...], np.dtype[Any]]:
    what = f"{path}: {member.filename}"
    try:
        with archive.open(member) as file:
            version = npy.read_magic(file)
            read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
            shape, _, dtype = read[version](file)
    except Exception as error:  # NumPy reads a header as Python's literals: it may meet anything
        why = f"{type(error).__name__}: {str(error)[:200]}"
        raise FileError(f"{what} is no array: {why}") from error
    if dtype.hasobject:
        raise FileError(f"{what} holds Python objects, which are never read")
    if (
        dtype == _VOID
    ):  # NumPy has no name for bfloat16 and writes two bytes of nothing in particular
        dtype = np.dtype(ml_dtypes.bfloat16)
    checked_size(shape, dtype, member.file_size, what)
    if member.file_size > max(_BOMB_BYTES, _BOMB_RATIO * member.compress_size):
        raise FileError(
            f"{what} would unpack {member.file_size} bytes from {member.compress_size}: no weights "
            "shrink like that"
        )
    return shape, dtype


def _read(path: pathlib.Path, name: str) -> np.ndarray:
    try:
        with zipfile.ZipFile(path) as archive, archive.open(name) as file:
            array = npy.read_array(file, allow_pickle=False)
            return array.view(ml_dtypes.bfloat16) if array.dtype == _VOID else array
    except Exception as error:
        what = f"{type(error).__name__}: {str(error)[:200]}"
        raise FileError(f"{path}: {name} is damaged: {what}") from error
