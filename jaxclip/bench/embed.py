"""Pictures a second of `jaxclip embed`, against open_clip's model behind a ``DataLoader``.

    python -m jaxclip.bench embed
    python -m jaxclip.bench embed --preset vit_b16 --count 512 --batch_size 64

Pictures are written as JPEG files and random weights as open_clip's folder; both embed the same
files with the same weights, in turns, on this machine's CPUs. Ours is the whole command: index,
shards on disk and all. open_clip's loop runs without workers and with one for each CPU; the faster
one counts. Printed are pictures a second (median of the rounds), the median over rounds of theirs
divided by ours, and the largest difference of an embedding.
"""

from __future__ import annotations

import argparse
import io
import os
import pathlib
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxclip.bench import timing


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="jaxclip.bench embed",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--preset", default="vit_b32_quickgelu", help="with CLIP's layout")
    parser.add_argument("--count", type=int, default=128, help="pictures")
    parser.add_argument("--side", type=int, default=400, help="their longer side")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--alone", action="store_true", help="without open_clip")
    args = parser.parse_args(arguments)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        write_pictures(folder / "pictures", args.count, args.side)
        write_weights(folder / "weights", args.preset)
        ours = embedder(folder, args.batch_size)
        candidates: dict[str, Callable[[], Any]] = {"jaxclip": ours}
        if not args.alone:
            from jaxclip.bench import torch_embed

            for workers in (0, os.cpu_count() or 1):
                candidates[f"open_clip, {workers} workers"] = torch_embed.Embedder(
                    folder / "weights", folder / "pictures", args.batch_size, workers
                )
        found = timing.take_turns(candidates, reference="jaxclip", rounds=args.rounds, warmup=1)
        expected = ours()
        print(f"{args.preset}, {args.count} JPEG files of up to {args.side} pixels, batches of "
              f"{args.batch_size}")  # fmt: skip
        print(f"{'':<22} {'pictures/s':>10} {'seconds / ours':>15} {'difference':>11}")
        for key, each in found.items():
            difference = np.abs(candidates[key]() - expected).max()
            print(f"{key:<22} {args.count / each.median:>10.1f} {each.ratio:>15.2f} "
                  f"{difference:>11.1e}")  # fmt: skip
        others = [each.ratio for key, each in found.items() if key != "jaxclip"]
        if others:
            print(f"throughput of jaxclip embed / open_clip's: {min(others):.2f}")
    return 0


def write_pictures(folder: pathlib.Path, count: int, side: int) -> None:
    """JPEG files of smooth random colours, of several shapes, as cameras make them."""
    from PIL import Image

    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for index in range(count):
        small = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8))
        shape = (side, side * 3 // 4) if index % 3 else (side * 2 // 3, side)
        with io.BytesIO() as file:
            small.resize(shape, Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
            (folder / f"{index:05d}.jpg").write_bytes(file.getvalue())


def write_weights(folder: pathlib.Path, preset: str) -> None:
    """Random weights of a preset, as open_clip reads them."""
    from jaxclip.models import presets
    from jaxclip.weights import export
    from jaxclip.weights.families._base import Preprocess
    from jaxclip.weights.families._parts import CLIP_MEAN, CLIP_STD

    sizes = presets.get(preset)
    tokenizer = {"kind": "clip", "context_length": sizes.text.context_length}
    preprocess = Preprocess(CLIP_MEAN, CLIP_STD, "resize_small|center_crop", tokenizer)
    export.export_checkpoint(random_parameters(sizes), sizes, "open_clip", folder, preprocess)


def random_parameters(sizes: Any) -> Any:
    """Parameters by NumPy, each as large as it begins: to compile their drawing takes longer."""
    import jax

    from jaxclip import models

    rng = np.random.default_rng(1)

    def draw(path: Any, leaf: Any) -> Any:
        name = str(path[-1].key)
        if not leaf.shape:
            return np.float32(sizes.logit_scale_init if name == "logit_scale" else 0.0)
        noise = rng.standard_normal(leaf.shape, np.float32)
        if name == "scale":
            return 1 + 0.1 * noise
        return noise * np.float32(leaf.shape[0] ** -0.5 if name == "kernel" else 0.02)

    shapes = jax.eval_shape(models.build(sizes).init, jax.random.key(0))
    return jax.tree_util.tree_map_with_path(draw, shapes)


def embedder(folder: pathlib.Path, batch_size: int) -> Callable[[], np.ndarray]:
    """``jaxclip embed`` on ``folder/pictures`` with ``folder/weights``: float32[N, D]."""
    import jaxclip
    from jaxclip.inference import embed
    from jaxclip.inference.pictures import open_pictures

    model = jaxclip.load(folder / "weights")

    def run() -> np.ndarray:
        with tempfile.TemporaryDirectory(dir=folder) as to:
            pictures = open_pictures(folder / "pictures")
            embed.embed_images(model, pictures, to, batch_size=batch_size)
            return embed.read_embeddings(to)[1]

    return run
