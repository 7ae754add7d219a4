"""Bytes that a compiled program moves between a device's memory and its core."""

from __future__ import annotations

from jaxclip.plan import hlo, opcodes
from jaxclip.plan.hlo import Array, Computation, Instruction, Module


def memory_bytes(module: Module, scope: Computation, instruction: Instruction) -> int:
    """Bytes that an instruction reads from and writes to the device's memory (space 0).

    A fusion reads of its arguments no more than the slices it takes of them, and writes of its
    results no more than the slices it updates in place.
    """
    opcode = instruction.opcode
    if opcode.endswith(("-done", "-update")):
        return 0
    if opcodes.moves_only(instruction):
        return 0
    if opcode == "copy-start":
        target_array, source_array = list(hlo.arrays(instruction.shape))[:2]
        return _in_memory(target_array) + _in_memory(source_array)
    if opcode.endswith("-start") and instruction.called("calls"):
        inner = module[instruction.called("calls")[0]]
        return sum(memory_bytes(module, inner, each) for each in inner.instructions.values())
    if opcode in opcodes.FREE:
        return 0
    if opcode == "slice-start":
        source, result = list(hlo.arrays(instruction.shape))[:2]
        return result.bytes * ((source.space == 0) + (result.space == 0))
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
        elif opcodes.is_asynchronous_part(user):
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
    if item.opcode == "parameter" or opcodes.is_asynchronous_part(item):
        return 0
    if item.opcode == "get-tuple-element" and opcodes.is_asynchronous_part(scope[item.operands[0]]):
        return 0
    if item.opcode == "dynamic-update-slice":
        return sum(a.bytes for a in hlo.arrays(scope[item.operands[1]].shape))
    return whole


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
    if opcodes.collective_kind(instruction.opcode) and instruction.opcode.endswith("-start"):
        operands = sum(
            _in_memory(a) for n in instruction.operands for a in hlo.arrays(scope[n].shape)
        )
        return max(0, whole - operands)
    return whole


def _in_memory(array: Array) -> int:
    return array.bytes if array.space == 0 else 0
