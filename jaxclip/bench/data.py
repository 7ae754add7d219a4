"""Pictures a second that the input pipeline makes, against a plain tf.data pipeline.

    python -m jaxclip.bench data [--threads 2] [--batch_size 64] [--steps 40] [--rounds 5]

Two loads: the built-in pictures (64 x 64 JPEG, cached once decoded, with the augmentation of
``--ops``), and made-up photographs (500 x 375 JPEG, not cached, random resized crop to 224 and
flip). The reference for the second is what one would write by hand with tf.data: parse, decode and
crop in one op, resize, flip, batch. ``--memory_steps N`` also reports how the memory of the process
changes over N steps.

``--views`` measures instead what a batch costs by what it holds, in CPU time, on the photographs:
two views of a picture beside one decode and two augmentations by hand, and labels, hashes and
record numbers beside the plain pair.

``--workers 0 1 2`` measures instead photographs of ``--sizes`` by number of workers (0: threads of
the training process), with both image backends, beside tf.data with as many threads and, where it
is installed, webdataset with PIL and torchvision and as many processes, as open_clip loads: images
a second, CPU time of all processes and of the training process, and for how long the interpreter's
lock can be held. With ``--pin`` one worker and its training process share one CPU, two workers two.

``--start`` measures how long the first batch takes with ``--shards`` shards of ``--samples``
records, at once and on resume, each in a process of its own, and with ``--memory_records`` the
memory over so many different records.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import functools
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from jaxclip import fields
from jaxclip.bench import loading, start
from jaxclip.bench.timing import take_turns
from jaxclip.markdown import table

_EMOJI_OPS = (
    "affine(degrees=15, translate=0.08, scale_min=0.75, scale_max=1.25)|background(0.5)"
    "|color_jitter|grayscale(0.1)|blur(1.0, 0.1)"
)
_PHOTO_OPS = "random_resized_crop(0.08, 1.0)|flip"
_PHOTO_SIZE = 224
# Batches that a pipeline has ready when its turn comes: those of its prefetch and in its threads.
_AHEAD = 4


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m jaxclip.bench data", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=40, help="batches timed at once")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--photos", type=int, default=256, help="number of made-up photographs")
    parser.add_argument("--ops", default=_EMOJI_OPS, help="image ops for the built-in pictures")
    parser.add_argument("--memory_steps", type=int, default=0)
    parser.add_argument("--views", action="store_true", help="what views and other fields cost")
    parser.add_argument("--workers", type=int, nargs="+", help="numbers of workers to compare")
    parser.add_argument("--pin", action="store_true", help="as many CPUs as workers")
    parser.add_argument("--sizes", nargs="+", default=["500x375", "1024x768"])
    parser.add_argument("--start", action="store_true", help="time to the first batch, and memory")
    parser.add_argument("--shards", type=int, default=10_000)
    parser.add_argument("--samples", type=int, default=4, help="in a shard")
    parser.add_argument("--memory_records", type=int, default=0)
    args = parser.parse_args(arguments)
    if args.start:
        return start.run(args)
    if args.workers:
        return loading.run(args, make_photos, _plain)
    if args.views:
        return _views(args)
    with tempfile.TemporaryDirectory() as folder:
        photos = make_photos(pathlib.Path(folder), args.photos)
        emoji = {"name": "emoji", "image_size": 64, "num_parallel_calls": args.threads}
        photo = _photo_config(photos, args)
        augmented = {**emoji, "image_ops": args.ops}
        pipelines = {
            "64 px, cached, no ops": _batches(emoji, args.batch_size),
            "64 px, cached, augmented": _batches(augmented, args.batch_size),
            "64 px, augmented": _batches({**augmented, "cache_decoded_mb": 0}, args.batch_size),
            "224 px": _batches(photo, args.batch_size),
            "224 px, plain tf.data": _plain(photos, args.threads, args.batch_size),
        }
        candidates = {name: _draw(each, args.steps) for name, each in pipelines.items()}
        timings = take_turns(
            candidates, reference="224 px, plain tf.data", rounds=args.rounds, warmup=1
        )
        images = args.batch_size * args.steps
        rows = [["pipeline", "images/s", "slowest - fastest round", "CPU ms an image"]]
        for name, timing in timings.items():
            slow, fast = images / timing.high, images / timing.low
            cost = f"{1e3 * _cpu_seconds(candidates[name]) / images:.2f}"
            rows.append(
                [name, f"{images / timing.median:,.0f}", f"{slow:,.0f} - {fast:,.0f}", cost]
            )
    print(f"{args.threads} threads, batch {args.batch_size}\n\n{table(rows)}")
    print(f"\n224 px: {timings['224 px'].ratio:.2f} of plain tf.data's time")
    if args.memory_steps:
        print(_memory(augmented, args.batch_size, args.memory_steps))
    return 0


def _photo_config(photos: pathlib.Path, args: argparse.Namespace) -> dict[str, Any]:
    return {
        "name": str(photos),
        "image_size": _PHOTO_SIZE,
        "image_ops": _PHOTO_OPS,
        "cache_decoded_mb": 0,
        "num_parallel_calls": args.threads,
    }


def _views(args: argparse.Namespace) -> int:
    """What a batch costs by what it holds."""
    others: fields.BatchSpec = {
        "label": fields.Label(required=False),
        "hash": fields.CaptionHash(),
        "index": fields.Index(),
    }
    specs: dict[str, fields.BatchSpec] = {
        "pair": fields.PAIR,
        "pair, labels, hashes, numbers": {**fields.PAIR, **others},
        "pair, second view": {**fields.PAIR, "view1/image": fields.View()},
        "captions alone": {"text": fields.Captions()},
    }
    with tempfile.TemporaryDirectory() as folder:
        photos = make_photos(pathlib.Path(folder), args.photos)
        config = _photo_config(photos, args)
        candidates: dict[str, Callable[[], None]] = {}
        for name, spec in specs.items():
            batches = _batches(config, args.batch_size, spec)
            candidates[name] = functools.partial(_take_and_settle, batches, args.steps)
        for views in (1, 2):
            name = f"by hand: one decode, {views} augmentation{'s'[: views - 1]}"
            candidates[name] = _by_hand(photos, args, views)
        cpu = functools.partial(take_turns, rounds=args.rounds, warmup=1, clock=time.process_time)
        timings = cpu(candidates, reference="by hand: one decode, 2 augmentations")
        to_pair = {name: timings[name].ratio / timings["pair"].ratio for name in candidates}
    images = args.batch_size * args.steps
    rows = [["batch", "CPU ms an image", "to the pair", "to two views by hand"]]
    for name, timing in timings.items():
        cost = f"{1e3 * timing.median / images:.2f}"
        rows.append([name, cost, f"{to_pair[name]:.3f}", f"{timing.ratio:.3f}"])
    print(f"{args.threads} threads, batch {args.batch_size}\n\n{table(rows)}")
    return 0


def _take_and_settle(batches: Iterator[Any], steps: int) -> None:
    """Takes batches and waits until as many are made anew, which is when no CPU time is spent."""
    _take(batches, steps)
    quiet = 0
    while quiet < 3:
        before = time.process_time()
        time.sleep(0.05)
        quiet = quiet + 1 if time.process_time() - before < 0.005 else 0


def _by_hand(photos: pathlib.Path, args: argparse.Namespace, views: int) -> Callable[[], None]:
    """Reads and decodes pictures and augments each, with nothing else around it."""
    from jaxclip.data import image_ops, order, sources
    from jaxclip.data.decode import decode

    source = sources.open(photos).source("train")
    chain = image_ops.build(_PHOTO_OPS, _PHOTO_SIZE)
    pool = concurrent.futures.ThreadPoolExecutor(args.threads)

    def one(index: int) -> None:
        record: Any = source[index % len(source)]
        pixels = np.asarray(decode(record.image))
        for view in range(views):
            chain([pixels], order.uniforms(view, np.array([index]), chain.num_draws))

    def run() -> None:
        list(pool.map(one, range(args.batch_size * args.steps)))

    return run


def make_photos(
    folder: pathlib.Path, count: int, size: tuple[int, int] = (500, 375)
) -> pathlib.Path:
    """Write a data set of JPEGs of a (width, height) with the detail of photographs.

    Returns:
      Its folder; the files themselves are in ``folder / "source"``.
    """
    from PIL import Image

    from jaxclip.data.importer import import_records

    source = folder / "source"
    source.mkdir()
    for i in range(count):
        rng = np.random.default_rng(i)
        width, height = size
        picture = np.zeros((height, width, 3))
        # Noise at several scales: about the spectrum, and the bytes, of a photograph.
        for scale in (4, 12, 40, 120):
            coarse = rng.uniform(-1, 1, (height // scale + 2, width // scale + 2, 3)) * scale**0.7
            image = np.stack(
                [
                    np.asarray(Image.fromarray(np.float32(plane)).resize(size))
                    for plane in coarse.transpose(2, 0, 1)
                ],
                axis=-1,
            )
            picture += image
        pixels = np.clip(128 + 3 * picture, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(source / f"{i:05d}.jpg", quality=90)
        (source / f"{i:05d}.txt").write_text(f"photograph number {i}")
    import_records(source, folder / "photos")
    return folder / "photos"


def _batches(config: dict[str, Any], batch_size: int, spec: fields.BatchSpec = fields.PAIR) -> Any:
    from jaxclip.data import pipeline, tokenizers

    return pipeline.train_iterator(
        config,
        tokenizer=tokenizers.load({"kind": "emoji_bpe"}),
        global_batch_size=batch_size,
        seed=0,
        spec=spec,
    )


def _draw(batches: Iterator[Any], steps: int) -> Callable[[], None]:
    """Takes batches, so many more than ``steps`` as were made while others had their turn."""
    return lambda: _take(batches, steps + _AHEAD)


def _take(batches: Iterator[Any], steps: int) -> None:
    for _ in range(steps):
        next(batches)


def _cpu_seconds(draw: Callable[[], None]) -> float:
    """CPU time of all threads: unlike wall-clock time it hardly depends on who else computes."""
    began = time.process_time()
    draw()
    return time.process_time() - began


def _plain(photos: pathlib.Path, threads: int, batch_size: int) -> Iterator[Any]:
    """The same load as one would write it with tf.data."""
    from jaxclip.data._tfds import tensorflow

    tf = tensorflow()
    features = {"image": tf.io.FixedLenFeature([], tf.string)}

    def make(example: Any) -> Any:
        data = tf.io.parse_single_example(example, features)["image"]
        begin, size, _ = tf.image.sample_distorted_bounding_box(
            tf.io.extract_jpeg_shape(data),
            tf.zeros([1, 0, 4]),
            area_range=(0.08, 1.0),
            use_image_if_no_bounding_boxes=True,
        )
        window = tf.concat([begin[:2], size[:2]], 0)
        image = tf.io.decode_and_crop_jpeg(data, window, channels=3)
        image = tf.image.resize(image, (_PHOTO_SIZE, _PHOTO_SIZE), "bicubic", antialias=True)
        image = tf.image.random_flip_left_right(image)
        return tf.cast(tf.clip_by_value(image, 0.0, 255.0), tf.uint8)

    files = sorted(str(file) for file in photos.glob("*.tfrecord-*"))
    dataset = tf.data.TFRecordDataset(files).repeat().shuffle(256)
    dataset = dataset.map(make, num_parallel_calls=threads).batch(batch_size).prefetch(2)
    options = tf.data.Options()
    options.threading.private_threadpool_size = threads
    return dataset.with_options(options).as_numpy_iterator()


def _memory(config: dict[str, Any], batch_size: int, steps: int) -> str:
    iterator = _batches(config, batch_size)
    every = max(1, steps // 10)
    sizes = []
    for step in range(1, steps + 1):
        next(iterator)
        if step % every == 0:
            sizes.append(_resident_mb())
    iterator.close()
    listing = " ".join(f"{size:,.0f}" for size in sizes)
    return f"\nresident memory every {every} of {steps} steps, in MB: {listing}"


def _resident_mb() -> float:
    import resource

    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20
