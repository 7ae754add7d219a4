"""``python -m jaxclip.bench optim --compile_tensors 60 300``: how long transformations compile.

Clippers are compared with ``optax.clip_by_global_norm``, optimizers with ``optax.adamw``: their
``update`` of so many tensors of a transformer is traced, lowered and compiled, in turn with the
reference. What counts is processor time, for a machine's other work must not.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxclip.markdown import table

# Of a transformer's block of width 256: as many shapes as in a real one, small for quick constants.
SHAPES = (
    *((256,), (256, 256), (256,), (256, 1024), (1024,), (1024, 256)),
    *((256,), (256, 4, 64), (4, 64), (4, 64, 256), (256,), (256,)),
)

# Compilations of each, of which the shortest counts: other work only ever adds.
REPEATS = 4

Make = Callable[[], optax.GradientTransformation]


class Group(NamedTuple):
    """Transformations that are compared with the same one.

    Attributes:
      makes: by name.
      reference: name of what they are compared with.
      make_reference: makes that.
      dtype: of parameters and gradients.
    """

    makes: Mapping[str, Make]
    reference: str
    make_reference: Make
    dtype: Any


class Result(NamedTuple):
    """One row of the table.

    Attributes:
      name: of the transformation.
      tensors: number of tensors.
      seconds: of processor time to trace, lower and compile ``update``.
      ratio: the same over the reference's.
      reference: what it is compared with.
    """

    name: str
    tensors: int
    seconds: float
    ratio: float
    reference: str


def shapes_of(tensors: int, dtype: Any = jnp.float32) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of so many parameters."""
    return {
        f"tensor_{i:04d}": jax.ShapeDtypeStruct(SHAPES[i % len(SHAPES)], dtype)
        for i in range(tensors)
    }


def compile_seconds(make: Make, tensors: int, dtype: Any = jnp.float32) -> float:
    """Processor time until ``update`` is an executable."""
    tx, params = make(), shapes_of(tensors, dtype)
    state = jax.eval_shape(tx.init, params)

    # A function of its own, for jit keeps what it has compiled.
    def update(updates: Any, state: Any, params: Any) -> Any:
        return tx.update(updates, state, params)

    # Else the time of a collection counts for whatever compiles when it happens to run.
    gc.collect()
    gc.disable()
    try:
        began = time.process_time()
        jax.jit(update).lower(params, state, params).compile()
        return time.process_time() - began
    finally:
        gc.enable()


def measure(name: str, group: Group, tensors: int) -> Result:
    """The shortest of some compilations, in turn with the reference."""
    pairs = [
        tuple(
            compile_seconds(make, tensors, group.dtype)
            for make in (group.make_reference, group.makes[name])
        )
        for _ in range(REPEATS)
    ]
    base, own = (min(seconds) for seconds in zip(*pairs, strict=True))
    return Result(name, tensors, own, own / base, group.reference)


def measure_all(
    groups: Sequence[Group],
    numbers: Sequence[int],
    report: Callable[[Result], None] = lambda result: None,
) -> list[Result]:
    """All transformations at all numbers of tensors.

    Args:
      groups: of transformations.
      numbers: of tensors.
      report: called with each result as it comes.
    """
    # What JAX does once a process.
    for group in groups:
        if group.makes:
            compile_seconds(group.make_reference, 1, group.dtype)
    results = []
    for tensors in numbers:
        for group in groups:
            for name in group.makes:
                results.append(measure(name, group, tensors))
                report(results[-1])
    return results


def as_table(results: Sequence[Result]) -> str:
    """Markdown, one row a transformation."""
    numbers = sorted({r.tensors for r in results})
    rows = [("transformation", "against", *(f"{n} tensors: s, ratio" for n in numbers))]
    for name in dict.fromkeys(r.name for r in results):
        found = {r.tensors: r for r in results if r.name == name}
        cells = (f"{found[n].seconds:.2f}, {found[n].ratio:.1f}" for n in numbers)
        rows.append((name, next(iter(found.values())).reference, *cells))
    return table(rows)
