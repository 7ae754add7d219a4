"""Of a checkpoint at an address, what this process reads: the blocks that its shards lie in.

A checkpoint is a few large files of many arrays' chunks (zarr 3 in OCDBT). A process of many needs
the chunks of its own devices' shards, one that evaluates only the parameters. Where they lie is
read from the index of the files; the blocks around them are fetched into files that are as long as
the whole and have holes elsewhere. Each block is checked against its digest in the manifest, so
that nothing is used that was not verified, as with whole files. (A hole that was read nevertheless
is no valid chunk: its index has a checksum.)
"""

from __future__ import annotations

import itertools
import json
import os
import pathlib
import shutil
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from etils import epath

from jaxclip.train import manifest, staging, state_io

# In the folder of a copy; for one checkpoint, while it is read.
FOLDER = ".shards"
# Bytes of one request, and requests at a time; many are small.
_LONGEST = 2**23
_THREADS = 16
_INDEX = "manifest.ocdbt"


class DamageError(manifest.ManifestError):
    """What lies at the address is not what was saved."""


class _Place(NamedTuple):
    """Bytes of a file of the checkpoint."""

    name: str
    offset: int
    length: int


def is_possible(content: Mapping[str, Any]) -> bool:
    """Whether a checkpoint can be read in part, given its manifest."""
    blocks, size = content.get("blocks", {}), content.get("block_bytes", 0)
    if not blocks or size < 1:
        return False
    return all(
        len(blocks.get(name, "")) == -(-length // size) * manifest.DIGITS
        for name, (length, _) in content["files"].items()
        if manifest.is_data(name)
    )


def fetch(
    copy: staging.Copy, step: str, content: Mapping[str, Any], wanted: Any
) -> epath.Path | None:
    """Fetch what this process reads of a checkpoint.

    Args:
      copy: of the workdir.
      step: name of the checkpoint, ``step_…``.
      content: of its manifest, for which :func:`is_possible`.
      wanted: pytree of ``jax.ShapeDtypeStruct``, or arrays; of a leaf with a sharding the shards of
        this process's devices are fetched, of others everything.

    Returns:
      A folder like that of the checkpoint, to be removed by :func:`drop`; None if its index is of a
      kind that is not known here.

    Raises:
      DamageError: a block has not the digest that the manifest says.
      OSError: the address can't be read, or the folder can't be written.
    """
    drop(copy)
    source = _Source(copy, step, content)
    source.need(
        _Place(name, 0, size)
        for name, (size, _) in content["files"].items()
        if not manifest.is_data(name)
    )
    try:
        index = _read_index(source)
        places: list[_Place] = []
        for name, leaf in state_io.named_leaves(wanted).items():
            if 0 not in state_io.shape_and_dtype(leaf)[0]:  # without elements: never stored
                places += _places(name.replace("/", "."), leaf, index, source)
    except DamageError:
        raise
    except (LookupError, ValueError):
        return None
    source.need(places)
    return source.folder


def drop(copy: staging.Copy) -> None:
    """Remove what :func:`fetch` brought, or a killed process left of it."""
    shutil.rmtree(copy.folder / FOLDER, ignore_errors=True)


class _Source:
    """Brings blocks of the files of a checkpoint into a folder, each once."""

    def __init__(self, copy: staging.Copy, step: str, content: Mapping[str, Any]):
        self._copy, self._base = copy, f"{staging.CHECKPOINTS}/{step}"
        self.files, self._blocks = content["files"], content["blocks"]
        self._size = content["block_bytes"]
        self.folder = epath.Path(copy.folder / FOLDER / step)
        self._have: dict[str, set[int]] = {}

    def need(self, places: Iterable[_Place]) -> None:
        """Fetch the blocks that these bytes lie in.

        Raises:
          DamageError, OSError: as :func:`fetch`.
        """
        wanted: dict[str, set[int]] = {}
        for name, offset, length in places:
            # Outside of the folder somebody else's bucket may try to have a file written.
            if name not in self.files or name.startswith("/") or ".." in name.split("/"):
                raise DamageError(f"it names a file {name}, which is not one of its own")
            last = (offset + max(length, 1) - 1) // self._size
            wanted.setdefault(name, set()).update(range(offset // self._size, last + 1))
        runs = []
        for name, blocks in wanted.items():
            missing = blocks - self._have.setdefault(name, set())
            self._have[name] |= missing
            if missing:
                self._make(name)
            if name in self._blocks:
                most = max(1, _LONGEST // self._size)
                runs += [(name, first, count) for first, count in _runs(sorted(missing), most)]
            elif missing:  # it has one digest, and is small
                runs.append((name, 0, len(missing)))
        staging.each(lambda run: self._bring(*run), runs, _THREADS)

    def read(self, place: _Place) -> bytes:
        """Bytes that are needed, and fetched if they are not there."""
        self.need([place])
        with (self.folder / place.name).open("rb") as file:
            file.seek(place.offset)
            return file.read(place.length)

    def _make(self, name: str) -> None:
        """A file of holes."""
        target = pathlib.Path(self.folder / name)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            if not target.exists():
                with target.open("wb") as file:
                    file.truncate(self.files[name][0])
        except OSError as error:
            raise self._copy.unwritable(f"{self._base}/{name}", error) from error

    def _bring(self, name: str, first: int, count: int) -> None:
        size, whole = self.files[name]
        offset = first * self._size
        length = min(size - offset, count * self._size)

        def is_right(found: bytes | None) -> bool:
            if found is None or len(found) != length:
                return False
            if name not in self._blocks:
                return manifest.digest_of(found) == whole
            digests = manifest.block_digests(found, self._size)
            start = first * manifest.DIGITS
            return digests == self._blocks[name][start : start + len(digests)]

        place = _Place(name, offset, length)
        found = self._local(place)
        for _ in range(2):  # what was altered on the way is right the second time
            if is_right(found):
                break
            found = self._copy.bucket.read_part(f"{self._base}/{name}", offset, length)
        else:
            if not is_right(found):
                what = "is missing" if found is None else "was altered"
                raise DamageError(f"file {name} {what}: bytes {offset} to {offset + length}")
        assert found is not None
        try:
            with pathlib.Path(self.folder / name).open("r+b") as file:
                file.seek(offset)
                file.write(found)
        except OSError as error:
            raise self._copy.unwritable(f"{self._base}/{name}", error) from error

    def _local(self, place: _Place) -> bytes | None:
        """From this process's own part of the checkpoint, if it is still here."""
        path = self._copy.folder / self._base / place.name
        try:
            if path.stat().st_size != self.files[place.name][0]:
                return None
            with path.open("rb") as file:
                file.seek(place.offset)
                return file.read(place.length)
        except OSError:
            return None


def _runs(blocks: list[int], most: int) -> Iterator[tuple[int, int]]:
    """Neighbouring blocks, ``most`` at a time: ``(first, count)``."""
    for _, group in itertools.groupby(enumerate(blocks), lambda pair: pair[1] - pair[0]):
        run = [block for _, block in group]
        for start in range(0, len(run), most):
            yield run[start], len(run[start : start + most])


# The index.


def _read_index(source: _Source) -> dict[str, list[bytes | _Place]]:
    """What the checkpoint holds under each key: bytes, or where they lie, in each of its parts."""
    import tensorstore

    def dump(database: str, node: str | None = None) -> Any:
        path = f"{os.fspath(source.folder / database)}/"
        store = tensorstore.KvStore.open({"driver": "file", "path": path}).result()
        try:
            return tensorstore.ocdbt.dump(store, node).result()
        except Exception as error:  # TensorStore has no class of its own for errors
            raise DamageError(f"its index can't be read ({error})") from error

    whole = f"state/{_INDEX}"
    names = [whole] if whole in source.files else source.files
    level: list[tuple[str, str, bytes]] = []
    for database in [name.removesuffix(_INDEX) for name in names if name.endswith(f"/{_INDEX}")]:
        root = dump(database)["versions"][-1]["root"]
        level += [(database, root["location"], b"")] if "location" in root else []
    found: dict[str, list[bytes | _Place]] = {}
    while level:
        source.need(_place(database, location) for database, location, _ in level)
        below = []
        for database, location, prefix in level:
            for entry in dump(database, location)["entries"]:
                if "location" in entry:  # below it keys lack what they have in common
                    common = prefix + _bytes(entry["subtree_common_prefix"])
                    below.append((database, entry["location"], common))
                    continue
                key = prefix + _bytes(entry["key"])
                value = entry.get("inline_value")
                at = _place(database, entry["indirect_value"]) if value is None else _bytes(value)
                found.setdefault(key.decode(), []).append(at)
        level = below
    return found


def _place(database: str, location: str) -> _Place:
    """``kind:base:file:offset:length``, as the index has it, in a file of the checkpoint."""
    _, base, file, offset, length = location.split(":")
    name = database + urllib.parse.unquote(base) + urllib.parse.unquote(file)
    return _Place(name, int(offset), int(length))


def _bytes(value: bytes | str) -> bytes:
    return value.encode() if isinstance(value, str) else value


# The arrays.


def _places(
    array: str, leaf: Any, index: Mapping[str, list[bytes | _Place]], source: _Source
) -> Iterator[_Place]:
    """Where the chunks lie that this process's shards of an array are in."""
    described = index[f"{array}/zarr.json"][0]
    about = json.loads(described if isinstance(described, bytes) else source.read(described))
    chunk = about["chunk_grid"]["configuration"]["chunk_shape"]
    chunks: set[tuple[int, ...]] = set()
    for region in _regions(leaf, about["shape"]):
        chunks.update(
            itertools.product(
                *(
                    range(low // each, -(-high // each))
                    for (low, high), each in zip(region, chunk, strict=True)
                )
            )
        )
    for key in (f"{array}/zarr.json", *("/".join((f"{array}/c", *map(str, at))) for at in chunks)):
        # What is all zeros is not stored.
        yield from (place for place in index.get(key, []) if isinstance(place, _Place))


def _regions(leaf: Any, shape: list[int]) -> set[tuple[tuple[int, int], ...]]:
    """The parts of an array, as ranges by axis, that this process's devices hold."""
    sharding = getattr(leaf, "sharding", None)
    if sharding is None or state_io.is_key(leaf):
        return {tuple((0, length) for length in shape)}
    return {
        tuple(axis.indices(length)[:2] for axis, length in zip(index, shape, strict=True))
        for index in sharding.addressable_devices_indices_map(tuple(shape)).values()
    }
