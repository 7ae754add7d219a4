"""``bench data --start``: from the start to the first batch with many shards, and memory."""

from __future__ import annotations

import argparse
import io
import json
import os
import pathlib
import subprocess
import sys
import tarfile
import tempfile

import numpy as np

from jaxclip.markdown import table

_RESUME_STEP = 10**6
# Of a shard where memory is measured.
_SAMPLES = 10_000
_PROGRAM = """
import json, sys, time
from jaxclip.bench.loading import cpu_seconds
from jaxclip.data import pipeline, tokenizers
from jaxclip.data._tfds import tensorflow
tensorflow()
config, step, batch_size, records = json.loads(sys.argv[1])
tokenizer = tokenizers.load({"kind": "emoji_bpe"})
began, cpu = time.perf_counter(), cpu_seconds()
batches = pipeline.train_iterator(
    config, tokenizer=tokenizer, global_batch_size=batch_size, seed=0, start_step=step
)
next(batches)
print(json.dumps(time.perf_counter() - began))
print(json.dumps(cpu_seconds() - cpu), flush=True)
done, noted = batch_size, 0
while done < records:
    next(batches)
    done += batch_size
    if done * 10 // records > noted:
        noted = done * 10 // records
        pages = int(open("/proc/self/statm").read().split()[1])
        print(json.dumps(pages * 4096 / 2**20), flush=True)
batches.close()
"""


def run(args: argparse.Namespace) -> int:
    """Measure and print; returns the exit status."""
    rows = [["data", "start", "workers", "seconds to the first batch", "of CPU time"]]
    with tempfile.TemporaryDirectory() as name:
        root = pathlib.Path(name)
        sets = {
            "TFRecord": str(_tfrecords(root / "tfrecord", args.shards, args.samples)),
            "tars": f"webdataset:{_tars(root / 'tars', args.shards, args.samples)}",
        }
        for kind, data in sets.items():
            for what, step, workers in (
                ("first", 0, 0),
                ("again", 0, 0),
                (f"at step {_RESUME_STEP:,}", _RESUME_STEP, 0),
                (f"at step {_RESUME_STEP:,}", _RESUME_STEP, 2),
            ):
                config = {"name": data, "image_size": 64, "workers": workers}
                seconds, cpu = _measured(config, step, args.batch_size, 0)
                rows.append([kind, what, str(workers), f"{seconds:.2f}", f"{cpu:.2f}"])
        shards = f"{args.shards:,} shards of {args.samples:,} records"
        print(f"{shards}, batch {args.batch_size}\n\n{table(rows)}", flush=True)
    if args.memory_records:
        for kind, sizes in memory(args.memory_records, args.batch_size).items():
            listing = " ".join(f"{size:,.0f}" for size in sizes)
            what = f"{kind}, resident MB at each tenth of {args.memory_records:,} records"
            print(f"\n{what}: {listing}", flush=True)
    return 0


def memory(records: int, batch_size: int) -> dict[str, list[float]]:
    """Resident MB of a process that trains on so many different records, at each tenth of them."""
    shards, samples = max(1, records // _SAMPLES), min(records, _SAMPLES)
    found = {}
    with tempfile.TemporaryDirectory() as name:
        root = pathlib.Path(name)
        sets = {
            "TFRecord": str(_tfrecords(root / "tfrecord", shards, samples)),
            "tars": f"webdataset:{_tars(root / 'tars', shards, samples)}",
        }
        for kind, data in sets.items():
            config = {"name": data, "image_size": 16, "cache_decoded_mb": 0}
            _, _, *found[kind] = _measured(config, 0, batch_size, records)
    return found


def _measured(config: dict[str, object], step: int, batch_size: int, records: int) -> list[float]:
    """What the program prints: seconds to the first batch, of CPU time too, then MB of memory."""
    arguments = json.dumps([config, step, batch_size, records])
    command = [sys.executable, "-c", _PROGRAM, arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return [float(line) for line in done.stdout.splitlines()]


def _pictures(side: int = 64) -> list[bytes]:
    from PIL import Image

    pictures = []
    for seed in range(4):
        pixels = np.random.default_rng(seed).integers(0, 256, (side // 8, side // 8, 3), np.uint8)
        stream = io.BytesIO()
        Image.fromarray(pixels).resize((side, side)).save(stream, "JPEG")
        pictures.append(stream.getvalue())
    return pictures


def _tfrecords(folder: pathlib.Path, shards: int, samples: int = 4) -> pathlib.Path:
    """A TFDS data set whose shards are one file under many names."""
    from jaxclip.data.record import Record, serialize_record
    from jaxclip.data.tfrecord import frame

    folder.mkdir()
    pictures = _pictures(64 if samples == 4 else 16)
    records = [
        Record(pictures[n % len(pictures)], (f"a picture {n}",), n, f"{n}") for n in range(samples)
    ]
    file = folder / "one"
    file.write_bytes(b"".join(frame(serialize_record(record)) for record in records))
    for shard in range(shards):
        os.link(file, folder / f"many-train.tfrecord-{shard:05d}-of-{shards:05d}")
    kind = "tensorflow_datasets.core.features."
    texts = {"pythonClassName": f"{kind}text_feature.Text"}
    features = {
        "image": {"pythonClassName": f"{kind}image_feature.Image"},
        "texts": {
            "pythonClassName": f"{kind}sequence_feature.Sequence", "sequence": {"feature": texts},
        },
        "key": texts,
    }  # fmt: skip
    split = {"name": "train", "shardLengths": [str(len(records))] * shards}
    info = {"name": "many", "version": "1.0.0", "fileFormat": "tfrecord", "splits": [split]}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    content = {"featuresDict": {"features": features}}
    (folder / "features.json").write_text(json.dumps(content))
    return folder


def _tars(folder: pathlib.Path, shards: int, samples: int = 4) -> pathlib.Path:
    """Tars that are one file under many names, with their sizes beside them."""
    folder.mkdir()
    file = folder / "one"
    with tarfile.open(file, "w") as tar:
        pictures = _pictures(16)
        for number in range(samples):
            data = pictures[number % len(pictures)]
            for name, content in (("jpg", data), ("txt", b"a picture")):
                member = tarfile.TarInfo(f"{number}.{name}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    names = [f"{shard:05d}.tar" for shard in range(shards)]
    for each in names:
        os.link(file, folder / each)
    (folder / "sizes.json").write_text(json.dumps(dict.fromkeys(names, samples)))
    return folder
