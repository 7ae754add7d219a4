"""Plan a run before its chips are paid for: memory, time and communication of a training step."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from jax.sharding import Mesh

from jaxclip.config import Config
from jaxclip.plan import cost as cost_lib
from jaxclip.plan import hlo, interconnect, model_flops, program, roofline
from jaxclip.plan.chips import Chip
from jaxclip.plan.cost import Collective, Cost
from jaxclip.plan.program import Cache, Memory, Program, Refusal
from jaxclip.plan.roofline import Roofline
from jaxclip.plan.topology import Topology


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Collectives of one kind over the same axes of the mesh.

    Attributes:
      kind: ``"all-gather"``, …
      axes: axes of the mesh that they run over.
      dtype: of what is sent.
      asynchronous: whether the program goes on meanwhile.
      runs: how many a step has.
      bytes: what a device holds of the larger side of them, a step.
      sent: bytes that a device sends, a step.
      seconds: that they take, a step, one after another.
    """

    kind: str
    axes: tuple[str, ...]
    dtype: str
    asynchronous: bool
    runs: int
    bytes: int
    sent: float
    seconds: float


@dataclasses.dataclass(frozen=True)
class Part:
    """Share of a part of the step (``"attention"``, ``"loss"``, …) in its modelled time.

    Attributes:
      name: the part.
      compute: seconds of its matrix products at the chip's peak.
      memory: seconds of its bytes at the memory's bandwidth.
      kernels: seconds of its kernels, one after another.
    """

    name: str
    compute: float
    memory: float
    kernels: float


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a training step needs and does on a topology.

    Attributes:
      topology: name of the slice, or of the devices at hand.
      chip: peaks it is modelled with.
      num_devices: how many.
      mesh: sizes of the mesh by axis.
      switches: keys of the configuration that a plan is usually varied in, and their values.
      parameters: number of the model's parameters.
      model_flops: matrix FLOPs a step cannot do without, all devices together.
      lower_seconds, compile_seconds: to trace and to compile it.
      memory: bytes on a device, None if the compiler refused the program.
      refusal: why it did, None if it did not.
      cost: FLOPs, bytes and collectives of one device, None likewise.
      roofline: modelled seconds, None likewise.
      traffic: collectives, by kind and axes.
      parts: time by part of the step.
    """

    topology: str
    chip: Chip
    num_devices: int
    mesh: dict[str, int]
    switches: dict[str, Any]
    parameters: int
    model_flops: int
    lower_seconds: float
    compile_seconds: float
    memory: Memory | None
    refusal: Refusal | None
    cost: Cost | None
    roofline: Roofline | None
    traffic: tuple[Traffic, ...]
    parts: tuple[Part, ...]

    @property
    def fits(self) -> bool:
        """Whether the compiler took it, and its peak is within the chip's memory."""
        limit = self.chip.hbm_bytes
        return self.memory is not None and (limit is None or self.memory.peak <= limit)

    @property
    def images_per_second(self) -> tuple[float, float] | None:
        """Modelled, at worst and at best."""
        batch = self.switches["global_batch_size"]
        return self.roofline and (batch / self.roofline.worst, batch / self.roofline.best)

    @property
    def mfu(self) -> tuple[float, float] | None:
        """Modelled model-FLOPs utilisation, at worst and at best."""
        peak = self.model_flops / (self.num_devices * self.chip.matmul_flops)
        return self.roofline and (peak / self.roofline.worst, peak / self.roofline.best)

    @property
    def recomputed(self) -> float | None:
        """Matrix FLOPs done beyond those of the model, as a share of those."""
        if self.cost is None:
            return None
        return self.cost.flops * self.num_devices / self.model_flops - 1


SWITCHES = (
    "global_batch_size",
    "num_micro_batches",
    "sharding",
    "remat",
    "scan_layers",
    "attention_implementation",
)


