"""How other people's tensors and ours correspond: a table that reads in both directions.

A family of checkpoints (one file of :mod:`jaxclip.weights.families`) is a list of
:class:`Entry`: one tensor of theirs, the parameters of ours that it holds, and how the numbers are
laid out. Import and export walk the same list, so a round trip is exact by construction.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

Array = Any


@dataclasses.dataclass(frozen=True)
class Layout:
    """A change of layout that loses nothing.

    Attributes:
      to_ours: their array -> ours, one for each path of the entry.
      to_theirs: the reverse.
    """

    to_ours: Callable[[Array], list[Array]]
    to_theirs: Callable[[list[Array]], Array]


@dataclasses.dataclass(frozen=True)
class Entry:
    """One tensor of theirs.

    Attributes:
      theirs: its name.
      ours: paths of the parameters in it, such as ``image/blocks_0/mlp/up/kernel``.
      layout: how it holds them.
    """

    theirs: str
    ours: tuple[str, ...]
    layout: Layout


SAME = Layout(lambda x: [x], lambda xs: xs[0])
# torch's linear weights are [out, in], ours [in, out].
TRANSPOSED = Layout(lambda x: [x.T], lambda xs: xs[0].T)
SCALAR = Layout(lambda x: [x.reshape(())], lambda xs: xs[0].reshape(()))
ONE_ELEMENT = Layout(lambda x: [x.reshape(())], lambda xs: xs[0].reshape(1))
# [1, N, C], as timm and big_vision keep positions.
BATCH_AXIS = Layout(lambda x: [x[0]], lambda xs: xs[0][None])
# [1, 1, C], as timm keeps the class token.
ROW = Layout(lambda x: [x[0, 0]], lambda xs: xs[0][None, None])


# torch's [out, in, h, w] of a convolution <-> ours [h, w, in, out]; of a 1x1 one [in, out].
CONV = Layout(lambda x: [x.transpose(2, 3, 1, 0)], lambda xs: xs[0].transpose(3, 2, 0, 1))
POINTWISE = Layout(
    lambda x: [x.reshape(x.shape[:2] if x.shape[2:] == (1, 1) else x.shape).T],
    lambda xs: xs[0].T[:, :, None, None],
)
# [C, 1, 1], as timm's LayerScale2d.
PLANES = Layout(lambda x: [x.reshape(-1)], lambda xs: xs[0][:, None, None])


def convolution(patch_size: int, channels: int = 3) -> Layout:
    """torch's [C, 3, p, p] of a patch embedding <-> ours [p * p * 3, C]; or other channels.

    ``to_ours`` raises ValueError for axes in another order, which would fit, too.
    """

    def to_ours(x: Array) -> list[Array]:
        if tuple(x.shape[1:]) != (channels, patch_size, patch_size):
            raise ValueError(f"{list(x.shape)} is no [C, {channels}, {patch_size}, {patch_size}]")
        return [x.transpose(2, 3, 1, 0).reshape(-1, x.shape[0])]

    def to_theirs(xs: list[Array]) -> Array:
        return xs[0].reshape(patch_size, patch_size, channels, -1).transpose(3, 2, 0, 1)

    return Layout(to_ours, to_theirs)


def flat(shape: Sequence[int]) -> Layout:
    """Their array of this shape <-> ours, with the leading axes of a kernel put together."""
    return Layout(
        lambda x: [x.reshape(-1, shape[-1])] if len(shape) > 1 else [x.reshape(-1)],
        lambda xs: xs[0].reshape(shape),
    )


def rows_apart(count: int, *, transpose: bool) -> Layout:
    """``count`` arrays one above the other, as torch's fused query, key and value.

    Args:
      count: how many.
      transpose: whether each is a torch weight, [out, in].
    """

    def to_ours(x: Array) -> list[Array]:
        return [part.T if transpose else part for part in np.split(x, count)]

    def to_theirs(xs: list[Array]) -> Array:
        return np.concatenate([x.T if transpose else x for x in xs])

    return Layout(to_ours, to_theirs)


def stack(layouts: Sequence[Layout]) -> Layout:
    """Layers along a leading axis <-> one array each, of layouts of one array.

    ``to_ours`` raises ValueError for another number of layers.
    """

    def to_ours(x: Array) -> list[Array]:
        if len(x) != len(layouts):
            raise ValueError(f"{len(x)} layers, not {len(layouts)}")
        return [layout.to_ours(part)[0] for layout, part in zip(layouts, x, strict=True)]

    def to_theirs(xs: list[Array]) -> Array:
        return np.stack([la.to_theirs([x]) for la, x in zip(layouts, xs, strict=True)])

    return Layout(to_ours, to_theirs)


def dense(theirs: str, ours: str, *, bias: bool = True) -> Iterator[Entry]:
    """A linear layer of torch."""
    yield Entry(f"{theirs}.weight", (f"{ours}/kernel",), TRANSPOSED)
    if bias:
        yield Entry(f"{theirs}.bias", (f"{ours}/bias",), SAME)


def norm(theirs: str, ours: str, *, bias: bool = True) -> Iterator[Entry]:
    """A layer norm of torch; without bias a norm by the root mean square."""
    yield Entry(f"{theirs}.weight", (f"{ours}/scale",), SAME)
    if bias:
        yield Entry(f"{theirs}.bias", (f"{ours}/bias",), SAME)


def pointwise(theirs: str, ours: str, *, bias: bool = True) -> Iterator[Entry]:
    """A 1x1 convolution of torch, a linear layer of ours."""
    yield Entry(f"{theirs}.weight", (f"{ours}/kernel",), POINTWISE)
    if bias:
        yield Entry(f"{theirs}.bias", (f"{ours}/bias",), SAME)


def conv(theirs: str, ours: str, *, bias: bool = True) -> Iterator[Entry]:
    """A convolution of torch."""
    yield Entry(f"{theirs}.weight", (f"{ours}/kernel",), CONV)
    if bias:
        yield Entry(f"{theirs}.bias", (f"{ours}/bias",), SAME)


def batch_norm(theirs: str, ours: str) -> Iterator[Entry]:
    """A batch norm of torch with its running statistics."""
    yield from norm(theirs, ours)
    for name in ("running_mean", "running_var"):
        yield Entry(f"{theirs}.{name}", (f"{ours}/{name}",), SAME)


def fused_attention(weight: str, bias: str, ours: str, names: Sequence[str]) -> Iterator[Entry]:
    """Some of query, key and value in one torch weight and one bias."""
    for theirs, leaf, transpose in ((weight, "kernel", True), (bias, "bias", False)):
        paths = tuple(f"{ours}/{name}/{leaf}" for name in names)
        yield Entry(theirs, paths, rows_apart(len(names), transpose=transpose))


class MappingError(ValueError):
    """Tensors that do not fit a family; the message lists them by name and shape."""


def check(
    entries: Iterable[Entry],
    theirs: Mapping[str, tuple[int, ...]],
    ours: Mapping[str, tuple[int, ...]],
    *,
    ignore: Callable[[str], bool] = lambda name: False,
    what: str = "the checkpoint",
) -> None:
    """Refuse a checkpoint unless every tensor is used exactly once and has its shape.

    Args:
      entries: of the family.
      theirs: shapes of the tensors that there are.
      ours: shapes of the parameters that are wanted.
      ignore: tensors that hold no weights (buffers).
      what: for the error.

    Raises:
      MappingError: lists missing, superfluous and misshapen tensors.
    """
    entries = list(entries)
    wanted = {entry.theirs for entry in entries}
    problems = [f"missing: {e.theirs} for {', '.join(e.ours)}" for e in entries
                if e.theirs not in theirs]  # fmt: skip
    problems += [
        f"not used: {name} {list(shape)}"
        for name, shape in theirs.items()
        if name not in wanted and not ignore(name)
    ]
    filled: dict[str, int] = {}
    for entry in entries:
        if entry.theirs in theirs:
            problems += _shape_problems(entry, theirs[entry.theirs], ours)
        for path in entry.ours:
            filled[path] = filled.get(path, 0) + 1
    problems += [f"no tensor holds our {path}" for path in ours if path not in filled]
    problems += [f"{count} tensors hold our {path}" for path, count in filled.items() if count > 1]
    if problems:
        more = f"\n  and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise MappingError(
            f"{what} does not fit the model:\n  " + "\n  ".join(problems[:10]) + more
        )


def _shape_problems(
    entry: Entry, shape: tuple[int, ...], ours: Mapping[str, tuple[int, ...]]
) -> list[str]:
    if any(path not in ours for path in entry.ours):
        return [f"{entry.theirs} would be {', '.join(entry.ours)}, which this model does not have"]
    try:
        # Strides of 0: the shape of an array without its memory.
        made = entry.layout.to_ours(np.broadcast_to(np.zeros((), np.uint8), shape))
        found = [tuple(np.shape(array)) for array in made]
    except (ValueError, IndexError):
        found = []
    expected = [tuple(ours[path]) for path in entry.ours]
    if found == expected:
        return []
    return [f"{entry.theirs} {list(shape)} does not hold {', '.join(entry.ours)} {expected}"]


def to_ours(entries: Iterable[Entry], read: Callable[[str], Array]) -> Iterator[tuple[str, Array]]:
    """``(our path, array)`` tensor by tensor; one of theirs is in memory at a time."""
    for entry in entries:
        yield from zip(entry.ours, entry.layout.to_ours(read(entry.theirs)), strict=True)


def to_theirs(
    entries: Iterable[Entry], ours: Mapping[str, Array]
) -> Iterator[tuple[str, np.ndarray]]:
    """``(their name, array)``, contiguous, for a file of theirs."""
    for entry in entries:
        arrays = [np.asarray(ours[path]) for path in entry.ours]
        # Not ascontiguousarray, which makes a scalar an array of one element.
        yield entry.theirs, np.asarray(entry.layout.to_theirs(arrays), order="C")
