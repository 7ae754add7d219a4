"""Embeddings of any number of pictures, in shards on disk; what was begun goes on."""

from __future__ import annotations

import collections
import concurrent.futures
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxclip import storage
from jaxclip.data.record import BadRecord
from jaxclip.inference.model import Model
from jaxclip.inference.pictures import Pictures

INDEX_FILE = "index.json"
_AHEAD = 2  # batches that are decoded while one is encoded
_SMALL = 65_536  # leaves up to this many numbers tell one set of weights from another


class Summary(NamedTuple):
    """What an :func:`embed_images` did.

    Attributes:
      embedded: pictures embedded in this call.
      before: pictures that earlier calls had done, the bad ones among them.
      bad: how often which reason kept a picture out, in this call.
    """

    embedded: int
    before: int
    bad: dict[str, int]


class _Batch(NamedTuple):
    """Pictures on their way: numbers of their shard's, and futures of ``(id, pixels or bad)``."""

    shard: int
    last: bool
    rows: list[concurrent.futures.Future]


def embed_images(
    model: Model,
    pictures: Pictures,
    to: str | os.PathLike[str],
    *,
    batch_size: int = 128,
    shard_size: int = 16_384,
    part: tuple[int, int] = (0, 1),
    threads: int = 0,
    report: Callable[[str], None] = lambda line: None,
) -> Summary:
    """Embed pictures into a folder.

    The folder gets ``embeddings_00000.npy`` (float32[n, D] of unit length), ``ids_00000.jsonl``
    (``{"id": …}`` of each row) and, where there were any, ``bad_00000.jsonl`` for every
    ``shard_size`` pictures, and ``index.json``. A shard appears whole; the same call again does
    those that are missing.

    Args:
      model: its towers and preprocessing.
      pictures: what to embed.
      to: the folder.
      batch_size: rows of a batch; rounded up to what the local devices divide.
      shard_size: pictures of a shard.
      part: ``(i, n)``: do every n-th shard from the i-th; for n machines with one folder.
      threads: that decode; 0 = one for each CPU.
      report: called with a line after each shard.

    Returns:
      :class:`Summary`.

    Raises:
      ValueError: the folder holds the embeddings of other pictures or other weights.
    """
    folder = pathlib.Path(to).expanduser()
    _check_positive(batch_size=batch_size, shard_size=shard_size)
    if not 0 <= part[0] < part[1]:
        raise ValueError(f"--part {part[0]}/{part[1]}: use 0/n to {part[1] - 1}/n")
    _claim(folder, model, pictures, shard_size)
    shards = range(part[0], -(-pictures.total // shard_size), part[1])
    todo = [shard for shard in shards if not (folder / _ids(shard)).is_file()]
    sizes = {shard: min(shard_size, pictures.total - shard * shard_size) for shard in shards}
    encode, rows = _encoder(model, batch_size)
    embedded, bad = 0, collections.Counter[str]()
    done: dict[int, list[tuple[str, Any]]] = collections.defaultdict(list)
    with concurrent.futures.ThreadPoolExecutor(threads or os.cpu_count()) as pool:
        for batch in _batches(model, pictures, todo, sizes, shard_size, rows, pool):
            done[batch.shard].extend(_encode(encode, batch, rows, model))
            if not batch.last:
                continue
            found = done.pop(batch.shard)
            reasons = _write_shard(folder, batch.shard, found, model.sizes.embed_dim)
            bad.update(reasons)
            embedded += len(found) - reasons.total()
            report(f"shard {batch.shard}: {len(found)} of {pictures.total} pictures")
    before = sum(size for shard, size in sizes.items() if shard not in todo)
    return Summary(embedded, before, dict(bad))


def read_embeddings(folder: str | os.PathLike[str]) -> tuple[list[str], np.ndarray]:
    """``(ids, float32[N, D])`` of a folder, as far as it is done.

    Raises:
      ValueError: there are none.
    """
    check_embeddings(folder)
    place = pathlib.Path(folder).expanduser()
    ids: list[str] = []
    arrays = []
    for file in sorted(place.glob("ids_*.jsonl")):
        ids += [json.loads(line)["id"] for line in file.read_text("utf-8").splitlines()]
        arrays.append(
            np.load(place / file.name.replace("ids_", "embeddings_").replace("jsonl", "npy"))
        )
    return ids, np.concatenate(arrays)


def check_embeddings(folder: str | os.PathLike[str]) -> None:
    """Raise ValueError for a folder without any embeddings."""
    place = pathlib.Path(folder).expanduser()
    if not any(place.glob("ids_*.jsonl")):
        raise ValueError(f"{place} holds no embeddings; `jaxclip embed` makes them")


def check_weights(folder: str | os.PathLike[str], model: Model) -> None:
    """Refuse embeddings of other weights.

    Raises:
      ValueError: they are, or there are none.
    """
    index = storage.read_json(pathlib.Path(folder).expanduser() / INDEX_FILE, {})
    if not index:
        raise ValueError(f"{os.fspath(folder)} holds no embeddings; `jaxclip embed` makes them")
    if index.get("fingerprint") != fingerprint(model.params):
        raise ValueError(
            f"{os.fspath(folder)} holds embeddings of {index.get('weights')}, not of {model.path}"
        )


def fingerprint(params: Any) -> str:
    """Hex digits that tell one set of weights from another, by its small tensors."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        digest.update(f"{jax.tree_util.keystr(path)}{leaf.shape}".encode())
        if leaf.size <= _SMALL:
            digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()[:16]


def _claim(folder: pathlib.Path, model: Model, pictures: Pictures, shard_size: int) -> None:
    """Write ``index.json``, or compare with the one that is there."""
    index = {
        "images": pictures.name,
        "count": pictures.total,
        "weights": model.path,
        "fingerprint": fingerprint(model.params),
        "embed_dim": model.sizes.embed_dim,
        "shard_size": shard_size,
    }
    if (folder / INDEX_FILE).is_file():
        there = storage.read_json(folder / INDEX_FILE, {})
        for key in ("images", "count", "fingerprint", "shard_size"):
            if there.get(key) != index[key]:
                raise ValueError(
                    f"{folder} holds embeddings with {key}={there.get(key)!r}, not {index[key]!r}; "
                    "name another folder"
                )
        return
    if folder.is_dir() and any(folder.glob("embeddings_*.npy")):
        raise ValueError(f"{folder} holds embeddings, but no {INDEX_FILE}; name another folder")
    folder.mkdir(parents=True, exist_ok=True)
    storage.write_json(folder / INDEX_FILE, index)


def _batches(
    model: Model,
    pictures: Pictures,
    todo: Sequence[int],
    sizes: dict[int, int],
    shard_size: int,
    rows: int,
    pool: concurrent.futures.Executor,
) -> Iterator[_Batch]:
    """Batches in order, of which a few more are being decoded."""

    def prepare(number: int) -> tuple[str, Any]:
        identity, data = pictures.read(number)
        return identity, data if isinstance(data, BadRecord) else model.prepare(data)

    waiting: collections.deque[_Batch] = collections.deque()
    for shard in todo:
        for start in range(0, sizes[shard], rows):
            stop = min(start + rows, sizes[shard])
            first = shard * shard_size
            futures = [pool.submit(prepare, first + i) for i in range(start, stop)]
            waiting.append(_Batch(shard, stop == sizes[shard], futures))
            if len(waiting) > _AHEAD:
                yield waiting.popleft()
    yield from waiting


def _encode(
    encode: Callable[[Any], np.ndarray], batch: _Batch, rows: int, model: Model
) -> list[tuple[str, Any]]:
    """``(id, embedding or bad)`` of a batch, which is filled up to one shape."""
    results = [future.result() for future in batch.rows]
    good = [i for i, (_, value) in enumerate(results) if not isinstance(value, BadRecord)]
    found = encode(model.batch([results[i][1] for i in good], rows)) if good else ()
    for row, i in enumerate(good):
        results[i] = (results[i][0], found[row])
    return results


def _encoder(model: Model, batch_size: int) -> tuple[Callable[[Any], np.ndarray], int]:
    """A function of whole batches, over all local devices, and the rows it takes."""
    devices = jax.local_devices()
    rows = -(-batch_size // len(devices)) * len(devices)
    mesh = Mesh(np.array(devices), ("data",))
    params = jax.device_put(model.params, NamedSharding(mesh, PartitionSpec()))
    split = NamedSharding(mesh, PartitionSpec("data"))

    def encode(images: Any) -> np.ndarray:
        return np.asarray(model.encode_image(jax.device_put(images, split), params=params))

    return encode, rows


def _write_shard(
    folder: pathlib.Path, shard: int, found: Sequence[tuple[str, Any]], embed_dim: int
) -> collections.Counter[str]:
    """Write a shard; its ids come last and make it valid."""
    good = [(i, value) for i, value in found if not isinstance(value, BadRecord)]
    bad = [(i, value) for i, value in found if isinstance(value, BadRecord)]
    array = np.array([value for _, value in good], np.float32).reshape(-1, embed_dim)
    temporary = folder / f"embeddings_{shard:05d}.{os.getpid()}.tmp"
    with temporary.open("wb") as file:
        np.save(file, array)
    temporary.replace(folder / f"embeddings_{shard:05d}.npy")
    if bad:
        lines = [{"id": i, "reason": value.reason, "detail": value.detail} for i, value in bad]
        storage.write_text(folder / f"bad_{shard:05d}.jsonl", _json_lines(lines))
    storage.write_text(folder / _ids(shard), _json_lines([{"id": i} for i, _ in good]))
    return collections.Counter(value.reason for _, value in bad)


def _json_lines(values: Sequence[Any]) -> str:
    return "".join(json.dumps(value, ensure_ascii=True) + "\n" for value in values)


def _ids(shard: int) -> str:
    return f"ids_{shard:05d}.jsonl"


def _check_positive(**values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise ValueError(f"--{name} {value} must be at least 1")
