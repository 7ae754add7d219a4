"""What both towers are made of: attention, MLP, the pre-norm block, attention pooling."""

from __future__ import annotations

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": functools.partial(nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(nn.gelu, approximate=True),
    # x * sigmoid(1.702 x), as in OpenAI's own models.
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
}

# Of `jax.nn.dot_product_attention`; or a function such as `fused_attention`, which serves where
# there is no mask.
Implementation = str | Callable[..., jax.Array] | None

# Activations that a block may keep for the backward pass beside its input; all else is computed
# again. The names can be joined: "qkv+mlp".
REMAT_KEEPS: dict[str, tuple[str, ...]] = {
    "attention": ("attention_out",),
    "mlp": ("mlp_hidden",),
    "qkv": ("qkv", "attention_out"),
}


class Attention(nn.Module):
    """Multi-head attention: softmax(Q K^T / sqrt(d)) V (Vaswani et al., 2017, equation 1)."""

    num_heads: int
    dtype: Any
    implementation: Implementation = None

    @nn.compact
    def __call__(
        self, queries: jax.Array, keys: jax.Array, *, mask: jax.Array | None, causal: bool
    ) -> jax.Array:
        """[B, Q, C], [B, K, C] -> [B, Q, C]; mask: bool, broadcast to [B, heads, Q, K]."""
        width = queries.shape[-1]

        query, key, value = (
            checkpoint_name(dense(width, self.dtype, name)(x), "qkv")
            for name, x in (("query", queries), ("key", keys), ("value", keys))
        )
        if callable(self.implementation) and mask is None and queries is keys:
            out = self.implementation(query, key, value, num_heads=self.num_heads, causal=causal)
        else:
            shape = (-1, self.num_heads, width // self.num_heads)
            implementation: Any = None if callable(self.implementation) else self.implementation
            out = jax.nn.dot_product_attention(
                query.reshape(query.shape[0], *shape),
                key.reshape(key.shape[0], *shape),
                value.reshape(value.shape[0], *shape),
                mask=mask,
                is_causal=causal,
                implementation=implementation,
            )
        out = checkpoint_name(out.reshape(queries.shape), "attention_out")
        return dense(width, self.dtype, "out")(out)


class MLP(nn.Module):
    """Two linear layers with an activation between."""

    mlp_dim: int
    activation: str
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        hidden = checkpoint_name(dense(self.mlp_dim, self.dtype, "up")(x), "mlp_hidden")
        return dense(x.shape[-1], self.dtype, "down")(ACTIVATIONS[self.activation](hidden))


class Block(nn.Module):
    """A pre-norm Transformer block: x + attention(norm(x)), then x + mlp(norm(x))."""

    num_heads: int
    mlp_dim: int
    activation: str
    norm_eps: float
    dtype: Any
    causal: bool = False
    implementation: Implementation = None

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None) -> jax.Array:
        """[B, L, C] -> [B, L, C]; mask as in :class:`Attention`."""
        y = norm(self.norm_eps, self.dtype, "attention_norm")(x)
        attention = Attention(self.num_heads, self.dtype, self.implementation, name="attention")
        x = x + attention(y, y, mask=mask, causal=self.causal)
        y = norm(self.norm_eps, self.dtype, "mlp_norm")(x)
        return x + MLP(self.mlp_dim, self.activation, self.dtype, name="mlp")(y)


class AttentionPool(nn.Module):
    """Attention pooling: one learned query looks at all places (SigLIP's MAP head)."""

    num_heads: int
    mlp_dim: int
    activation: str
    norm_eps: float
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """[B, L, C] -> [B, C]."""
        probe = self.param("probe", nn.initializers.xavier_uniform(), (1, 1, x.shape[-1]))
        probe = jnp.broadcast_to(probe.astype(self.dtype), (x.shape[0], 1, x.shape[-1]))
        attention = Attention(self.num_heads, self.dtype, name="attention")
        x = attention(probe, x, mask=mask, causal=False)
        y = norm(self.norm_eps, self.dtype, "norm")(x)
        return (x + MLP(self.mlp_dim, self.activation, self.dtype, name="mlp")(y))[:, 0]


