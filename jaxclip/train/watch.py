"""Numbers of each tensor in the step, and of activations now and then: the early signs of a spike.

CLIP's loss spikes follow, one to eight steps later, a step at which Adam's second moment of the
first layer under-estimates its squared gradient (Wortsman et al., 2023, arXiv:2304.13013). So the
step tells of each tensor

    rms = sqrt(mean(g² / max(v, eps²))),

with v the second moment without bias, this step's g included. It is about one, and at most
1 / sqrt(1 - b2). It is told from the moments before and after the step, so that it is about the
gradient which the optimizer saw, behind all clippers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxclip import optim
from jaxclip.config import Config
from jaxclip.optim import config as optim_config
from jaxclip.optim.stable_adamw import StableAdamState
from jaxclip.registry import option_defaults
from jaxclip.train import outputs
from jaxclip.train.state import Params, TrainState
from jaxclip.train.towers import ModelTowers

# Metrics under it are vectors [num_tensors], kept for events and never written as curves.
TENSORS = "watch/tensors/"
# An RMS from here on is an early sign (arXiv:2304.13013).
RMS_LIMIT = 2.3

# Optimizers that move v as Adam does, and their option for its decay. Others keep a state of the
# same form but move it by another rule (yogi, adopt) or as a maximum (adamax).
ADAMS = {
    **dict.fromkeys(("adam", "adamw", "lamb", "nadam", "nadamw", "radam", "stable_adamw"), "b2"),
    "muon": "adam_b2",
}
_FIRST_LAYERS = ("image/patch_embedding/kernel", "image/stem_0_reduce/kernel")


def make_tensor_numbers(config: Config) -> Callable[..., dict[str, jax.Array]]:
    """Build ``(before, after, grads, clip) -> metrics``, to be called in the step.

    Args:
      config: resolved configuration; of it the optimizer's section is read.

    Returns:
      The function of two training states, the gradient, and what it was multiplied by before the
      optimizer saw it. It gives float32 [num_tensors], in the order of
      :func:`jaxclip.optim.tensor_names`: :data:`TENSORS` + ``gradient_norm``, ``update_norm``,
      ``parameter_norm`` and ``rms`` (NaN where the optimizer keeps no second moment, and for
      scalars, whose RMS is that of one number), and scalars ``watch/update_ratio`` (of the whole
      tree), ``watch/rms_max`` and ``watch/rms_first_layer``, as far as there are any.
    """
    b2, eps = _decay(config["optim"])

    def numbers(
        before: TrainState, after: TrainState, grads: Params, clip: jax.Array | float = 1.0
    ) -> dict[str, jax.Array]:
        names = optim.tensor_names(before.params)
        old, new = (jax.tree.leaves(state.params) for state in (before, after))
        squares = {
            "gradient_norm": jnp.stack([_square(g) for g in jax.tree.leaves(grads)]),
            "update_norm": jnp.stack([_square(b - a) for a, b in zip(old, new, strict=True)]),
            "parameter_norm": jnp.stack([_square(a) for a in old]),
        }
        found = {TENSORS + name: jnp.sqrt(value) for name, value in squares.items()}
        # Not of the product: the squares of the gradient itself are there for its norm.
        found[TENSORS + "gradient_norm"] *= clip
        sums = {name: jnp.sum(value) for name, value in squares.items()}
        ratio = jnp.sqrt(sums["update_norm"] / jnp.maximum(sums["parameter_norm"], 1e-30))
        found["watch/update_ratio"] = ratio
        rms = second_moment_rms(before.opt_state, after.opt_state, b2, eps)
        scalars = {name for name, leaf in zip(names, old, strict=True) if leaf.ndim == 0}
        rms = {name: value for name, value in rms.items() if name not in scalars}
        if rms:
            nothing = jnp.full((), jnp.nan, jnp.float32)
            found[TENSORS + "rms"] = jnp.stack([rms.get(name, nothing) for name in names])
            found["watch/rms_max"] = jnp.max(jnp.stack(list(rms.values())))
        for name in _FIRST_LAYERS:
            if name in rms:
                found["watch/rms_first_layer"] = rms[name]
        return found

    return numbers


def second_moment_rms(
    before: optax.OptState, after: optax.OptState, b2: float | None, eps: float
) -> dict[str, jax.Array]:
    """The RMS of each tensor that an optimizer keeps a second moment of, by its path.

    Args:
      before: the optimizer's state before a step.
      after: the state after it.
      b2: decay of Adam's second moment; None if there is none.
      eps: Adam's.

    Returns:
      float32[] by path. Known are the states of optax's Adam and its like, whose v needs bias
      correction, and of ``stable_adamw``, which tells its own.
    """
    found: dict[str, jax.Array] = {}
    pairs = zip(_moments(before), _moments(after), strict=True)
    for old, new in pairs:
        names = optim.tensor_names(new.nu)
        if isinstance(new, StableAdamState):
            found |= {name: new.norm[i] for i, name in enumerate(names)}
        elif b2 is not None:
            unbiased = -jnp.expm1(new.count.astype(jnp.float32) * jnp.log(b2))
            floor = jnp.float32(eps) ** 2 * unbiased
            moments = zip(names, jax.tree.leaves(old.nu), jax.tree.leaves(new.nu), strict=True)
            for name, v, w in moments:
                # Only what must be is done element by element: the pass is most of a watch's cost.
                mean = jnp.mean((w - b2 * v) / jnp.maximum(w, floor)) / (1.0 - b2)
                mean = jnp.maximum(mean, 0.0)  # without a gradient rounding may fall below
                found[name] = jnp.sqrt(unbiased * mean).astype(jnp.float32)
    return found


def _moments(opt_state: optax.OptState) -> list[Any]:
    nodes = jax.tree.leaves(opt_state, is_leaf=_has_second_moment)
    return [node for node in nodes if _has_second_moment(node)]


def _has_second_moment(node: Any) -> bool:
    return isinstance(node, (optax.ScaleByAdamState, StableAdamState))


def _square(leaf: jax.Array) -> jax.Array:
    return jnp.sum(jnp.square(leaf.astype(jnp.float32)))


def _decay(section: Mapping[str, Any]) -> tuple[float | None, float]:
    """Adam's b2 and eps as a configuration has them; b2 None if the optimizer is no Adam."""
    name = section["name"]
    if name not in ADAMS:
        return None, 0.0
    options = {**option_defaults(optim_config.OPTIMIZERS[name]), **section}
    return float(options[ADAMS[name]]), float(options["eps"])


