"""Manifests: what a finished checkpoint consists of, so that a broken one is never mistaken for it.

A checkpoint is committed by its ``manifest.json`` and by nothing else. The file is written last,
under another name, and then renamed; it lists size and SHA-256 of every other file and carries a
digest of itself. Hence a checkpoint without one was never finished, and a lost, shortened or
altered file is found before a single array is read (array formats without checksums would hand out
the altered numbers).
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import json
import os
from typing import Any

from etils import epath

from jaxclip.storage import is_local

NAME = "manifest.json"
FORMAT = 1
# Bytes of a block that has a digest of its own, where one is written, and its digits: SHA-256's
# first 64 bits, for they are many, and only accidents are to be found.
BLOCK = 2**18
DIGITS = 16


class ManifestError(ValueError):
    """A checkpoint is not what its manifest says, or has none."""


class MissingManifestError(ManifestError):
    """There is no manifest: the checkpoint was never finished."""


def write(directory: epath.Path, content: dict[str, Any]) -> None:
    """Commit a checkpoint: record its files and the given content.

    Args:
      directory: the checkpoint's folder, all of its files written.
      content: JSON-serialisable description; must not have the keys ``format``, ``files``,
        ``digest``.
    """
    put(directory, {**content, "format": FORMAT, "files": table_of(directory)})


def blocks_of(directory: epath.Path) -> dict[str, str]:
    """``{name: digests of its blocks, one after the other}`` of the files that hold arrays.

    With them in its manifest, as ``blocks``, and their size as ``block_bytes``, a checkpoint can be
    read in part (:mod:`jaxclip.train.shards`).
    """
    names = [name for name in list_files(directory) if is_data(name)]

    def digests(name: str) -> str:
        found = []
        with (directory / name).open("rb") as file:
            while block := file.read(BLOCK):
                found.append(block_digests(block, BLOCK))
        return "".join(found)

    with concurrent.futures.ThreadPoolExecutor(max_workers=4) as pool:
        return dict(zip(names, pool.map(digests, names), strict=True))


def is_data(name: str) -> bool:
    """Whether a file of a checkpoint holds arrays, or the inner nodes of their index."""
    return "/d/" in name


def block_digests(content: bytes, size: int) -> str:
    """The digests of blocks of ``size`` bytes, the last of which may be shorter."""
    view = memoryview(content)
    starts = range(0, len(content), size)
    return "".join(digest_of(view[start : start + size])[:DIGITS] for start in starts)


def digest_of(content: bytes | memoryview) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def table_of(directory: epath.Path) -> dict[str, list[Any]]:
    """``{name: [size, SHA-256]}`` of the files below a folder, each forced onto the disk."""
    files = list_files(directory)
    with concurrent.futures.ThreadPoolExecutor(max_workers=4) as pool:
        digests = pool.map(lambda name: file_digest(directory / name, flush=True), files)
        return {
            name: [size, digest]
            for (name, size), digest in zip(files.items(), digests, strict=True)
        }


def text_of(content: dict[str, Any]) -> str:
    """A manifest with this content, as it is written."""
    body = {key: value for key, value in content.items() if key != "digest"}
    return json.dumps({**body, "digest": json_digest(body)}, sort_keys=True) + "\n"


def put(directory: epath.Path, content: dict[str, Any]) -> None:
    """Write ``content`` as the manifest, atomically."""
    temporary = directory / f"{NAME}.tmp"
    temporary.write_text(text_of(content))
    if is_local(directory):
        flush_to_disk(temporary)
    temporary.replace(directory / NAME)
    if is_local(directory):
        flush_to_disk(directory)


def read(directory: epath.Path) -> dict[str, Any]:
    """The manifest of a checkpoint, itself verified; the files it lists are not.

    Raises:
      MissingManifestError: there is none.
      ManifestError: it is damaged or of a later format.
    """
    path = directory / NAME
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise MissingManifestError(f"{NAME} is missing: the save was never finished") from None
    except OSError as error:
        raise ManifestError(f"{NAME} can't be read ({error})") from error
    try:
        content = json.loads(raw)
        digest = content.pop("digest")
    except (ValueError, KeyError, AttributeError):
        raise ManifestError(f"{NAME} is damaged: not the JSON that was written") from None
    if digest != json_digest(content):
        raise ManifestError(f"{NAME} is damaged: its content does not match its own digest")
    if content["format"] > FORMAT:
        raise ManifestError(
            f"{NAME} has format {content['format']}, this version reads up to {FORMAT}; "
            "upgrade jaxclip"
        )
    return content


def verify(directory: epath.Path) -> dict[str, Any]:
    """Check every file of a checkpoint against its manifest.

    Args:
      directory: the checkpoint's folder.

    Returns:
      The manifest.

    Raises:
      ManifestError: no manifest, or a file is missing, has another size or another content; the
        message names the first such file.
    """
    content = read(directory)
    expected = content["files"]
    present = list_files(directory)
    for name, (size, _) in expected.items():
        if name not in present:
            raise ManifestError(f"file {name} is missing")
        if present[name] != size:
            raise ManifestError(f"file {name} has {present[name]} bytes instead of {size}")
    with concurrent.futures.ThreadPoolExecutor(max_workers=4) as pool:
        try:
            digests = list(pool.map(lambda name: file_digest(directory / name), expected))
        except OSError as error:
            raise ManifestError(f"a file can't be read ({error})") from error
    for (name, (_, wanted)), digest in zip(expected.items(), digests, strict=True):
        if digest != wanted:
            raise ManifestError(f"file {name} was altered: its SHA-256 is not the recorded one")
    return content


def list_files(directory: epath.Path) -> dict[str, int]:
    """Relative path -> size in bytes of all files below a folder, without the manifest."""
    found: dict[str, int] = {}

    def walk(folder: epath.Path, prefix: str) -> None:
        for entry in sorted(folder.iterdir()):
            if entry.is_dir():
                walk(entry, f"{prefix}{entry.name}/")
            elif prefix or not entry.name.startswith(NAME):
                found[prefix + entry.name] = entry.stat().length

    walk(directory, "")
    return found


def file_digest(path: epath.Path, *, flush: bool = False) -> str:
    """SHA-256 of a file in hexadecimal; with ``flush``, also force it onto the disk."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    if flush and is_local(path):
        flush_to_disk(path)
    return digest.hexdigest()


def json_digest(content: Any) -> str:
    """SHA-256 of a JSON value in canonical form."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def flush_to_disk(path: epath.Path) -> None:
    """fsync a file or folder; file systems that can't are left to their own care."""
    descriptor = os.open(os.fspath(path), os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)
