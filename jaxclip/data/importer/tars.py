"""Reader of WebDataset tars, compressed or not, as a stream."""

from __future__ import annotations

import dataclasses
import itertools
import json
import lzma
import pathlib
import re
import tarfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jaxclip.data import benchmark_files, tar_index
from jaxclip.data.class_values import parse_label
from jaxclip.data.importer import packed
from jaxclip.data.importer.items import (
    MAX_IMAGE_BYTES,
    Cursor,
    Item,
    SourceError,
    files_stamp,
    from_fields,
    names_apart,
)
from jaxclip.data.naming import TEXT_FIELDS, find, is_filled, unique_names
from jaxclip.data.record import BadRecord

# Names of pictures in ImageNet's tars of a class each.
_OF_IMAGENET = re.compile(r"n\d{8}_\d+")
_DAMAGE = (tarfile.TarError, OSError, EOFError, zlib.error, lzma.LZMAError, ValueError)


class TarReader:
    """Samples of tars: an image, a ``.txt`` or ``.json`` with captions, and perhaps a ``.cls``.

    Args:
      tars: the files, in order.
      splits: the split of each; empty = none says.
      class_names: of the labels; empty = they are not known.
    """

    def __init__(
        self,
        tars: Sequence[pathlib.Path],
        splits: Sequence[str] = (),
        class_names: Sequence[str] = (),
    ):
        self._tars = list(tars)
        self._names = names_apart(self._tars)
        self._splits = list(splits) or [""] * len(self._tars)
        self._class_names = unique_names(class_names)
        self._by_line = benchmark_files.captions_by_line(self._tars)
        self._before = [0, *itertools.accumulate(tar.stat().st_size for tar in self._tars)]
        self._current: tuple[int, Any] | None = None

    def class_names(self) -> list[str]:
        return self._class_names

    def stamp(self) -> str:
        return files_stamp(self._tars)

    def fraction(self) -> float | None:
        if self._current is None:
            return None
        tar, raw = self._current
        return (self._before[tar] + raw.tell()) / max(1, self._before[-1])

    def items(self, start: Cursor) -> Iterator[tuple[Cursor, Item | BadRecord]]:
        for number in range(start.file, len(self._tars)):
            done = start.item if number == start.file else 0
            with open(self._tars[number], "rb") as raw:
                self._current = (number, raw)
                seen: set[str] = set()
                # The last item of a tar moves on to the next one, so that a run that stopped there
                # does not read through this tar again.
                waiting: tuple[int, Item | BadRecord] | None = None
                for count, item in enumerate(self._samples(self._tars[number], raw, done), 1):
                    if waiting is not None:
                        yield Cursor(number, waiting[0]), waiting[1]
                    item = self._placed(item, number, seen)
                    waiting = (count, item) if count > done else None
                if waiting is not None:
                    yield Cursor(number + 1, 0), waiting[1]
            self._current = None

    def _placed(self, item: Item | BadRecord, tar: int, seen: set[str]) -> Item | BadRecord:
        """The item with its split, the name of its class, and a key of this tar's own.

        Args:
          item: the item.
          tar: number of the tar.
          seen: keys of the items before it in this tar; the item's is added.
        """
        if isinstance(item, BadRecord):
            return item
        # Within a tar it is the same sample again; another tar may have counted from 0, too.
        is_new = item.key not in seen
        seen.add(item.key)
        alias = f"{self._names[tar]}/{item.key}" if is_new and tar else ""
        split, label = self._splits[tar], item.label
        own = split or item.split
        if self._by_line[tar]:
            lines = tuple(line for text in item.texts for line in text.splitlines())
            item = dataclasses.replace(item, texts=lines)
        if isinstance(label, int) and 0 <= label < len(self._class_names):
            label = self._class_names[label]
        # Tars of two splits often count from 0, both of them.
        key = f"{split}/{item.key}" if split else item.key
        return dataclasses.replace(item, key=key, split=own, label=label, alias=alias)

    def _samples(self, tar: pathlib.Path, raw: Any, skipped: int) -> Iterator[Item | BadRecord]:
        """All samples of a tar; of the first ``skipped`` ones nothing is read but the headers."""
        key, parts, count = "", {}, 0  # type: str, dict[str, bytes | None], int
        # What to say of the last two files that nothing here has a use for, by their samples.
        others: dict[str, str] = {}
        apart, unused = _Apart(tar), tar_index.Others()
        goes_on = False
        try:
            with _opened(raw) as archive:
                for member in tar_index.members(archive):
                    name = tar_index.sample_name(member.name) if member.isreg() else None
                    if name is None or tar_index.part_of(name.extension) is None:
                        unused.add(member)
                        others = dict([*others.items(), *_remark(member)][-2:])
                        continue
                    if parts and name.key != key:
                        apart.check(key, parts)
                        yield _item(key, parts, others.get(key, ""))
                        parts, count = {}, count + 1
                    key = name.key
                    parts.setdefault(
                        tar_index.plain_ending(name.extension),
                        b"" if count < skipped else _read(archive, member),
                    )
                file: Any = archive.fileobj
                can_move = getattr(file, "seekable", lambda: False)()
                goes_on = tar_index.goes_on(file, archive.offset if can_move else file.tell())
        except SourceError:
            raise
        except _NoTarError as error:
            yield BadRecord("corrupted", f"{tar}: {error}")
            return
        except _DAMAGE as error:
            # Nothing follows; all that was read of the sample at hand is whole.
            kinds = {tar_index.part_of(extension) for extension in parts}
            is_whole = "image" in kinds and len(kinds) > 1
            if is_whole:
                yield _item(key, parts, "")
            place = key if parts and not is_whole else ""
            yield BadRecord("corrupted", f"{tar} is damaged: {error}", place)
            return
        problem = unused.problem(bool(parts))
        if parts:
            apart.check(key, parts)
            yield _item(key, parts, others.get(key, ""))
        elif problem:
            raise SourceError(f"{tar} holds no samples: {problem}")
        if goes_on:
            yield BadRecord("corrupted", f"{tar}: {tar_index.GOES_ON}")


