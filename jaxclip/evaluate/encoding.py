"""Embeddings of whole splits: fixed-size batches through one jitted function a tower."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from jaxclip import parallel

Encode = Callable[[Any, jax.Array], jax.Array]
Tokenize = Callable[[list[str]], np.ndarray]


class EncodedSplit(NamedTuple):
    """The images of a split, in the order of the data set, the same on every process.

    Attributes:
      positions: int64[N], index of each example in the split, ascending.
      embeddings: float32[N, D].
      labels: int64[N], -1 = none.
      texts: captions of each image.
      keys: key of each image.
    """

    positions: np.ndarray
    embeddings: np.ndarray
    labels: np.ndarray
    texts: list[list[str]]
    keys: list[str]


def encode_split(
    encode_image: Encode,
    params: Any,
    batches: Iterable[Mapping[str, Any]],
    *,
    batch_size: int,
    mesh: Mesh,
) -> EncodedSplit:
    """Encode the images of a split, each exactly once.

    Args:
      encode_image: ``(params, uint8 images) -> float32[B, D]``.
      params: parameters, on the mesh.
      batches: this process's batches, as of :func:`jaxclip.data.pipeline.eval_batches`; processes
        may have different numbers of them.
      batch_size: rows of a global batch; rounded up to what the mesh divides. Shorter batches are
        padded, so that there is one compilation.
      mesh: the mesh.

    Returns:
      :class:`EncodedSplit`.

    Raises:
      ValueError: an example came twice, or there was none.
    """
    examples: list[tuple[int, int, list[str], str]] = []

    def inputs() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for batch in batches:
            keep = np.flatnonzero(np.asarray(batch["mask"], bool))
            position = np.asarray(batch["index"], np.int64)[keep]
            for row, index in zip(keep, position, strict=True):
                texts = [str(text) for text in batch["texts"][row]]
                examples.append(
                    (int(index), int(batch["label"][row]), texts, str(batch["key"][row]))
                )
            yield np.asarray(batch["image"])[keep], position

    embeddings, positions = encode_rows(
        encode_image, params, inputs(), batch_size=batch_size, mesh=mesh
    )
    if not len(positions):
        raise ValueError("there is no example to evaluate: the split is empty")
    twice = positions[1:][positions[1:] == positions[:-1]]
    if twice.size:
        raise ValueError(f"example {twice[0]} was evaluated twice: eval_batches gave it again")
    # By position, once each: processes that hold the same rows of a batch read the same examples.
    everyone = {int(row[0]): row for row in itertools.chain.from_iterable(gather_json(examples))}
    rows = [everyone[int(i)] for i in positions]
    return EncodedSplit(
        positions=positions,
        embeddings=embeddings,
        labels=np.array([label for _, label, _, _ in rows], np.int64),
        texts=[texts for _, _, texts, _ in rows],
        keys=[key for _, _, _, key in rows],
    )


def encode_texts(
    encode_text: Encode,
    params: Any,
    texts: Sequence[str],
    tokenizer: Tokenize,
    *,
    batch_size: int,
    mesh: Mesh,
) -> np.ndarray:
    """Encode strings; all processes must give the same ones.

    Args:
      encode_text: ``(params, int32 tokens) -> float32[B, D]``.
      params: parameters, on the mesh.
      texts: M > 0 strings.
      tokenizer: ``list of n strings -> int32[n, L]``.
      batch_size: rows of a global batch; rounded up to what the mesh divides.
      mesh: the mesh.

    Returns:
      float32[M, D].
    """
    stride = global_rows(batch_size, mesh)
    share, count = parallel.process_share(mesh)
    rows = stride // count

    def inputs() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for start in range(share * rows, len(texts), stride):
            mine = list(texts[start : start + rows])
            yield np.asarray(tokenizer(mine), np.int32), np.arange(start, start + len(mine))

    return encode_rows(encode_text, params, inputs(), batch_size=batch_size, mesh=mesh)[0]


def encode_rows(
    encode: Encode,
    params: Any,
    inputs: Iterable[tuple[np.ndarray, np.ndarray]],
    *,
    batch_size: int,
    mesh: Mesh,
) -> tuple[np.ndarray, np.ndarray]:
    """Encode this process's rows together with those of all others.

    Args:
      encode: ``(params, x) -> float32[B, D]``.
      params: parameters, on the mesh.
      inputs: pairs of x[n, …] and positions int[n] in the whole, n no more than this process's
        share of a batch.
      batch_size: rows of a global batch; rounded up to what the mesh divides.
      mesh: the mesh.

    Returns:
      ``(float32[N, D], int64[N])`` of all processes, by ascending position.
    """
    # The same function object each time: jax.jit finds what it compiled before.
    jitted = jax.jit(encode)
    rows = global_rows(batch_size, mesh) // parallel.process_share(mesh)[1]
    parts, positions = [], []
    for x, position in in_step(inputs):
        # Positions travel the way of the rows, so that no assumption is made on where the mesh
        # puts which process. Padding has -1.
        padded = np.pad(position.astype(np.int32), (0, rows - len(position)), constant_values=-1)
        batch = parallel.to_global({"x": pad_rows(x, rows), "position": padded}, mesh)
        where = fetch(batch["position"])
        parts.append(fetch(jitted(params, batch["x"]))[where >= 0])
        positions.append(where[where >= 0].astype(np.int64))
    if not parts:
        return np.zeros((0, 0), np.float32), np.zeros(0, np.int64)
    order = np.argsort(np.concatenate(positions), kind="stable")
    return np.concatenate(parts)[order], np.concatenate(positions)[order]


def global_rows(batch_size: int, mesh: Mesh) -> int:
    """Rows of a global batch: at least ``batch_size``, and a multiple of what the mesh cuts."""
    shards = parallel.batch_shards(mesh)
    return -(-batch_size // shards) * shards


def in_step(
    inputs: Iterable[tuple[np.ndarray, np.ndarray]],
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Go on until the last process has no input left, with inputs of no rows for the others.

    Args:
      inputs: pairs of an array [n, ...] and int64[n], its rows' numbers.
    """
    if jax.process_count() == 1:
        yield from inputs
        return
    iterator = iter(inputs)
    empty: tuple[np.ndarray, np.ndarray] | None = None
    while True:
        item = next(iterator, None)
        if not np.any(multihost_utils.process_allgather(np.asarray(item is not None))):
            return
        if empty is None:
            # A process without a single example learns the shape from one that has some.
            mine = None if item is None else [list(item[0].shape[1:]), item[0].dtype.str]
            shape, dtype = next(s for s in gather_json(mine) if s is not None)
            empty = (np.zeros((0, *shape), dtype), np.zeros(0, np.int64))
        yield empty if item is None else item


