"""Policy gradient for captions with their own greedy captions as the baseline."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxclip.shapes import check_shapes


def self_critical(
    log_probabilities: jax.Array,
    real: jax.Array,
    rewards: jax.Array,
    baseline: jax.Array,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Mean over sampled captions of -(reward - baseline) Σ log p (Rennie et al. 2017,
    arXiv:1612.00563; with CLIPScore as the reward: Cho et al. 2022, arXiv:2205.13115).

    Their CLIP reward has the weight 2 and five samples a picture. Rewards are any numbers: those of
    :mod:`jaxclip.evaluate.caption_score`, or of a grammar head on text vectors.

    Args:
      log_probabilities: float[B, K, L], of the tokens of K sampled captions of each picture.
      real: bool[B, K, L], which are tokens and no padding.
      rewards: float[B, K], without a gradient.
      baseline: float[B], rewards of the greedy captions.

    Returns:
      ``(float32[], metrics)``: ``advantage``, the mean of reward - baseline.

    Raises:
      ValueError: shapes that do not fit.
    """
    check_shapes(
        "self_critical",
        log_probabilities=(log_probabilities, "B K L"),
        real=(real, "B K L"),
        rewards=(rewards, "B K"),
        baseline=(baseline, "B"),
    )
    advantage = jax.lax.stop_gradient(rewards - baseline[:, None])
    chances = jnp.sum(log_probabilities.astype(jnp.float32), axis=-1, where=real)
    return -jnp.mean(advantage * chances), {"advantage": jnp.mean(advantage)}
