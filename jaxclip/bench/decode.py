"""CPU time of a training picture with each image backend, against open_clip's way to load it.

    python -m jaxclip.bench decode [--photos 96] [--rounds 5] [--sizes 500x375 1024x768]

Made-up photographs as JPEGs, read from the same files, a random resized crop to 224 (8 to 100% of
the area, bicubic with antialiasing), a flip, batches of uint8. Beside ours: webdataset with
``decode("pil")`` and torchvision's transforms, as open_clip's loader has them, where these are
installed. Measured is the time that all threads of the process work, so busy neighbours hardly
matter. Difference: mean of |ours - Pillow's| over the same crops, in grey levels.
"""

from __future__ import annotations

import argparse
import contextlib
import pathlib
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxclip.bench.data import make_photos
from jaxclip.bench.loading import OPS, SIDE, import_reference, torch_transform
from jaxclip.bench.timing import take_turns
from jaxclip.markdown import table

if TYPE_CHECKING:
    from jaxclip.data.image_chain import Chain
    from jaxclip.data.loader import RecordLoader

BATCH = 32
REFERENCE = "webdataset, PIL, torchvision"


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m jaxclip.bench decode", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--photos", type=int, default=96, help="number of made-up photographs")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sizes", nargs="+", default=["500x375", "1024x768"])
    args = parser.parse_args(arguments)
    has_reference = import_reference()
    rows = [["photographs", "loader", "CPU ms an image", "to the reference", "difference"]]
    for text in args.sizes:
        with photographs(text, args.photos) as (files, photos):
            rows += _compare(text, files, photos, args, has_reference)
    print(table(rows))
    return 0


@contextlib.contextmanager
def photographs(size: str, count: int) -> Iterator[tuple[pathlib.Path, pathlib.Path]]:
    """Folders of made-up photographs of a size such as ``"500x375"``: the files, the data set."""
    width, _, height = size.partition("x")
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        photos = make_photos(folder, count, (int(width), int(height)))
        yield folder / "source", photos


def _compare(
    size: str,
    files: pathlib.Path,
    photos: pathlib.Path,
    args: argparse.Namespace,
    has_reference: bool,
) -> list[list[str]]:
    loads = {name: _loader(photos, name, args.photos) for name in ("pillow", "fast")}
    candidates: dict[str, Callable[[], object]] = {
        f"jaxclip, {name}": load for name, load in loads.items()
    }
    reference = "jaxclip, pillow"
    if has_reference:
        reference = REFERENCE
        candidates[reference] = webdataset_loader(files, args.photos)
    timings = take_turns(
        candidates, reference=reference, rounds=args.rounds, warmup=1, clock=time.process_time
    )
    exact = np.concatenate(loads["pillow"]())
    rows = []
    for name, timing in timings.items():
        images = args.photos // BATCH * BATCH
        difference = ""
        if name.startswith("jaxclip"):
            own = np.concatenate(loads[name.removeprefix("jaxclip, ")]())
            difference = f"{np.abs(own.astype(np.int16) - exact).mean():.2f}"
        cost = f"{1e3 * timing.median / images:.2f}"
        rows.append([size, name, cost, f"{timing.ratio:.2f}", difference])
    return rows


def reader_of(photos: pathlib.Path, backend: str) -> tuple[RecordLoader, Chain]:
    """What reads a data set in one thread, nothing ahead, and the ops of its pictures."""
    from jaxclip.data import image_backend, image_ops, loader, sources

    chain = image_ops.build(OPS, SIDE)
    reader = loader.RecordLoader(
        sources.open(photos).source("train"),
        {"image": chain},
        num_threads=1,
        backend=image_backend.BACKENDS.build(backend),
    )
    return reader, chain


def _loader(photos: pathlib.Path, backend: str, count: int) -> Callable[[], list[np.ndarray]]:
    """What makes the first batches of a training run, uint8[32, 224, 224, 3] each. The data set is
    opened before, as in a run."""
    from jaxclip.data import order

    reader, chain = reader_of(photos, backend)

    def load() -> list[np.ndarray]:
        batches = []
        for start in range(0, count - BATCH + 1, BATCH):
            places = np.arange(start, start + BATCH)
            u = order.uniforms(0, places, chain.num_draws)
            batches.append(reader.batch(places, {"image": u}, None)[0]["image"])
        return batches

    return load


def webdataset_loader(files: pathlib.Path, count: int) -> Callable[[], None]:
    """As many pictures of the same files by webdataset, in this process."""
    import torch
    import webdataset

    torch.set_num_threads(1)
    shard = files.parent / "photos.tar"
    with tarfile.open(shard, "w") as tar:
        for file in sorted(files.iterdir()):
            tar.add(file, file.name)
    transform = torch_transform()

    def run() -> None:
        data: Any = webdataset.WebDataset(str(shard), shardshuffle=False)
        data = data.decode("pil").to_tuple("jpg", "txt").map_tuple(transform, lambda text: text)
        batches: Iterator[Any] = iter(data.batched(BATCH, partial=False))
        for _ in range(count // BATCH):
            next(batches)

    return run
