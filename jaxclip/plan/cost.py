"""What a compiled program does: matrix FLOPs, bytes to and from memory, collectives.

Counted per device, on the program as it is after all of XLA's passes, with the bodies of loops
taken as often as they run. (XLA's own cost analysis takes them once.)
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from jaxclip.plan import hlo, interconnect, loops
from jaxclip.plan.hlo import Array, Computation, Instruction, Module


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


COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
# Cost nothing, or are counted where they begin.
_FREE = frozenset(
    {
        "add-dependency",
        "after-all",
        "bitcast",
        "constant",
        "get-tuple-element",
        "iota",
        "opt-barrier",
        "parameter",
        "partition-id",
        "replica-id",
        "tuple",
    }
)
# Custom calls by which XLA moves or labels data.
_TRANSPARENT = frozenset(
    {
        "AllocateBuffer",
        "AssumeGatherIndicesInBound",
        "AsyncCollectiveDone",
        "AsyncCollectiveStart",
        "ConcatBitcast",
        "GatherScatterIndicesBitpacked",
        "MoveToDevice",
        "MoveToHost",
        "annotate_device_placement",
    }
)
_ASYNC_CALLS = ("AsyncCollectiveStart", "AsyncCollectiveDone")


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
            elif instruction.opcode not in _FREE:
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
            if (kind := collective_kind(inner.opcode)) is not None:
                self.count_collective(scope, inner, kind, count, fused=inner is not instruction)
            elif inner.opcode == "custom-call":
                self.look_at_custom_call(inner)
        flops = passes = 0
        for scope, inner in self.inside(computation, instruction):
            own = matrix_flops(scope, inner)
            flops += own
            passes += own * _passes(scope, inner)
        moved = memory_bytes(self.module, computation, instruction)
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
        asynchronous = fused or instruction.opcode.endswith("-start")
        self.collectives.append(
            Collective(kind, name, count, size, groups, largest.dtype, asynchronous)
        )

    def look_at_custom_call(self, instruction: Instruction) -> None:
        target = (instruction.attribute("custom_call_target") or "").strip('"')
        if target not in _TRANSPARENT and _declared_flops(instruction) is None:
            self.opaque[target] = None


def collective_kind(opcode: str) -> str | None:
    """``"all-gather"`` of ``"all-gather-start"``; None for what is no collective, or its end."""
    name = opcode.removesuffix("-start")
    return name if name in COLLECTIVES else None


# --- FLOPs --------------------------------------------------------------------------------------


def matrix_flops(scope: Computation, instruction: Instruction) -> int:
    """FLOPs of a ``dot`` or ``convolution`` (two per multiply-add), 0 for all else.

    A custom kernel has those that its author declared (``pallas.CostEstimate``).
    """
    if instruction.opcode == "dot":
        left = _array(scope, instruction, 0)
        contracted = _numbers(instruction.attribute("lhs_contracting_dims"))
        return 2 * _size(instruction) * math.prod(left.dims[dim] for dim in contracted)
    if instruction.opcode == "convolution":
        return _convolution_flops(scope, instruction)
    if instruction.opcode == "custom-call":
        return _declared_flops(instruction) or 0
    return 0


def _declared_flops(instruction: Instruction) -> int | None:
    match = re.search(r'"cost_estimate":\{"flops":"?(\d+)"?', instruction.attributes)
    return int(match.group(1)) if match else None


def _convolution_flops(scope: Computation, instruction: Instruction) -> int:
    """Multiply-adds on padding and on the holes of dilation are none: the matrix unit skips them.

    That is what makes a batched product, which a TPU's compiler writes as a convolution over the
    batch whose input is dilated as wide as its kernel, cost what the product costs.
    """
    left, right = (_array(scope, instruction, n) for n in (0, 1))
    (result,) = hlo.arrays(instruction.shape)
    labels = re.fullmatch(r"(\w+)_(\w+)->(\w+)", instruction.attribute("dim_labels") or "")
    if labels is None:
        raise ValueError(f"HLO convolution {instruction.name!r} has no dim_labels")
    inputs, kernels, outputs = labels.groups()
    window = _window(instruction.attribute("window") or "{}")
    batch_groups = int(instruction.attribute("batch_group_count") or 1)
    positions = 1
    for spatial in sorted(set(inputs) - {"b", "f"}):
        positions *= _valid_positions(
            left.dims[inputs.index(spatial)],
            right.dims[kernels.index(spatial)],
            result.dims[outputs.index(spatial)],
            *window.get(int(spatial), _PLAIN_WINDOW),
        )
    # The kernel's input features are those of one group already.
    per_position = right.dims[kernels.index("i")] * result.dims[outputs.index("f")]
    batch = left.dims[inputs.index("b")] // batch_groups
    return 2 * positions * per_position * batch


_PLAIN_WINDOW = (1, 0, 1, 1)  # stride, low padding, dilation of input and kernel


@functools.lru_cache(maxsize=1024)
def _window(text: str) -> dict[int, tuple[int, int, int, int]]:
    """``{size=3x3 stride=2x2 pad=1_1x1_1}`` by spatial dimension."""
    parts = dict(item.split("=") for item in text.strip("{}").split())
    sizes = parts.get("size", "")
    count = len(sizes.split("x")) if sizes else 0

    def values(key: str, default: str) -> list[int]:
        return [
            int(v.split("_")[0]) for v in parts.get(key, "x".join([default] * count)).split("x")
        ]

    if not count:
        return {}
    columns = (
        values("stride", "1"),
        values("pad", "0"),
        values("lhs_dilate", "1"),
        values("rhs_dilate", "1"),
    )
    return {dim: tuple(column[dim] for column in columns) for dim in range(count)}  # type: ignore[misc]


@functools.lru_cache(maxsize=4096)
def _valid_positions(
    size: int, kernel: int, output: int, stride: int, pad: int, dilation: int, kernel_dilation: int
) -> int:
    """Pairs (output, kernel) along one dimension that meet an element of the input."""
    starts = np.arange(output, dtype=np.int64) * stride - pad
    total = 0
    for tap in range(kernel):
        places = starts + tap * kernel_dilation
        valid = (places >= 0) & (places <= (size - 1) * dilation)
        if dilation > 1:
            valid &= places % dilation == 0
        total += int(np.count_nonzero(valid))
    return total


def _passes(scope: Computation, instruction: Instruction) -> int:
    """How often a bfloat16 matrix unit goes over a product of float32, for its precision."""
    if instruction.opcode not in ("dot", "convolution"):
        return 1
    if _array(scope, instruction, 0).dtype not in ("f32", "f64"):
        return 1
    precision = instruction.attribute("operand_precision") or ""
    return 6 if "highest" in precision else 3 if "high" in precision else 1


# --- bytes --------------------------------------------------------------------------------------


def memory_bytes(module: Module, scope: Computation, instruction: Instruction) -> int:
    """Bytes that an instruction reads from and writes to the device's memory (space 0).

    A fusion reads of its arguments no more than the slices it takes of them, and writes of its
    results no more than the slices it updates in place.
    """
    opcode = instruction.opcode
    if opcode.endswith(("-done", "-update")):
        return 0
    if opcode == "custom-call":
        target = (instruction.attribute("custom_call_target") or "").strip('"')
        if target in _TRANSPARENT:
            return 0
    if opcode == "copy-start":
        target_array, source_array = list(hlo.arrays(instruction.shape))[:2]
        return _in_memory(target_array) + _in_memory(source_array)
    if opcode.endswith("-start") and instruction.called("calls"):
        inner = module[instruction.called("calls")[0]]
        return sum(memory_bytes(module, inner, each) for each in inner.instructions.values())
    if opcode in _FREE:
        return 0
    if opcode == "slice-start":
        sizes = sorted(a.bytes for a in hlo.arrays(instruction.shape) if a.size > 1)
        moved = sizes[0] if sizes else 0
        return moved * sum(a.space == 0 for a in list(hlo.arrays(instruction.shape))[:2])
    if opcode == "fusion":
        inner = module[instruction.called("calls")[0]]
        reads = sum(
            _read(module, inner, parameter, scope[operand].shape)
            for parameter, operand in zip(inner.parameters, instruction.operands, strict=True)
        )
        return reads + _written(module, inner, instruction)
    reads = sum(
        _operand_read(scope, instruction, number) for number in range(len(instruction.operands))
    )
    return reads + _result_written(scope, instruction)


def _read(module: Module, inner: Computation, parameter: Instruction, outer: hlo.Shape) -> int:
    """Bytes that a fusion reads of one argument."""
    whole = sum(_in_memory(a) for a in hlo.arrays(outer))
    if not whole:
        return 0
    total = 0
    for user in inner.users[parameter.name]:
        if user.opcode in ("bitcast", "copy", "reshape") and user is not inner.root:
            part = _read(module, inner, user, outer)
        elif user.opcode == "fusion":
            callee = module[user.called("calls")[0]]
            numbers = [n for n, name in enumerate(user.operands) if name == parameter.name]
            part = sum(_read(module, callee, callee.parameters[n], outer) for n in numbers)
        elif _is_async(user):
            part = 0
        elif user.opcode == "tuple" and user is inner.root:
            part = 0  # handed on untouched
        elif user.opcode in _SLICES or user.opcode == "dynamic-update-slice":
            numbers = [n for n, name in enumerate(user.operands) if name == parameter.name]
            part = sum(_sliced(inner, user, n) for n in numbers)
        else:
            part = whole
        total += part
        if total >= whole:
            return whole
    return total


_SLICES = ("dynamic-slice", "slice", "gather")


def _sliced(scope: Computation, user: Instruction, number: int) -> int:
    """Bytes that a slicing instruction reads of one of its operands."""
    if number > 0 and user.opcode != "slice":
        return sum(a.bytes for a in hlo.arrays(scope[user.operands[number]].shape))
    if user.opcode == "dynamic-update-slice":
        return 0  # what is not updated stays where it is
    return sum(a.bytes for a in hlo.arrays(user.shape))


def _written(module: Module, inner: Computation, fusion: Instruction) -> int:
    """Bytes that a fusion writes."""
    root = inner.root
    if root.opcode == "tuple":
        items = [inner[name] for name in root.operands]
        shapes = list(fusion.shape) if isinstance(fusion.shape, tuple) else [fusion.shape]
    else:
        items, shapes = [root], [fusion.shape]
    total = 0
    for item, shape in zip(items, shapes, strict=True):
        whole = sum(_in_memory(a) for a in hlo.arrays(shape))
        total += min(whole, _updated(module, inner, item, whole))
    return total


def _updated(module: Module, scope: Computation, item: Instruction, whole: int) -> int:
    while item.opcode in ("bitcast", "copy", "reshape"):
        item = scope[item.operands[0]]
    if item.opcode == "fusion":
        callee = module[item.called("calls")[0]]
        return _updated(module, callee, callee.root, whole)
    if item.opcode == "parameter" or _is_async(item):
        return 0
    if item.opcode == "get-tuple-element" and _is_async(scope[item.operands[0]]):
        return 0
    if item.opcode == "dynamic-update-slice":
        return sum(a.bytes for a in hlo.arrays(scope[item.operands[1]].shape))
    return whole


def _is_async(instruction: Instruction) -> bool:
    if collective_kind(instruction.opcode) is not None:
        return True
    target = (instruction.attribute("custom_call_target") or "").strip('"')
    return instruction.opcode == "custom-call" and target in _ASYNC_CALLS


def _operand_read(scope: Computation, instruction: Instruction, number: int) -> int:
    operand = scope[instruction.operands[number]]
    whole = sum(_in_memory(a) for a in hlo.arrays(operand.shape))
    if instruction.opcode in (*_SLICES, "dynamic-update-slice"):
        return min(whole, _sliced(scope, instruction, number))
    return whole


def _result_written(scope: Computation, instruction: Instruction) -> int:
    whole = sum(_in_memory(a) for a in hlo.arrays(instruction.shape))
    if instruction.opcode == "dynamic-update-slice":
        update = scope[instruction.operands[1]]
        return min(whole, sum(a.bytes for a in hlo.arrays(update.shape)))
    if collective_kind(instruction.opcode) and instruction.opcode.endswith("-start"):
        operands = sum(
            _in_memory(a) for n in instruction.operands for a in hlo.arrays(scope[n].shape)
        )
        return max(0, whole - operands)
    return whole


def _in_memory(array: Array) -> int:
    return array.bytes if array.space == 0 else 0


# --- small things -------------------------------------------------------------------------------


def _array(scope: Computation, instruction: Instruction, number: int) -> Array:
    shape = scope[instruction.operands[number]].shape
    if not isinstance(shape, Array):
        raise ValueError(f"operand {number} of HLO {instruction.name!r} is a tuple")
    return shape


def _size(instruction: Instruction) -> int:
    return sum(a.size for a in hlo.arrays(instruction.shape))


def _numbers(text: str | None) -> list[int]:
    return [int(n) for n in re.findall(r"\d+", text or "")]
