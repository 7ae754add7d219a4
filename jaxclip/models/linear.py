"""Linear layers and norms of all towers, and rows of unit length."""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


def dense(
    features: int,
    dtype: Any,
    name: str | None,
    *,
    use_bias: bool = True,
    init: Any = None,
    flat: bool = False,
    dot_general: Any = None,
    result_dtype: Any = None,
) -> nn.Dense:
    """A linear layer with float32 parameters that computes in ``dtype``.

    Args:
      features: channels that come out.
      dtype: compute dtype.
      name: of its parameters.
      use_bias: whether a bias is added.
      init: initializer of the kernel; None for Glorot's.
      flat: multiply [B, L, C] as [B * L, C]: the same numbers. For CPUs. There XLA copies an
        operand of the weight's gradient into another order first, as it contracts over two axes,
        which takes a sixth of a small model's step. Not for TPUs, which contract over both but pad
        L to a multiple of 8, so that flattening is what copies.
      dot_general: another product, in place of both.
      result_dtype: of what comes out, where it is another than ``dtype``: products are added up in
        float32 in any case, and need not be rounded before an activation or a sum.
    """
    product = _flat_dot_general if flat else None
    if result_dtype is not None:
        product = functools.partial(
            product or jax.lax.dot_general, preferred_element_type=result_dtype
        )
    return nn.Dense(
        features,
        use_bias=use_bias,
        dtype=dtype,
        kernel_init=init or nn.initializers.xavier_uniform(),
        dot_general=dot_general or product,
        name=name,
    )


def _flat_dot_general(
    x: jax.Array, kernel: jax.Array, dimensions: Any, **options: Any
) -> jax.Array:
    del dimensions  # nn.Dense contracts the last axis of x with the first of the kernel
    out = jax.lax.dot_general(
        x.reshape(-1, x.shape[-1]), kernel, (((1,), (0,)), ((), ())), **options
    )
    return out.reshape(*x.shape[:-1], kernel.shape[-1])


def norm(epsilon: float, dtype: Any, name: str | None, kind: str = "layer") -> Any:
    """Layer norm, or ``kind="rms"`` (no mean taken off, no bias; Zhang & Sennrich, 2019,
    arXiv:1910.07467); statistics are float32 whatever ``dtype`` is."""
    cls = nn.RMSNorm if kind == "rms" else nn.LayerNorm
    return cls(epsilon=epsilon, dtype=dtype, name=name)


def head_norm(epsilon: float, dtype: Any, name: str | None) -> nn.LayerNorm:
    """Layer norm without a bias, of each head's queries or keys."""
    return nn.LayerNorm(epsilon=epsilon, dtype=dtype, use_bias=False, name=name)


def unit(x: jax.Array) -> jax.Array:
    """Scale rows to unit length in float32; a zero row stays zero and has gradient zero."""
    x = x.astype(jnp.float32)
    square = jnp.sum(x * x, axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(square, 1e-24))


def qkv_layers(
    width: int, dtype: Any, bias: str, flat: bool = False, *, names: bool = True
) -> tuple[nn.Dense, nn.Dense, nn.Dense]:
    """The linear layers of queries, keys and values.

    Args:
      width: channels that come out.
      dtype: compute dtype.
      bias: as in :class:`jaxclip.models.layers.Variant`.
      flat: as in :func:`dense`.
      names: False for unbound layers.
    """
    query, key, value = (
        dense(
            width,
            dtype,
            name if names else None,
            use_bias=bias == "all" or (bias == "qv" and name != "key"),
            flat=flat,
        )
        for name in ("query", "key", "value")
    )
    return query, key, value
