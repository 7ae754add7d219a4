"""A TFDS data set, as ``jaxclip data import`` writes it."""

from __future__ import annotations

import json
import os
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jaxclip.data import schema
from jaxclip.data.record import Record, serialize_record
from jaxclip.data.tfrecord import frame


class Tfds:
    """TFRecord shards with the features of :mod:`jaxclip.data.schema`."""

    def write(self, folder: str, shard: int, records: Iterator[Record]) -> Mapping[str, Any]:
        path = pathlib.Path(folder) / f"shard-{shard:05d}.part"
        count = size = 0
        with path.open("wb") as file:
            for record in records:
                data = serialize_record(record)
                file.write(frame(data))
                count, size = count + 1, size + len(data)
        if not count:
            path.unlink()
        return {"records": count, "bytes": size, "file": path.name}

    def finish(self, folder: str, split: str, shards: Sequence[Mapping[str, Any]]) -> None:
        from jaxclip.data._tfds import tensorflow_datasets

        tfds = tensorflow_datasets()
        place = pathlib.Path(folder)
        name = re.sub(r"[^a-z0-9]+", "_", place.name.removesuffix(".writing").lower()).strip("_")
        name = name if re.match(r"[a-z]", name) else f"data_{name}".rstrip("_")
        template = tfds.core.ShardedFileTemplate(
            data_dir=place, dataset_name=name, filetype_suffix="tfrecord"
        )
        for number, shard in enumerate(shards):
            final = f"{name}-{split}.tfrecord-{number:05d}-of-{len(shards):05d}"
            if (place / shard["file"]).exists():
                os.replace(place / shard["file"], place / final)
        info = tfds.core.SplitInfo(
            name=split,
            shard_lengths=[shard["records"] for shard in shards],
            num_bytes=sum(shard["bytes"] for shard in shards),
            filename_template=template.replace(split=split),
        )
        source = json.loads((place / "request.json").read_text())["source"]
        tfds.folder_dataset.write_metadata(
            data_dir=place,
            features=schema.features(None),
            split_infos=[info],
            filename_template=template,
            description=f"Chosen from {source} by jaxclip curate.",
            disable_shuffling=True,
            check_data=False,
        )
