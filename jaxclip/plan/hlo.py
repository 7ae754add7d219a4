"""Read the text of a compiled program (HLO, after all of XLA's passes) into computations.

XLA documents the text as stable enough to be parsed back by itself; here is read only what a cost
model needs: shapes with layout, tiling and memory space, operands, and the attributes as text.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

_BITS = {
    "pred": 8,
    "token": 0,
    "opaque": 0,
    "c64": 64,
    "c128": 128,
    **{f"{sign}{bits}": bits for sign in "su" for bits in (1, 2, 4, 8, 16, 32, 64)},
    **{f"f{bits}": bits for bits in (16, 32, 64)},
    "bf16": 16,
}


@dataclasses.dataclass(frozen=True)
class Array:
    """Shape of an array.

    Attributes:
      dtype: HLO's name, ``"bf16"``.
      dims: sizes.
      minor_to_major: dimensions from the fastest to the slowest in memory.
      tile: tile of the layout that sizes are padded to (the last dimensions in memory), or ().
      space: memory space; 0 is the device's main memory, others are on the chip (or the host's).
    """

    dtype: str
    dims: tuple[int, ...]
    minor_to_major: tuple[int, ...] = ()
    tile: tuple[int, ...] = ()
    space: int = 0

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.dims)

    @property
    def bytes(self) -> int:
        """Bytes in memory, the padding of the tiles included."""
        physical = [self.dims[dim] for dim in reversed(self.minor_to_major)] or list(self.dims)
        for back, tile in enumerate(reversed(self.tile), 1):
            if back > len(physical):
                physical.insert(0, 1)
            physical[-back] = -(-physical[-back] // tile) * tile
        return math.prod(physical) * bits(self.dtype) // 8


Shape = Array | tuple["Shape", ...]


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
      name: unique in its computation.
      shape: of the result.
      opcode: ``"fusion"``, ``"while"``, …
      operands: names of the instructions it reads.
      argument: what stands in the parentheses, for ``parameter(0)`` and constants.
      attributes: all that follows, as text.
    """

    name: str
    shape: Shape
    opcode: str
    operands: tuple[str, ...]
    argument: str
    attributes: str

    def attribute(self, key: str) -> str | None:
        """Value of ``key=…`` up to the next comma outside braces, None if there is none."""
        start = self.attributes.find(f"{key}=")
        while start > 0 and self.attributes[start - 1] not in " ,":
            start = self.attributes.find(f"{key}=", start + 1)
        if start < 0:
            return None
        begin = start + len(key) + 1
        # The device order of a mesh is part of the value that it belongs to.
        ids = re.compile(r"mesh\[[^\]]*\], (?=device_ids)").match(self.attributes, begin)
        return self.attributes[begin : _end_of_value(self.attributes, ids.end() if ids else begin)]

    def called(self, key: str) -> tuple[str, ...]:
        """Names of the computations in an attribute such as ``calls=%f`` or ``{%f, %g}``."""
        value = self.attribute(key)
        return () if value is None else tuple(re.findall(r"%?([\w.\-]+)", value))

    @property
    def op_name(self) -> str:
        """What it came from in the source, ``"jit(step)/…/dot_general"``; "" if unknown."""
        match = re.search(r'op_name="([^"]*)"', self.attributes)
        return match.group(1) if match else ""

    @property
    def trip_count(self) -> int | None:
        """Of a while loop: how often its body runs, where the compiler says so."""
        match = re.search(r'"known_trip_count":\{"n":"?(\d+)"?', self.attributes)
        return int(match.group(1)) if match else None


@dataclasses.dataclass(frozen=True)
class Computation:
    """A function: instructions by name, in order."""

    name: str
    instructions: dict[str, Instruction]
    root: Instruction

    @functools.cached_property
    def parameters(self) -> tuple[Instruction, ...]:
        """Parameters by their number."""
        found = [i for i in self.instructions.values() if i.opcode == "parameter"]
        return tuple(sorted(found, key=lambda i: int(i.argument)))

    @functools.cached_property
    def users(self) -> dict[str, list[Instruction]]:
        """Instructions that read each instruction."""
        users: dict[str, list[Instruction]] = {name: [] for name in self.instructions}
        for instruction in self.instructions.values():
            for operand in set(instruction.operands):
                users[operand].append(instruction)
        return users

    def __getitem__(self, name: str) -> Instruction:
        return self.instructions[name]


@dataclasses.dataclass(frozen=True)
class Module:
    """A program: computations by name, and the one that is run."""

    computations: dict[str, Computation]
    entry: Computation

    def __getitem__(self, name: str) -> Computation:
        return self.computations[name]


def parse(text: str) -> Module:
    """Parse the text of a module.

    Args:
      text: what ``jax.stages.Compiled.as_text()`` gives.

    Raises:
      ValueError: text that is no HLO module; names the line.
    """
    computations: dict[str, Computation] = {}
    entry = ""
    header: re.Match[str] | None = None
    instructions: dict[str, Instruction] = {}
    root: Instruction | None = None
    for line in text.splitlines():
        if header is None:
            header = _HEADER.match(line)
            instructions, root = {}, None
        elif line.startswith("}"):
            if root is None:
                raise ValueError(f"HLO computation {header['name']!r} has no ROOT")
            computations[header["name"]] = Computation(header["name"], instructions, root)
            if header["entry"]:
                entry = header["name"]
            header = None
        elif line.strip():
            is_root, instruction = parse_instruction(line)
            instructions[instruction.name] = instruction
            root = instruction if is_root else root
    if not entry:
        raise ValueError(f"no ENTRY computation in this text: {text[:80]!r}; is it HLO?")
    return Module(computations, computations[entry])


