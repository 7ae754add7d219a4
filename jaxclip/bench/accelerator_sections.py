"""What ``python -m jaxclip.bench accelerator`` measures: a section is a function that yields rows.

A row is a dict from column to a number or a word. What can't be measured is a row with a ``note``.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxclip import parallel
from jaxclip.bench import loss as loss_bench
from jaxclip.bench import optim as optim_bench
from jaxclip.bench import step as step_bench
from jaxclip.bench import timing
from jaxclip.config import Config

Row = dict[str, Any]

_MIB = 2**20


class Sizes(NamedTuple):
    """How large everything is.

    Attributes:
      overrides: configuration of the model.
      preset: of the model.
      batch_size: of a step.
      micro_batches: numbers of them to accumulate over.
      pairs: global batches of the losses.
      width: of the losses' embeddings.
      blocks: of the image tower whose parameters the transformations get; None for all parameters.
      transformations: names of those that are measured; None for all.
      rounds: measured rounds.
    """

    overrides: tuple[str, ...]
    preset: str
    batch_size: int
    micro_batches: tuple[int, ...]
    pairs: tuple[int, ...]
    width: int
    blocks: int | None
    transformations: tuple[str, ...] | None
    rounds: int


FULL = Sizes(
    overrides=("precision.compute_dtype=bfloat16",),
    preset="vit_b16",
    batch_size=256,
    micro_batches=(1, 2, 4, 8),
    pairs=(8192, 16384, 32768, 65536, 131072),
    width=512,
    blocks=None,
    transformations=None,
    rounds=10,
)

SMALL = Sizes(
    overrides=(
        "precision.compute_dtype=bfloat16",
        "data.image_size=16",
        "tokenizer.context_length=8",
        *(f"model.{t}.{k}" for t in ("image", "text") for k in ("width=32", "depth=1")),
        *(f"model.{t}.{k}" for t in ("image", "text") for k in ("num_heads=2", "mlp_dim=64")),
        "model.image.patch_size=8",
        "model.text.vocab_size=64",
        "model.embed_dim=16",
    ),
    preset="tiny",
    batch_size=8,
    micro_batches=(1, 2),
    pairs=(64, 128),
    width=16,
    blocks=1,
    transformations=("(one read)", "zclip", "stable_adamw"),
    rounds=2,
)


class Budget:
    """Time that a section may take."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic):
        self._end, self._clock = clock() + seconds, clock

    def left(self) -> float:
        """Seconds that are left; negative when it is over."""
        return self._end - self._clock()


def device() -> Row:
    """What it is measured on."""
    from jaxclip import __version__

    first = jax.devices()[0]
    stats = first.memory_stats() or {}
    return {
        "device": first.device_kind,
        "platform": first.platform,
        "memory_limit_mib": round(stats.get("bytes_limit", 0) / _MIB) or None,
        "jax": jax.__version__,
        "jaxclip": __version__,
    }


def step(sizes: Sizes, budget: Budget) -> Iterator[Row]:
    """A training step: with each attention implementation, and scanned layers."""
    variants: dict[str, list[str]] = {
        "layers unrolled": [],
        "layers scanned": ["scan_layers=True"],
    }
    others = {"gpu": ("xla", "cudnn"), "tpu": ("fused",)}.get(jax.default_backend(), ("xla",))
    for name in others:
        given = ["scan_layers=True", f"attention_implementation={name}"]
        variants[f"layers scanned, attention {name}"] = given
    peak, source = _peak("bfloat16")
    yield {"variant": f"peak, bfloat16, {source}", "tflops": peak / 1e12}
    batch_size = sizes.batch_size
    for name, overrides in each(variants, budget):
        config = _config(sizes, [*overrides, f"global_batch_size={batch_size}"])
        yield guarded(functools.partial(_step_row, config, sizes.rounds, peak), variant=name)


def accumulation(sizes: Sizes, budget: Budget) -> Iterator[Row]:
    """The same global batch in more and more micro-batches, exactly (GradCache)."""
    peak, _ = _peak("bfloat16")
    counts = {str(count): count for count in sizes.micro_batches}
    for name, count in each(counts, budget):
        config = _config(
            sizes,
            [
                "scan_layers=True",
                f"num_micro_batches={count}",
                f"global_batch_size={sizes.batch_size}",
            ],
        )
        row = functools.partial(_step_row, config, sizes.rounds, peak)
        yield guarded(row, micro_batches=name)


def losses(sizes: Sizes, budget: Budget) -> Iterator[Row]:
    """Value and gradient of the contrastive losses, plain and blockwise."""
    mesh = parallel.make_mesh({"data": -1}, devices=jax.devices()[:1])
    cases = {
        f"{name}{form} {size}": (name, form, size)
        for size in sizes.pairs
        for name in ("softmax", "sigmoid")
        for form in ("", "_blockwise")
    }
    for _, (name, form, size) in each(cases, budget):
        row = functools.partial(_loss_row, name + form, size, sizes, mesh)
        kind = "blockwise" if form else "plain"
        yield guarded(row, loss=name, implementation=kind, pairs=size)


