"""The tables of docs/scale.md: ``python -m jaxclip.plan.table --cache FOLDER``.

Compiles what is not in the cache yet (minutes for each large model) and writes the part of the file
between the marks. With ``--cached`` nothing is compiled: rows that are not in the cache are left
out, and named.
"""

from __future__ import annotations

import argparse
import functools
import math
import pathlib
import sys
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxclip import markdown
from jaxclip.config import Config
from jaxclip.plan import planner, program, topology
from jaxclip.plan.planner import Plan
from jaxclip.plan.program import Cache

BEGIN, END = "<!-- plans: written by python -m jaxclip.plan.table -->", "<!-- plans: end -->"
CONFIG = "configs/clip_vit_b16.py"
FSDP = {"sharding": "fsdp", "mesh": {"data": 1, "fsdp": -1, "tensor": 1}}


class Row(NamedTuple):
    """A plan of the table: a model, a batch, a slice, and what it fits with."""

    preset: str
    global_batch_size: int
    topology: str
    remat: str
    switches: dict[str, Any]

    def lighter(self) -> Row | None:
        """The same with the next policy that computes less again, None if there is none."""
        place = LADDER.index(self.remat)
        return self._replace(remat=LADDER[place - 1]) if place else None


# From the policy that keeps most to that which computes most again. ("qkv" is none of them: "mlp"
# takes the same memory and computes less.)
LADDER = ("none", "dots", "qkv+mlp", "attention+mlp", "mlp", "attention", "full")

# Each with the first policy of the ladder that fits.
MODELS = (
    Row("vit_b16", 16_384, "v5e:4x4", "full", {}),
    Row("vit_b16", 16_384, "v5e:4x4", "attention", FSDP),
    Row("vit_l14", 32_768, "v5e:16x16", "attention+mlp", FSDP),
    Row("vit_h14", 16_384, "v5p:4x4x4", "dots", FSDP),
    Row("vit_bigg14", 16_384, "v5p:4x4x4", "attention+mlp", FSDP),
)
LOSS_PAIRS, LOSS_WIDTH, LOSS_TOPOLOGY = 2**20, 768, "v5e:16x16"
WEAK = ("v5e:4x4", "v5e:8x8", "v5e:16x16")
WEAK_PAIRS = 1024  # a chip
WEAK_TEXT = f"""\
A chip keeps {WEAK_PAIRS} pairs while the slice grows (ViT-B/16 with two blocks a tower, data
parallel: deeper towers send as much more as they have parameters). What it sends for the gradients
stays the same, as an all-reduce does; what it sends round the ring for the embeddings grows with
the global batch, as the loss demands, and so do the products that it hides behind. (These count six
times: `loss.precision=highest`.)"""
WEAK_SWITCHES = {
    "model": {"preset": "vit_b16", "image": {"depth": 2}, "text": {"depth": 2}},
}


def config_of(row: Row) -> Config:
    """Configuration of a row: ``configs/clip_vit_b16.py`` with what the row changes."""
    from jaxclip import config as config_lib

    base = config_lib.load_file(CONFIG)
    return config_lib.resolve(
        {
            **base,
            "global_batch_size": row.global_batch_size,
            "model": {"preset": row.preset},
            "remat": row.remat,
            **row.switches,
        }
    )


