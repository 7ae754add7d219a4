"""What each transformation of the optimizer costs beside plain ``optax.adamw``.

Clippers stand before ``optax.adamw``, optimizers in its place. Each is timed in turn with plain
``optax.adamw`` on the same parameters (of a preset, ViT-B/16 CLIP by default) and the same made-up
gradients; a step is ``update`` and ``apply_updates``, donated, in one program. Beside the time that
passes, the table has the time that all cores worked: on a busy machine the better measure of a CPU.

``(one read)`` is the least that a clipper can do: the sum of the gradients' squares as XLA does it
fastest, and a factor from it, without any statistics or care for overflow. A rule that looks at a
norm before AdamW sees the gradients can't cost less.

On CPUs freed memory is kept, as `jaxclip train` has it. With ``--system_malloc`` it is not: then
whatever needs a temporary array pays for the system's clearing it anew in every step.

With ``--compile_tensors 60 300`` it is not run but compiled: see :mod:`jaxclip.bench.compile_time`.

Wrappers for bfloat16 parameters are compared with AdamW on bfloat16 parameters and gradients. ASAM
is given the gradient of a quadratic, which is a product: what it costs beside its second gradient.

The private ones stand in the optimizer's place and take the gradients of a few examples; AdamW on
their mean is what they are compared with.
"""

from __future__ import annotations

import argparse
import functools
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxclip import models, optim
from jaxclip.bench import compile_time, timing
from jaxclip.markdown import table
from jaxclip.models import presets
from jaxclip.registry import hint
from jaxclip.train import allocator

LEARNING_RATE = 1e-4
EXAMPLES = 4  # of which private transformations get a gradient each


