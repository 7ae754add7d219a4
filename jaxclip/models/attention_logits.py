"""The largest attention logits of a tower: the early sign that attention grows out of bounds."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxclip.models import attend


def largest_attention_logits(tower: Any, params: Any, inputs: jax.Array) -> jax.Array:
    """The largest q·k / sqrt(d) of every head, before the softmax.

    Of pairs that see each other: not of those that a causal mask or padding hides. It is a forward
    pass of its own that holds the scores of one block, so give it a few examples; fused kernels
    keep none. :func:`jaxclip.optim.qk_clip` takes it from there.

    Args:
      tower: ``model.image`` or ``model.text``.
      params: of the tower.
      inputs: images or token ids, as the tower takes them.

    Returns:
      float32[depth, H].
    """
    depth = tower.config.depth
    tokens = tower.embed(params, inputs)
    causal = getattr(tower.config, "causal", False)
    length = tokens.x.shape[1]
    bias = attend.score_bias(None, tower.mask(tokens), causal, (length, length))
    hidden = tower.features(params, inputs, hidden=range(depth)).hidden
    largest = []
    for block in range(depth):
        query, key, _ = tower.qkv(params, hidden[block], block, tower.turns(tokens))
        scores = jnp.einsum("bhqd,bhkd->bhqk", query, key, preferred_element_type=jnp.float32)
        scores = scores * query.shape[-1] ** -0.5
        scores = scores if bias is None else jnp.where(bias < 0, -jnp.inf, scores)
        largest.append(jnp.max(scores, axis=(0, 2, 3)))
    return jnp.stack(largest)