def plan_of_loss(cache: Cache) -> Plan:
    """Plan of value and gradient of the blockwise loss alone, on a million pairs."""
    from jaxclip import losses, parallel

    place = topology.get(LOSS_TOPOLOGY)
    mesh = parallel.make_mesh(devices=place.devices)
    loss = functools.partial(losses.get("softmax_blockwise"), mesh=mesh)

    def scalar(images: jax.Array, texts: jax.Array, logit_scale: jax.Array) -> Any:
        return loss(images, texts, logit_scale=logit_scale)

    rows = jax.ShapeDtypeStruct(
        (LOSS_PAIRS, LOSS_WIDTH), jnp.float32, sharding=parallel.batch_sharding(mesh)
    )
    scale = jax.ShapeDtypeStruct((), jnp.float32, sharding=parallel.replicated(mesh))
    step = jax.jit(jax.value_and_grad(scalar, argnums=(0, 1, 2), has_aux=True))
    key = cache.key({"data": {}}, LOSS_TOPOLOGY, f"loss {LOSS_PAIRS} x {LOSS_WIDTH}")
    compiled = cache.get(key)
    if compiled is None:
        compiled = program.compile_step(step, rows, rows, scale)
        cache.put(key, compiled)
    # Logits once forward and once backward, and their two products with the gradient.
    flops = 3 * 2 * LOSS_PAIRS**2 * LOSS_WIDTH
    switches = {"global_batch_size": LOSS_PAIRS, "model": f"{LOSS_WIDTH} channels"}
    return planner.describe(compiled, mesh, place, 0, flops, switches)


def plan_row(row: Row, cache: Cache, *, cached: bool) -> Plan | None:
    """Plan of a row; None if it has to be compiled and must not be."""
    config = config_of(row)
    if cached and cache.get(cache.key(config, row.topology)) is None:
        what = f"{row.preset} on {row.topology}, remat={row.remat},"
        print(f"left out: {what} is not in the cache", file=sys.stderr)
        return None
    plan = planner.make_plan(config, topology.get(row.topology), cache=cache)
    print(f"planned: {row.preset} on {row.topology}, remat={row.remat}", file=sys.stderr)
    return plan


def model_table(plans: Iterable[tuple[Row, Plan, Plan | None]]) -> str:
    """The models: do they fit, how fast, and where the rest is lost.

    Args:
      plans: of each row, and of the row that is :meth:`Row.lighter`, where there is one.
    """
    rows: list[tuple[str, ...]] = [
        (
            "model",
            "slice",
            "pairs",
            "sharding",
            "remat",
            "peak of GiB",
            "next lighter remat",
            "step, ms",
            "images/s",
            "MFU",
            "of the slow end: model, recomputed, memory, links",
        )
    ]
    for row, plan, lighter in plans:
        rows.append(_model_row(row, plan, lighter))
    return markdown.table(rows)


def _lighter(row: Row, plan: Plan | None) -> str:
    """What the compiler said to the next lighter policy."""
    lighter = row.lighter()
    if lighter is None or plan is None:
        return ""
    if plan.memory is not None:
        verdict = f"{plan.memory.peak / 2**30:.2f}" + ("" if plan.fits else ", too much")
    else:
        assert plan.refusal
        needed = plan.refusal.needed
        verdict = "refused" + (f", {needed / 2**30:.2f}" if needed else "")
    return f"{lighter.remat}: {verdict}"


def _model_row(row: Row, plan: Plan, lighter: Plan | None) -> tuple[str, ...]:
    head = (
        row.preset,
        row.topology,
        f"{row.global_batch_size:,}",
        str(row.switches.get("sharding", "dp")),
        row.remat,
    )
    limit = (plan.chip.hbm_bytes or 0) / 2**30
    if plan.memory is None or plan.roofline is None or plan.cost is None:
        return (*head, f"refused ({limit:.2f})", "", "", "", "", "")
    assert plan.mfu and plan.images_per_second
    r = plan.roofline
    model = plan.model_flops / plan.num_devices / plan.chip.matmul_flops
    shares = (model, r.compute - model, r.kernels - r.compute, r.network)
    return (
        *head,
        f"{plan.memory.peak / 2**30:.2f} of {limit:.2f}",
        _lighter(row, lighter),
        f"{r.worst * 1e3:.0f} to {r.best * 1e3:.0f}",
        " to ".join(f"{x:,.0f}" for x in plan.images_per_second),
        " to ".join(f"{x:.0%}" for x in plan.mfu),
        ", ".join(f"{share / r.worst:.0%}" for share in shares),
    )


