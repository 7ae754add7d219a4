"""Kinds of HLO instructions, as far as a cost model tells them apart."""

from __future__ import annotations

from jaxclip.plan.hlo import Instruction

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
FREE = frozenset(
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
TRANSPARENT = frozenset(
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
ASYNC_CALLS = ("AsyncCollectiveStart", "AsyncCollectiveDone")


def collective_kind(opcode: str) -> str | None:
    """``"all-gather"`` of ``"all-gather-start"``; None for what is no collective, or its end."""
    name = opcode.removesuffix("-start")
    return name if name in COLLECTIVES else None


def custom_call_target(instruction: Instruction) -> str | None:
    """What a custom call calls; None for all other instructions."""
    if instruction.opcode != "custom-call":
        return None
    return (instruction.attribute("custom_call_target") or "").strip('"')


def moves_only(instruction: Instruction) -> bool:
    """Whether it is a custom call by which XLA moves or labels data."""
    return custom_call_target(instruction) in TRANSPARENT


def is_asynchronous_part(instruction: Instruction) -> bool:
    """Whether it is a collective, or the begin or end of one that runs behind fusions."""
    if collective_kind(instruction.opcode) is not None:
        return True
    return custom_call_target(instruction) in ASYNC_CALLS
