"""Parquet files, a file a shard, as ``parquet:DIR`` reads them."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jaxclip.data.record import Record

_GROUP = 256


class Parquet:
    """Columns ``image`` (encoded bytes), ``texts``, ``label``, ``key``, ``meta``."""

    def write(self, folder: str, shard: int, records: Iterator[Record]) -> Mapping[str, Any]:
        import pyarrow as pa
        import pyarrow.parquet

        kinds = pa.schema(
            [("image", pa.binary()), ("texts", pa.list_(pa.string())), ("label", pa.int64()),
             ("key", pa.string()), ("meta", pa.string())]
        )  # fmt: skip
        path = pathlib.Path(folder) / f"shard-{shard:05d}.part"
        count = 0
        with pyarrow.parquet.ParquetWriter(path, kinds, compression="zstd") as file:
            waiting: list[dict[str, Any]] = []
            for record in records:
                waiting.append({name: getattr(record, name) for name in kinds.names})
                count += 1
                if len(waiting) == _GROUP:
                    file.write_table(pa.Table.from_pylist(waiting, kinds))
                    waiting.clear()
            if waiting:
                file.write_table(pa.Table.from_pylist(waiting, kinds))
        if not count:
            path.unlink()
        return {"records": count, "file": path.name}

    def finish(self, folder: str, split: str, shards: Sequence[Mapping[str, Any]]) -> None:
        place = pathlib.Path(folder)
        for number, shard in enumerate(shards):
            if (place / shard["file"]).exists():
                final = f"{split}-{number:05d}-of-{len(shards):05d}.parquet"
                os.replace(place / shard["file"], place / final)
