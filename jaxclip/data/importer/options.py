"""How to import, and what came of it."""

from __future__ import annotations

import dataclasses
import re

from jaxclip.data.importer.store import SKIPPED_FILE
from jaxclip.data.record import REASONS


@dataclasses.dataclass(frozen=True)
class Options:
    """How to import.

    Attributes:
      name: of the data set; "" = made from the name of the folder.
      format: "auto", "folder", "webdataset", "parquet", "arrow" or "tfrecord".
      image_column: in tables and Parquet, the column with images; "" to find it by its name.
      text_column: in tables and Parquet, the column with captions; "" to find it by its name.
      encoding: of tables that are not JSON; a byte order mark goes before it.
      languages: of captions that say which they are in, those to keep, as "en,de"; "" for all.
      val_fraction: share of the records that becomes a split ``val``, chosen by a hash of the key.
      max_side: scale larger pictures down to this longer side in pixels; 0 = never.
      min_side: skip pictures whose shorter side is below this.
      max_pixels: skip pictures with more pixels.
      max_aspect: skip pictures whose longer side is more than this many times the shorter.
      shard_mb: size in MiB at which a new file is begun.

    Raises:
      ValueError: a value out of range.
    """

    name: str = ""
    format: str = "auto"
    image_column: str = ""
    text_column: str = ""
    encoding: str = "utf-8"
    languages: str = ""
    val_fraction: float = 0.0
    max_side: int = 0
    min_side: int = 8
    max_pixels: int = 100_000_000
    max_aspect: float = 20.0
    shard_mb: int = 256

    def __post_init__(self) -> None:
        if not 0.0 <= self.val_fraction < 1.0:
            raise ValueError(f"val_fraction={self.val_fraction} must be at least 0 and below 1")
        for field, least in (
            ("min_side", 1), ("max_pixels", 1), ("max_aspect", 1), ("shard_mb", 1), ("max_side", 0),
        ):  # fmt: skip
            if getattr(self, field) < least:
                raise ValueError(f"{field}={getattr(self, field)} must be at least {least}")
        try:
            "".encode(self.encoding)
        except (LookupError, ValueError):  # ValueError: a name with a null byte, or "undefined"
            raise ValueError(
                f"encoding={self.encoding!r} is not known; utf-8, cp1252, gb18030, shift_jis, …"
            ) from None
        if not re.fullmatch(r"[A-Za-z_-]*(,[A-Za-z_-]+)*", self.languages):
            raise ValueError(f"languages={self.languages!r} must be codes with commas, as 'en,de'")
        if self.name and not re.fullmatch(r"[a-z][a-z0-9_]*", self.name):
            raise ValueError(
                f"name={self.name!r} must be lower-case letters, digits and _, a letter first, as "
                "TFDS wants it"
            )


@dataclasses.dataclass(frozen=True)
class Summary:
    """What an import did.

    Attributes:
      directory: the data set.
      splits: records by split.
      captions: captions in all.
      bytes: size of the records.
      skipped: records that were not used, by reason (see ``record.REASONS``).
      lost_captions: blank or undecodable captions left out of records that were used.
      classes: number of class names.
      seconds: time it took, all runs of it together.
      was_done: nothing was done now, the same import was finished before.
    """

    directory: str
    splits: dict[str, int]
    captions: int
    bytes: int
    skipped: dict[str, int]
    lost_captions: int
    classes: int
    seconds: float
    was_done: bool = False

    def as_text(self) -> str:
        """Several lines for a person."""
        total = sum(self.splits.values())
        parts = ", ".join(f"{split} {count:,}" for split, count in sorted(self.splits.items()))
        head = "was imported before" if self.was_done else f"imported in {self.seconds:.1f} s"
        lines = [
            f"{self.directory}: {head}: {total:,} records ({parts}), {self.captions:,} captions, "
            f"{self.bytes / 1e6:,.1f} MB"
        ]
        if self.classes:
            lines.append(f"{self.classes:,} class names")
        if self.lost_captions:
            lines.append(f"{self.lost_captions:,} blank or undecodable captions left out")
        if self.skipped:
            lines.append(f"skipped {sum(self.skipped.values()):,} (each in {SKIPPED_FILE}):")
            width = max(len(reason) for reason in self.skipped)
            for reason, count in sorted(self.skipped.items(), key=lambda pair: -pair[1]):
                lines.append(f"  {count:>10,}  {reason:<{width}}  {REASONS[reason]}")
        else:
            lines.append("nothing was skipped")
        return "\n".join(lines)
