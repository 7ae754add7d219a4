"""Reinforced records: augmentations and their embeddings kept beside a split (arXiv:2311.17049).

``jaxclip data reinforce`` writes such a folder (:mod:`jaxclip.inference.reinforce`), training reads
it. For shards of consecutive records it holds

- ``augmentations``: float32[n, K, draws], the random numbers of K augmentations of each picture.
  Image ops draw nothing themselves, so these are all that an augmented picture depends on;
- ``images``: float[n, K, E], the teachers' vectors of exactly these pictures;
- ``digests``: uint32[n, K], by which a picture that is replayed is known to be the same;
- ``good``: bool[n], False for records that can't be used;
- ``hashes``: uint64[T], ascending, and ``vectors``: float[T, E], of the captions of the shard;
- ``synthetic_….jsonl``: further captions of each record, where a captioner wrote some.

Each part is written whole or not at all, and ``done_….json`` comes last: a shard without it is made
again.
"""

from __future__ import annotations

import collections
import hashlib
import json
import os
import pathlib
import threading
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxclip import storage
from jaxclip.data.dataset import DataSet

INDEX = "reinforced.json"
SYNTHETIC = "synthetic"
PARTS = ("augmentations", "images", "digests", "good", "hashes", "vectors")
_SHARDS_KEPT = 256


class Shard(NamedTuple):
    """The arrays of a shard, and its synthetic captions (empty lists where there are none)."""

    augmentations: np.ndarray
    images: np.ndarray
    digests: np.ndarray
    good: np.ndarray
    hashes: np.ndarray
    vectors: np.ndarray
    synthetic: Sequence[Sequence[str]] = ()


