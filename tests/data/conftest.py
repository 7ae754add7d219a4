"""Small pictures and data sets for the tests of jaxclip.data."""

import csv
import io
import json
import pathlib
import tarfile
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pytest
from PIL import Image

from jaxclip.data.record import Record, serialize_record
from jaxclip.data.tfrecord import frame

_FEATURES = {
    "image": {"pythonClassName": "tensorflow_datasets.core.features.image_feature.Image"},
    "texts": {
        "pythonClassName": "tensorflow_datasets.core.features.sequence_feature.Sequence",
        "sequence": {
            "feature": {"pythonClassName": "tensorflow_datasets.core.features.text_feature.Text"}
        },
    },
    "label": {"pythonClassName": "tensorflow_datasets.core.features.scalar.Scalar"},
    "key": {"pythonClassName": "tensorflow_datasets.core.features.text_feature.Text"},
    "meta": {"pythonClassName": "tensorflow_datasets.core.features.text_feature.Text"},
}


def encode(pixels: np.ndarray, format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format=format, **options)
    return buffer.getvalue()


def picture(seed: int, height: int = 12, width: int = 12, format: str = "PNG") -> bytes:
    """An encoded picture of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return encode(pixels, format)


def records(count: int, **options) -> list[Record]:
    """Records that are told apart by key, picture and captions."""
    return [
        Record(picture(i, **options), (f"thing {i}", f"item {i}"), label=i % 3, key=f"key{i}")
        for i in range(count)
    ]


def write_data_set(
    folder: pathlib.Path,
    splits: Mapping[str, Sequence[Record]],
    *,
    shards: int = 1,
    class_names: Sequence[str] | None = None,
    features: Mapping[str, object] | None = None,
) -> pathlib.Path:
    """Write a data set as TFDS lays it out, without TFDS."""
    folder.mkdir(parents=True, exist_ok=True)
    info = {"name": "toy", "version": "1.0.0", "fileFormat": "tfrecord", "splits": []}
    for split, all_records in splits.items():
        parts = [all_records[i::shards] for i in range(shards)] if all_records else []
        for i, part in enumerate(parts):
            path = folder / f"toy-{split}.tfrecord-{i:05d}-of-{shards:05d}"
            path.write_bytes(b"".join(frame(serialize_record(record)) for record in part))
        info["splits"].append(
            {
                "name": split,
                "shardLengths": [str(len(part)) for part in parts],
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
            }
        )
    (folder / "dataset_info.json").write_text(json.dumps(info))
    known = dict(_FEATURES)
    if class_names is not None:
        kind = "tensorflow_datasets.core.features.class_label_feature.ClassLabel"
        known["label"] = {"pythonClassName": kind}
        (folder / "label.labels.txt").write_text("\n".join(class_names))
    content = {"featuresDict": {"features": features or known}}
    (folder / "features.json").write_text(json.dumps(content))
    return folder


def photo_folder(
    root: pathlib.Path, count: int = 6, rows: Sequence[Sequence[str]] = ()
) -> pathlib.Path:
    """Images and a captions.csv with two captions each."""
    root.mkdir(parents=True, exist_ok=True)
    table = [["file", "caption"]]
    for i in range(count):
        (root / f"{i}.png").write_bytes(picture(i))
        table += [[f"{i}.png", f"thing {i}"], [f"{i}.png", f"item {i}"]]
    with open(root / "captions.csv", "w", newline="") as file:
        csv.writer(file).writerows([*table, *rows])
    return root


def make_tar(path: pathlib.Path, members: Sequence[tuple[str, bytes]]) -> None:
    """A tar of files, compressed if its name ends in .gz."""
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


class Toys:
    """The functions above, handed to tests (test modules cannot import a conftest)."""

    encode = staticmethod(encode)
    picture = staticmethod(picture)
    records = staticmethod(records)
    write_data_set = staticmethod(write_data_set)
    photo_folder = staticmethod(photo_folder)
    make_tar = staticmethod(make_tar)


@pytest.fixture(scope="session")
def toys() -> type[Toys]:
    return Toys


@pytest.fixture
def tokenize() -> Callable[[list[str]], np.ndarray]:
    """A tokenizer that keeps the number at the end of a caption: int32[n, 2]."""

    def tokenize(texts: list[str]) -> np.ndarray:
        return np.array(
            [[1 + text.startswith("item"), int((text.split() or "0")[-1])] for text in texts],
            np.int32,
        )

    return tokenize