def one_read() -> optax.GradientTransformation:
    """Scale by a factor that depends on one sum over all gradients: the floor for clippers."""

    def update(updates: Any, state: optax.OptState, params: Any = None) -> tuple[Any, Any]:
        total = sum(jnp.vdot(leaf, leaf) for leaf in jax.tree.leaves(updates))
        factor = jax.lax.rsqrt(jnp.maximum(total, 1.0))
        return jax.tree.map(lambda leaf: factor * leaf, updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def mean_over_examples() -> optax.GradientTransformation:
    """From gradients ``[EXAMPLES, ...]`` to those of a batch."""
    weights = jnp.full(EXAMPLES, 1 / EXAMPLES)
    # Not `mean`, which XLA is slow at on CPUs: the reference shall be a good one.
    return optax.stateless(
        lambda updates, _: jax.tree.map(lambda g: jnp.tensordot(weights, g, axes=1), updates)
    )


def asam_of_a_quadratic() -> optax.GradientTransformation:
    """ASAM around AdamW, with a second gradient that costs next to nothing."""
    tx = optim.asam(optax.adamw(LEARNING_RATE))

    def update(updates: Any, state: optax.OptState, params: Any = None) -> tuple[Any, Any]:
        def grad_fn(params: Any, _: Any) -> Any:
            return jax.tree.map(lambda leaf: 1e-2 * leaf, params)

        return tx.update(updates, state, params, grad_fn=grad_fn)

    return optax.GradientTransformation(tx.init, update)


CLIPPERS: Mapping[str, Callable[[], optax.GradientTransformation]] = {
    "(one read)": one_read,
    "optax.clip_by_global_norm": lambda: optax.clip_by_global_norm(1.0),
    "optax.adaptive_grad_clip": lambda: optax.adaptive_grad_clip(0.01),
    "zclip": optim.zclip,
    "autoclip": optim.autoclip,
    "adagc": optim.adagc,
    "adagc global": lambda: optim.adagc(scope="global"),
    "adaclip": optim.adaclip,
    "adagn": optim.adagn,
    "aggc": optim.aggc,
    "gradient_stabilizer": optim.gradient_stabilizer,
    "median_clip component": lambda: optim.median_clip(1e-3),
    "median_clip vector": lambda: optim.median_clip(1.0, kind="vector"),
    "clip_by_coordinate": optim.clip_by_coordinate,
    "spectra_clip": lambda: optim.spectra_clip(1.0),
}

OPTIMIZERS: Mapping[str, Callable[[], optax.GradientTransformation]] = {
    "stable_adamw": lambda: optim.stable_adamw(LEARNING_RATE),
    "spam": lambda: optim.spam(LEARNING_RATE),
    "stable_spam": lambda: optim.stable_spam(LEARNING_RATE),
    "spam density=0.25": lambda: optim.spam(LEARNING_RATE, density=0.25),
    "acclip": lambda: optim.acclip(LEARNING_RATE),
    "clip_radagrad_d": lambda: optim.clip_radagrad_d(LEARNING_RATE),
    "clip_radagrad_d norm": lambda: optim.clip_radagrad_d(LEARNING_RATE, kind="norm"),
    "clip_radagrad_d tensor": lambda: optim.clip_radagrad_d(LEARNING_RATE, kind="tensor"),
    "cautious(adamw)": lambda: optim.cautious(optax.adamw(LEARNING_RATE)),
    "asam(adamw)": asam_of_a_quadratic,
    "skip_nonfinite(adamw)": lambda: optim.skip_nonfinite(optax.adamw(LEARNING_RATE)),
    "skip_on_spike(adamw)": lambda: optim.skip_on_spike(optax.adamw(LEARNING_RATE)),
}

BFLOAT16: Mapping[str, Callable[[], optax.GradientTransformation]] = {
    "kahan_summation(adamw)": lambda: optim.kahan_summation(optax.adamw(LEARNING_RATE)),
    "stochastic_rounding(adamw)": lambda: optim.stochastic_rounding(optax.adamw(LEARNING_RATE)),
}

PRIVATE: Mapping[str, Callable[[], optax.GradientTransformation]] = {
    "optax.contrib.differentially_private_aggregate": lambda: optax.chain(
        optax.contrib.differentially_private_aggregate(1.0, 1.0, key=jax.random.key(0)),
        optax.sgd(LEARNING_RATE),
    ),
    "dicesgd": lambda: optim.dicesgd(LEARNING_RATE, 1.0, 1.0, 1.0, seed=0),
    "private_mean_by_group": lambda: optax.chain(
        optim.private_mean_by_group(["kernel", ""], [1.0, 1.0], 1.0, seed=0),
        optax.sgd(LEARNING_RATE),
    ),
    "track_clipping_quantile": lambda: optax.chain(
        optim.track_clipping_quantile(noise_multiplier=0.1, seed=0), optax.sgd(LEARNING_RATE)
    ),
}

NAMES = (*CLIPPERS, *OPTIMIZERS, *BFLOAT16, *PRIVATE)


class Result(NamedTuple):
    """One row of the table.

    Attributes:
      name: of the transformation.
      ratio: time of a step relative to plain ``optax.adamw`` in the same rounds.
      cpu_ratio: the same for the processor time of all threads of this process.
      milliseconds: median time of a step.
      state_copies: bytes of the transformation's own state over bytes of the parameters.
    """

    name: str
    ratio: float
    cpu_ratio: float
    milliseconds: float
    state_copies: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Run and print the table; returns the exit status."""
    parser = argparse.ArgumentParser("python -m jaxclip.bench optim", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--preset", default="vit_b16", help="whose parameters (default: vit_b16)")
    parser.add_argument(
        "--blocks", type=int, help="only the image tower's first so many blocks (default: all)"
    )
    parser.add_argument("--rounds", type=int, default=7, help="measured rounds (default: 7)")
    parser.add_argument("--only", nargs="+", help="names of transformations (default: all)")
    parser.add_argument(
        "--system_malloc",
        action="store_true",
        help="on CPUs: do not keep freed memory as `jaxclip train` does",
    )
    parser.add_argument(
        "--compile_tensors",
        type=int,
        nargs="+",
        help="measure compile time instead, for updates of so many tensors",
    )
    options = parser.parse_args(arguments)
    if allocator.runs_on_cpu() and not options.system_malloc:
        allocator.keep_freed_memory()
    names = options.only or NAMES
    for name in names:
        if name not in NAMES:
            print(f"error: no transformation {name!r}{hint(name, NAMES)}", file=sys.stderr)
            return 2
    if options.compile_tensors:
        print(compile_table(names, options.compile_tensors))
        return 0
    params = made_up_parameters(options.preset, options.blocks)
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    device = jax.devices()[0]
    part = "" if options.blocks is None else f", {options.blocks} blocks"
    print(
        f"{options.preset}{part}: {count / 1e6:.1f} M parameters on {device.device_kind}\n",
        flush=True,
    )
    results = []
    for name in names:
        results.append(measure(name, params, options.rounds))
        print(f"  {name}: {results[-1].ratio:.3f}", file=sys.stderr, flush=True)
    print(as_table(results))
    passed, worked = percentile_milliseconds()
    print(
        f"\nautoclip, percentile of 10 000 norms: {passed:.3f} ms, of the processor {worked:.3f} ms"
    )
    return 0


def compile_table(names: Sequence[str], numbers: Sequence[int]) -> str:
    """What the transformations of these names cost to compile, for so many tensors."""
    clippers, optimizers, narrow = (
        {name: make for name, make in group.items() if name in names}
        for group in (CLIPPERS, OPTIMIZERS, BFLOAT16)
    )
    groups = [
        compile_time.Group(
            clippers, "clip_by_global_norm", lambda: optax.clip_by_global_norm(1.0), jnp.float32
        ),
        compile_time.Group(optimizers, "adamw", lambda: optax.adamw(LEARNING_RATE), jnp.float32),
        compile_time.Group(
            narrow, "adamw, bfloat16", lambda: optax.adamw(LEARNING_RATE), jnp.bfloat16
        ),
    ]

    def report(result: compile_time.Result) -> None:
        print(f"  {result.name}, {result.tensors}: {result.ratio:.2f}", file=sys.stderr, flush=True)

    return compile_time.as_table(compile_time.measure_all(groups, numbers, report=report))


def made_up_parameters(preset: str, blocks: int | None = None) -> Any:
    """Parameters of a preset's shapes, float32, without its slow initialisation.

    Args:
      preset: a name of :mod:`jaxclip.models.presets`.
      blocks: only this many blocks of the image tower; ``None`` for all parameters.
    """
    model = models.build(presets.get(preset))
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    if blocks is not None:
        wanted = [f"blocks_{i}" for i in range(blocks)]
        shapes = {name: shapes["image"][name] for name in wanted}
    return made_up_like(shapes, scale=0.02, seed=0)


def made_up_like(tree: Any, *, scale: float, seed: int) -> Any:
    """Gaussian arrays of the tree's shapes and dtypes."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jnp.asarray(scale * rng.standard_normal(leaf.shape, np.float32), leaf.dtype),
        tree,
    )