class Reinforced:
    """A folder of reinforced records.

    Args:
      folder: as it was written.

    Attributes:
      index: what it was made from: ``data``, ``split``, ``count``, ``stamp``, ``copies``,
        ``image_ops``, ``image_size``, ``image_backend``, ``teachers`` and more.

    Raises:
      ValueError: it holds none, or they are not finished.
    """

    def __init__(self, folder: str | os.PathLike[str]):
        self.folder = pathlib.Path(folder).expanduser()
        self.index: dict[str, Any] = storage.read_json(self.folder / INDEX, {})
        if not self.index:
            raise ValueError(
                f"{self.folder} holds no reinforced records; `jaxclip data reinforce` makes them"
            )
        self._shards: collections.OrderedDict[int, Shard] = collections.OrderedDict()
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__init__(state["folder"])  # type: ignore[misc]

    @property
    def copies(self) -> int:
        """Augmentations of each record, K."""
        return int(self.index["copies"])

    @property
    def sizes(self) -> tuple[int, ...]:
        """Length of each teacher's part of a vector."""
        return tuple(int(each["size"]) for each in self.index["teachers"])

    def check(self, data_set: DataSet, split: str) -> None:
        """Refuse other records than those it was made of, and a folder that is not finished.

        Raises:
          ValueError: says which.
        """
        made = {key: self.index[key] for key in ("split", "count", "stamp")}
        data_set.check_split(split)
        asked = {"split": split, "count": data_set.splits[split], "stamp": stamp(data_set, split)}
        for key, value in made.items():
            if value != asked[key]:
                raise ValueError(
                    f"{self.folder} was made of other records ({key} {value!r}; split {split!r} of "
                    f"data set {data_set.name!r} has {asked[key]!r}); reinforce it anew"
                )
        missing = [n for n in range(self.num_shards) if not done_file(self.folder, n).is_file()]
        if missing:
            raise ValueError(
                f"{self.folder} is not finished: {len(missing)} of {self.num_shards} shards are "
                "missing; run the same `jaxclip data reinforce` again"
            )

    @property
    def num_shards(self) -> int:
        """How many shards the split is cut into."""
        return -(-int(self.index["count"]) // int(self.index["shard_size"]))

    def shard(self, number: int) -> tuple[Shard, int]:
        """The shard of a record, and the record's place in it."""
        which, place = divmod(int(number), int(self.index["shard_size"]))
        with self._lock:
            if which not in self._shards:
                self._shards[which] = read_shard(self.folder, which)
                if len(self._shards) > _SHARDS_KEPT:
                    self._shards.popitem(last=False)
            self._shards.move_to_end(which)
            return self._shards[which], place

    def copy_of(self, u: np.ndarray) -> int:
        """Which augmentation a uniform number draws."""
        return min(int(float(u[0]) * self.copies), self.copies - 1)

    def numbers(self, number: int, u: np.ndarray) -> np.ndarray:
        """The numbers of a record's image ops, float32[draws], of one uniform number."""
        shard, place = self.shard(number)
        return np.asarray(shard.augmentations[place, self.copy_of(u)], np.float32)

    def image_vector(self, number: int, u: np.ndarray) -> np.ndarray:
        """float32[E] of the picture that the same number draws."""
        shard, place = self.shard(number)
        return np.asarray(shard.images[place, self.copy_of(u)], np.float32)

    def text_vector(self, number: int, text: str) -> np.ndarray | None:
        """float32[E] of a caption of a record; None if there is none."""
        shard, _ = self.shard(number)
        wanted = text_hash(text)
        row = int(np.searchsorted(shard.hashes, wanted))
        if row == len(shard.hashes) or shard.hashes[row] != wanted:
            return None
        return np.asarray(shard.vectors[row], np.float32)

    def synthetic(self, number: int) -> Sequence[str]:
        """The captions that a captioner wrote for a record."""
        shard, place = self.shard(number)
        return shard.synthetic[place] if shard.synthetic else ()

    def is_good(self, number: int) -> bool:
        """Whether a record was embedded."""
        shard, place = self.shard(number)
        return bool(shard.good[place])


def text_hash(text: str) -> np.uint64:
    """A number of 64 bits for a text."""
    digest = hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest()
    return np.uint64(int.from_bytes(digest, "little"))


def picture_digest(pixels: np.ndarray) -> int:
    """CRC-32 of the pixels of a picture."""
    return zlib.crc32(np.ascontiguousarray(pixels).tobytes())


def stamp(data_set: DataSet, split: str) -> str:
    """Changes where a data set's records do, as far as its metadata tell."""
    content = f"{split} {data_set.splits[split]}".encode()
    if data_set.directory is not None:
        content += (data_set.directory / "dataset_info.json").read_bytes()
    return hashlib.sha256(content).hexdigest()[:16]


def done_file(folder: pathlib.Path, shard: int) -> pathlib.Path:
    """What is there once a shard is whole."""
    return folder / f"done_{shard:05d}.json"


def write_shard(folder: pathlib.Path, number: int, shard: Shard, counts: Mapping[str, Any]) -> None:
    """Write a shard; ``done_….json`` with its counts comes last and makes it valid."""
    for name in PARTS:
        path = folder / f"{name}_{number:05d}.npy"
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        with temporary.open("wb") as file:
            np.save(file, getattr(shard, name), allow_pickle=False)
        temporary.replace(path)
    if shard.synthetic:
        lines = "".join(json.dumps(list(texts)) + "\n" for texts in shard.synthetic)
        storage.write_text(folder / f"{SYNTHETIC}_{number:05d}.jsonl", lines)
    storage.write_json(done_file(folder, number), dict(counts))


def read_shard(folder: pathlib.Path, number: int) -> Shard:
    """A shard, its arrays mapped into memory.

    Raises:
      ValueError: a file is missing or damaged.
    """
    arrays = {}
    for name in PARTS:
        path = folder / f"{name}_{number:05d}.npy"
        try:
            arrays[name] = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise ValueError(
                f"{path} can't be read: {error}; remove {done_file(folder, number).name} and run "
                "the same `jaxclip data reinforce` again"
            ) from error
    path = folder / f"{SYNTHETIC}_{number:05d}.jsonl"
    lines = path.read_text("utf-8").splitlines() if path.is_file() else []
    return Shard(**arrays, synthetic=[json.loads(line) for line in lines])
