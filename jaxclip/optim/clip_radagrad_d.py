"""Clip-RAdaGradD: AdaGrad (or Adam) on clipped gradients, which divides before it accumulates."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxclip.optim import _base, _moments
from jaxclip.optim._together import together

KINDS = ("coordinate", "norm", "tensor")


class ClipRadagradDState(NamedTuple):
    """State of :func:`clip_radagrad_d`.

    The report holds scalars for ``kind="norm"`` and one entry a tensor for the others.

    Attributes:
      count: int32 scalar, number of updates.
      mu: first moment, a tree like the parameters; ``None`` without momentum.
      accumulator: b², a scalar for ``kind="norm"``, a tree like the parameters for the others.
      norm: L2 norm of all gradients (``"norm"``) or of each tensor (``"tensor"``), or largest
        absolute value of each tensor (``"coordinate"``), in the last step.
      threshold: ``clip`` of the last step.
      clipped: bool, was anything clipped.
      nonfinite_count: int32, number of updates with a NaN or infinite norm.
    """

    count: jax.Array  # type: ignore[assignment]  # tuple.count, as everywhere in optax
    mu: Any
    accumulator: Any
    norm: jax.Array
    threshold: jax.Array
    clipped: jax.Array
    nonfinite_count: jax.Array


def clip_radagrad_d(
    learning_rate: optax.ScalarOrSchedule,
    clip: _base.Hyperparameter = 1.0,
    eps: _base.Hyperparameter = 1e-8,
    delay: bool = True,
    kind: str = "coordinate",
    *,
    eta: _base.Hyperparameter = 1.0,
    initial_accumulator: _base.Hyperparameter = 1e-4,
    b1: _base.Hyperparameter | None = None,
    b2: _base.Hyperparameter | None = None,
) -> optax.GradientTransformation:
    r"""AdaGrad with clipping, re-weighting and delay, proven for heavy-tailed noise.

    With :math:`\hat g` the clipped gradient and b² starting at ``initial_accumulator``,

    .. math::

      p_{t+1} = p_t - \mathrm{lr} \frac{\hat g_t}{b_t + \epsilon}, \qquad
      b_{t+1}^2 = b_t^2 + \eta\, \hat g_t^2.

    The delay is that :math:`\hat g_t` is divided by a :math:`b_t` that does not know it yet, so
    that the step is unbiased; the re-weighting is η, which keeps b from growing so fast that steps
    vanish. Without ``delay`` :math:`b_{t+1}` divides, as in AdaGrad.

    * ``kind="coordinate"``: clipping to [-clip, clip] and b for every coordinate by itself.
    * ``kind="norm"``: one L2 norm and one scalar b for the whole tree,
      :math:`\hat g = \min(1, \mathrm{clip} / \|g\|)\, g` and
      :math:`b_{t+1}^2 = b_t^2 + \eta \|\hat g_t\|^2`.
    * ``kind="tensor"``: what the authors train networks with (their ``clipping="local"``): every
      tensor is clipped by its own L2 norm, and every coordinate has its own b.

    With ``b2`` the accumulator is Adam's, :math:`b_{t+1}^2 = \beta_2 b_t^2 + (1 - \beta_2) \eta\,
    \hat g_t^2`; with ``b1`` the numerator is :math:`m_t = \beta_1 m_{t-1} + (1 - \beta_1) \hat
    g_t`. So ``b1=0.9, b2=0.999`` is Clip-AdamD. As published there is no bias correction: the
    accumulator begins at a value that is meant, and it sets the size of the first steps
    (:math:`\mathrm{lr}\, \hat g / b_0`); for Adam take it of the size of :math:`\hat g^2`.

    The rule is the paper's. Its first released optimizer for networks multiplies the previous
    gradient, not the present one, by the step size (a slip: its other one does not), and its
    demonstration has :math:`\eta = \mathrm{lr}^2`. For networks it adds 1e-6 to the norms that it
    clips by, and starts with 1e-4 (AdaGrad) or 1e-5 (Adam) as accumulator.

    Where the norm looked at is NaN or infinite (of the tree for ``"norm"``, else of the tensor) the
    update is zero, accumulator and momentum stay as they were.

    State: for ``"norm"`` one number, for the others one copy of the parameters, in float32; with
    ``b1`` one copy more; and the report. Cost: one reduction a tensor.

    Args:
      learning_rate: a number, an array or a schedule.
      clip: bound on the norm (of the tree, or of each tensor), or on the absolute value of each
        coordinate. Values above 1e17 count as 1e17, for squares to stay in float32.
      eps: ε, added to b.
      delay: whether the accumulator lags behind by one update. Static.
      kind: ``"coordinate"``, ``"norm"`` or ``"tensor"``. Static.
      eta: η, weight of the squares in the accumulator.
      initial_accumulator: b² at the start; must be positive with ``delay``.
      b1: decay of the first moment; ``None`` for no momentum.
      b2: decay of the accumulator; ``None`` for a sum (AdaGrad).

    Returns:
      An ``optax.GradientTransformation``; the first element of its state is a
      :class:`ClipRadagradDState`.

    Raises:
      ValueError: unknown ``kind``, or a number out of its range; from ``update``, a gradient is
        ``None`` or missing.
      TypeError: from ``init`` or ``update``, a complex tensor.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jaxclip import optim
      >>> tx = optim.clip_radagrad_d(0.1, clip=1.0, initial_accumulator=1.0, eps=0.0)
      >>> params = jnp.zeros(2)
      >>> state = tx.init(params)
      >>> for gradient in ([0.5, -100.0], [0.5, -100.0]):
      ...     updates, state = tx.update(jnp.asarray(gradient), state, params)
      ...     print([round(float(u), 4) for u in updates], state[0].clipped.tolist())
      [-0.05, 0.1] [True]
      [-0.0447, 0.0707] [True]

    References:
      Chezhegov et al., `Clipping Improves Adam-Norm and AdaGrad-Norm when the Noise Is
      Heavy-Tailed <https://arxiv.org/abs/2406.04443>`_, 2024.
    """
    rule = _Rule(clip, eps, delay, kind, eta, initial_accumulator, b1, b2)
    _check(rule)

    def init_fn(params: Any) -> ClipRadagradDState:
        return _init(rule, params)

    def update_fn(
        updates: Any, state: ClipRadagradDState, params: Any = None
    ) -> tuple[Any, ClipRadagradDState]:
        return _update(rule, updates, state, params)

    core = optax.GradientTransformation(init_fn, _base.own_promotion(update_fn))
    _base.check_number("clip_radagrad_d.learning_rate", learning_rate, 0, below=math.inf)
    return optax.chain(core, optax.scale_by_learning_rate(learning_rate))


class _Rule(NamedTuple):
    """The arguments of :func:`clip_radagrad_d` but the learning rate."""

    clip: _base.Hyperparameter
    eps: _base.Hyperparameter
    delay: bool
    kind: str
    eta: _base.Hyperparameter
    initial_accumulator: _base.Hyperparameter
    b1: _base.Hyperparameter | None
    b2: _base.Hyperparameter | None


def _init(rule: _Rule, params: Any) -> ClipRadagradDState:
    _moments.refuse_complex("clip_radagrad_d", params)
    dtype = _base.statistics_dtype(params)
    start = _base.hyperparameter(rule.initial_accumulator, 0, dtype)
    accumulator: Any = start
    shape: tuple[int, ...] = ()
    if rule.kind != "norm":
        accumulator = jax.tree.map(lambda leaf: _filled(leaf, start), params)
        shape = (len(jax.tree.leaves(params)),)
    return ClipRadagradDState(
        count=jnp.zeros((), jnp.int32),
        mu=None if rule.b1 is None else jax.tree.map(_moments.zeros, params),
        accumulator=accumulator,
        **_base.initial_report(shape, dtype),
    )


def _update(
    rule: _Rule, updates: Any, state: ClipRadagradDState, params: Any
) -> tuple[Any, ClipRadagradDState]:
    _moments.refuse_complex("clip_radagrad_d", updates)
    kind, with_momentum = rule.kind, rule.b1 is not None
    # The number of tensors that the state was made for, as far as it knows.
    trees = [tree for tree in (state.mu, state.accumulator) if tree is not None]
    known = None if kind == "norm" and not with_momentum else len(jax.tree.leaves(trees[0]))
    leaves, treedef = _base.flatten(updates, known)
    dtypes = _moments.update_dtypes(params, leaves)
    dtype = state.norm.dtype
    numbers = _numbers(rule, state.count, dtype)

    norm = _NORMS[kind](leaves, dtype)
    like = functools.partial(_base.matching, treedef, [leaf.shape for leaf in leaves])
    totals = [] if kind == "norm" else like(state.accumulator)
    moments = like(state.mu) if with_momentum else []
    one = state.accumulator if kind == "norm" else jnp.zeros((), dtype)
    settled = together(lambda seen: _settle(*seen, numbers, rule), (norm, one), norm.shape)
    factors = _base.unpack(settled[0]) if norm.ndim else []

    def step(i: int) -> _moments.Step:
        by = factors[i] if factors else settled[0]
        keep = by == by if factors else settled[1]
        gradient = leaves[i].astype(dtype)
        gradient = jnp.clip(gradient, -by, by) if kind == "coordinate" else gradient * by
        mu = m = gradient
        if with_momentum:
            average = _moments.average(moments[i], gradient, numbers.fresh1)
            mu, m = _moments.store(keep, average, moments[i])
        if kind == "norm":
            stored, update = settled[2], m / settled[3]
        else:
            square = jnp.square(gradient)
            stored, root = _accumulate(keep, totals[i], square, numbers, rule.delay)
            update = _base.safe_divide(m, root, 0.0)
        return _moments.Step(_moments.finish(keep, update, dtypes[i]), mu, stored)

    steps = [step(i) for i in range(len(leaves))]
    accumulator = state.accumulator
    if kind != "norm":
        accumulator = jax.tree.unflatten(treedef, [s.nu for s in steps])
    elif steps:
        accumulator = settled[2]
    new_state = ClipRadagradDState(
        count=optax.safe_increment(state.count),
        mu=jax.tree.unflatten(treedef, [s.mu for s in steps]) if with_momentum else None,
        accumulator=accumulator,
        **_moments.report(state, norm, lambda norm: (norm, numbers.bound)),
    )
    return jax.tree.unflatten(treedef, [s.update for s in steps]), new_state


class _Numbers(NamedTuple):
    """Hyperparameters of a step, scalars.

    Attributes:
      bound: what norms or coordinates are clipped to.
      eps: added to the root of the accumulator.
      old_weight: of the accumulator.
      new_weight: of the new square.
      fresh1: ``1 - b1``; None without momentum.
    """

    bound: jax.Array
    eps: jax.Array
    old_weight: jax.Array
    new_weight: jax.Array
    fresh1: Any


def _numbers(rule: _Rule, count: jax.Array, dtype: Any) -> _Numbers:
    """The hyperparameters at a step."""
    bound = jnp.minimum(_base.hyperparameter(rule.clip, count, dtype), _base.LARGEST_SQUARABLE)
    small = _base.hyperparameter(rule.eps, count, dtype)
    fresh1 = None if rule.b1 is None else _base.complement(rule.b1, count, dtype)
    return _Numbers(bound, small, *_weights(rule.b2, rule.eta, count, dtype), fresh1)


def _accumulate(
    keep: jax.Array, total: jax.Array, square: jax.Array, numbers: _Numbers, delay: bool
) -> tuple[jax.Array, jax.Array]:
    """The accumulator after a step, and what the update is divided by."""
    old = total.astype(square.dtype)
    new = numbers.old_weight * old + numbers.new_weight * square
    stored, new = _moments.store(keep, new, total)
    return stored, _moments.square_root(old if delay else new) + numbers.eps


def _settle(
    norm: jax.Array, total: jax.Array, numbers: _Numbers, rule: _Rule
) -> tuple[jax.Array, ...]:
    """What the tensors' kernels need to know, NaN first where they may not act.

    Args:
      norm: as the kind looks at gradients.
      total: the one accumulator of ``"norm"``.
      numbers: hyperparameters.
      rule: what is done.

    Returns:
      The bound or factor of each norm; with ``"norm"`` also whether it is finite, the accumulator
      after the step, and what the update is divided by.
    """
    keep = jnp.isfinite(norm)
    bound = numbers.bound
    factor = jnp.where(norm > bound, _base.safe_divide(bound, norm, 1.0), 1.0)
    by = jnp.where(keep, bound if rule.kind == "coordinate" else factor, jnp.nan)
    by = by.astype(norm.dtype)
    if rule.kind != "norm":
        return (by,)
    square = jnp.square(jnp.minimum(norm, bound))
    stored, root = _accumulate(keep, total, square, numbers, rule.delay)
    # Where the root is zero the update shall be: it is divided by infinity.
    return by, keep, stored, jnp.where(root != 0, root, jnp.inf)


_NORMS = {
    "coordinate": _base.tensor_maxima,
    "norm": _base.global_norm,
    "tensor": _base.tensor_norms,
}


def _weights(
    b2: _base.Hyperparameter | None, eta: _base.Hyperparameter, count: jax.Array, dtype: Any
) -> tuple[jax.Array, jax.Array]:
    """Weights of the accumulator and of the new square."""
    weight = _base.hyperparameter(eta, count, dtype)
    if b2 is None:
        return jnp.ones((), dtype), weight
    decay = _base.hyperparameter(b2, count, dtype)
    return decay, _base.complement(b2, count, dtype) * weight


def _filled(leaf: Any, value: jax.Array) -> jax.Array:
    """A tensor like a parameter, full of a value, at least float32."""
    zeros = _moments.zeros(leaf)
    return (zeros + value).astype(zeros.dtype)


def _check(rule: _Rule) -> None:
    """Refuse arguments that make no sense."""
    if rule.kind not in KINDS:
        raise ValueError(f"clip_radagrad_d.kind={rule.kind!r}; use one of {', '.join(KINDS)}")
    if not isinstance(rule.delay, bool):
        raise TypeError(
            f"clip_radagrad_d.delay={rule.delay!r} must be a bool; within "
            "optax.inject_hyperparams pass static_args='delay'"
        )
    _base.check_number("clip_radagrad_d.clip", rule.clip, above=0)
    _base.check_number("clip_radagrad_d.eps", rule.eps, 0, below=math.inf)
    _base.check_number("clip_radagrad_d.eta", rule.eta, 0, below=math.inf)
    lowest: dict[str, float] = {"above": 0} if rule.delay else {"low": 0}
    lowest["below"] = math.inf
    _base.check_number("clip_radagrad_d.initial_accumulator", rule.initial_accumulator, **lowest)
    if rule.b1 is not None:
        _base.check_number("clip_radagrad_d.b1", rule.b1, 0, below=1)
    if rule.b2 is not None:
        _base.check_number("clip_radagrad_d.b2", rule.b2, 0, below=1)
