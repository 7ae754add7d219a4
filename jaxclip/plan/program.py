"""Compile the real training step for a topology, or learn why the compiler refuses it."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import importlib.metadata
import json
import pathlib
import re
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from jaxclip.config import RUNTIME_KEYS, Config


class Memory(NamedTuple):
    """Bytes on one device.

    Attributes:
      arguments: state and batch.
      outputs: new state and metrics; those that take over an argument's place are ``aliased``.
      aliased: see ``outputs``.
      temporaries: sum of what lives between, by the compiler's own count. Programs that it takes
        can have more of it than the chip has memory, so that this is not what has to fit.
      peak: most that lives at one time, all together: this is what has to fit, and what it refuses
        a program for.
      code: the program.
    """

    arguments: int
    outputs: int
    aliased: int
    temporaries: int
    peak: int
    code: int


class Refusal(NamedTuple):
    """The compiler's answer that a program does not fit.

    Attributes:
      needed: bytes it wants, None if the compiler does not say.
      limit: bytes there are, likewise.
      message: in the compiler's words.
    """

    needed: int | None
    limit: int | None
    message: str


@dataclasses.dataclass(frozen=True)
class Program:
    """What came out of compiling a step.

    Attributes:
      text: the compiled program (HLO), "" if it was refused.
      memory: its memory, None if it was refused.
      refusal: why not, None if it was compiled.
      lower_seconds: to trace the step.
      compile_seconds: to compile it.
    """

    text: str
    memory: Memory | None
    refusal: Refusal | None
    lower_seconds: float
    compile_seconds: float


def compile_step(step: Any, *args: Any) -> Program:
    """Lower and compile a jitted function for the devices of its arguments' shardings.

    Args:
      step: a jitted function.
      *args: trees of ``jax.ShapeDtypeStruct`` with shardings.

    Returns:
      The program; one that does not fit is no error, but has a ``refusal``.
    """
    start = time.perf_counter()
    lowered = step.lower(*args)
    lower_seconds = time.perf_counter() - start
    start = time.perf_counter()
    try:
        compiled = lowered.compile()
    except Exception as error:
        refusal = parse_refusal(str(error))
        if refusal is None:
            raise
        return Program("", None, refusal, lower_seconds, time.perf_counter() - start)
    compile_seconds = time.perf_counter() - start
    return Program(
        compiled.as_text(), _memory(compiled, _platform(args)), None, lower_seconds, compile_seconds
    )


def _platform(args: Any) -> str:
    return next(iter(jax.tree.leaves(args)[0].sharding.device_set)).platform


def _memory(compiled: Any, platform: str) -> Memory:
    stats = compiled.memory_analysis()
    arguments, outputs = stats.argument_size_in_bytes, stats.output_size_in_bytes
    aliased, temporaries = stats.alias_size_in_bytes, stats.temp_size_in_bytes
    # Only the TPU's compiler keeps a peak worth the name; elsewhere the sum is an upper bound.
    peak = stats.peak_memory_in_bytes if platform == "tpu" else 0
    peak = peak or arguments + outputs - aliased + temporaries
    code = stats.generated_code_size_in_bytes
    return Memory(arguments, outputs, aliased, temporaries, peak, code)


_REFUSALS = (
    # TPU: "…required for HLO temporaries (75.03G) exceeds available HBM (15.75G)."
    re.compile(r"\((?P<needed>[\d.]+[KMGT]?)\) exceeds available HBM \((?P<limit>[\d.]+[KMGT]?)\)"),
    # TPU: "Used 18.20G of 15.75G hbm. Exceeded hbm capacity by 2.45G."
    re.compile(r"Used (?P<needed>[\d.]+[KMGT]?) of (?P<limit>[\d.]+[KMGT]?) hbm", re.I),
    # GPU: "Out of memory while trying to allocate 123 bytes."
    re.compile(r"Out of memory (?:while trying to allocate|allocating) (?P<needed>\d+) bytes"),
)


def parse_refusal(message: str) -> Refusal | None:
    """Read an out-of-memory error; None if the message is something else."""
    for pattern in _REFUSALS:
        if match := pattern.search(message):
            found = match.groupdict()
            limit = found.get("limit")
            return Refusal(_bytes(found["needed"]), _bytes(limit) if limit else None, message)
    # VMEM and SMEM run out for other reasons than the size of the model.
    if "RESOURCE_EXHAUSTED" in message and not re.search(r"vmem|smem|sflag", message, re.I):
        return Refusal(None, None, message)
    return None


def _bytes(text: str) -> int:
    unit = {"K": 10, "M": 20, "G": 30, "T": 40}.get(text[-1])
    return int(text) if unit is None else round(float(text[:-1]) * 2**unit)


# --- a cache of compiled programs ---------------------------------------------------------------


class Cache:
    """Compiled programs as files, since a large step takes minutes to compile.

    The key is everything that the program depends on but the library's own source: after a change
    of that, use another folder.
    """

    def __init__(self, folder: str | pathlib.Path | None):
        self.folder = pathlib.Path(folder) if folder else None

    def key(self, config: Config, topology: str, what: str = "step") -> str:
        """Name of the file of a program."""
        ignored = set(RUNTIME_KEYS) - {"mesh", "sharding"} | {"seed", "total_steps"}
        kept = {k: v for k, v in config.items() if k not in ignored}
        kept["data"] = {k: v for k, v in config["data"].items() if k.startswith("image_")}
        versions = {name: _version(name) for name in ("jax", "jaxlib", "libtpu")}
        text = json.dumps([kept, topology, what, versions], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def get(self, key: str) -> Program | None:
        """The program of a key, if it is there."""
        if self.folder is None or not (path := self.folder / f"{key}.json.gz").exists():
            return None
        with gzip.open(path, "rt", encoding="utf-8") as file:
            fields = json.load(file)
        for name, kind in (("memory", Memory), ("refusal", Refusal)):
            fields[name] = None if fields[name] is None else kind(**fields[name])
        return Program(**fields)

    def put(self, key: str, program: Program) -> None:
        """Keep a program."""
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        fields = dataclasses.asdict(program)
        for name in ("memory", "refusal"):
            value = getattr(program, name)
            fields[name] = None if value is None else value._asdict()
        partial = self.folder / f"{key}.json.gz.partial"
        with gzip.open(partial, "wt", encoding="utf-8", compresslevel=3) as file:
            json.dump(fields, file)
        partial.rename(self.folder / f"{key}.json.gz")


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def of_config(
    config: Config, devices: Sequence[Any], topology: str, cache: Cache
) -> tuple[Program, Mesh, int]:
    """Build an experiment on devices and compile its step.

    Returns:
      ``(program, mesh, number of parameters)``.

    Raises:
      ValueError: a configuration that can't be built on these devices.
    """
    from jaxclip.train import setup

    experiment = setup.build(config, devices=devices)
    parameters = setup.parameter_count(experiment.abstract_state.params)
    key = cache.key(config, topology)
    program = cache.get(key)
    if program is None:
        batch = experiment.abstract_batch()
        program = compile_step(experiment.train_step, experiment.abstract_state, batch)
        cache.put(key, program)
    return program, experiment.mesh, parameters
