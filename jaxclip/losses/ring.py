"""A sweep over all pairs of two sharded sets of rows, a tile at a time.

Every device keeps its rows, and the columns go round a ring of the devices, so that after as many
steps as there are devices each pair has been seen once, by one device. What a pair adds to its row
stays; what it adds to its column travels with the columns and comes home with them. Within a device
the block of pairs at hand is cut into tiles. Nothing larger than a tile or a device's share of the
rows is ever held.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from jaxclip.losses import ring_order

# (rows, columns, row state, pairs) -> (row state, what the tile adds to its columns)
TileFn = Callable[[Any, Any, Any, "Pairs"], tuple[Any, Any]]


@dataclasses.dataclass(frozen=True)
class Layout:
    """How n rows lie on the ring and in tiles; the same for rows and columns.

    Attributes:
      size: number of rows there are in truth, over all devices.
      axes: mesh axes the ring runs over, () on one device.
      shards: length of the ring.
      order: the devices' positions on the axes, in the order of the ring.
      tiles: tiles along a device's rows.
      tile: rows of a tile.
    """

    size: int
    axes: tuple[str, ...]
    shards: int
    order: tuple[int, ...]
    tiles: int
    tile: int

    @property
    def local(self) -> int:
        """Rows of a device, without the padding of tiles."""
        return -(-self.size // self.shards)

    @property
    def padded(self) -> bool:
        """Whether some rows of some device are none."""
        return self.size != self.shards * self.tiles * self.tile


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Which pairs a tile holds.

    Attributes:
      row: int32[tile], number of each row among all rows.
      column: int32[tile], the same of each column.
      row_valid: bool[tile], False for padding; None if there is none.
      column_valid: bool[tile], the same of each column.
    """

    row: jax.Array
    column: jax.Array
    row_valid: jax.Array | None
    column_valid: jax.Array | None

    def real(self) -> jax.Array:
        """bool[tile, tile]: pairs without padding, those of a row with itself included."""
        if self.row_valid is None or self.column_valid is None:
            return jnp.ones((len(self.row), len(self.column)), bool)
        return self.row_valid[:, None] & self.column_valid[None, :]

    def off_diagonal(self) -> jax.Array:
        """bool[tile, tile]: pairs of two different rows, neither of them padding."""
        mask = self.row[:, None] != self.column[None, :]
        if self.row_valid is not None and self.column_valid is not None:
            mask = mask & self.row_valid[:, None] & self.column_valid[None, :]
        return mask


