"""What people take for a file of weights and is none that is read: told by name or first bytes."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

from jaxclip.weights.files._base import FileError

# What to do instead, by the ending.
KINDS = {
    ".gguf": "llama.cpp's GGUF holds quantized numbers, which are not read; take the safetensors "
    "file that it was made of",
    ".h5": "Keras's HDF5 is not read; load it in transformers 4 (from_tf=True) and save it there "
    "as safetensors",
    ".onnx": "ONNX holds a program, not a model's tensors by name; take the file that it was made "
    "of",
    ".distcp": "a part of a distributed checkpoint of torch; make one file of it by "
    "torch.distributed.checkpoint.format_utils.dcp_to_torch_save",
    ".tflite": "TFLite holds a program, not a model's tensors by name",
    ".mlpackage": "Core ML holds a program, not a model's tensors by name",
}
_STARTS = (
    (b"version https://git-lfs", "a pointer of Git LFS; fetch the file itself: git lfs pull"),
    (b"<!doctype", "a web page, not the file; was the download refused?"),
    (b"<html", "a web page, not the file; was the download refused?"),
)
_LONGEST_HEADER = 100_000_000  # of safetensors, as its library has it


def refuse(path: pathlib.Path) -> None:
    """Refuse a file that stands in the place of weights.

    Raises:
      FileError: says what it is.
    """
    with path.open("rb") as file:
        start = file.read(32).lower()
    for begins, what in _STARTS:
        if start.startswith(begins):
            raise FileError(f"{path} is {what}")


def is_safetensors(path: pathlib.Path) -> bool:
    """Whether a file begins as one of safetensors: the length of its header, and the header."""
    with path.open("rb") as file:
        start = file.read(9)
    length = int.from_bytes(start[:8], "little")
    return start[8:] == b"{" and length <= min(_LONGEST_HEADER, path.stat().st_size - 8)


def hint(folder: pathlib.Path, patterns: Sequence[str]) -> str:
    """What to do about a folder without weights: what its other files are, or where some lie."""
    for file in sorted(folder.iterdir()):
        if file.suffix in KINDS:
            return f"; {file.name}: {KINDS[file.suffix]}"
    inner = [each for each in sorted(folder.iterdir()) if each.is_dir()]
    with_weights = [each for each in inner if any(next(each.glob(name), None) for name in patterns)]
    return f"; give {with_weights[0]}" if with_weights else ""
