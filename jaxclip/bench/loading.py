"""``bench data --workers``: ours by number of workers, beside webdataset and tf.data.

With ``--pin`` so many workers get as many CPUs, which the training process shares with them: so two
workers beside one say what a second core brings.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import pathlib
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from jaxclip.markdown import table

# Starts a loader with so many processes (or threads): a context that yields an iterator of batches.
Start = Callable[[int], contextlib.AbstractContextManager[Iterator[Any]]]

OPS, SIDE = "random_resized_crop(0.08, 1.0)|flip", 224
_WARM_UP = 6


class Cost(NamedTuple):
    """What a loader's pictures cost.

    Attributes:
      rate: pictures a second.
      cpu: seconds of CPU time a picture, of all processes.
      own: of that, in the process that trains.
    """

    rate: float
    cpu: float
    own: float


def run(args: argparse.Namespace, make_photos: Callable[..., pathlib.Path], plain: Any) -> int:
    """Measure and print; returns the exit status.

    Args:
      args: of ``bench data``.
      make_photos: writes photographs of a size.
      plain: (folder, threads, batch size) -> batches of a plain tf.data pipeline.
    """
    has_torch = import_reference()
    rows = [["photographs", "loader", "workers", "images/s", "CPU ms an image", "in the trainer"]]
    for text in args.sizes:
        width, _, height = text.partition("x")
        with tempfile.TemporaryDirectory() as name:
            folder = pathlib.Path(name)
            photos = make_photos(folder, args.photos, (int(width), int(height)))
            loaders: dict[str, Start] = {
                "jaxclip, fast": _ours(photos, "fast", args.batch_size),
                "jaxclip, pillow": _ours(photos, "pillow", args.batch_size),
                "tf.data": _tf_data(photos, plain, args.batch_size),
            }
            if has_torch:
                loaders["webdataset, PIL, torchvision"] = _webdataset(
                    folder / "source", args.batch_size
                )
            costs = _costs(loaders, args)
            rows += [[text, *each] for each in _lines(costs)]
            for line in _scaling(costs):
                print(f"{text}: {line}")
            print(_under_the_lock(photos, text), flush=True)
    print("\n" + table(rows))
    return 0


def import_reference() -> bool:
    """Import torch and the like if they are there.

    Before anything imports tensorflow: the other way round, the two libraries' copies of LLVM end
    the process.
    """
    try:
        importlib.import_module("torch")
        importlib.import_module("torchvision")
        importlib.import_module("webdataset")
    except ImportError:
        return False
    return True


def _costs(
    loaders: dict[str, Start], args: argparse.Namespace
) -> dict[tuple[str, int], list[Cost]]:
    costs: dict[tuple[str, int], list[Cost]] = {}
    for _ in range(args.rounds):
        for name, start in loaders.items():
            for workers in args.workers:
                if workers or name.startswith("jaxclip"):
                    with _on_cpus(max(1, workers) if args.pin else 0):
                        cost = _cost(start, workers, args)
                    costs.setdefault((name, workers), []).append(cost)
    return costs


@contextlib.contextmanager
def _on_cpus(count: int) -> Iterator[None]:
    """This process, and those that it starts meanwhile, on the first so many CPUs; 0 = on all."""
    before = os.sched_getaffinity(0) if count else set()
    if count > len(before):
        raise ValueError(f"--pin: {count} workers, but this process may use {len(before)} CPUs")
    _pin(set(sorted(before)[:count]))
    try:
        yield
    finally:
        _pin(before)


def _pin(cpus: set[int]) -> None:
    for thread in pathlib.Path("/proc/self/task").iterdir() if cpus else ():
        with contextlib.suppress(OSError):  # it has ended
            os.sched_setaffinity(int(thread.name), cpus)


def _cost(start: Start, workers: int, args: argparse.Namespace) -> Cost:
    with start(workers) as batches:
        for _ in range(_WARM_UP):
            next(batches)
        began, cpu, own = time.perf_counter(), cpu_seconds(), time.process_time()
        for _ in range(args.steps):
            next(batches)
        seconds = time.perf_counter() - began
        cpu, own = cpu_seconds() - cpu, time.process_time() - own
    images = args.steps * args.batch_size
    return Cost(images / seconds, cpu / images, own / images)


def _lines(costs: dict[tuple[str, int], list[Cost]]) -> Iterator[list[str]]:
    for (name, workers), found in costs.items():
        rate, cpu, own = (statistics.median(each) for each in zip(*found, strict=True))
        yield [name, str(workers), f"{rate:,.0f}", f"{1e3 * cpu:.2f}", f"{1e3 * own:.2f}"]


def _scaling(costs: dict[tuple[str, int], list[Cost]]) -> Iterator[str]:
    """What more workers bring than one, in words."""
    for (name, workers), found in costs.items():
        if workers < 2 or (name, 1) not in costs:
            continue
        one = costs[name, 1]
        # In turn, so that other work on the machine slows both down by as much.
        clock = statistics.median(
            many.rate / single.rate for many, single in zip(found, one, strict=True)
        )
        cpu = statistics.median(
            workers * single.cpu / many.cpu for many, single in zip(found, one, strict=True)
        )
        yield (
            f"{name}, {workers} workers make {clock:.2f} times the images a second of 1; with a "
            f"core each, by CPU time, {cpu:.2f} times"
        )


def cpu_seconds() -> float:
    """CPU time of this process and of those below it."""
    ticks = os.sysconf("SC_CLK_TCK")
    parents, used = {}, {}
    for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            values = stat.read_text().rpartition(")")[2].split()
            pid = int(stat.parent.name)
            parents[pid], used[pid] = int(values[1]), (int(values[11]) + int(values[12])) / ticks
    below = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in below} - below:
        below |= more
    return sum(used.get(pid, 0.0) for pid in below)


def _ours(photos: pathlib.Path, backend: str, batch_size: int) -> Start:
    @contextlib.contextmanager
    def start(workers: int) -> Iterator[Any]:
        from jaxclip.data import pipeline, tokenizers

        config = {
            "name": str(photos),
            "image_size": SIDE,
            "image_ops": OPS,
            "image_backend": backend,
            "cache_decoded_mb": 0,
            "workers": workers,
            "num_parallel_calls": max(1, workers),
        }
        tokenizer = tokenizers.load({"kind": "emoji_bpe"})
        batches = pipeline.train_iterator(
            config, tokenizer=tokenizer, global_batch_size=batch_size, seed=0
        )
        with contextlib.closing(batches):
            yield batches

    return start


def _tf_data(photos: pathlib.Path, plain: Any, batch_size: int) -> Start:
    @contextlib.contextmanager
    def start(workers: int) -> Iterator[Any]:
        yield plain(photos, workers, batch_size)

    return start


def _webdataset(files: pathlib.Path, batch_size: int) -> Start:
    """The same files as open_clip would load them: batches are made in the workers."""
    shard = files.parent / "photos.tar"
    with tarfile.open(shard, "w") as tar:
        for file in sorted(files.iterdir()):
            tar.add(file, file.name)

    @contextlib.contextmanager
    def start(workers: int) -> Iterator[Any]:
        import torch
        import webdataset

        torch.set_num_threads(1)
        data: Any = webdataset.WebDataset([str(shard)] * 16, shardshuffle=False).repeat()
        data = data.decode("pil").to_tuple("jpg", "txt").map_tuple(torch_transform(), len)
        data = data.batched(batch_size, partial=False)
        yield iter(webdataset.WebLoader(data, batch_size=None, num_workers=workers))

    return start


def torch_transform() -> Any:
    """torchvision's transform for training, without floats."""
    from torchvision import transforms

    return transforms.Compose(
        [
            transforms.RandomResizedCrop(
                SIDE, scale=(0.08, 1.0), interpolation=transforms.InterpolationMode.BICUBIC
            ),
            transforms.RandomHorizontalFlip(),
            transforms.PILToTensor(),
        ]
    )


