"""The unfinished data set on disk: shards, counts, keys seen, and how far the import has come.

All of it is in one folder beside the place where the data set will be. A small SQLite file says
what of it counts: it is written in transactions, and names for every growing file the length that
is valid. So whenever the import is killed, what was committed last is there, and what came after is
cut off when it goes on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import sqlite3
from typing import Any, BinaryIO

from jaxclip.data.importer.items import Cursor
from jaxclip.data.record import Record, serialize_record
from jaxclip.data.tfrecord import frame

STATE_FILE = "state.sqlite"
SKIPPED_FILE = "skipped.jsonl"


@dataclasses.dataclass
class Shard:
    """One TFRecord file: of which split, how many records, how many valid bytes."""

    split: str
    records: int = 0
    size: int = 0
    payload: int = 0


@dataclasses.dataclass
class State:
    """How far an import has come.

    Attributes:
      request: what is imported how; an import of another request does not go on from here.
      cursor: position in the source.
      shards: in the order in which they were begun; the last one of each split is open.
      skipped: number of records that were not used, by reason.
      skipped_size: valid bytes of the log of skipped records.
      captions: number of captions written.
      lost_captions: number of captions that were blank or not UTF-8, of records that were used.
      named_labels: whether labels are names (True), numbers (False), or none was met (None).
      seconds: time spent so far.
      done: everything was read.
    """

    request: dict[str, Any]
    cursor: Cursor = dataclasses.field(default_factory=Cursor)
    shards: list[Shard] = dataclasses.field(default_factory=list)
    skipped: dict[str, int] = dataclasses.field(default_factory=dict)
    skipped_size: int = 0
    captions: int = 0
    lost_captions: int = 0
    named_labels: bool | None = None
    seconds: float = 0.0
    done: bool = False

    @classmethod
    def from_json(cls, text: str) -> State:
        values = json.loads(text)
        values["cursor"] = Cursor(*values["cursor"])
        values["shards"] = [Shard(**shard) for shard in values["shards"]]
        return cls(**values)

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    def records(self) -> dict[str, int]:
        """Number of records of each split that has any."""
        counts: dict[str, int] = {}
        for shard in self.shards:
            counts[shard.split] = counts.get(shard.split, 0) + shard.records
        return counts


class Store:
    """Opens or begins an unfinished data set.

    Args:
      folder: of the unfinished data set.
      request: see :class:`State`.
      shard_bytes: size at which a new shard is begun.

    Attributes:
      state: where it stands; what is changed in it counts after :meth:`commit`.
    """

    def __init__(self, folder: pathlib.Path, request: dict[str, Any], shard_bytes: int):
        self.folder = folder
        self._shard_bytes = shard_bytes
        folder.mkdir(parents=True, exist_ok=True)
        self._db = sqlite3.connect(folder / STATE_FILE, isolation_level=None)
        # Full sync is the default; said here since everything rests on it.
        self._db.execute("PRAGMA synchronous=FULL")
        self._db.execute("PRAGMA cache_size=-65536")  # 64 MiB, the rest of the keys is on disk
        try:
            self._db.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            raise OSError(f"{folder} is in use by another import ({error})") from error
        for table in (
            "state (one INTEGER PRIMARY KEY, json TEXT)",
            "keys (digest BLOB PRIMARY KEY) WITHOUT ROWID",
            "labels (name TEXT PRIMARY KEY, id INTEGER) WITHOUT ROWID",
        ):
            self._db.execute(f"CREATE TABLE IF NOT EXISTS {table}")
        row = self._db.execute("SELECT json FROM state").fetchone()
        self.state = State(request) if row is None else State.from_json(row[0])
        self._files: dict[str, BinaryIO] = {}
        self._skipped = self._reopen(SKIPPED_FILE, self.state.skipped_size)
        self._restore_shards()

    def close(self) -> None:
        """Let go of all files; what was not committed is lost."""
        for file in (*self._files.values(), self._skipped):
            with contextlib.suppress(OSError):  # a full disk, on which it tries to write the rest
                file.close()
        self._files.clear()
        self._db.close()

    def is_new_key(self, key: str) -> bool:
        """Note a key; False if it was noted before."""
        digest = hashlib.blake2b(key.encode("utf-8", "replace"), digest_size=16).digest()
        cursor = self._db.execute("INSERT OR IGNORE INTO keys VALUES (?)", (digest,))
        return cursor.rowcount == 1

    def label_id(self, name: str) -> int:
        """Number of a class name, a new one for a new name."""
        row = self._db.execute("SELECT id FROM labels WHERE name = ?", (name,)).fetchone()
        if row is not None:
            return row[0]
        count = self._db.execute("SELECT count(*) FROM labels").fetchone()[0]
        self._db.execute("INSERT INTO labels VALUES (?, ?)", (name, count))
        return count

    def label_names(self) -> list[str]:
        """Class names by number."""
        return [row[0] for row in self._db.execute("SELECT name FROM labels ORDER BY id")]

    def write(self, split: str, record: Record) -> None:
        """Append a record to a split."""
        data = serialize_record(record)
        file = self._files.get(split)
        shard = self._open_shard(split)
        if shard is None or shard.size >= self._shard_bytes:
            if file is not None:
                _sync(file)
                file.close()
            shard = Shard(split)
            self.state.shards.append(shard)
            file = self._files[split] = self._reopen(self._shard_name(shard), 0)
        assert file is not None  # every split with a shard has its last one open
        framed = frame(data)
        file.write(framed)
        shard.records += 1
        shard.size += len(framed)
        shard.payload += len(data)
        self.state.captions += len(record.texts)

    def skip(self, reason: str, detail: str, key: str) -> None:
        """Count a record that is not used, and log it."""
        self.state.skipped[reason] = self.state.skipped.get(reason, 0) + 1
        line = json.dumps({"key": key, "reason": reason, "detail": detail}) + "\n"
        self._skipped.write(line.encode("ascii"))
        self.state.skipped_size += len(line)

    def flush(self) -> None:
        """Have on disk what was written, whether or not it counts yet."""
        for file in (*self._files.values(), self._skipped):
            _sync(file)

    def commit(self) -> None:
        """Make everything up to here last."""
        self.flush()
        self._db.execute("INSERT OR REPLACE INTO state VALUES (1, ?)", (self.state.to_json(),))
        self._db.execute("COMMIT")
        self._db.execute("BEGIN IMMEDIATE")

    def shard_files(self, name: str) -> list[tuple[pathlib.Path, pathlib.Path]]:
        """Where each shard is and what it is to be called in data set ``name``."""
        totals: dict[str, int] = {}
        for shard in self.state.shards:
            totals[shard.split] = totals.get(shard.split, 0) + 1
        numbers: dict[str, int] = {}
        pairs = []
        for shard in self.state.shards:
            number = numbers[shard.split] = numbers.get(shard.split, -1) + 1
            final = f"{name}-{shard.split}.tfrecord-{number:05d}-of-{totals[shard.split]:05d}"
            pairs.append((self.folder / self._shard_name(shard), self.folder / final))
        return pairs

    def _open_shard(self, split: str) -> Shard | None:
        return next((s for s in reversed(self.state.shards) if s.split == split), None)

    def _shard_name(self, shard: Shard) -> str:
        number = next(i for i, each in enumerate(self.state.shards) if each is shard)
        return f"shard-{number:05d}.part"

    def _restore_shards(self) -> None:
        """Cut off what was never committed."""
        if self.state.done:
            return  # the files may have their final names already
        known = {self._shard_name(shard) for shard in self.state.shards}
        for file in self.folder.glob("shard-*.part"):
            if file.name not in known:
                file.unlink()
        for split in self.state.records():
            shard = self._open_shard(split)
            assert shard is not None
            self._files[split] = self._reopen(self._shard_name(shard), shard.size)

    def _reopen(self, name: str, size: int) -> BinaryIO:
        path = self.folder / name
        have = path.stat().st_size if path.exists() else 0
        if have < size:
            raise OSError(
                f"{path} has {have} bytes, of which {size} were written before: it was changed "
                "from outside; use --overwrite to begin anew"
            )
        file = open(path, "r+b" if path.exists() else "w+b")  # noqa: SIM115 (stays open)
        file.truncate(size)
        file.seek(size)
        return file


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
