"""Randomness with a key for each row: what a row draws depends on its own key and on nothing else.

So results are the same however a batch is cut into micro-batches or spread over devices.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def fold_in(keys: jax.Array, data: int | jax.Array) -> jax.Array:
    """Other keys for another place: PRNG keys [B] -> PRNG keys [B].

    Args:
      keys: a key for each row.
      data: number of the place, int or int32[].
    """
    return jax.vmap(lambda key: jax.random.fold_in(key, data))(keys)


def dropout(x: jax.Array, keys: jax.Array, rate: float) -> jax.Array:
    """Zero elements with probability ``rate``, and divide the others by 1 - rate.

    Dropout of Srivastava et al. (2014, JMLR 15).

    Args:
      x: [B, ...].
      keys: a PRNG key for each row, [B].
      rate: in [0, 1).
    """
    kept = jax.vmap(lambda key: jax.random.bernoulli(key, 1.0 - rate, x.shape[1:]))(keys)
    return jnp.where(kept, x / jnp.asarray(1.0 - rate, x.dtype), jnp.zeros_like(x))


def random_patches(keys: jax.Array, num_patches: int, rate: float) -> jax.Array:
    """Patches to keep, a random subset for each row, in ascending order.

    Patch dropout as in FLIP (Li et al., 2023, arXiv:2212.00794).

    Args:
      keys: a PRNG key for each row, [B].
      num_patches: how many there are, N.
      rate: share to drop, in [0, 1).

    Returns:
      int32[B, K], K = max(1, floor(N (1 - rate))).
    """
    count = max(1, int(num_patches * (1.0 - rate) + 1e-9))
    noise = jax.vmap(lambda key: jax.random.uniform(key, (num_patches,)))(keys)
    kept = jnp.argsort(noise, axis=1)[:, :count]
    return jnp.sort(kept, axis=1).astype(jnp.int32)


def check_keys(keys: jax.Array | None, batch: int, rates: dict[str, float]) -> None:
    """Refuse keys that do not fit.

    Args:
      keys: as given by a caller.
      batch: number of rows.
      rates: the rates that are above 0, by name of their option.

    Raises:
      ValueError: there are none, or they are not one key for each row.
    """
    if keys is None:
        given = ", ".join(f"{name}={rate}" for name, rate in rates.items())
        raise ValueError(
            f"train=True with {given} needs keys=, a PRNG key for each row: "
            "jax.random.split(key, batch)"
        )
    if not jnp.issubdtype(keys.dtype, jax.dtypes.prng_key) or keys.shape != (batch,):
        raise ValueError(
            f"keys of dtype {keys.dtype} and shape {keys.shape}; use one typed PRNG key for each "
            f"of the {batch} rows: jax.random.split(jax.random.key(seed), {batch})"
        )
