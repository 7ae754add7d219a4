"""FLOPs of the matrix products in a compiled program."""

from __future__ import annotations

import functools
import math
import re

import numpy as np

from jaxclip.plan import hlo
from jaxclip.plan.hlo import Array, Computation, Instruction


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
        return declared_flops(instruction) or 0
    return 0


def declared_flops(instruction: Instruction) -> int | None:
    """FLOPs that a kernel of Pallas declares; None where it says nothing."""
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


def passes(scope: Computation, instruction: Instruction) -> int:
    """How often a bfloat16 matrix unit goes over a product of float32, for its precision."""
    if instruction.opcode not in ("dot", "convolution"):
        return 1
    if _array(scope, instruction, 0).dtype not in ("f32", "f64"):
        return 1
    precision = instruction.attribute("operand_precision") or ""
    return 6 if "highest" in precision else 3 if "high" in precision else 1


def _array(scope: Computation, instruction: Instruction, number: int) -> Array:
    shape = scope[instruction.operands[number]].shape
    if not isinstance(shape, Array):
        raise ValueError(f"operand {number} of HLO {instruction.name!r} is a tuple")
    return shape


def _size(instruction: Instruction) -> int:
    return sum(a.size for a in hlo.arrays(instruction.shape))


def _numbers(text: str | None) -> list[int]:
    return [int(n) for n in re.findall(r"\d+", text or "")]