class _NoTarError(tarfile.ReadError):
    """A file is no tar at all; what it is instead is in the message."""


def _opened(raw: Any) -> tarfile.TarFile:
    """A tar, compressed or not; its members must be read in order."""
    begin = raw.read(1024)
    raw.seek(0)
    try:
        if packed.is_zstandard(raw):
            return tarfile.open(fileobj=packed.unpacked(raw), mode="r|")
        return tarfile.open(fileobj=raw, mode="r:*")
    except tarfile.ReadError as error:
        raise _NoTarError(tar_index.no_tar(begin)) from error


def _remark(member: tarfile.TarInfo) -> list[tuple[str, str]]:
    """The sample that a file is of, and why it is no part of it; nothing if it is of none."""
    name = tar_index.sample_name(member.name)
    if name is None or member.isdir():
        return []
    if member.issym() or member.islnk():
        way = "make the tar with `tar --dereference --hard-dereference`"
        return [(name.key, f"{member.name} is a link to {member.linkname}: {way}")]
    return [(name.key, f"{member.name} beside it is no picture by its ending")]


class _Apart:
    """Finds out that the files of a tar's samples are not side by side."""

    def __init__(self, tar: pathlib.Path):
        self._tar = tar
        self._alone: set[str] = set()  # pictures without anything

    def check(self, key: str, parts: Mapping[str, bytes | None]) -> None:
        """Raise SourceError if the picture of a sample without one was there before."""
        kinds = {tar_index.part_of(extension) for extension in parts}
        if kinds == {"image"}:
            self._alone.add(key)
        elif "image" not in kinds and key in self._alone:
            raise SourceError(tar_index.not_adjacent(self._tar, key))


def _read(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes | None:
    """A file's bytes, None if there are too many."""
    if member.size > MAX_IMAGE_BYTES:
        return None
    file = archive.extractfile(member)
    data = file.read() if file is not None else b""
    if len(data) != member.size:
        raise tarfile.ReadError(f"{member.name} ends after {len(data)} of {member.size} bytes")
    return data


def _item(key: str, parts: Mapping[str, bytes | None], remark: str) -> Item | BadRecord:
    found = [ext for ext in parts if tar_index.part_of(ext) == "image"]
    if not found:
        more = f"; {remark}" if remark else ""
        return BadRecord("missing_image", f"the sample has only {', '.join(parts)}{more}", key)
    image = parts[found[0]]
    if image is None:
        return BadRecord("absurd_size", f"more than {MAX_IMAGE_BYTES} bytes", key)
    fields: Any = {}
    files = [parts.get(ext) or b"" for ext in tar_index.TEXT_EXTENSIONS]
    texts = [text for text in files if is_filled(text)]
    has_text = bool(texts)
    if tar_index.JSON_EXTENSION in parts:
        data = parts[tar_index.JSON_EXTENSION] or b""
        try:
            fields = json.loads(data.decode("utf-8-sig"))
        except (ValueError, RecursionError) as error:
            # Without a text file, the captions were to be in here.
            if not has_text:
                bad = isinstance(error, UnicodeDecodeError)
                return BadRecord("bad_utf8" if bad else "bad_row", str(error), key)
        if isinstance(fields, (str, list)):  # captions alone
            fields = {TEXT_FIELDS[0]: fields}
        fields = fields if isinstance(fields, dict) else {}
        fields = {name: value for name, value in fields.items() if name != "key"}
    if has_text:
        for name in find(fields, TEXT_FIELDS):
            fields.pop(name)
    cls = next((parts[each] for each in tar_index.LABEL_EXTENSIONS if each in parts), None)
    if cls is not None and parse_label(fields.get("label")) is None:
        fields["label"] = cls.decode("utf-8", "replace")
    item = from_fields(fields, key=key, image=image, texts=texts if has_text else None)
    if isinstance(item, Item) and not item.texts and item.label is None:
        is_folder = "/" in key or _OF_IMAGENET.match(key)
        way = "; unpack a tar that is a folder, and import the folder" if is_folder else ""
        return BadRecord("empty_caption", f"the sample has only {', '.join(parts)}{way}", key)
    return item
