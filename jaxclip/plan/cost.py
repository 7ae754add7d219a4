"""What a compiled program does: matrix FLOPs, bytes to and from memory, collectives.

Counted per device, on the program as it is after all of XLA's passes, with the bodies of loops
taken as often as they run. (XLA's own cost analysis takes them once.)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

from jaxclip.plan import flops as flops_lib
from jaxclip.plan import hlo, interconnect, loops, opcodes, traffic
from jaxclip.plan.hlo import Computation, Instruction, Module


class Kernel(NamedTuple):
    """One instruction that is run on its own, a fusion for instance.

    Attributes:
      name: of the instruction.
      op_name: where it is from in the source.
      runs: how often a step runs it.
      flops: FLOPs of its matrix products and convolutions, one run.
      passes: the same, times how often the matrix unit has to go over them for their precision.
      bytes: to and from memory, one run, the padding of layouts included.
    """

    name: str
    op_name: str
    runs: int
    flops: int
    passes: int
    bytes: int


class Collective(NamedTuple):
    """One collective.

    Attributes:
      kind: ``"all-reduce"``, …
      op_name: where it is from in the source.
      runs: how often a step runs it.
      bytes: what a device holds of the larger side of it, one run: the result of an all-gather,
        the argument of a reduce-scatter.
      groups: devices that take part together; of a permutation the pairs (source, target).
      dtype: of its largest array.
      asynchronous: whether the program goes on while it runs, so that it can be hidden.
    """

    kind: str
    op_name: str
    runs: int
    bytes: int
    groups: interconnect.Groups
    dtype: str
    asynchronous: bool = False

    @property
    def group_size(self) -> int:
        """Devices that take part together."""
        return max((len(group) for group in self.groups), default=1)

    @property
    def sent(self) -> float:
        """Bytes that a device sends in one run, by the best algorithm on a ring or torus."""
        share = (self.group_size - 1) / self.group_size
        if self.kind == "collective-permute":
            return float(self.bytes)
        return self.bytes * share * (2 if self.kind == "all-reduce" else 1)


@dataclasses.dataclass(frozen=True)
class Cost:
    """Everything a step does on one device.

    Attributes:
      kernels: in the order of the program.
      collectives: the same.
      unknown_loops: loops whose count could not be read; their bodies are counted once.
      opaque: custom calls that may compute something that is not counted here.
    """

    kernels: tuple[Kernel, ...]
    collectives: tuple[Collective, ...]
    unknown_loops: tuple[str, ...]
    opaque: tuple[str, ...]

    @property
    def flops(self) -> int:
        """Matrix FLOPs of a step."""
        return sum(kernel.flops * kernel.runs for kernel in self.kernels)

    @property
    def bytes(self) -> int:
        """Bytes to and from memory of a step."""
        return sum(kernel.bytes * kernel.runs for kernel in self.kernels)

    @property
    def sent(self) -> float:
        """Bytes sent to other devices in a step."""
        return sum(c.sent * c.runs for c in self.collectives)


def analyse(module: Module, num_devices: int) -> Cost:
    """Count what a program does.

    Args:
      module: the compiled program.
      num_devices: devices it is compiled for, the members of a collective that names none.
    """
    return _Counter(module, num_devices).run()


class _Counter:
    def __init__(self, module: Module, num_devices: int):
        self.module = module
        self.num_devices = num_devices
        self.kernels: list[Kernel] = []
        self.collectives: list[Collective] = []
        self.channels: set[str] = set()
        self.unknown_loops: list[str] = []
        self.opaque: dict[str, None] = {}

    def run(self) -> Cost:
        self.walk(self.module.entry, 1)
        return Cost(
            tuple(self.kernels),
            tuple(self.collectives),
            tuple(self.unknown_loops),
            tuple(self.opaque),
        )

    def walk(self, computation: Computation, count: int) -> None:
        """Count every instruction of a computation that is run ``count`` times."""
        for instruction in computation.instructions.values():
            if instruction.opcode == "while":
                trips = loops.trip_count(self.module, computation, instruction)
                if trips is None:
                    self.unknown_loops.append(instruction.op_name or instruction.name)
                body = self.module[instruction.called("body")[0]]
                self.walk(body, count * (1 if trips is None else trips))
            elif instruction.opcode == "conditional":
                self.walk_conditional(instruction, count)
            elif instruction.opcode == "call":
                self.walk(self.module[instruction.called("to_apply")[0]], count)
            elif instruction.opcode not in opcodes.FREE:
                self.count_one(computation, instruction, count)

    def walk_conditional(self, instruction: Instruction, count: int) -> None:
        """Of the branches take the one that does most."""
        names = instruction.called("branch_computations") or (
            *instruction.called("true_computation"),
            *instruction.called("false_computation"),
        )
        branches = []
        for name in names:
            branch = _Counter(self.module, self.num_devices)
            branch.channels = set(self.channels)
            branch.walk(self.module[name], count)
            branches.append(branch)
        most = max(
            branches,
            key=lambda b: sum((k.flops + k.bytes) * k.runs for k in b.kernels),
            default=None,
        )
        if most is not None:
            self.kernels += most.kernels
            self.collectives += most.collectives
            self.channels |= most.channels
            self.unknown_loops += most.unknown_loops
            self.opaque |= most.opaque

    def count_one(self, computation: Computation, instruction: Instruction, count: int) -> None:
        for scope, inner in self.inside(computation, instruction):
            if (kind := opcodes.collective_kind(inner.opcode)) is not None:
                self.count_collective(scope, inner, kind, count, fused=inner is not instruction)
            elif inner.opcode == "custom-call":
                self.look_at_custom_call(inner)
        flops = passes = 0
        for scope, inner in self.inside(computation, instruction):
            own = flops_lib.matrix_flops(scope, inner)
            flops += own
            passes += own * flops_lib.passes(scope, inner)
        moved = traffic.memory_bytes(self.module, computation, instruction)
        if flops or moved:
            self.kernels.append(
                Kernel(instruction.name, instruction.op_name, count, flops, passes, moved)
            )

    def inside(
        self, computation: Computation, instruction: Instruction
    ) -> Iterator[tuple[Computation, Instruction]]:
        """The instruction itself, or those of the fusion or asynchronous call that it is."""
        called = instruction.called("calls")
        if not called or instruction.opcode == "custom-call":
            yield computation, instruction
            return
        if instruction.opcode.endswith(("-update", "-done")):
            return  # counted where it began
        inner = self.module[called[0]]
        for each in inner.instructions.values():
            yield from self.inside(inner, each)

    def count_collective(
        self, scope: Computation, instruction: Instruction, kind: str, count: int, *, fused: bool
    ) -> None:
        scatters = fused and kind == "all-reduce" and _keeps_a_share(scope, instruction)
        if scatters:
            kind = "reduce-scatter"
        if fused:
            # A collective that is hidden behind several fusions stands in each of them. (A channel
            # alone says nothing: all permutations of a shard_map have the same.)
            channel = f"{instruction.attribute('channel_id')} {instruction.shape}"
            if channel in self.channels:
                return
            self.channels.add(channel)
        operands = [a for n in instruction.operands for a in hlo.arrays(scope[n].shape)]
        results = list(hlo.arrays(instruction.shape))
        if instruction.opcode.endswith("-start"):
            # The result of a start holds its arguments, too.
            results = results[len(operands) :] or results
        held = (
            operands if kind in ("reduce-scatter", "all-reduce", "collective-permute") else results
        )
        held = [a for a in held if a.size > 1 or len(held) == 1] or held
        if kind == "collective-permute":
            pairs = instruction.attribute("source_target_pairs") or ""
            groups: interconnect.Groups = interconnect.source_target_pairs(pairs)
        else:
            groups = interconnect.replica_groups(instruction.attribute("replica_groups") or "{}")
            groups = groups or (tuple(range(self.num_devices)),)
        if max(map(len, groups), default=1) < 2:
            return  # a group of one: nothing is sent
        size = sum(a.size * hlo.bits(a.dtype) // 8 for a in held)
        largest = max(held, key=lambda a: a.size)
        name = instruction.op_name
        asynchronous = (fused and not scatters) or instruction.opcode.endswith("-start")
        self.collectives.append(
            Collective(kind, name, count, size, groups, largest.dtype, asynchronous)
        )

    def look_at_custom_call(self, instruction: Instruction) -> None:
        if not opcodes.moves_only(instruction) and flops_lib.declared_flops(instruction) is None:
            self.opaque[opcodes.custom_call_target(instruction) or ""] = None


def _keeps_a_share(scope: Computation, instruction: Instruction) -> bool:
    """Whether a fusion is XLA's way to write a reduce-scatter on TPUs: a sum, and a slice of it."""
    root = scope.root
    return root.opcode == "dynamic-slice" and root.operands[0] == instruction.name
