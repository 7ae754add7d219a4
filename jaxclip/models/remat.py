"""What a block computes again in the backward pass."""

from __future__ import annotations

from collections.abc import Callable

import jax

# Activations that a block may keep for the backward pass beside its input; all else is computed
# again. The names can be joined: "qkv+mlp".
REMAT_KEEPS: dict[str, tuple[str, ...]] = {
    "attention": ("attention_out",),
    "mlp": ("mlp_hidden",),
    "qkv": ("qkv", "attention_out"),
}


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
