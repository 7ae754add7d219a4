"""Records a second and core of each step of ``jaxclip curate``, and what 10^9 pairs would cost.

    OPENBLAS_NUM_THREADS=1 python -m jaxclip.bench curate [--records 2000] [--rounds 3]

Made-up pictures (JPEG, 256 x 192) and captions (5 to 14 words, with Zipf frequencies), in Parquet.
Each step runs on a pool of so many records and on one three times as large, in this process; its
cost is the difference of the two, so that what does not grow with the records (building the
automaton, k-means) is not in it. Counted is CPU time of all threads, the least of some rounds,
with reading the source and the store, without a network. Threads of a matrix product that wait
count too: hence one.
"""

from __future__ import annotations

import argparse
import io
import json
import pathlib
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxclip.markdown import table

_VOCABULARY, _WIDTH, _CLUSTERS = 20_000, 512, 64
_PAIRS = 1e9

_VECTORS = {"name": "embeddings", "texts": "none"}
_CLUSTER = {"name": "cluster", "k": _CLUSTERS, "sample": 16, "iterations": 5}

# What is measured -> the steps, of which the last is timed.
_CASES: Mapping[str, list[dict[str, Any]]] = {
    "captions (all gates)": [
        {"name": "captions", "min_words": 2, "alt_text": True, "max_repeated": 0.5,
         "min_letters": 0.3, "scripts": ["Latin"]}
    ],
    "language": [{"name": "language"}],
    "pictures (headers)": [{"name": "pictures", "min_side": 100}],
    "exact_duplicates (bytes)": [{"name": "exact_duplicates"}],
    "exact_duplicates (pixels)": [{"name": "exact_duplicates", "by": "pixels"}],
    "exact_duplicates (captions)": [{"name": "exact_duplicates", "by": "captions"}],
    "near_pictures": [{"name": "near_pictures"}],
    "near_captions": [{"name": "near_captions"}],
    "match": [{"name": "match"}],
    "balance": [{"name": "match"}, {"name": "balance", "t": 20.0}],
    "top": [{"name": "top", "column": "bytes", "share": 0.3}],
    "embeddings (from a folder)": [_VECTORS],
    f"cluster ({_CLUSTERS}, assignment)": [_VECTORS, _CLUSTER],
    "semantic_duplicates": [_VECTORS, _CLUSTER, {"name": "semantic_duplicates"}],
    "prune_clusters": [_VECTORS, _CLUSTER, {"name": "prune_clusters", "share": 0.5}],
}  # fmt: skip


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m jaxclip.bench curate", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--records", type=int, default=2000, help="of the smaller pool")
    parser.add_argument("--entries", type=int, default=500_000, help="of the step match")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", default=[], help="parts of the names of cases")
    args = parser.parse_args(arguments)
    rows = [["step", "records/s a core", "core-hours for 10^9"]]
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        _write_entries(folder / "entries.txt", args.entries)
        pools = [_write_pool(folder / str(n), n) for n in (args.records, 3 * args.records)]
        cases = {"read": [], **_CASES}
        for case, steps in cases.items():
            if args.only and not any(part in case for part in args.only):
                continue
            try:
                costs = [_cost(pool, _given(steps, pool, folder), args.rounds) for pool in pools]
            except ImportError as error:
                print(f"{case} is left out: {error}")
                continue
            each = (costs[1] - costs[0]) / (2 * args.records)
            rows.append([case, f"{1 / each:,.0f}", f"{_PAIRS * each / 3600:,.1f}"])
            print(" ".join(rows[-1]), flush=True)
    print(table(rows))
    return 0


def _given(
    steps: list[dict[str, Any]], pool: pathlib.Path, folder: pathlib.Path
) -> list[dict[str, Any]]:
    """Steps with the files of this run."""
    files = {"match": {"entries": str(folder / "entries.txt")},
             "embeddings": {"folder": str(pool / "vectors")}}  # fmt: skip
    return [{**step, **files.get(step["name"], {})} for step in steps]


def _cost(pool: pathlib.Path, steps: list[dict[str, Any]], rounds: int) -> float:
    """CPU seconds of the last step, or of reading without steps."""
    from jaxclip.curate import config as config_lib
    from jaxclip.curate import job
    from jaxclip.curate.runners.local import Local

    source = f"parquet:{pool}/pool.parquet"
    config = config_lib.resolve({"source": source, "steps": steps, "shard_size": 1000})
    built = config_lib.build_steps(config)
    count = int(pool.name)
    spent = []
    for number in range(rounds):
        work = str(pool / "work")
        began = time.process_time()
        view = job.read(config, "train", count, work, Local(1))
        if steps:
            job.run_steps(config, built[:-1], view, f"{work}/store", Local(1))
            began = time.process_time()
            done = job.run_steps(config, built, view, f"{work}/store", Local(1))
        spent.append(time.process_time() - began)
        if steps:
            shutil.rmtree(done[-1].folder)
        elif number < rounds - 1:
            shutil.rmtree(work)
    return min(spent)


def _write_entries(path: pathlib.Path, count: int) -> None:
    """All words, then pairs of them."""
    rng = np.random.default_rng(0)
    pairs = rng.integers(0, _VOCABULARY, (max(0, count - _VOCABULARY), 2))
    words = [_word(i) for i in range(min(count, _VOCABULARY))]
    path.write_text("\n".join([*words, *(f"{_word(a)} {_word(b)}" for a, b in pairs.tolist())]))


def _word(number: int) -> str:
    """A made-up word of a few syllables, another for each number."""
    syllables = "ba de fi go lu ma ne pi ro su ta ve wi yo zu ka".split()  # noqa: SIM905
    word = ""
    while number or not word:
        number, syllable = divmod(number, 16)
        word += syllables[syllable]
    return word


def _write_pool(folder: pathlib.Path, count: int) -> pathlib.Path:
    """Pictures, captions and vectors of a pool."""
    import pyarrow as pa
    import pyarrow.parquet
    from PIL import Image

    folder.mkdir()
    rng = np.random.default_rng(count)
    kinds = pa.schema([("key", pa.string()), ("image", pa.binary()), ("text", pa.string())])
    with pyarrow.parquet.ParquetWriter(folder / "pool.parquet", kinds) as file:
        for start in range(0, count, 100):
            batch = []
            for index in range(start, min(start + 100, count)):
                coarse = Image.fromarray(rng.integers(0, 256, (36, 48, 3), np.uint8))
                stream = io.BytesIO()
                coarse.resize((256, 192), Image.Resampling.BICUBIC).save(stream, "JPEG", quality=90)
                length = int(rng.integers(5, 15))
                ids = np.minimum(rng.zipf(1.2, length), _VOCABULARY) - 1
                text = " ".join(_word(int(i)) for i in ids)
                batch.append({"key": f"{index:09d}", "image": stream.getvalue(), "text": text})
            file.write_table(pa.Table.from_pylist(batch, kinds))
    vectors = folder / "vectors"
    vectors.mkdir()
    np.save(vectors / "embeddings_00000.npy", rng.normal(size=(count, _WIDTH)).astype(np.float32))
    lines = "".join(json.dumps({"id": f"{index:09d}"}) + "\n" for index in range(count))
    (vectors / "ids_00000.jsonl").write_text(lines)
    return folder