_HEADER = re.compile(r"^(?P<entry>ENTRY )?%?(?P<name>[\w.\-]+) \(.*\) -> .* \{$")
_NAME = re.compile(r"^\s*(?P<root>ROOT )?%?(?P<name>[\w.\-]+) = ")
_OPCODE = re.compile(r"\s*([a-z][\w\-]*)\(")
_ARRAY = re.compile(r"(?P<dtype>[a-z][a-z0-9]*)\[(?P<dims>[^\]]*)\](?:\{(?P<layout>[^}]*)\})?")
_SEPARATOR = re.compile(r"(?:\s|,|/\*[^*]*\*/)*")


def parse_instruction(line: str) -> tuple[bool, Instruction]:
    """Parse one line; returns whether it is the root, and the instruction.

    Raises:
      ValueError: the line is no instruction.
    """
    head = _NAME.match(line)
    if head is None:
        raise ValueError(f"not an HLO instruction: {line.strip()[:120]!r}")
    shape, position = parse_shape(line, head.end())
    opcode = _OPCODE.match(line, position)
    if opcode is None:
        raise ValueError(f"no opcode behind the shape of HLO instruction {head['name']!r}")
    end = _closing(line, opcode.end() - 1)
    argument = line[opcode.end() : end]
    literal = opcode[1] in ("parameter", "constant")
    operands = () if literal else tuple(re.findall(r"%([\w.\-]+)", argument))
    instruction = Instruction(
        head["name"], shape, opcode[1], operands, argument, line[end + 1 :].lstrip(", ")
    )
    return head["root"] is not None, instruction


def parse_shape(text: str, start: int = 0) -> tuple[Shape, int]:
    """Parse a shape such as ``(f32[8,128]{1,0:T(8,128)S(1)}, s32[])``.

    Args:
      text: text that has a shape at ``start``.
      start: where.

    Returns:
      ``(shape, end)``: an :class:`Array`, or a tuple of shapes, and where the text goes on.

    Raises:
      ValueError: there is no shape.
    """
    if text[start] == "(":
        items: list[Shape] = []
        position = _skip(text, start + 1)
        while text[position] != ")":
            item, position = parse_shape(text, position)
            items.append(item)
            position = _skip(text, position)
        return tuple(items), position + 1
    match = _ARRAY.match(text, start)
    if match is None:
        raise ValueError(f"not an HLO shape: {text[start : start + 60]!r}")
    bits(match["dtype"])
    dims = tuple(int(d.strip().removeprefix("<=")) for d in match["dims"].split(",") if d.strip())
    return Array(match["dtype"], dims, *_layout(match["layout"] or "")), match.end()


def arrays(shape: Shape) -> Iterator[Array]:
    """All arrays of a shape, depth first."""
    if isinstance(shape, Array):
        yield shape
    else:
        for item in shape:
            yield from arrays(item)


@functools.cache
def bits(dtype: str) -> int:
    """Bits of an element.

    Raises:
      ValueError: an unknown type.
    """
    if dtype in _BITS:
        return _BITS[dtype]
    if match := re.fullmatch(r"f(\d+)e\d+m\d+\w*", dtype):  # f8e4m3fn and its kin
        return int(match.group(1))
    raise ValueError(f"unknown HLO element type {dtype!r}")


@functools.lru_cache(maxsize=4096)
def _layout(text: str) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """``"1,0:T(8,128)(2,1)S(1)"`` to (minor to major, first tile, memory space)."""
    order, _, rest = text.partition(":")
    minor_to_major = tuple(int(d) for d in order.split(",") if d.strip())
    tile = re.search(r"T\(([\d,]+)\)", rest)
    space = re.search(r"S\((\d+)\)", rest)
    # Tiles within tiles say in which order the elements of a tile lie and pad no further.
    first = tuple(int(t) for t in tile.group(1).split(",")) if tile else ()
    return minor_to_major, first, int(space.group(1)) if space else 0


def _skip(text: str, position: int) -> int:
    match = _SEPARATOR.match(text, position)
    return match.end() if match else position


def _closing(text: str, start: int) -> int:
    """Position of the parenthesis that closes the one at ``start``."""
    depth = 0
    for match in re.compile(r"[()]").finditer(text, start):
        depth += 1 if match.group() == "(" else -1
        if depth == 0:
            return match.start()
    raise ValueError(f"unbalanced parentheses: {text[start : start + 80]!r}")


def _end_of_value(text: str, start: int) -> int:
    depth, quoted = 0, False
    for position in range(start, len(text)):
        char = text[position]
        if char == '"' and text[position - 1] != "\\":
            quoted = not quoted
        elif quoted:
            continue
        elif char in "{[(":
            depth += 1
        elif char in "}])":
            depth -= 1
        elif char == "," and depth == 0:
            return position
    return len(text)