def transformer(
    module: nn.Module,
    block: Block,
    depth: int,
    x: jax.Array,
    mask: jax.Array | None,
    *,
    remat: str,
    scan_layers: bool,
) -> jax.Array:
    """Run ``depth`` copies of a block inside a compact module; parameters are ``blocks_<i>``.

    The parameters keep this unrolled layout whatever the switches say; with ``scan_layers`` they
    are stacked on the fly, which compiles one block instead of ``depth``.

    Args:
      module: the tower, inside its ``__call__``; its ``gather_block``, if any, is applied to the
        parameters of a block before they are used.
      block: an unbound block.
      depth: how many.
      x: [B, L, C].
      mask: as in :class:`Attention`.
      remat: what blocks compute again, see :func:`remat_policy`; ``"none"`` for nothing.
      scan_layers: loop instead of unrolling.

    Returns:
      [B, L, C].
    """
    if module.is_initializing():
        for index in range(depth):
            x = block.clone(name=f"blocks_{index}", parent=module)(x, mask)
        return x

    gather_block = getattr(module, "gather_block", None)

    def apply(params: Any, x: jax.Array) -> jax.Array:
        if gather_block is not None:  # inside of what is recomputed: not kept between the passes
            params = gather_block(params)
        out: Any = block.clone(parent=None).apply({"params": params}, x, mask)
        return out

    if remat != "none":
        # Inside a scan nothing can be merged across the boundary, so no barrier is needed.
        apply = jax.checkpoint(apply, policy=remat_policy(remat), prevent_cse=not scan_layers)
    params = module.variables["params"]
    blocks = [params[f"blocks_{index}"] for index in range(depth)]
    if not scan_layers:
        for block_params in blocks:
            x = apply(block_params, x)
        return x
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)
    return jax.lax.scan(lambda x, params: (apply(params, x), None), x, stacked)[0]


def dense(
    features: int, dtype: Any, name: str, *, use_bias: bool = True, init: Any = None
) -> nn.Dense:
    """A linear layer with float32 parameters that computes in ``dtype``."""
    return nn.Dense(
        features,
        use_bias=use_bias,
        dtype=dtype,
        kernel_init=init or nn.initializers.xavier_uniform(),
        dot_general=_flat_dot_general if _FLAT_PRODUCTS.get() else None,
        name=name,
    )


_FLAT_PRODUCTS = contextvars.ContextVar("flat_products", default=False)


@contextlib.contextmanager
def flat_products(on: bool) -> Iterator[None]:
    """While tracing within it, linear layers multiply [B, L, C] as [B * L, C]: the same numbers.

    For CPUs. There XLA copies an operand of the weight's gradient into another order first, as it
    contracts over two axes, which takes a sixth of a small model's step. Not for TPUs, which
    contract over both but pad L to a multiple of 8, so that flattening is what copies.
    """
    token = _FLAT_PRODUCTS.set(on)
    try:
        yield
    finally:
        _FLAT_PRODUCTS.reset(token)


def _flat_dot_general(
    x: jax.Array, kernel: jax.Array, dimensions: Any, **options: Any
) -> jax.Array:
    del dimensions  # nn.Dense contracts the last axis of x with the first of the kernel
    out = jax.lax.dot_general(
        x.reshape(-1, x.shape[-1]), kernel, (((1,), (0,)), ((), ())), **options
    )
    return out.reshape(*x.shape[:-1], kernel.shape[-1])


def norm(epsilon: float, dtype: Any, name: str) -> nn.LayerNorm:
    """Layer norm; its statistics are float32 whatever ``dtype`` is."""
    return nn.LayerNorm(epsilon=epsilon, dtype=dtype, name=name)


def remat_policy(remat: str) -> Callable[..., bool] | None:
    """The policy of ``jax.checkpoint`` that keeps what a name says.

    Args:
      remat: ``"full"`` (only a block's input), ``"dots"`` (results of linear layers), or names of
        :data:`REMAT_KEEPS` joined by ``+``.

    Raises:
      ValueError: there is no such policy.
    """
    if remat == "full":
        return None
    if remat == "dots":
        policy: Callable[..., bool] = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
        return policy
    parts = remat.split("+")
    if not set(parts) <= set(REMAT_KEEPS):
        raise ValueError(
            f"remat={remat!r}; use 'none', 'full', 'dots', "
            f"{', '.join(map(repr, REMAT_KEEPS))}, or several of the last three such as 'qkv+mlp'"
        )
    kept = {name for part in parts for name in REMAT_KEEPS[part]}
    return jax.checkpoint_policies.save_only_these_names(*sorted(kept))