def make_probe(towers: ModelTowers, keys: Sequence[str], count: int) -> Callable[..., Any]:
    """Build ``(params, batch) -> metrics`` of the towers' activations, a forward pass of its own.

    Args:
      towers: of the run.
      keys: of the batch.
      count: rows of the batch that it looks at, the first ones.

    Returns:
      A jitted function. It gives for each tower scalars ``watch/attention_logit_<tower>`` (the
      largest q·k / sqrt(d)), ``watch/embedding_norm_<tower>`` (mean length before it is made one)
      and ``watch/embedding_cosine_<tower>`` (mean over different pairs), and the vectors
      ``watch/tensors/attention_logit_<tower>`` float32[depth, H] and
      ``watch/tensors/activation_<tower>`` float32[depth + 1], the mean size of what comes into each
      block and out of the last.
    """

    def probe(params: Params, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        found: dict[str, jax.Array] = {}
        for tower in ("image", "text"):
            if tower not in keys:
                continue
            rows: Any = jax.tree.map(lambda x: x[:count], outputs.tower_input(batch, tower))
            rows = rows[:, 0] if tower == "text" and rows.ndim == 3 else rows
            logits = towers.attention_logits(params, tower, rows)
            depth = logits.shape[0]
            features = towers.features(params, tower, rows, hidden=range(depth + 1))
            unit, size = features.embedding, features.embedding.shape[0]
            total = jnp.sum(unit, axis=0)
            cosine = (total @ total - size) / (size * (size - 1))
            sizes = [jnp.mean(jnp.abs(features.hidden[i])) for i in range(depth + 1)]
            found |= {
                f"watch/attention_logit_{tower}": jnp.max(logits),
                f"watch/embedding_norm_{tower}": jnp.mean(jnp.linalg.norm(features.raw, axis=-1)),
                f"watch/embedding_cosine_{tower}": cosine,
                f"{TENSORS}attention_logit_{tower}": logits,
                f"{TENSORS}activation_{tower}": jnp.stack(sizes),
            }
        return {name: value.astype(jnp.float32) for name, value in found.items()}

    return jax.jit(probe)
