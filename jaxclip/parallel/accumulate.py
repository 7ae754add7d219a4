"""Value and gradient of a contrastive step, whole or by micro-batches, with equal results.

A contrastive loss couples all pairs of the batch, so the mean of the losses of small batches is
another loss. GradCache (Gao et al. 2021, arXiv:2101.06983) splits the step where it can be split:
embeddings of all micro-batches first, keeping no activations; one loss on the whole batch, with its
gradient with respect to the embeddings; then each micro-batch forward again and backward from that
gradient. The price is the second forward pass, at most a third of the plain step.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxclip.parallel.mesh import BATCH_AXES, batch_shards

Batch = Mapping[str, jax.Array]
Encoder = Callable[..., jax.Array]
Loss = Callable[..., tuple[jax.Array, dict[str, jax.Array]]]
ValueAndGrad = Callable[..., tuple[tuple[jax.Array, dict[str, jax.Array]], Any]]


def contrastive_value_and_grad(
    encode_image: Encoder,
    encode_text: Encoder,
    loss_fn: Loss,
    *,
    num_micro_batches: int = 1,
    mesh: Mesh | None = None,
) -> ValueAndGrad:
    """Build ``(params, batch) -> ((loss, metrics), gradients)`` of a two-tower step.

    Args:
      encode_image: ``(params, images [B, ...]) -> f32[B, D]``.
      encode_text: ``(params, tokens [B, L]) -> f32[B, D]``.
      loss_fn: ``(image_embeddings, text_embeddings, *, logit_scale, logit_bias) -> (loss,
        metrics)`` on the global batch (:mod:`jaxclip.losses`). One with a parameter ``mesh`` is
        given the mesh.
      num_micro_batches: into how many pieces the batch is cut; 1 is the plain step. Each device
        cuts its own rows, so that no row moves.
      mesh: the mesh the batch is sharded over; None for one device.

    Returns:
      ``value_and_grad(params, batch, rng=None)``; a batch is a mapping with ``image`` and
      ``text``. With ``rng`` (a key) encoders are called with a third argument, a key of their own
      for each micro-batch: the same in both passes, so that dropout drops the same.

    Raises:
      ValueError: ``num_micro_batches`` is not positive or, when called, does not divide the batch
        of a device.
    """
    if num_micro_batches < 1:
        raise ValueError(f"num_micro_batches={num_micro_batches} must be at least 1")
    takes_mesh = "mesh" in inspect.signature(loss_fn).parameters
    options: dict[str, Any] = {"mesh": mesh} if takes_mesh else {}

    def embed(params: Any, batch: Batch, rng: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        if rng is None:
            return encode_image(params, batch["image"]), encode_text(params, batch["text"])
        image_key, text_key = jax.random.split(rng)
        image = encode_image(params, batch["image"], image_key)
        return image, encode_text(params, batch["text"], text_key)

    def loss_of(embeddings: tuple[jax.Array, jax.Array], params: Any) -> Any:
        scale, bias = params["logit_scale"], params.get("logit_bias")
        return loss_fn(*embeddings, logit_scale=scale, logit_bias=bias, **options)

    def plain(params: Any, batch: Batch, rng: jax.Array | None = None) -> Any:
        def whole(params: Any) -> Any:
            return loss_of(embed(params, batch, rng), params)

        return jax.value_and_grad(whole, has_aux=True)(params)

    def accumulated(params: Any, batch: Batch, rng: jax.Array | None = None) -> Any:
        split, join = _splitter(batch["image"].shape[0], num_micro_batches, mesh)
        pieces = {name: split(batch[name]) for name in ("image", "text")}
        keys = None if rng is None else jax.random.split(rng, num_micro_batches)

        def forward(_: None, piece: Any) -> tuple[None, Any]:
            return None, embed(params, *piece)

        _, parts = jax.lax.scan(forward, None, (pieces, keys))
        # The gradient of the loss has the parameters' tree, with zeros for the encoders': it is
        # what the sums over micro-batches start from.
        (loss, metrics), (cotangents, start) = jax.value_and_grad(
            loss_of, argnums=(0, 1), has_aux=True
        )(jax.tree.map(join, parts), params)

        def backward(total: Any, item: Any) -> tuple[Any, None]:
            piece, cotangent = item
            _, pull = jax.vjp(lambda params: embed(params, *piece), params)
            return jax.tree.map(jnp.add, total, pull(cotangent)[0]), None

        items = ((pieces, keys), jax.tree.map(split, cotangents))
        gradients, _ = jax.lax.scan(backward, start, items)
        return (loss, metrics), gradients

    return plain if num_micro_batches == 1 else accumulated


def _splitter(
    size: int, count: int, mesh: Mesh | None
) -> tuple[Callable[[jax.Array], jax.Array], Callable[[jax.Array], jax.Array]]:
    """Functions ``[B, ...] -> [count, B / count, ...]`` and back that move no row to another
    device."""
    shards = 1 if mesh is None else batch_shards(mesh)
    if size % (shards * count):
        raise ValueError(
            f"num_micro_batches={count} does not divide the {size / shards:g} examples a batch of "
            f"{size} leaves each of {shards} batch shard(s); use a batch that is a multiple of "
            f"{shards * count}"
        )

    def constrain(array: jax.Array, *axes: Any) -> jax.Array:
        if mesh is None:
            return array
        spec = PartitionSpec(*axes)
        return jax.lax.with_sharding_constraint(array, NamedSharding(mesh, spec))

    def split(array: jax.Array) -> jax.Array:
        pieces = array.reshape(shards, count, -1, *array.shape[1:])
        pieces = constrain(pieces, BATCH_AXES)
        pieces = constrain(jnp.swapaxes(pieces, 0, 1), None, BATCH_AXES)
        return constrain(pieces.reshape(count, -1, *array.shape[1:]), None, BATCH_AXES)

    def join(pieces: jax.Array) -> jax.Array:
        array = pieces.reshape(count, shards, -1, *pieces.shape[2:])
        array = constrain(array, None, BATCH_AXES)
        array = constrain(jnp.swapaxes(array, 0, 1), BATCH_AXES)
        return constrain(array.reshape(-1, *pieces.shape[2:]), BATCH_AXES)

    return split, join