def weak_table(plans: Iterable[Plan]) -> str:
    """Bytes sent by a chip, from 16 to 256 chips at one batch a chip.

    Raises:
      ValueError: a plan that does not fit.
    """
    rows = [
        (
            "slice",
            "pairs",
            "MB sent for parameters",
            "MB sent for embeddings",
            "of that behind computation",
            "ms round the ring",
            "ms of the loss's products",
            "ms of all products",
        )
    ]
    for plan in plans:
        if plan.roofline is None:
            raise ValueError(f"weak scaling does not fit {plan.topology}: {plan.refusal}")
        # The ring of the blockwise loss is all that permutes; the rest are gradients.
        ring = [t for t in plan.traffic if t.kind == "collective-permute"]
        rest = [t for t in plan.traffic if t.kind != "collective-permute"]
        sent = sum(t.sent for t in ring)
        hidden = sum(t.sent for t in ring if t.asynchronous)
        loss = sum(part.compute for part in plan.parts if part.name == "loss")
        rows.append(
            (
                plan.topology,
                f"{plan.switches['global_batch_size']:,}",
                f"{sum(t.sent for t in rest) / 1e6:.1f}",
                f"{sent / 1e6:.1f}",
                f"{hidden / sent:.0%}",
                f"{sum(t.seconds for t in ring) * 1e3:.1f}",
                f"{loss * 1e3:.1f}",
                f"{plan.roofline.compute * 1e3:.1f}",
            )
        )
    return markdown.table(rows)


def loss_line(plan: Plan) -> str:
    """A few lines about the loss on a million pairs."""
    assert plan.memory and plan.roofline and plan.chip.hbm_bytes
    return textwrap.fill(
        f"The blockwise loss of {LOSS_PAIRS:,} pairs x {LOSS_WIDTH}, value and gradient, on "
        f"{plan.topology}: peak {plan.memory.peak / 2**20:,.0f} MiB of a chip's "
        f"{plan.chip.hbm_bytes / 2**30:.2f} GiB, of which {plan.memory.arguments / 2**20:,.0f} MiB "
        f"are the embeddings; modelled time {plan.roofline.worst * 1e3:,.0f} to "
        f"{plan.roofline.best * 1e3:,.0f} ms. (The matrix of logits would be "
        f"{4 * LOSS_PAIRS**2 / 2**40:,.0f} TiB.)",
        width=100,
    )


def section(cache: Cache, *, cached: bool) -> str:
    """The text between the marks."""
    models = []
    for row in MODELS:
        if plan := plan_row(row, cache, cached=cached):
            lighter = row.lighter()
            other = None if lighter is None else plan_row(lighter, cache, cached=cached)
            models.append((row, plan, other))
    weak_rows = [
        Row("vit_b16", _chips(name) * WEAK_PAIRS, name, "full", WEAK_SWITCHES) for name in WEAK
    ]
    weak = [plan for row in weak_rows if (plan := plan_row(row, cache, cached=cached))]
    parts = [BEGIN]
    if models:
        parts.append(model_table(models))
    parts += ["### A loss on a million pairs", loss_line(plan_of_loss(cache))]
    if weak:
        parts += ["### From 16 to 256 chips", WEAK_TEXT, weak_table(weak)]
    parts.append(END)
    return "\n\n".join(parts)


def _chips(name: str) -> int:
    return math.prod(topology.parse(name)[1])


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the tables; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m jaxclip.plan.table", description=__doc__)
    parser.add_argument("--cache", help="folder of compiled programs")
    parser.add_argument("--cached", action="store_true", help="compile no model anew")
    parser.add_argument("--file", default="docs/scale.md", help="default: %(default)s")
    args = parser.parse_args(arguments)
    text = section(Cache(args.cache), cached=args.cached)
    path = pathlib.Path(args.file)
    old = path.read_text(encoding="utf-8")
    before, begin, rest = old.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"{path} has no marks {BEGIN!r} and {END!r} to write between")
    path.write_text(f"{before}{text}{after}", encoding="utf-8")
    print(f"wrote the tables of {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