def gather_json(value: Any) -> list[Any]:
    """The JSON value of each process, on all of them."""
    if jax.process_count() == 1:
        return [value]
    raw = np.frombuffer(json.dumps(value).encode(), np.uint8)
    lengths = np.ravel(multihost_utils.process_allgather(np.asarray(len(raw))))
    padded = np.pad(raw, (0, int(lengths.max()) - len(raw)))
    everyone = multihost_utils.process_allgather(padded)
    return [
        json.loads(row[:length].tobytes()) for row, length in zip(everyone, lengths, strict=True)
    ]


def fetch(array: jax.Array) -> np.ndarray:
    """A global array, whole, on every host; of its shape and dtype."""
    if jax.process_count() == 1:
        return np.asarray(array)
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def pad_rows(array: np.ndarray, rows: int) -> np.ndarray:
    """[n, ...] -> [rows, ...], with copies of the last row (zeros if there is none) behind.

    Raises:
      ValueError: there are more than ``rows`` already.
    """
    if len(array) > rows:
        raise ValueError(f"a batch has {len(array)} rows, more than the {rows} it may have")
    if not len(array):
        return np.zeros((rows, *array.shape[1:]), array.dtype)
    return np.concatenate([array, np.repeat(array[-1:], rows - len(array), axis=0)])


def share_of_work(count: int) -> np.ndarray:
    """int[n]: the numbers below ``count`` that this process handles."""
    return np.arange(jax.process_index(), count, jax.process_count())


def sum_over_processes(value: int) -> int:
    """The sum of each process's integer."""
    return sum(gather_json(value))
