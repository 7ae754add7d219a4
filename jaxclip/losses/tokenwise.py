"""Similarity of all images with all texts by their tokens (Yao et al., 2021, arXiv:2111.07783)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxclip.shapes import check_shapes

_NOTHING = -1e30


def tokenwise_similarity(
    image_tokens: jax.Array,
    text_tokens: jax.Array,
    text_mask: jax.Array | None = None,
    *,
    tile_size: int = 16,
    precision: str = "highest",
    mesh: Mesh | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Mean over one side's tokens of the largest product with the other side's.

    image_to_text_ij = mean_p max_q v_ip · t_jq and text_to_image_ij = mean_q max_p v_ip · t_jq, of
    real tokens q alone. The two are not the same. With one token each, both are the products.

    Of the products of tokens no more than ``tile_size`` images by ``tile_size`` texts are held at a
    time on a device; the backward pass makes them again.

    Args:
      image_tokens: float[B, P, D], unit rows.
      text_tokens: float[M, L, D], unit rows.
      text_mask: bool[M, L], which tokens are real, at least one of each text; None for all.
      tile_size: the limit above.
      precision: of the products.
      mesh: mesh over which the images, and so the rows of the results, are sharded.

    Returns:
      ``(image_to_text, text_to_image)``, float32[B, M] each.

    Raises:
      ValueError: ``tile_size`` is not positive, or shapes that do not fit.
    """
    if tile_size < 1:
        raise ValueError(f"tile_size={tile_size} must be at least 1")
    check_shapes(
        "tokenwise_similarity",
        image_tokens=(image_tokens, "B P D"),
        text_tokens=(text_tokens, "M L D"),
        text_mask=(text_mask, "M L"),
    )
    if text_mask is None:
        text_mask = jnp.ones(text_tokens.shape[:2], bool)
    shards, place = _sharding(image_tokens.shape[0], mesh)
    local, count = image_tokens.shape[0] // shards, text_tokens.shape[0]
    rows, columns = _divisor(local, tile_size), _divisor(count, tile_size)
    # Tiles of all devices' own rows go through the loop together, so that no row moves.
    images = image_tokens.reshape(shards, local // rows, rows, *image_tokens.shape[1:])
    images = jnp.swapaxes(place(images), 0, 1)
    texts = text_tokens.reshape(count // columns, columns, *text_tokens.shape[1:])
    masks = text_mask.reshape(count // columns, columns, -1)

    @jax.checkpoint
    def tile(image: jax.Array, text: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
        products = jnp.einsum(
            "sapd,bqd->sabpq",
            image,
            text,
            precision=jax.lax.Precision(precision),
            preferred_element_type=jnp.float32,
        )
        to_text = jnp.max(jnp.where(mask[:, None, :], products, _NOTHING), axis=-1).mean(-1)
        to_image = jnp.mean(jnp.max(products, axis=-2), axis=-1, where=mask)
        return to_text, to_image

    def row(image: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jax.lax.map(lambda other: tile(image, *other), (texts, masks))

    def join(tiles: jax.Array) -> jax.Array:  # [row tiles, column tiles, shards, rows, columns]
        tiles = place(tiles.transpose(2, 0, 3, 1, 4))
        return tiles.reshape(image_tokens.shape[0], count)

    to_text, to_image = jax.lax.map(row, images)
    return join(to_text), join(to_image)


def _sharding(size: int, mesh: Mesh | None):  # type: ignore[no-untyped-def]
    """How many devices share so many rows, and a function that puts an array's first axis there."""
    if mesh is None or size % mesh.size:
        return 1, lambda array: array
    # A tensor axis shares the work in place of repeating it.
    sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    return mesh.size, lambda array: jax.lax.with_sharding_constraint(array, sharding)


def _divisor(number: int, most: int) -> int:
    """The largest divisor that is at most ``most``."""
    return next(n for n in range(min(number, most), 0, -1) if number % n == 0)
