"""How often the body of a loop runs, read off a compiled program."""

from __future__ import annotations

import dataclasses

from jaxclip.plan.hlo import Computation, Instruction, Module

_MOVES = ("copy", "bitcast", "convert", "reshape", "copy-done", "copy-start")


def trip_count(module: Module, caller: Computation, loop: Instruction) -> int | None:
    """Runs of a ``while`` that counts up to a constant; None if it is no such loop.

    Some of XLA's backends note the count. For the others it is read off: the condition compares an
    element of the state to a constant, the caller starts that element with a constant, and the body
    adds a constant to it.
    """
    if loop.trip_count is not None:
        return loop.trip_count
    condition = module[loop.called("condition")[0]]
    body = module[loop.called("body")[0]]
    test = _follow(module, _Value(condition, condition.root))
    direction = test.instruction.attribute("direction")
    if test.instruction.opcode != "compare" or direction not in ("LT", "LE", "NE"):
        return None
    index, limit = (_operand(module, test, n) for n in (0, 1))
    position = index.position
    bound = limit.constant
    if position is None or bound is None:
        return None
    start = _start(module, caller, caller[loop.operands[0]], position)
    step = _increment(module, body, position)
    if start is None or not step:
        return None
    return max(0, -(-(bound + (direction == "LE") - start) // step))


@dataclasses.dataclass(frozen=True)
class _Value:
    """An instruction in its computation, and the calls that led there, outermost first."""

    scope: Computation
    instruction: Instruction
    calls: tuple[tuple[Computation, Instruction], ...] = ()

    @property
    def constant(self) -> int | None:
        """Its value, if it is an integer constant."""
        text = self.instruction.argument
        is_integer = self.instruction.opcode == "constant" and text.lstrip("-").isdecimal()
        return int(text) if is_integer else None

    @property
    def position(self) -> int | None:
        """Which element of a tuple it is, if it is one."""
        if self.instruction.opcode != "get-tuple-element":
            return None
        return int(self.instruction.attribute("index") or 0)


def _follow(module: Module, value: _Value) -> _Value:
    """Through moves, and into and out of fusions, to what computes a value."""
    while True:
        instruction, calls = value.instruction, value.calls
        if instruction.opcode in _MOVES:
            value = dataclasses.replace(value, instruction=value.scope[instruction.operands[0]])
        elif instruction.opcode in ("fusion", "call"):
            name = (instruction.called("calls") or instruction.called("to_apply"))[0]
            inner = module[name]
            value = _Value(inner, inner.root, (*calls, (value.scope, instruction)))
        elif instruction.opcode == "parameter" and calls:
            scope, call = calls[-1]
            value = _Value(scope, scope[call.operands[int(instruction.argument)]], calls[:-1])
        else:
            return value


def _operand(module: Module, value: _Value, number: int) -> _Value:
    operand = value.scope[value.instruction.operands[number]]
    return _follow(module, dataclasses.replace(value, instruction=operand))


def _start(module: Module, scope: Computation, state: Instruction, position: int) -> int | None:
    """Constant that an element of a loop's state starts with."""
    value = _follow(module, _Value(scope, state))
    if value.instruction.opcode != "tuple":
        return None
    return _operand(module, value, position).constant


def _increment(module: Module, body: Computation, position: int) -> int | None:
    """What a loop's body adds to an element of its state."""
    if body.root.opcode != "tuple":
        return None
    total, value = 0, _operand(module, _Value(body, body.root), position)
    while value.instruction.opcode == "add":
        sides = [_operand(module, value, n) for n in (0, 1)]
        constants = [side.constant for side in sides if side.constant is not None]
        if len(constants) != 1:
            return None
        total += constants[0]
        value = next(side for side in sides if side.constant is None)
    return total if value.position == position else None
