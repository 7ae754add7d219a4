"""A mixture of MLPs, of which every token takes a few: router, top-k, capacity.

CLIP-MoE (Zhang et al., 2024, arXiv:2409.19291) and CLIP-UP (Wang et al., 2025, arXiv:2502.00965).
The losses on what the router did are in :mod:`jaxclip.objectives.clip_moe`; experts are made of a
trained model's MLPs by :func:`jaxclip.weights.surgery.upcycle`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


class Experts(nn.Module):
    """y = sum over a token's top k of E experts of w_e MLP_e(x), its probabilities made to sum to
    1.

    Without a capacity every expert runs on every token, which costs E MLPs, and nothing is dropped.
    With capacity c an expert takes the first ceil(c k L / E) tokens of a row that choose it, first
    choices before second ones; a token that it has no place for keeps the rest of its sum, or only
    the residual. Rows do not compete, so a gradient does not depend on how a batch is cut.

    Attributes:
      num_experts: E.
      mlp_dim: hidden width of each.
      activation: between its two layers.
      dtype: compute dtype; the router is float32.
      per_token: k.
      capacity: c; 0 for no limit.
    """

    num_experts: int
    mlp_dim: int
    activation: Callable[[jax.Array], jax.Array]
    dtype: Any
    per_token: int = 2
    capacity: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """[B, L, C] -> [B, L, C] and float32[B, k + 2, E] of each row.

        The latter: for each rank the share of tokens that have an expert there, the mean
        probability of each expert, and (in all E places) the mean of logsumexp(router logits)².
        """
        router = nn.Dense(
            self.num_experts,
            use_bias=False,
            kernel_init=nn.initializers.normal(0.02),
            precision="highest",
            name="router",
        )
        logits = router(x.astype(jnp.float32))
        weights, choices = route(logits, self.per_token)
        mlps = _MLPs(self.num_experts, self.mlp_dim, self.activation, self.dtype, name="experts")
        if not self.capacity:
            share = jnp.einsum("blke,blk->ble", choices, weights)
            y = mlps(jnp.broadcast_to(x[:, None], (x.shape[0], self.num_experts, *x.shape[1:])))
            y = jnp.einsum("belc,ble->blc", y, share.astype(self.dtype))
        else:
            places = math.ceil(self.capacity * self.per_token * x.shape[1] / self.num_experts)
            taken = assign(choices, min(places, x.shape[1]))  # [B, L, k, E, places]
            taken_by = taken.sum(2).astype(self.dtype)
            y = mlps(jnp.einsum("blep,blc->bepc", taken_by, x.astype(self.dtype)))
            back = jnp.einsum("blkep,blk->blep", taken, weights).astype(self.dtype)
            y = jnp.einsum("bepc,blep->blc", y, back)
        return y.astype(x.dtype), statistics(logits, choices)


class _MLPs(nn.Module):
    """E MLPs on their own tokens: [B, E, P, C] -> the same, with stacked parameters."""

    num_experts: int
    mlp_dim: int
    activation: Callable[[jax.Array], jax.Array]
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        size = x.shape[-1]
        x = self.activation(_Layers(self.num_experts, self.mlp_dim, self.dtype, name="up")(x))
        return _Layers(self.num_experts, size, self.dtype, name="down")(x)


class _Layers(nn.Module):
    """E linear layers: [B, E, P, C] -> [B, E, P, features]."""

    num_experts: int
    features: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = nn.initializers.xavier_uniform(batch_axis=(0,))
        kernel = self.param("kernel", init, (self.num_experts, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.num_experts, self.features))
        x = jnp.einsum("bepc,ecf->bepf", x.astype(self.dtype), kernel.astype(self.dtype))
        return x + bias[:, None].astype(self.dtype)


def route(logits: jax.Array, per_token: int) -> tuple[jax.Array, jax.Array]:
    """The experts of each token.

    Args:
      logits: float32[B, L, E] of the router.
      per_token: k.

    Returns:
      ``(weights float32[B, L, k], choices float32[B, L, k, E])``: probabilities of the k likeliest
      experts, made to sum to 1, and which they are as one-hot rows, the likeliest first.
    """
    best, index = jax.lax.top_k(jax.nn.softmax(logits, axis=-1), per_token)
    weights = best / jnp.sum(best, axis=-1, keepdims=True)
    return weights, jax.nn.one_hot(index, logits.shape[-1])


def assign(choices: jax.Array, places: int) -> jax.Array:
    """Places of experts for the tokens of a row.

    Args:
      choices: float32[B, L, k, E], one-hot.
      places: of each expert, P.

    Returns:
      float32[B, L, k, E, P], 1 where a token's choice has a place. All first choices come before
      any second one, earlier tokens before later ones.
    """
    rows, length, ranks, experts = choices.shape
    in_order = choices.swapaxes(1, 2).reshape(rows, ranks * length, experts)
    before = jnp.cumsum(in_order, axis=1) - in_order
    taken = in_order[..., None] * jax.nn.one_hot(before.astype(jnp.int32), places)
    return taken.reshape(rows, ranks, length, experts, places).swapaxes(1, 2)


def statistics(logits: jax.Array, choices: jax.Array) -> jax.Array:
    """float32[B, k + 2, E]; see :class:`Experts`."""
    chosen = jnp.mean(choices, axis=1)
    probability = jnp.mean(jax.nn.softmax(logits, axis=-1), axis=1)
    z = jnp.mean(jax.nn.logsumexp(logits, axis=-1) ** 2, axis=1)
    z = jnp.broadcast_to(z[:, None], probability.shape)
    return jnp.concatenate([chosen, probability[:, None], z[:, None]], axis=1)