class _Timed:
    """Stands for a library whose calls of one name are timed.

    Attributes:
      spent: seconds of this thread's CPU time in them.
    """

    def __init__(self, library: Any, name: str):
        self._library, self.spent = library, 0.0
        called = getattr(library, name)

        def timed(*args: Any, **options: Any) -> Any:
            began = time.thread_time()
            try:
                return called(*args, **options)
            finally:
                self.spent += time.thread_time() - began

        setattr(self, name, timed)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._library, name)


def _under_the_lock(photos: pathlib.Path, size: str) -> str:
    """How long an image can hold the interpreter's lock: all but its decoding and resizing.

    These run without the lock, but for some microseconds. Of the rest some does, too (reading
    files, copying large arrays), so this is a bound from above.
    """
    from jaxclip.data import image_backend, image_ops, loader, order, sources

    chain = image_ops.build(OPS, SIDE)
    source = sources.open(photos).source("train")
    count = min(len(source), 64)
    places = np.arange(count)
    draws = {"image": order.uniforms(0, places, chain.num_draws)}
    views = {"image": np.empty((count, SIDE, SIDE, 3), np.uint8)}
    backend: Any = image_backend.Fast()
    made = loader.RecordLoader(source, {"image": chain}, num_threads=1, backend=backend)
    made.outcomes(places, draws, views)  # which also makes this thread's resizer
    backend._jpeg = decoder = _Timed(backend._jpeg, "decode_jpeg")
    backend._local.resizer = resizer = _Timed(backend._local.resizer, "resize")
    found = []
    for _ in range(7):
        decoder.spent = resizer.spent = 0.0
        began = time.thread_time()
        made.outcomes(places, draws, views)
        spent = time.thread_time() - began
        found.append((spent, spent - decoder.spent - resizer.spent))
    whole, rest = (1e6 * each / count for each in min(found))
    return (
        f"{size}: at most {rest:.0f} of {whole:.0f} us an image under the lock "
        f"({100 * rest / whole:.1f}%)"
    )