def make_plan(config: Config, topology: Topology, *, cache: Cache | None = None) -> Plan:
    """Compile the step of a configuration for a topology and read the program.

    Args:
      config: resolved configuration.
      topology: from :func:`jaxclip.plan.topology.get` or :func:`jaxclip.plan.measure.at_hand`.
      cache: where compiled programs are kept.

    Raises:
      ValueError: a configuration that can't be built on this many devices.
    """
    compiled, mesh, parameters = program.of_config(
        config, topology.devices, topology.name, cache or Cache(None)
    )
    flops = model_flops.of_config(config) * config["global_batch_size"]
    return describe(compiled, mesh, topology, parameters, flops, switches_of(config))


def switches_of(config: Config) -> dict[str, Any]:
    """The keys of a configuration that plans differ in."""
    switches = {key: config[key] for key in SWITCHES}
    switches["loss"] = config["loss"]["name"]
    switches["compute_dtype"] = config["precision"]["compute_dtype"]
    switches["model"] = config["model"]["preset"]
    return switches


def describe(
    compiled: Program,
    mesh: Mesh,
    topology: Topology,
    parameters: int,
    flops: int,
    switches: dict[str, Any],
) -> Plan:
    """A plan from a compiled program.

    Args:
      compiled: the program.
      mesh: the mesh it is compiled for.
      topology: where it runs.
      parameters: of the model.
      flops: of the model, a step, all devices together.
      switches: to be shown with it.
    """
    cost = seconds = None
    traffic: tuple[Traffic, ...] = ()
    parts: tuple[Part, ...] = ()
    if compiled.refusal is None:
        cost = cost_lib.analyse(hlo.parse(compiled.text), mesh.size)
        network = _network(topology, mesh)
        seconds = roofline.roofline(cost, topology.chip, network)
        traffic = tuple(_traffic(cost.collectives, mesh, network))
        parts = tuple(_parts(cost, topology.chip))
    return Plan(
        topology=topology.name,
        chip=topology.chip,
        num_devices=mesh.size,
        mesh=dict(mesh.shape),
        switches=switches,
        parameters=parameters,
        model_flops=flops,
        lower_seconds=compiled.lower_seconds,
        compile_seconds=compiled.compile_seconds,
        memory=compiled.memory,
        refusal=compiled.refusal,
        cost=cost,
        roofline=seconds,
        traffic=traffic,
        parts=parts,
    )


def _network(topology: Topology, mesh: Mesh) -> Callable[[Collective], float]:
    if not topology.shape:
        return roofline.flat_seconds(topology.chip.link_bandwidth)
    return roofline.torus_seconds(interconnect.Wiring.of(mesh, topology.chip, topology.shape))


def _traffic(
    collectives: Iterable[Collective], mesh: Mesh, seconds: Callable[[Collective], float]
) -> Iterator[Traffic]:
    def key(collective: Collective) -> tuple[str, tuple[str, ...], str, bool]:
        axes = interconnect.mesh_axes(collective.groups, mesh)
        return collective.kind, axes, collective.dtype, collective.asynchronous

    found = []
    for (kind, axes, dtype, asynchronous), group in itertools.groupby(
        sorted(collectives, key=key), key
    ):
        members = list(group)
        found.append(
            Traffic(
                kind,
                axes,
                dtype,
                asynchronous,
                runs=sum(c.runs for c in members),
                bytes=sum(c.bytes * c.runs for c in members),
                sent=sum(c.sent * c.runs for c in members),
                seconds=sum(seconds(c) * c.runs for c in members),
            )
        )
    yield from sorted(found, key=lambda t: -t.seconds)


# Where in the source a kernel is from; the first that matches counts.
_PARTS = (
    ("attention", r"/attention/"),
    ("MLP", r"/mlp/"),
    ("norms", r"norm"),
    ("image tower, rest", r"VisionTransformer|/(ResNet|ConvNeXt|FastViT)/"),
    ("text tower, rest", r"TextTransformer"),
    ("optimizer", r"^jit\(step\)/(cond|apply|reduce_sum)|/branch_\d"),
    ("loss", r"^jit\(step\)/.*(jvp|shmap|shard_map)"),
)


