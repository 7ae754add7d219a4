"""Reinforce a data set: teachers' embeddings of stored augmentations (arXiv:2311.17049).

No teacher runs in training then. What is written is described at :mod:`jaxclip.data.reinforced`.
"""

from __future__ import annotations

import collections
import functools
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxclip import storage
from jaxclip.data import image_ops, loader, order, sources
from jaxclip.data.dataset import DataSet
from jaxclip.data.image_backend import BACKENDS
from jaxclip.data.record import BadRecord
from jaxclip.data.reinforced import (
    INDEX,
    Shard,
    done_file,
    picture_digest,
    stamp,
    text_hash,
    write_shard,
)
from jaxclip.inference.embed import fingerprint
from jaxclip.inference.model import Model

_STREAM = "reinforce"


class Options(NamedTuple):
    """What is made of each record.

    Attributes:
      copies: augmentations of a picture, K (the paper: 30 for 12 million pairs, 10 for a billion).
      image_ops: chain of ops that makes them.
      image_size: side of the pictures.
      image_backend: what decodes, as ``data.image_backend``.
      languages: of the captions, as ``data.languages``; those of other tags are embedded as well.
      synthetic: captions that the captioner writes for a picture.
      seed: of the augmentations and of the captioner.
      dtype: of the vectors, ``"float16"`` or ``"float32"``.
      shard_size: records of a shard.
      batch_size: rows of a batch of pictures or captions.
    """

    copies: int = 10
    image_ops: str = "random_resized_crop(0.4, 1.0)|flip"
    image_size: int = 64
    image_backend: str = "pillow"
    languages: Sequence[str] = ("en",)
    synthetic: int = 0
    seed: int = 0
    dtype: str = "float16"
    shard_size: int = 4096
    batch_size: int = 128


class Summary(NamedTuple):
    """What a :func:`reinforce` did.

    Attributes:
      records: that were embedded in this call.
      before: records that earlier calls had done.
      texts: captions that were embedded in this call.
      bad: how often which reason kept a record out, in this call.
    """

    records: int
    before: int
    texts: int
    bad: dict[str, int]


