"""Memory that opening published weights takes, at full size.

    python -m jaxclip.bench weights
    python -m jaxclip.bench weights --preset vit_b32 --random

A checkpoint of a preset's shapes is written as Hugging Face shards them. Unless ``--random`` is
given the files are holes, which cost no disk and are read as zeros. Then, each in a process of its
own:

  stored   read as it is stored, NumPy arrays
  float32  read and widened to float32
  mesh     read and widened straight into the shards of eight virtual CPU devices (fsdp)
  import   `jaxclip weights import`, float32

Printed is the largest memory of the process's own (without mapped files, which the system takes
back when it likes) beyond what it had before, the size of what was read, and their ratio; for the
mesh also what there is beyond the sharded result, against one shard. Virtual devices keep their
parts in the same memory as the host, so the mesh shows what is held beside the shards, not where
they lie.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxclip.bench.memory import own_mib

CASES = ("stored", "float32", "mesh", "import")
DEVICES = 8
_NAMES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m jaxclip.bench weights",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--preset", default="vit_bigg14")
    parser.add_argument("--depth", type=int, default=0, help="blocks of each tower; 0: as it is")
    parser.add_argument("--dtype", default="bfloat16", choices=sorted(_NAMES))
    parser.add_argument("--shards", type=int, default=4, help="files")
    parser.add_argument("--random", action="store_true", help="numbers in place of holes")
    parser.add_argument("--case", action="append", choices=CASES, help="default: all but import")
    parser.add_argument("--folder", default="", help="where the files go for the time being")
    parser.add_argument("--run", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if not sys.platform.startswith("linux"):
        parser.error("memory is read from /proc, which this system lacks")
    if args.run:
        print(json.dumps(_run(args.run[0], pathlib.Path(args.run[1]))))
        return 0
    cases = args.case or CASES[:3]
    with tempfile.TemporaryDirectory(dir=args.folder or None) as name:
        folder = pathlib.Path(name)
        size = write_checkpoint(
            folder / "weights",
            args.preset,
            depth=args.depth,
            dtype=args.dtype,
            shards=args.shards,
            random=args.random,
        )
        print(f"{args.preset}: {size / 2**30:.2f} GiB of {args.dtype} in {args.shards} files")
        print(f"{'case':<8} {'result GiB':>10} {'peak GiB':>9} {'peak / result':>14} "
              f"{'peak / file':>12} {'seconds':>8}")  # fmt: skip
        for case in cases:
            found = measure(case, folder)
            result, peak = found["result"], found["peak"]
            print(f"{case:<8} {result / 2**30:>10.2f} {peak / 2**30:>9.2f} {peak / result:>14.3f} "
                  f"{peak / size:>12.3f} {found['seconds']:>8.1f}")  # fmt: skip
            if case == "mesh":
                shard = result / DEVICES
                print(f"         beyond the result: {(peak - result) / shard:.3f} of a shard")
    return 0


def write_checkpoint(
    folder: pathlib.Path,
    preset: str,
    *,
    depth: int = 0,
    dtype: str = "bfloat16",
    shards: int = 4,
    random: bool = False,
) -> int:
    """Write a checkpoint of a preset's shapes as ``transformers`` shards it.

    Args:
      folder: a new folder.
      preset: with CLIP's layout (:mod:`jaxclip.models.presets`).
      depth: blocks of each tower; 0 for the preset's.
      dtype: of the tensors.
      shards: files.
      random: write numbers; else files are holes.

    Returns:
      Bytes of all tensors.

    Raises:
      ValueError: the disk has no room for the numbers.
    """
    import jax
    import numpy as np

    from jaxclip import models
    from jaxclip.models import presets
    from jaxclip.train import state_io
    from jaxclip.weights.families import FAMILIES
    from jaxclip.weights.families._base import Preprocess, SpecialIds
    from jaxclip.weights.families._parts import CLIP_MEAN, CLIP_STD

    sizes = presets.get(preset)
    if depth:
        image = dataclasses.replace(sizes.image, depth=depth)
        text = dataclasses.replace(sizes.text, depth=depth)
        sizes = dataclasses.replace(sizes, image=image, text=text)
    family = FAMILIES.get("hf_clip")
    shapes = state_io.named_leaves(jax.eval_shape(models.build(sizes).init, jax.random.key(0)))
    views = {name: np.broadcast_to(np.zeros((), np.uint8), s.shape) for name, s in shapes.items()}
    theirs = {
        entry.theirs: np.shape(entry.layout.to_theirs([views[path] for path in entry.ours]))
        for entry in family.entries(sizes)
    }
    folder.mkdir(parents=True)
    width = 4 if dtype == "float32" else 2
    total = sum(math.prod(shape) for shape in theirs.values()) * width
    if random and shutil.disk_usage(folder).free < 1.1 * total:
        raise ValueError(f"{folder} has no room for {total / 2**30:.1f} GiB; leave out --random")
    place: dict[str, str] = {}
    names = list(theirs)
    for index in range(shards):
        file = f"model-{index + 1:05d}-of-{shards:05d}.safetensors"
        own = names[index * len(names) // shards : (index + 1) * len(names) // shards]
        place |= dict.fromkeys(own, file)
        _write_shard(folder / file, {n: theirs[n] for n in own}, dtype, width, random, index)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": place}))
    preprocess = Preprocess(CLIP_MEAN, CLIP_STD, "resize_small|center_crop", {"kind": "clip"})
    config = family.config_files(sizes, preprocess, SpecialIds(49_406, 49_407))
    for name, content in config.items():
        (folder / name).write_text(json.dumps(content))
    return total


def _write_shard(
    path: pathlib.Path,
    shapes: Mapping[str, tuple[int, ...]],
    dtype: str,
    width: int,
    random: bool,
    seed: int,
) -> None:
    import ml_dtypes  # noqa: F401 (NumPy knows bfloat16 by it)
    import numpy as np

    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + math.prod(shape) * width
        header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        if not random:
            file.truncate(8 + len(text) + end)
            return
        rng = np.random.default_rng(seed)
        for shape in shapes.values():
            values = rng.standard_normal(math.prod(shape), np.float32) * np.float32(0.02)
            file.write(values.astype(dtype).tobytes())


def measure(case: str, folder: pathlib.Path) -> dict[str, Any]:
    """Run a case in a process of its own: ``{"result", "peak", "seconds"}``, bytes and seconds."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={DEVICES}"
    command = [sys.executable, "-m", "jaxclip.bench", "weights", "--run", case, str(folder)]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags.strip()}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _run(case: str, folder: pathlib.Path) -> dict[str, float]:
    """One case, in this process."""
    import jax
    import numpy as np

    from jaxclip import models, parallel
    from jaxclip.inference import convert
    from jaxclip.weights.checkpoint import open_checkpoint

    jax.block_until_ready(jax.numpy.zeros(8) + 1)  # the backend's own memory does not count
    opened = open_checkpoint(folder / "weights")

    def read() -> Any:
        if case == "import":
            convert.import_weights(folder / "weights", folder / "workdir")
            return None
        if case != "mesh":
            stored = next(iter(opened.tensors.values())).dtype
            return opened.read(dtype=stored if case == "stored" else np.float32)
        mesh = parallel.make_mesh({"data": 1, "fsdp": DEVICES, "tensor": 1})
        shapes = jax.eval_shape(models.build(opened.sizes).init, jax.random.key(0))
        return opened.read(parallel.specs_for(shapes, parallel.sharding_rules("fsdp"), mesh))

    began = time.perf_counter()
    tree, peak = peak_of(read)
    seconds = time.perf_counter() - began
    if case == "import":
        shapes = jax.eval_shape(models.build(opened.sizes).init, jax.random.key(0))
        result = sum(leaf.size * 4 for leaf in jax.tree.leaves(shapes))
    else:
        result = sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
    return {"result": result, "peak": peak, "seconds": seconds}


def peak_of(work: Callable[[], Any]) -> tuple[Any, float]:
    """``(what it returns, bytes)``: the most memory of this process beyond what it has now.

    It is looked at every two milliseconds.
    """
    before, most, stop = own_mib(), 0.0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not stop.wait(0.002):
            most = max(most, own_mib())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        result = work()
    finally:
        stop.set()
        thread.join()
    return result, (max(most, own_mib()) - before) * 2**20