def measure(name: str, params: Any, rounds: int) -> Result:
    """Time one transformation in turn with plain AdamW."""
    if name in BFLOAT16:
        params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    gradients = made_up_like(params, scale=1e-4, seed=1)
    adamw = optax.adamw(LEARNING_RATE)
    if name in CLIPPERS:
        own = CLIPPERS[name]()
        candidate = optax.chain(own, adamw)
    elif name in OPTIMIZERS or name in BFLOAT16:
        own = candidate = {**OPTIMIZERS, **BFLOAT16}[name]()
    else:
        own = candidate = PRIVATE[name]()
        scales = jnp.arange(1.0, EXAMPLES + 1)
        gradients = jax.tree.map(lambda g: jnp.multiply.outer(scales, g), gradients)
        adamw = optax.chain(mean_over_examples(), adamw)
    cpu_seconds: dict[str, list[float]] = {"adamw": [], name: []}
    timings = timing.take_turns(
        {
            key: counting_cpu(stepper(tx, params, gradients), cpu_seconds[key])
            for key, tx in (("adamw", adamw), (name, candidate))
        },
        reference="adamw",
        rounds=rounds,
    )
    # Of the measured rounds: compilation comes first.
    own_cpu, adamw_cpu = (np.asarray(cpu_seconds[key][-rounds:]) for key in (name, "adamw"))
    copies = num_bytes(jax.eval_shape(own.init, params)) / num_bytes(params)
    return Result(
        name,
        ratio=timings[name].ratio,
        cpu_ratio=float(np.median(own_cpu / adamw_cpu)),
        milliseconds=1e3 * timings[name].median,
        state_copies=copies,
    )


def counting_cpu(call: Callable[[], None], seconds: list[float]) -> Callable[[], None]:
    """The function, noting the processor time of each call."""

    def counted() -> None:
        began = time.process_time()
        call()
        seconds.append(time.process_time() - began)

    return counted


def stepper(tx: optax.GradientTransformation, params: Any, gradients: Any) -> Callable[[], None]:
    """A function that does one more step and waits for it."""

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Any, state: Any, gradients: Any) -> tuple[Any, Any]:
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    # Copies, since they are donated.
    carry = (jax.tree.map(jnp.copy, params), jax.jit(tx.init)(params))

    def call() -> None:
        nonlocal carry
        carry = jax.block_until_ready(step(*carry, gradients))

    return call


def num_bytes(tree: Any) -> int:
    """Bytes of all arrays (or shapes) of a tree."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def percentile_milliseconds(history_size: int = 10_000, calls: int = 50) -> tuple[float, float]:
    """Time of AutoClip's update on one number: the percentile of a full history and little else.

    Returns:
      Milliseconds that passed, and that the processor worked.
    """
    tx = optim.autoclip(history_size=history_size)
    gradient = jnp.ones(1)
    history = np.random.default_rng(0).lognormal(size=history_size)
    state = tx.init(gradient)._replace(
        history=jnp.asarray(history, jnp.float32), count=jnp.int32(history_size)
    )
    update = jax.jit(tx.update)
    cpu_seconds: list[float] = []

    def call() -> None:
        jax.block_until_ready(update(gradient, state))

    timings = timing.take_turns(
        {"autoclip": counting_cpu(call, cpu_seconds)}, reference="autoclip", rounds=7, calls=calls
    )
    return 1e3 * timings["autoclip"].median, 1e3 * float(np.median(cpu_seconds))


def as_table(results: Sequence[Result]) -> str:
    """Markdown."""
    rows = [
        ("transformation", "time / adamw", "CPU time / adamw", "ms a step", "state / parameters")
    ]
    rows += [
        (
            r.name,
            f"{r.ratio:.2f}",
            f"{r.cpu_ratio:.2f}",
            f"{r.milliseconds:.1f}",
            f"{r.state_copies:.3f}",
        )
        for r in results
    ]
    return table(rows)


if __name__ == "__main__":
    sys.exit(main())