def transformations(sizes: Sizes, budget: Budget) -> Iterator[Row]:
    """An update with each transformation, relative to plain AdamW in the same rounds."""
    params = optim_bench.made_up_parameters(sizes.preset, sizes.blocks)
    gradients = optim_bench.made_up_like(params, scale=1e-4, seed=1)
    adamw = optax.adamw(optim_bench.LEARNING_RATE)
    reference = optim_bench.stepper(adamw, params, gradients)
    candidates: dict[str, Callable[[], optax.GradientTransformation]] = {
        **{name: _before(make, adamw) for name, make in optim_bench.CLIPPERS.items()},
        **optim_bench.OPTIMIZERS,
    }

    if sizes.transformations is not None:
        candidates = {name: candidates[name] for name in sizes.transformations}

    def row(make: Callable[[], optax.GradientTransformation]) -> Row:
        began = time.perf_counter()
        call = optim_bench.stepper(make(), params, gradients)
        call()
        compiled = time.perf_counter() - began
        found = timing.take_turns(
            {"adamw": reference, "own": call}, reference="adamw", rounds=max(3, sizes.rounds)
        )
        return {
            "ratio_to_adamw": found["own"].ratio,
            "ms": 1e3 * found["own"].median,
            "adamw_ms": 1e3 * found["adamw"].median,
            "compile_s": compiled,
        }

    for name, make in each(candidates, budget):
        yield guarded(functools.partial(row, make), transformation=name)


SECTIONS: dict[str, Callable[[Sizes, Budget], Iterator[Row]]] = {
    "step": step,
    "losses": losses,
    "transformations": transformations,
    "accumulation": accumulation,
}


def each(items: Mapping[str, Any], budget: Budget) -> Iterator[tuple[str, Any]]:
    """Items one by one, as long as the slowest so far would still fit into the time.

    Raises:
      TimeoutError: names those left out.
    """
    names = list(items)
    slowest = 0.0
    for place, name in enumerate(names):
        if budget.left() < slowest:
            raise TimeoutError(f"left out for want of time: {', '.join(names[place:])}")
        before = budget.left()
        yield name, items[name]
        slowest = max(slowest, before - budget.left())


def guarded(measure: Callable[[], Row], **labels: Any) -> Row:
    """The row of a measurement with its labels; of one that fails, with a note in place of it."""
    try:
        return {**labels, **measure()}
    except Exception as error:
        line = (str(error) or type(error).__name__).strip().splitlines()[0][:200]
        full = "RESOURCE_EXHAUSTED" in line or "out of memory" in line.lower()
        return {**labels, "note": "does not fit into memory" if full else f"failed: {line}"}


def _config(sizes: Sizes, overrides: list[str]) -> Config:
    given = {"model": {"preset": sizes.preset}}
    return step_bench.resolve_preset(given, [*sizes.overrides, *overrides])


def _peak(dtype: str) -> tuple[float, str]:
    """FLOP/s of one device and where it is from."""
    kind = jax.devices()[0].device_kind
    known = step_bench.known_peak(kind)
    return (known, "vendor's") if known else (step_bench.measured_peak(dtype, 1024, 3), "measured")


def _step_row(config: Config, rounds: int, peak: float) -> Row:
    from jaxclip.plan import model_flops

    flops = model_flops.of_config(config) * config["global_batch_size"]
    trainer = step_bench.make_trainer(config, jax.devices()[:1])
    median = statistics.median(step_bench.step_seconds(trainer, rounds))
    return {
        "batch": config["global_batch_size"],
        "ms": 1e3 * median,
        "images_per_s": config["global_batch_size"] / median,
        "mfu": flops / median / peak,
        "memory_mib": trainer.memory_bytes / _MIB,
        "compile_s": trainer.compile_seconds,
    }


def _loss_row(name: str, size: int, sizes: Sizes, mesh: Any) -> Row:
    rows = jax.ShapeDtypeStruct(
        (size, sizes.width), jnp.float32, sharding=parallel.batch_sharding(mesh)
    )
    scalar = jax.ShapeDtypeStruct((), jnp.float32)
    began = time.perf_counter()
    program = loss_bench.value_and_grad(name, mesh).lower(rows, rows, scalar, scalar).compile()
    compiled = time.perf_counter() - began
    memory: Any = program.memory_analysis()
    row = {"temporaries_mib": memory.temp_size_in_bytes / _MIB, "compile_s": compiled}
    limit = (jax.devices()[0].memory_stats() or {}).get("bytes_limit")
    if limit and memory.temp_size_in_bytes > 0.95 * limit:
        return {**row, "note": "does not fit into memory"}
    inputs = loss_bench.made_up_embeddings(size, sizes.width, mesh)
    jax.block_until_ready(program(*inputs))
    seconds = []
    for _ in range(sizes.rounds):
        began = time.perf_counter()
        jax.block_until_ready(program(*inputs))
        seconds.append(time.perf_counter() - began)
        if sum(seconds) > 5.0 and len(seconds) >= 2:
            break
    return {"ms": 1e3 * statistics.median(seconds), **row}


def _before(
    make: Callable[[], optax.GradientTransformation], adamw: optax.GradientTransformation
) -> Callable[[], optax.GradientTransformation]:
    return lambda: optax.chain(make(), adamw)
