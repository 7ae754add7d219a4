"""WebDataset tars, with the number of samples of each in ``sizes.json``."""

from __future__ import annotations

import io
import json
import pathlib
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jaxclip.curate.writers import extension
from jaxclip.data.record import Record, meta_object


class Webdataset:
    """A tar a shard. Names count the samples; a record's own key is in its JSON, with captions."""

    def write(self, folder: str, shard: int, records: Iterator[Record]) -> Mapping[str, Any]:
        path = pathlib.Path(folder) / f"{shard:05d}.tar"
        count = 0
        with tarfile.open(path, "w") as tar:
            for record in records:
                name = f"{shard:05d}{count:05d}"
                about = {
                    **meta_object(record.meta),
                    "key": record.key,
                    "captions": list(record.texts),
                }
                files = [(extension(record.image), record.image)]
                if record.texts:
                    files.append(("txt", record.texts[0].encode()))
                files.append(("json", json.dumps(about, ensure_ascii=False).encode()))
                if record.label >= 0:
                    files.append(("cls", str(record.label).encode()))
                for ending, data in files:
                    info = tarfile.TarInfo(f"{name}.{ending}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
                count += 1
        if not count:
            path.unlink()
        return {"records": count, "file": path.name}

    def finish(self, folder: str, split: str, shards: Sequence[Mapping[str, Any]]) -> None:
        sizes = {shard["file"]: shard["records"] for shard in shards}
        (pathlib.Path(folder) / "sizes.json").write_text(json.dumps(sizes))