def _parts(cost: Cost, chip: Chip) -> Iterator[Part]:
    sums: dict[str, list[float]] = {}
    for kernel in cost.kernels:
        names = (name for name, pattern in _PARTS if re.search(pattern, kernel.op_name))
        total = sums.setdefault(next(names, "other"), [0.0, 0.0, 0.0])
        total[0] += kernel.runs * kernel.passes / chip.matmul_flops
        total[1] += kernel.runs * kernel.bytes / chip.hbm_bandwidth
        total[2] += kernel.runs * roofline.kernel_seconds(kernel, chip)
    for name, total in sorted(sums.items(), key=lambda item: -item[1][2]):
        yield Part(name, *total)


# --- what would make it fit, and what would be best ---------------------------------------------

Change = dict[str, Any]

# In the order of what they cost: nothing, a collective, more and more recomputation.
REMEDIES: tuple[Change, ...] = (
    {"loss": "blockwise"},
    {"attention_implementation": "fused"},
    {"sharding": "fsdp", "mesh": {"data": 1, "fsdp": -1, "tensor": 1}},
    {"remat": "dots"},
    {"remat": "mlp"},
    {"remat": "full"},
    {"num_micro_batches": 4},
    {"num_micro_batches": 16},
)


def changed(config: Config, change: Change) -> Config:
    """A configuration with some keys set; ``loss: blockwise`` is the blockwise one of its kind."""
    result = copy.deepcopy(config)
    for key, value in change.items():
        if key == "loss":
            name = result["loss"]["name"].removesuffix("_blockwise")
            result["loss"] = {**result["loss"], "name": f"{name}_blockwise"}
        else:
            result[key] = copy.deepcopy(value)
    return result


def remedies(
    config: Config,
    plan_of: Callable[[Config], Plan],
    *,
    on_try: Callable[[Change, Plan | ValueError], None] = lambda change, plan: None,
) -> Change | None:
    """Find out by trying which switch makes a configuration fit that does not.

    Each remedy is tried alone, the cheapest first, and if none suffices, on top of the ones before.

    Args:
      config: what was refused.
      plan_of: plans a configuration.
      on_try: called with every change that was tried and its plan, or why it can't be built.

    Returns:
      The change that fits, or None.
    """
    candidates = [c for c in REMEDIES if changed(config, c) != config]
    together: Change = {}
    for stacked in (False, True):
        for remedy in candidates:
            together = {**together, **remedy}
            change = together if stacked else remedy
            if stacked and change == remedy:
                continue  # tried alone already
            try:
                plan = plan_of(changed(config, change))
            except ValueError as error:
                on_try(change, error)
                if stacked:
                    together = {k: v for k, v in together.items() if k not in remedy}
                continue
            on_try(change, plan)
            if plan.fits:
                return change
        together = {}
    return None


def sweep_changes(
    num_devices: int, remats: Sequence[str], micro_batches: Sequence[int]
) -> Iterator[Change]:
    """Meshes x remat x micro-batches, as changes of a configuration.

    Meshes are plain data parallelism, the state sharded over everything, and over the square root
    of the devices.
    """
    square = 2 ** (max(num_devices, 1).bit_length() // 2)
    meshes: list[Change] = [{"sharding": "dp", "mesh": {"data": -1, "fsdp": 1, "tensor": 1}}]
    for fsdp in dict.fromkeys((num_devices, square)):
        if fsdp > 1 and num_devices % fsdp == 0:
            meshes.append({"sharding": "fsdp", "mesh": {"data": -1, "fsdp": fsdp, "tensor": 1}})
    for mesh, remat, count in itertools.product(meshes, remats, micro_batches):
        yield {**mesh, "remat": remat, "num_micro_batches": count}


def sweep(
    config: Config,
    changes: Iterable[Change],
    plan_of: Callable[[Config], Plan],
    *,
    on_try: Callable[[Change, Plan | ValueError], None] = lambda change, plan: None,
) -> list[tuple[Change, Plan]]:
    """Plan every change of a configuration; ``on_try`` as for :func:`remedies`.

    Returns:
      Those that fit, the fastest (by the pessimistic end of the model) first.
    """
    fitting = []
    for change in changes:
        try:
            plan = plan_of(changed(config, change))
        except ValueError as error:
            on_try(change, error)
            continue
        on_try(change, plan)
        if plan.fits and plan.roofline is not None:
            fitting.append((change, plan))
    return sorted(fitting, key=lambda item: item[1].roofline.worst)  # type: ignore[union-attr]