def plan(size: int, tile_size: int, mesh: Mesh | None) -> Layout:
    """Lay out ``size`` rows over the devices of a mesh and tiles of at most ``tile_size`` rows.

    All axes of the mesh are used, those that the rows are not sharded over too: a tensor axis
    shares the work instead of repeating it.

    Raises:
      ValueError: ``tile_size`` is below 1.
    """
    if not isinstance(tile_size, int | np.integer) or tile_size < 1:
        raise ValueError(f"tile_size={tile_size} must be at least 1")
    axes = () if mesh is None or mesh.size == 1 else tuple(mesh.axis_names)
    shards = 1 if mesh is None else mesh.size
    local = -(-size // shards)
    tiles = -(-local // tile_size)
    order = ring_order.ring_order(list(mesh.devices.flat)) if axes and mesh is not None else (0,)
    return Layout(size, axes, shards, order, tiles, -(-local // tiles))


def sharded(
    function: Callable[..., Any], layout: Layout, mesh: Mesh | None, outputs: Sequence[bool]
) -> Callable[..., tuple[jax.Array, ...]]:
    """Run a function of one device's rows on all of them.

    Args:
      function: takes arrays ``[tiles, tile, ...]`` and scalars; returns a tuple of such.
      layout: the layout.
      mesh: the mesh, or None.
      outputs: for each result whether it is an array of rows; the others are scalars, which are
        summed over the ring.

    Returns:
      The same function of arrays ``[size, ...]`` and scalars.
    """
    rows, scalar = PartitionSpec(layout.axes), PartitionSpec()

    def local(*arrays: jax.Array) -> tuple[jax.Array, ...]:
        results = function(*(a if a.ndim == 0 else _cut(a, layout) for a in arrays))
        return tuple(
            _join(result, layout) if is_rows else _sum(result, layout)
            for result, is_rows in zip(results, outputs, strict=True)
        )

    def run(*arrays: jax.Array) -> tuple[jax.Array, ...]:
        spread = tuple(a if a.ndim == 0 else _pad(a, layout.local * layout.shards) for a in arrays)
        mapped = local
        if layout.axes:
            mapped = jax.shard_map(
                local,
                mesh=mesh,
                in_specs=tuple(scalar if a.ndim == 0 else rows for a in arrays),
                out_specs=tuple(rows if is_rows else scalar for is_rows in outputs),
                check_vma=False,
            )
        return tuple(
            result[: layout.size] if is_rows else result
            for result, is_rows in zip(mapped(*spread), outputs, strict=True)
        )

    return run


def sweep(
    tile_fn: TileFn,
    rows: Any,
    columns: Any,
    row_state: Any,
    column_state: Any,
    merge: Callable[[Any, Any], Any],
    layout: Layout,
) -> tuple[Any, Any]:
    """Visit every tile of pairs once.

    Args:
      tile_fn: ``(rows, columns, row_state, pairs) -> (row_state, column_update)`` on one tile.
      rows: tree of arrays ``[tiles, tile, ...]`` that stay.
      columns: tree of arrays ``[tiles, tile, ...]`` that go round.
      row_state: tree of ``[tiles, tile, ...]``, the state of the rows at first.
      column_state: tree of ``[tiles, tile, ...]``, the neutral element of ``merge``.
      merge: how updates of the columns are put together.
      layout: the layout.

    Returns:
      ``(row_state, column_state)``, each on the device whose rows and columns they are.
    """
    home = _position(layout)

    def block(step: Any, visitors: Any, state: Any) -> tuple[Any, Any]:
        origin = _behind(home, step, layout)
        return _sweep_block(
            tile_fn, rows, visitors, state, column_state, merge, layout, home, origin
        )

    if layout.shards == 1:
        return block(0, columns, row_state)

    def turn(step: Any, carry: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
        visitors, state, gathered = carry
        # Neither transfer waits for the block's tiles, so that both hide behind them: the next
        # columns are sent on before they are used here, and the sums that follow them one step
        # behind are added to only after they have arrived.
        following, arrived = _send((visitors, gathered), layout)
        state, update = block(step, visitors, state)
        return following, state, merge(arrived, update)

    carry = (columns, row_state, column_state)
    _, row_state, gathered = jax.lax.fori_loop(0, layout.shards, turn, carry)
    return row_state, _send(gathered, layout)


def nothing(old: None, new: None) -> None:
    """The ``merge`` of a sweep that adds nothing to columns."""


def _sweep_block(
    tile_fn: TileFn,
    rows: Any,
    columns: Any,
    row_state: Any,
    column_state: Any,
    merge: Callable[[Any, Any], Any],
    layout: Layout,
    home: Any,
    origin: Any,
) -> tuple[Any, Any]:
    """All tiles of the block of pairs that this device holds at the moment."""

    def along_columns(column_state: Any, row_tile: Any) -> tuple[Any, Any]:
        i, row, state = row_tile

        def one(state: Any, column_tile: Any) -> tuple[Any, Any]:
            j, column, old = column_tile
            state, update = tile_fn(row, column, state, _pairs(layout, home, origin, i, j))
            return state, merge(old, update)

        state, column_state = _scan(one, state, (indices, columns, column_state), layout.tiles)
        return column_state, state

    indices = jnp.arange(layout.tiles, dtype=jnp.int32)
    column_state, row_state = _scan(
        along_columns, column_state, (indices, rows, row_state), layout.tiles
    )
    return row_state, column_state


def _scan(body: Callable[..., Any], carry: Any, xs: Any, length: int) -> tuple[Any, Any]:
    if length > 1:
        return jax.lax.scan(body, carry, xs)
    carry, y = body(carry, jax.tree.map(lambda x: x[0], xs))
    return carry, jax.tree.map(lambda x: x[None], y)


def _pairs(layout: Layout, home: Any, origin: Any, i: Any, j: Any) -> Pairs:
    within = jnp.arange(layout.tile, dtype=jnp.int32)
    local_row, local_column = i * layout.tile + within, j * layout.tile + within
    row, column = home * layout.local + local_row, origin * layout.local + local_column
    if not layout.padded:
        return Pairs(row, column, None, None)
    row_valid = (local_row < layout.local) & (row < layout.size)
    column_valid = (local_column < layout.local) & (column < layout.size)
    return Pairs(row, column, row_valid, column_valid)


def _position(layout: Layout) -> Any:
    return jax.lax.axis_index(layout.axes) if layout.axes else 0


def _behind(position: Any, steps: Any, layout: Layout) -> Any:
    """The position that many steps behind another on the ring."""
    if layout.order == tuple(range(layout.shards)):
        return (position - steps) % layout.shards
    order = np.asarray(layout.order, np.int32)
    place = jnp.asarray(np.argsort(order), jnp.int32)[position]
    return jnp.asarray(order)[(place - steps) % layout.shards]


def _send(tree: Any, layout: Layout) -> Any:
    to_next = list(zip(layout.order, (*layout.order[1:], layout.order[0]), strict=True))
    return jax.tree.map(lambda x: jax.lax.ppermute(x, layout.axes, to_next), tree)


def _sum(value: jax.Array, layout: Layout) -> jax.Array:
    return jax.lax.psum(value, layout.axes) if layout.axes else value


def _pad(array: jax.Array, rows: int) -> jax.Array:
    if array.shape[0] == rows:
        return array
    return jnp.pad(array, [(0, rows - array.shape[0])] + [(0, 0)] * (array.ndim - 1))


def _cut(array: jax.Array, layout: Layout) -> jax.Array:
    padded = _pad(array, layout.tiles * layout.tile)
    return padded.reshape(layout.tiles, layout.tile, *array.shape[1:])


def _join(array: jax.Array, layout: Layout) -> jax.Array:
    return array.reshape(math.prod(array.shape[:2]), *array.shape[2:])[: layout.local]
