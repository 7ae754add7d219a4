"""Another image size, another context length: tables of positions at another size."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxclip.models.positions import resize_positions
from jaxclip.models.presets import CLIPConfig

Params = dict[str, Any]
KEEP = 20


def resize_image(params: Params, sizes: CLIPConfig, image_size: int) -> tuple[Params, CLIPConfig]:
    """A model for pictures of another size: its learned positions are interpolated.

    Bicubic with antialiasing, as open_clip's ``resize_pos_embed``
    (:func:`jaxclip.models.positions.resize_positions`).

    Args:
      params: the tree of :meth:`jaxclip.models.CLIP.init`.
      sizes: its architecture.
      image_size: side of the new input, pixels; a multiple of the patch size.

    Returns:
      ``(params, sizes)``; the same parameters where the size is the same.

    Raises:
      ValueError: a size that the patches do not divide.
    """
    new = dataclasses.replace(sizes, image=dataclasses.replace(sizes.image, image_size=image_size))
    if new.image.grid == sizes.image.grid or sizes.image.positions != "learned":
        return params, new
    table = params["image"]["positions"]
    grids = [(tower.grid, tower.grid) for tower in (sizes.image, new.image)]
    prefix = table.shape[0] - sizes.image.grid**2
    resized = resize_positions(jnp.asarray(table), grids[0], grids[1], prefix=prefix)
    return {**params, "image": {**params["image"], "positions": resized}}, new


def resize_table(table: jax.Array | np.ndarray, rows: int) -> jax.Array | None:
    """A table of a square grid, with a class token's row or without, for another square grid.

    Args:
      table: float[N, C].
      rows: wanted.

    Returns:
      float[rows, C]; None where either number of rows is no such grid.
    """
    for prefix in (0, 1):
        old, new = (round(max(n - prefix, 0) ** 0.5) for n in (table.shape[0], rows))
        if old and new and old**2 + prefix == table.shape[0] and new**2 + prefix == rows:
            return resize_positions(jnp.asarray(table), (old, old), (new, new), prefix=prefix)
    return None


def stretch_text(
    params: Params, sizes: CLIPConfig, context_length: int, *, keep: int = KEEP
) -> tuple[Params, CLIPConfig]:
    """A model for longer texts; see :func:`stretch_positions`.

    Args:
      params: the tree of :meth:`jaxclip.models.CLIP.init`.
      sizes: its architecture.
      context_length: the new one, at least as long. 77 to 248 is Long-CLIP's.
      keep: positions that stay as they are.

    Returns:
      ``(params, sizes)``.

    Raises:
      ValueError: as :func:`stretch_positions`.
    """
    new = dataclasses.replace(
        sizes, text=dataclasses.replace(sizes.text, context_length=context_length)
    )
    table = stretch_positions(params["text"]["positions"], context_length, keep=keep)
    return {**params, "text": {**params["text"], "positions": table}}, new


def stretch_positions(table: jax.Array | np.ndarray, rows: int, *, keep: int = KEEP) -> jax.Array:
    """A table of text positions for longer texts (Zhang et al., 2024, Long-CLIP, arXiv:2403.15378).

    The first ``keep`` rows, which are well trained, stay; row ``keep + j`` of the result is the old
    table at ``keep + j / r``, between two rows linearly and beyond the last one by its last step,
    with ``r = (rows - keep) / (old rows - keep)``. The paper stretches 77 to 248: r = 4.

    Args:
      table: float[L, C].
      rows: wanted, at least L.
      keep: rows that stay.

    Returns:
      float[rows, C]; the table itself for ``rows = L``.

    Raises:
      ValueError: fewer rows than there are, or no two rows beyond those that stay.
    """
    old = table.shape[0]
    if rows == old:
        return jnp.asarray(table)
    if rows < old:
        raise ValueError(f"context_length={rows} is shorter than {old}; cut the table instead")
    if not 0 <= keep <= old - 2:
        raise ValueError(f"keep={keep} of {old} positions leaves nothing to stretch")
    ratio = (rows - keep) / (old - keep)
    places = keep + np.arange(rows - keep) / ratio
    lower = np.minimum(places.astype(np.int64), old - 2)
    weight = jnp.asarray((places - lower)[:, None], jnp.float32)
    wide = jnp.asarray(table).astype(jnp.float32)
    # Exact at whole places, the last one (weight 1) among them.
    stretched = (1 - weight) * wide[lower] + weight * wide[lower + 1]
    return jnp.concatenate([jnp.asarray(table)[:keep], stretched.astype(table.dtype)])