def reinforce(
    data: str,
    split: str,
    teachers: Sequence[Model],
    to: str | os.PathLike[str] | None = None,
    options: Options | None = None,
    *,
    captioner: Model | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> tuple[pathlib.Path, Summary]:
    """Write augmentations, embeddings and synthetic captions of a split.

    A vector is the concatenation of the teachers' unit vectors. The same call again does the shards
    that are missing, to the same bytes.

    Args:
      data: name of the data set.
      split: of it.
      teachers: one or several.
      to: the folder; None for ``reinforced/SPLIT`` beside the records.
      options: what is made.
      captioner: a model with a captioning decoder, where ``options.synthetic`` is above 0.
      report: called with a line after each shard.

    Returns:
      The folder, and what was done.

    Raises:
      ValueError: an option that can't be, or the folder holds something else.
      FileNotFoundError: the data set does not exist.
    """
    options = options or Options()
    data_set = sources.open(data)
    data_set.check_split(split)
    _check(options, teachers, captioner)
    folder = _folder(data_set, split, to)
    _claim(folder, _index(data_set, split, teachers, captioner, options))
    count = data_set.splits[split]
    work = _Work(data_set, split, teachers, captioner, options)
    records, before, texts, bad = 0, 0, 0, collections.Counter[str]()
    try:
        for number in range(-(-count // options.shard_size)):
            first = number * options.shard_size
            indices = np.arange(first, min(first + options.shard_size, count))
            if done_file(folder, number).is_file():
                before += len(indices)
                continue
            shard, reasons = work.shard(indices)
            done = {"records": len(indices), "texts": len(shard.hashes), "bad": dict(reasons)}
            write_shard(folder, number, shard, done)
            records, texts = records + int(shard.good.sum()), texts + len(shard.hashes)
            bad.update(reasons)
            report(f"shard {number}: {first + len(indices)} of {count} records")
    finally:
        work.close()
    return folder, Summary(records, before, texts, dict(bad))


def _check(options: Options, teachers: Sequence[Model], captioner: Model | None) -> None:
    for name in ("copies", "image_size", "shard_size", "batch_size"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name} {getattr(options, name)} must be at least 1")
    if options.dtype not in ("float16", "float32"):
        raise ValueError(f"--dtype {options.dtype!r}; use 'float16' or 'float32'")
    if not teachers:
        raise ValueError("name at least one --teacher, a workdir or published weights")
    if (options.synthetic > 0) != (captioner is not None):
        raise ValueError(
            f"--synthetic {options.synthetic} captions and --captioner "
            f"{captioner.path if captioner else None!r}: give both or neither"
        )
    for teacher in teachers:
        if teacher.is_native:
            raise ValueError(
                f"{teacher.path} takes pictures of any aspect ratio (NaFlex); augmented pictures "
                "are square: use another teacher"
            )


def _folder(data_set: DataSet, split: str, to: str | os.PathLike[str] | None) -> pathlib.Path:
    if to is not None:
        return pathlib.Path(to).expanduser()
    if data_set.directory is None or data_set.name in sources.BUILT_IN:
        raise ValueError(
            f"data set {data_set.name!r} has no folder of its own to write to; add --to DIR"
        )
    return pathlib.Path(data_set.directory) / "reinforced" / split


def _index(
    data_set: DataSet,
    split: str,
    teachers: Sequence[Model],
    captioner: Model | None,
    options: Options,
) -> dict[str, Any]:
    return {
        "data": data_set.name,
        "split": split,
        "count": data_set.splits[split],
        "stamp": stamp(data_set, split),
        "teachers": [
            {
                "weights": teacher.path,
                "fingerprint": fingerprint(teacher.params),
                "size": teacher.sizes.embed_dim,
                "scale": str(np.round(np.exp(np.asarray(teacher.params["logit_scale"])), 4)),
            }
            for teacher in teachers
        ],
        "captioner": None if captioner is None else fingerprint(captioner.params),
        **{**options._asdict(), "languages": list(options.languages)},
    }


def _claim(folder: pathlib.Path, index: Mapping[str, Any]) -> None:
    """Write the index, or compare with the one that is there."""
    there = storage.read_json(folder / INDEX, {})
    for key, value in index.items() if there else ():
        mine, other = (_identity(each) for each in (value, there.get(key)))
        if key != "data" and mine != other:
            raise ValueError(
                f"{folder} holds reinforced records with {key}={other!r}, not {mine!r}; name "
                "another folder by --to, or remove it"
            )
    if not there:
        if folder.is_dir() and any(folder.iterdir()):
            raise ValueError(f"{folder} is not empty, and no reinforced records; name another --to")
        folder.mkdir(parents=True, exist_ok=True)
        storage.write_json(folder / INDEX, dict(index))


def _identity(value: Any) -> Any:
    """Of teachers what their vectors depend on, not where they lie."""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return [each.get("fingerprint") for each in value]
    return value


class _Work:
    """Makes shards."""

    def __init__(
        self,
        data_set: DataSet,
        split: str,
        teachers: Sequence[Model],
        captioner: Model | None,
        options: Options,
    ):
        self._options, self._captioner = options, captioner
        self._source = data_set.source(split)
        self._texts_of = data_set.texts_of(list(options.languages))
        self._chain = image_ops.build(options.image_ops, options.image_size)
        # What the fast backend decodes depends on what is cut out: one view at a time, as in
        # training. Pillow decodes once for all.
        self._together = options.copies if options.image_backend == "pillow" else 1
        self._loader = loader.RecordLoader(
            self._source,
            {str(n): self._chain for n in range(self._together)},
            what=f"data set {data_set.name!r}",
            texts_of=self._texts_of,
            backend=BACKENDS.build(options.image_backend),
        )
        self._teachers = [_Encoder(teacher, options.batch_size) for teacher in teachers]

    def close(self) -> None:
        """Stop the threads that decode."""
        self._loader.close()

    def shard(self, indices: np.ndarray) -> tuple[Shard, collections.Counter[str]]:
        """A shard of these records, and how often which reason kept a record out."""
        options = self._options
        pieces = max(1, options.batch_size // options.copies)
        parts = [self._pictures(indices[i : i + pieces]) for i in range(0, len(indices), pieces)]
        joined = (np.concatenate(each) for each in zip(*parts, strict=True))
        numbers, vectors, digests, decoded, finite = joined
        known = dict(self._loader.stats.bad())
        bad = collections.Counter(bad_vector=int((decoded & ~finite).sum()))
        for index in indices[~decoded]:
            bad[known[int(index)].reason if int(index) in known else "unreachable"] += 1
        records = [self._source[int(index)] for index in indices]
        synthetic = self._written(records) if self._captioner is not None else []
        texts: set[str] = set()
        for place, record in enumerate(records):
            if not isinstance(record, BadRecord):
                texts.update(record.texts, self._texts_of(record))
            texts.update(synthetic[place] if synthetic else ())
        hashes, embedded = self._captions(sorted(texts))
        usable = np.isfinite(embedded).all(axis=1)
        bad["caption_bad_vector"] = int((~usable).sum())
        vectors, embedded = (each.astype(options.dtype) for each in (vectors, embedded[usable]))
        good, hashes = decoded & finite, hashes[usable]
        shard = Shard(numbers, vectors, digests, good, hashes, embedded, synthetic)
        return shard, +bad

    def _pictures(self, indices: np.ndarray) -> tuple[np.ndarray, ...]:
        """Of some records the numbers of the ops, vectors, digests, whether a picture was decoded,
        and whether its vectors are finite."""
        options, n = self._options, len(indices)
        places = (indices[:, None] * options.copies + np.arange(options.copies)).reshape(-1)
        u = order.uniforms(options.seed, places, self._chain.num_draws, _STREAM)
        u = u.reshape(n, options.copies, -1)
        size = options.image_size
        pixels = np.zeros((n, options.copies, size, size, 3), np.uint8)
        decoded = np.ones(n, bool)
        for first in range(0, options.copies, self._together):
            draws = {str(k): u[:, first + k] for k in range(self._together)}
            views, loaded = self._loader.batch(indices, draws, None)
            decoded &= np.array([each is not None for each in loaded])
            for k in range(self._together):
                pixels[:, first + k] = views[str(k)]
        flat = pixels.reshape(-1, size, size, 3)
        vectors = np.concatenate([each.images(flat) for each in self._teachers], axis=1)
        vectors = vectors.reshape(n, options.copies, -1)
        finite = np.isfinite(vectors).all((1, 2))
        digests = np.array([picture_digest(each) for each in flat], np.uint32).reshape(n, -1)
        vectors = np.where((decoded & finite)[:, None, None], vectors, 0.0)
        return u, vectors, digests, decoded, finite

    def _captions(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Ascending hashes and the vectors of captions."""
        hashes = np.array([text_hash(text) for text in texts], np.uint64)
        hashes, first = np.unique(hashes, return_index=True)
        chosen = [texts[i] for i in first]
        return hashes, np.concatenate([each.texts(chosen) for each in self._teachers], axis=1)

    def _written(self, records: Sequence[Any]) -> list[list[str]]:
        """The captioner's captions of each record; none of what can't be decoded."""
        assert self._captioner is not None
        options, rows = self._options, max(1, self._options.batch_size // 4)
        written: list[list[str]] = [[] for _ in records]
        for start in range(0, len(records), rows):
            part = [
                (place, self._captioner.prepare(record.image))
                for place, record in enumerate(records[start : start + rows], start)
                if not isinstance(record, BadRecord)
            ]
            part = [(place, each) for place, each in part if not isinstance(each, BadRecord)]
            batch = self._captioner.batch([each for _, each in part], rows)
            for n in range(options.synthetic):
                # One caption is the best one; several are drawn.
                method = "beam" if options.synthetic == 1 else "nucleus"
                seed = (options.seed * 1_000_003 + n) * 1_000_003 + start
                found = self._captioner.caption(batch, method=method, seed=seed % 2**31)
                for (place, _), text in zip(part, found, strict=False):
                    text = text.strip()
                    if text and text not in written[place]:
                        written[place].append(text)
        return written


class _Encoder:
    """Both towers of a teacher on batches of one shape, so that each row is the same each time."""

    def __init__(self, model: Model, rows: int):
        self._model, self._rows = model, rows

    def images(self, pixels: np.ndarray) -> np.ndarray:
        """float32[n, E] of uint8[n, S, S, 3]; for a teacher of another size they are resized."""
        size = self._model.sizes.image.image_size

        def encode(batch: np.ndarray) -> jax.Array:
            fits = batch.shape[1] == size
            return self._model.encode_image(batch if fits else _resized(batch, size))

        return self._batches(pixels, encode)

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """float32[n, E]."""
        if not texts:
            return np.zeros((0, self._model.sizes.embed_dim), np.float32)
        return self._batches(self._model.tokenize(texts), self._model.encode_text)

    def _batches(self, array: np.ndarray, encode: Callable[[Any], Any]) -> np.ndarray:
        parts = []
        for start in range(0, len(array), self._rows):
            part = array[start : start + self._rows]
            width = [(0, self._rows - len(part)), *[(0, 0)] * (array.ndim - 1)]
            parts.append(np.asarray(encode(np.pad(part, width)))[: len(part)])
        return np.concatenate(parts)


@functools.partial(jax.jit, static_argnums=1)
def _resized(images: jax.Array, size: int) -> jax.Array:
    """float32[B, size, size, 3] in 0 to 255, as a teacher that runs along sees pictures."""
    shape = (images.shape[0], size, size, 3)
    return jax.image.resize(images.astype(jnp.float32), shape, "cubic")
