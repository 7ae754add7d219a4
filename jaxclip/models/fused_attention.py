"""Attention of short sequences in one TPU kernel a pass: the scores never leave the chip.

XLA writes the scores, float32[B, heads, L, L], to memory and reads them back several times a pass.
For the few hundred tokens of an image or a text that traffic takes longer than all the matrix
products of a block, and two or three such arrays are the largest thing a block holds. Here a kernel
keeps whole sequences on the chip, all heads of them, one head's scores at a time, and the backward
pass computes the scores again from queries and keys (as in FlashAttention, Dao et al. 2022,
arXiv:2205.14135; at these lengths no tiling over the sequence is needed).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

# Tokens of a step of the grid: several short sequences are taken at once.
_TOKENS = 320
# Of the 128 MiB on a chip (v4: 32 MiB); the default of 16 MiB is too little for wide towers.
_VMEM_BYTES = 32 * 2**20

AttentionFn = Callable[..., jax.Array]


def fused_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    num_heads: int,
    causal: bool = False,
    interpret: bool = False,
) -> jax.Array:
    """Multi-head self-attention, softmax(Q Kᵀ / √d) V, on one device.

    Scores and softmax are float32, as in :func:`jax.nn.dot_product_attention`, which is what runs
    on all platforms but TPU.

    Args:
      query: [B, L, C]; head h has the channels from h C / num_heads on.
      key: [B, L, C].
      value: [B, L, C].
      num_heads: heads.
      causal: no token sees those behind it.
      interpret: run the kernel in Pallas' interpreter, on any platform (for tests).

    Returns:
      [B, L, C].

    Raises:
      ValueError: shapes that differ, or heads that do not divide the channels.
    """
    if not query.shape == key.shape == value.shape:
        raise ValueError(
            f"fused attention wants queries, keys and values of one shape, got {query.shape}, "
            f"{key.shape} and {value.shape}"
        )
    if query.shape[2] % num_heads:
        raise ValueError(f"num_heads={num_heads} does not divide the {query.shape[2]} channels")
    if interpret:
        return _attention(num_heads, causal, True, query, key, value)
    return jax.lax.platform_dependent(
        query,
        key,
        value,
        tpu=functools.partial(_attention, num_heads, causal, False),
        default=functools.partial(_reference, num_heads, causal),
    )


def sharded(mesh: Mesh, batch_axes: Sequence[str], head_axis: str) -> AttentionFn:
    """:func:`fused_attention` of global arrays: each device runs it on its examples and heads.

    XLA cannot partition a kernel by itself.

    Args:
      mesh: the mesh.
      batch_axes: its axes that examples are sharded over.
      head_axis: its axis that heads are sharded over.

    Returns:
      A function like :func:`fused_attention`. It raises ValueError for heads that do not divide.
    """
    spec = PartitionSpec(tuple(batch_axes), None, head_axis)
    pieces = mesh.shape[head_axis]

    def attention(
        query: jax.Array, key: jax.Array, value: jax.Array, *, num_heads: int, **options: Any
    ) -> jax.Array:
        if num_heads % pieces:
            raise ValueError(
                f"num_heads={num_heads} do not divide over mesh.{head_axis}={pieces}; "
                "use attention_implementation=None or another mesh"
            )
        local: Any = functools.partial(fused_attention, num_heads=num_heads // pieces, **options)
        mapped = jax.shard_map(
            local, mesh=mesh, in_specs=(spec, spec, spec), out_specs=spec, check_vma=False
        )
        return mapped(query, key, value)

    return attention


def _reference(
    num_heads: int, causal: bool, query: jax.Array, key: jax.Array, value: jax.Array
) -> jax.Array:
    heads = (x.reshape(*x.shape[:2], num_heads, -1) for x in (query, key, value))
    return jax.nn.dot_product_attention(*heads, is_causal=causal).reshape(query.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _attention(
    num_heads: int, causal: bool, interpret: bool, q: jax.Array, k: jax.Array, v: jax.Array
) -> jax.Array:
    kernel = functools.partial(_forward_kernel, num_heads, causal)
    return _run(kernel, 1, 2, num_heads, interpret, q, k, v)[0]


def _forward(
    num_heads: int, causal: bool, interpret: bool, *qkv: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    return _attention(num_heads, causal, interpret, *qkv), qkv


def _backward(
    num_heads: int, causal: bool, interpret: bool, qkv: tuple[jax.Array, ...], gradient: jax.Array
) -> tuple[jax.Array, ...]:
    kernel = functools.partial(_backward_kernel, num_heads, causal)
    return _run(kernel, 3, 5, num_heads, interpret, *qkv, gradient)


_attention.defvjp(_forward, _backward)


def _run(
    kernel: Callable[..., None],
    num_outputs: int,
    num_products: int,
    num_heads: int,
    interpret: bool,
    *arrays: jax.Array,
) -> tuple[jax.Array, ...]:
    """Run a kernel on blocks of whole sequences."""
    # Here, for it takes as long to import as all the rest of the models.
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import tpu as pltpu

    batch, length, width = arrays[0].shape
    at_once = max(n for n in range(1, max(1, _TOKENS // length) + 1) if batch % n == 0)
    block = pl.BlockSpec((at_once, length, width), lambda index: (index, 0, 0))
    results = [jax.ShapeDtypeStruct(arrays[0].shape, arrays[0].dtype)] * num_outputs
    moved = (len(arrays) + num_outputs) * arrays[0].size * arrays[0].dtype.itemsize
    cost = pl.CostEstimate(
        flops=num_products * 2 * batch * length * length * width,
        transcendentals=batch * num_heads * length * length,
        bytes_accessed=moved,
    )
    return tuple(
        pl.pallas_call(
            kernel,
            grid=(batch // at_once,),
            in_specs=[block] * len(arrays),
            out_specs=[block] * num_outputs,
            out_shape=results,
            cost_estimate=cost,
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=("parallel",), vmem_limit_bytes=_VMEM_BYTES
            ),
            interpret=interpret,
        )(*arrays)
    )


def _forward_kernel(num_heads: int, causal: bool, q: Any, k: Any, v: Any, out: Any) -> None:
    def one(example: Any, channels: slice) -> None:
        at = (example, slice(None), channels)
        weights = _softmax_scores(q[at], k[at], causal)
        out[at] = _dot(weights.astype(v.dtype), v[at], 1, 0).astype(out.dtype)

    _each_head(num_heads, q.shape, one)


def _backward_kernel(
    num_heads: int, causal: bool, q: Any, k: Any, v: Any, g: Any, dq: Any, dk: Any, dv: Any
) -> None:
    def one(example: Any, channels: slice) -> None:
        at = (example, slice(None), channels)
        query, key, gradient = q[at], k[at], g[at]
        weights = _softmax_scores(query, key, causal)
        dv[at] = _dot(weights.astype(gradient.dtype), gradient, 0, 0).astype(dv.dtype)
        to_weights = _dot(gradient, v[at], 1, 1)
        mean = jnp.sum(weights * to_weights, axis=1, keepdims=True)
        to_scores = weights * (to_weights - mean) * query.shape[1] ** -0.5
        to_scores = to_scores.astype(query.dtype)
        dq[at] = _dot(to_scores, key, 1, 0).astype(dq.dtype)
        dk[at] = _dot(to_scores, query, 0, 0).astype(dk.dtype)

    _each_head(num_heads, q.shape, one)


def _each_head(num_heads: int, shape: Sequence[int], one: Callable[[Any, slice], None]) -> None:
    """Call ``one(example, channels)`` for all examples of a block and all heads.

    Heads are unrolled: which lanes a head lies in has to be known to the compiler.
    """
    size = shape[2] // num_heads
    for head in range(num_heads):
        channels = slice(head * size, (head + 1) * size)
        jax.lax.fori_loop(0, shape[0], lambda n, _, c=channels: one(n, c), None)


def _softmax_scores(query: jax.Array, key: jax.Array, causal: bool) -> jax.Array:
    """[L, d], [L, d] -> float32[L, L], rows that sum to 1."""
    scores = _dot(query, key, 1, 1) * query.shape[1] ** -0.5
    if causal:
        row = jax.lax.broadcasted_iota(jnp.int32, scores.shape, 0)
        column = jax.lax.broadcasted_iota(jnp.int32, scores.shape, 1)
        scores = jnp.where(row >= column, scores, -jnp.inf)
    weights = jnp.exp(scores - jnp.max(scores, axis=1, keepdims=True))
    return weights / jnp.sum(weights, axis=1, keepdims=True)


def _dot(a: jax.Array, b: jax.Array, axis_a: int, axis_b: int) -> jax.Array:
    """Product of two matrices over one axis of each, float32."""
    dimensions = (((axis_a,), (axis_b,)), ((), ()))
    return jax.lax.dot_general(a, b, dimensions, preferred_element_type=jnp.float32)
