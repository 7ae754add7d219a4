"""Batch norm in its inference form: the statistics are parameters that nothing updates."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


class FrozenBatchNorm(nn.Module):
    """(x - running_mean) / sqrt(running_var + epsilon) * scale + bias, over the last axis.

    That is batch norm as a published model runs it (Ioffe & Szegedy, 2015, section 3.1), in
    training, too: ``scale`` and ``bias`` learn, ``running_mean`` and ``running_var`` carry no
    gradient, and the train step freezes them by name
    (:func:`jaxclip.config_check.frozen_patterns`). open_clip's ``lock(freeze_bn_stats=True)`` holds
    the statistics likewise. An embedding never depends on the other rows of a batch.

    Attributes:
      epsilon: added to the variance.
      dtype: of the result; the arithmetic is float32.
    """

    epsilon: float = 1e-5
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., C] -> [..., C]."""
        shape = (x.shape[-1],)
        scale = self.param("scale", nn.initializers.ones, shape)
        bias = self.param("bias", nn.initializers.zeros, shape)
        mean = self.param("running_mean", nn.initializers.zeros, shape)
        variance = self.param("running_var", nn.initializers.ones, shape)
        mean, variance = jax.lax.stop_gradient((mean, variance))
        factor = scale * jax.lax.rsqrt(variance + self.epsilon)
        return (x.astype(jnp.float32) * factor + (bias - mean * factor)).astype(self.dtype)
