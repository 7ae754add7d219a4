"""TinyCLIP: affinity mimicking, and masks that find out which parts of the towers can go."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxclip.models import CLIPConfig, part_masks
from jaxclip.objectives._base import Context, Metrics, Outputs, Params, State
from jaxclip.objectives._checks import check_heads, check_number
from jaxclip.objectives._schedules import as_schedule
from jaxclip.objectives.affinity import Affinity

_TOWERS = ("image", "text")
_BETA, _LOW, _HIGH = 2.0 / 3.0, -0.1, 1.1
_BOUNDS = (math.log(0.01), math.log(100.0))


@dataclasses.dataclass(frozen=True)
class TinyCLIP(Affinity):
    """Wu et al. 2023 (arXiv:2309.12314), with automatic inheritance: the loss of
    :class:`jaxclip.objectives.affinity.Affinity` on towers whose parts are masked, plus
    l1 max(t - e, 0) + l2 max(t - e, 0)², e the expected share of weights that are masked out.

    A mask z of a head, of a hidden unit of an MLP, of a block's attention or MLP is hard concrete
    (Louizos et al. 2018, arXiv:1712.01312): z = clip(1.2 sigmoid((logit u + a) 3/2) - 0.1, 0, 1),
    P(z > 0) = sigmoid(a - 2/3 ln(0.1 / 1.1)), with one draw u for a step and a learned a. l1 and l2
    both grow by ``multiplier_rate`` max(t - e, 0) a step: state, not parameters (theirs are
    parameters of an optimizer that ascends at the rate 0.02; plain ascent has the square for l2).
    The model itself is evaluated and saved whole; ``jaxclip weights prune --score masks`` takes out
    what :meth:`masks` has at 0.

    Theirs: stages t = 0.25, 0.5, 0.75, each from the pruned model of the one before
    (``init_from``), cut after 3000 to 8000 steps, then plain affinity; masks at a rate of 0.02
    beside 1e-4 (``optim.groups``: ``^objective/tinyclip`` times 200), batch 8192, clip 5. Their
    masks of the hidden axis, which want norms over the kept channels alone, are not here:
    ``surgery.inherit`` cuts widths.

    Attributes:
      target: t, a number or ``[[step, t], ...]``.
      multiplier_rate: of l1 and l2, which start at 10.
      start: of a, at most ln 100.
    """

    target: Any = ((0, 0.0), (1000, 0.25))
    multiplier_rate: float = 0.02
    start: float = 4.6

    small: ClassVar[Mapping[str, Any]] = {**Affinity.small, "target": 0.5, "start": 1.0}

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("tinyclip.multiplier_rate", self.multiplier_rate)
        check_number("tinyclip.start", self.start, _BOUNDS[0], _BOUNDS[1])
        as_schedule(self.target, "tinyclip.target", 0.999)  # a share of the weights, not all

    def check(self, sizes: CLIPConfig, teacher: CLIPConfig | None) -> None:
        super().check(sizes, teacher)
        for tower in _TOWERS:
            config = getattr(sizes, tower)
            kind = getattr(config, "kind", "vit")
            experts: int = getattr(config, "num_experts", 0)
            if kind not in ("vit", "transformer") or experts:
                raise ValueError(
                    f"tinyclip masks heads and MLPs of plain blocks, not those of model.{tower}."
                    f"kind={kind!r} or of experts"
                )
            if getattr(config, "norm_place", "pre") != "pre" or getattr(config, "sub_norm", False):
                raise ValueError(
                    f"tinyclip: with norms behind attention and MLP (model.{tower}.norm_place="
                    "'post', sub_norm=True) what is masked still has a part in them"
                )

    def init_params(self, rng: jax.Array, sizes: CLIPConfig) -> Params:
        check_heads("tinyclip", sizes)
        return {
            tower: {
                name: jnp.full(shape, self.start, jnp.float32)
                for name, shape in part_masks.shapes(getattr(sizes, tower)).items()
            }
            for tower in _TOWERS
        }

    def init_state(self, sizes: CLIPConfig) -> State:
        return {"l1": jnp.float32(10.0), "l2": jnp.float32(10.0)}

    def tower_params(self, params: Params, ctx: Context) -> Params:
        leaves, tree = jax.tree.flatten(ctx.own)
        keys = jax.random.split(ctx.key, len(leaves))
        drawn = [
            hard_concrete(a, jax.random.uniform(key, a.shape, minval=1e-6, maxval=1 - 1e-6))
            for a, key in zip(leaves, keys, strict=True)
        ]
        masks = jax.tree.unflatten(tree, drawn)
        return {
            **params,
            **{tower: part_masks.scaled(params[tower], masks[tower]) for tower in _TOWERS},
        }

    def masks(self, params: Params) -> Params:
        """Masks without chance, by tower, of the term's own parameters."""
        return jax.tree.map(lambda a: hard_concrete(a, None), params)

    def loss(
        self, params: Params, state: State, outputs: Outputs, ctx: Context
    ) -> tuple[jax.Array, Metrics, State]:
        loss, metrics, _ = super().loss(params, state, outputs, ctx)
        sparsity = 1.0 - expected_share(params, ctx.sizes)
        target = jnp.asarray(as_schedule(self.target, "tinyclip.target")(ctx.step), jnp.float32)
        gap = jnp.maximum(target - sparsity, 0.0)
        penalty = state["l1"] * gap + state["l2"] * gap**2
        step = self.multiplier_rate * jax.lax.stop_gradient(gap)
        state = {name: value + step for name, value in state.items()}
        metrics |= {"sparsity": sparsity, "sparsity_target": target, "penalty": penalty}
        return loss + penalty, metrics, state


def bounded(a: jax.Array) -> jax.Array:
    """a, cut to ln 0.01 and ln 100; its gradient goes through, so that it comes back."""
    return a + jax.lax.stop_gradient(jnp.clip(a, *_BOUNDS) - a)


def hard_concrete(a: jax.Array, u: jax.Array | None) -> jax.Array:
    """The mask z in [0, 1] of a, by a uniform draw u in (0, 1) or, for None, without chance.

    Both are of one shape, which is that of z (Louizos et al., 2018, arXiv:1712.01312).
    """
    noise = 0.0 if u is None else jnp.log(u) - jnp.log1p(-u)
    stretched = jax.nn.sigmoid((noise + bounded(a)) / _BETA) * (_HIGH - _LOW) + _LOW
    return jnp.clip(stretched, 0.0, 1.0)


def chance(a: jax.Array) -> jax.Array:
    """P(z > 0) of each a, of its shape."""
    return jax.nn.sigmoid(bounded(a) - _BETA * math.log(-_LOW / _HIGH))


def expected_share(params: Params, sizes: CLIPConfig) -> jax.Array:
    """float32[]: the share of attention's and MLPs' weights that is expected not to be masked.

    Args:
      params: a of each tower's modules, as the term has them.
      sizes: of the towers.
    """
    kept, total = jnp.zeros(()), 0.0
    for tower in _TOWERS:
        config, p = getattr(sizes, tower), jax.tree.map(chance, params[tower])
        head = 4.0 * config.width * config.head_size  # of a pruned tower not width / num_heads
        unit = (3.0 if getattr(config, "mlp", "") == "gated" else 2.0) * config.width
        kept += jnp.sum(p["attention"] * jnp.sum(p["heads"], axis=1)) * head
        kept += jnp.sum(p["mlp"] * jnp.sum(p["units"], axis=1)) * unit
        total += config.depth * (config.num_heads * head + config.mlp_dim * unit)
    return kept / total
