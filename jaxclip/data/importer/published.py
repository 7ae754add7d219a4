"""Usual sets in files that are not read, and where the same pictures are in files that are.

The names of the tars are those of CLIP_benchmark's own list, ``benchmark/webdatasets.txt``.
"""

from __future__ import annotations

import itertools
import pathlib
import re
from collections.abc import Iterator
from typing import NamedTuple

from jaxclip.data.importer.pictures import IMAGE_SUFFIXES
from jaxclip.data.naming import is_hidden

# How many folders within one are looked into, how many names in each, how deep, and in all.
_MAX_FOLDERS, _MAX_NAMES, _DEEPEST, _MAX_IN_ALL = 16, 400, 3, 4000


class _Set(NamedTuple):
    """A set by a file that it has: a pattern of its name, what the set is kept in, how it is
    called, and the name of its tars."""

    file: str
    kind: str
    name: str
    tars: str


_PICKLE = "pickles, which may run any program"
_RAW, _MATLAB, _HDF5 = "raw bytes", "files of MATLAB", "HDF5"
_SETS = (
    _Set(r"data_batch_\d|batches\.meta|cifar-10-python\.(tar\.gz|tgz)", _PICKLE, "CIFAR-10",
         "vtab-cifar10"),
    _Set(r"data_batch_\d\.bin|batches\.meta\.txt|cifar-10-binary\.(tar\.gz|tgz)", _RAW, "CIFAR-10",
         "vtab-cifar10"),
    _Set(r"data_batch_\d\.mat|batches\.meta\.mat|cifar-10-matlab\.(tar\.gz|tgz)", _MATLAB,
         "CIFAR-10", "vtab-cifar10"),
    _Set(r"cifar-100-python(\.tar\.gz|\.tgz)?|file\.txt~", _PICKLE, "CIFAR-100", "vtab-cifar100"),
    _Set(r"fine_label_names\.txt|cifar-100-binary(\.tar\.gz|\.tgz)?", _RAW, "CIFAR-100",
         "vtab-cifar100"),
    _Set(r"(train|t10k)-(images|labels)[-.]idx\d-ubyte(\.gz)?", "arrays (IDX)",
         "MNIST (if it is not Fashion-MNIST)", "mnist"),
    _Set(r"(train|test|unlabeled)_[Xy]\.bin|stl10_binary\.tar\.gz", _RAW, "STL-10", "stl10"),
    _Set(r"(train|test|extra)_32x32\.mat", _MATLAB, "SVHN", "vtab-svhn"),
    _Set(r"imagelabels\.mat|setid\.mat", _MATLAB, "Flowers-102", "vtab-flowers"),
    _Set(r"cars_(annos|meta|train_annos|test_annos\w*)\.mat", _MATLAB, "Stanford Cars", "cars"),
    _Set(r"camelyonpatch_level_2_split_\w+\.h5(\.gz)?", _HDF5, "PatchCamelyon", "vtab-pcam"),
    _Set(r"aeroplane_(train|val|trainval|test)\.txt", "lists of one class of several that a "
         "picture may have", "Pascal VOC", "voc2007"),
    _Set(r"fer2013\.csv|icml_face_data\.csv", "a table of pixels", "FER2013", "fer2013"),
    _Set(r"CLEVR_\w+_scenes\.json", "a table of objects", "CLEVR", "vtab-clevr_count_all"),
    _Set(r"smallnorb-\w+-dat\.mat(\.gz)?", _RAW, "SmallNORB", "vtab-smallnorb_label_azimuth"),
    _Set(r"dsprites_ndarray_\w+\.npz", "arrays of NumPy", "dSprites",
         "vtab-dsprites_label_orientation"),
)  # fmt: skip
_OTHERS = {
    r"ILSVRC2012_validation_ground_truth\.txt": "has other numbers than classes usually have: sort "
    "the pictures into folders of WordNet ids, or put LOC_val_solution.csv beside them",
    r"mimic-cxr-2\.\d\.\d-\w+\.csv(\.gz)?": "has no reports: make a table of pictures and of "
    "sections of their reports, such as files/p10/p10000032/s50414267.txt",
    r"LOC_(train|val)_solution\.csv": "is of no use here: put LOC_val_solution.csv into "
    "ILSVRC/Data/CLS-LOC/val, and import that; import ILSVRC/Data/CLS-LOC/train by its folders",
}


def in_other_files(path: pathlib.Path) -> str:
    """Of which usual set a folder or file is, and which other files of it to take, for an error.

    Returns:
      Empty if it is none that is known.
    """
    for file in [path] if path.is_file() else names(path):
        for pattern, said in _OTHERS.items():
            if re.fullmatch(pattern, file.name):
                return f"; {file.name} {said}"
        for each in _SETS:
            if re.fullmatch(each.file, file.name):
                tars = f"webdataset:hf://datasets/clip-benchmark/wds_{each.tars}"
                return (
                    f"; {file.name} is of {each.name}, in {each.kind}: take the set as tars, "
                    f"data.name={tars!r}, or write its pictures as tars or Parquet"
                )
    return ""


def names(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """What is in a folder and in the first folders in it, but not beside pictures."""
    return itertools.islice(_names(folder, _DEEPEST), _MAX_IN_ALL)


def _names(folder: pathlib.Path, depth: int) -> Iterator[pathlib.Path]:
    entries = sorted(itertools.islice(folder.iterdir(), _MAX_NAMES))
    yield from entries
    if depth and not any(each.suffix.lower() in IMAGE_SUFFIXES for each in entries):
        inner = [each for each in entries if not is_hidden(each.name) and each.is_dir()]
        for each in inner[:_MAX_FOLDERS]:
            yield from _names(each, depth - 1)
