"""SPAM: Adam that clips single elements by their own second moment and forgets regularly."""

from __future__ import annotations

import math
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxclip.optim import _base, _decay, _moments, _spam_step
from jaxclip.optim._sample import Sampling
from jaxclip.optim._together import together


class SpamState(NamedTuple):
    """State of :func:`scale_by_spam`; vectors have one entry a tensor.

    Attributes:
      count: int32 scalar, number of updates.
      mu: first moment m, a tree like the parameters; of matrices only the chosen elements, if
        ``density < 1``.
      nu: second moment v, as ``mu``.
      norm: largest :math:`g^2 / v` of the last step over the elements with v > 0.
      threshold: θ of the last step, or ``norm`` where clipping was off.
      clipped: bool, was any element clipped.
      nonfinite_count: int32, number of updates with a NaN or infinite element.
    """

    count: jax.Array  # type: ignore[assignment]  # tuple.count, as everywhere in optax
    mu: Any
    nu: Any
    norm: jax.Array
    threshold: jax.Array
    clipped: jax.Array
    nonfinite_count: jax.Array


def scale_by_spam(
    b1: _base.Hyperparameter = 0.9,
    b2: _base.Hyperparameter = 0.999,
    eps: _base.Hyperparameter = 1e-6,
    threshold: _base.Hyperparameter = 5000.0,
    reset_interval: int | jax.Array = 500,
    warmup_steps: int | jax.Array = 150,
    grace_steps: int | jax.Array = 20,
    density: float | None = None,
    density_layers: str | None = None,
) -> optax.GradientTransformation:
    r"""The direction of :func:`spam`, without learning rate and weight decay.

    .. math::

      u = w \, \frac{\sqrt{1 - \beta_2^t}}{1 - \beta_1^t} \, \frac{m}{\sqrt v + \epsilon}

    with the moments and the warm-up factor w explained there.

    State: two copies of the parameters (``density`` of that for matrices) and the report.
    Cost: one reduction a tensor.

    Args:
      b1: β1, decay of the first moment.
      b2: β2, decay of the second moment.
      eps: ε, added to the root of the second moment before its bias is corrected.
      threshold: θ, bound on :math:`g^2 / v`.
      reset_interval: ΔT, number of updates between resets.
      warmup_steps: N, length of the warm-up after each reset.
      grace_steps: updates after start and reset without clipping.
      density: d, fraction of each matrix that has moments and is updated; ``None`` for all of it.
      density_layers: pattern of the matrices that ``density`` is for; ``None`` for all.

    Returns:
      An ``optax.GradientTransformation`` with state :class:`SpamState`.

    Raises:
      ValueError: a number out of its range; from ``init``, ``density_layers`` matches no tensor.
      TypeError: ``density`` is not known when tracing, a number of updates is a schedule; from
        ``init``, a complex parameter.

    Examples:
      >>> import jax.numpy as jnp, optax
      >>> from jaxclip import optim
      >>> tx = optax.chain(optim.scale_by_spam(), optax.scale(-1e-3))
      >>> params = {"w": jnp.ones(2)}
      >>> updates, state = tx.update({"w": jnp.asarray([3.0, -4.0])}, tx.init(params), params)
      >>> [round(float(u), 6) for u in updates["w"]]
      [-0.001, 0.001]

    References:
      Huang et al., `SPAM: Spike-Aware Adam with Momentum Reset for Stable LLM Training
      <https://arxiv.org/abs/2501.06842>`_, 2025.
    """
    clipping = _Clipping(threshold, grace_steps)
    resets = _Resets(reset_interval, warmup_steps)
    return _spam(
        "scale_by_spam", (b1, b2), eps, clipping, resets, _Density(density, density_layers)
    )


def spam(
    learning_rate: optax.ScalarOrSchedule,
    b1: _base.Hyperparameter = 0.9,
    b2: _base.Hyperparameter = 0.999,
    eps: _base.Hyperparameter = 1e-6,
    *,
    weight_decay: _base.Hyperparameter = 0.0,
    mask: _decay.Mask = None,
    threshold: _base.Hyperparameter = 5000.0,
    reset_interval: int | jax.Array = 500,
    warmup_steps: int | jax.Array = 150,
    grace_steps: int | jax.Array = 20,
    density: float | None = None,
    density_layers: str | None = None,
) -> optax.GradientTransformation:
    r"""Adam with spike-aware clipping, momentum reset and a warm-up after each reset.

    With t the tensor's number of updates (from 1) and :math:`s = t \bmod \Delta T`, in this order:

    .. math::

      m, v &\leftarrow 0 \quad \text{if } s = 0, \\
      g_j &\leftarrow \mathrm{sign}(g_j) \sqrt{\theta v_j}
        \quad \text{where } g_j^2 > \theta v_j, \text{ if } s \ge \mathrm{grace\_steps}, \\
      m &\leftarrow \beta_1 m + (1 - \beta_1) g, \qquad
      v \leftarrow \beta_2 v + (1 - \beta_2) g^2, \\
      w &= 1 - 0.99 \, \tfrac12 \left(1 + \cos \tfrac{\pi s}{N + 1}\right)
        \quad \text{if } t \ge \Delta T \text{ and } s < N, \text{ else } 1, \\
      p &\leftarrow p - \mathrm{lr} \left( w \frac{\sqrt{1 - \beta_2^t}}{1 - \beta_1^t}
        \frac{m}{\sqrt v + \epsilon} + \lambda p \right).

    As in the authors' code, an update at a reset already has fresh moments and w = 0.01, the first
    :math:`\Delta T` updates have no warm-up, and the bias corrections count through resets: with
    fresh moments and w = 1 steps would be :math:`(1 - \beta_1) / \sqrt{1 - \beta_2}` (3.2) times
    too long, which the warm-up is there to hide. ε and where it is added, to :math:`\sqrt v` and
    not to the bias-corrected root as in ``optax.adam``, are the authors', too: at the t-th update
    it is worth :math:`\epsilon / \sqrt{1 - \beta_2^t}` there, 3e-5 at the first.

    Where this is not the authors' code:

    * An element with v = 0 is not clipped. As published it is clipped to zero, and v stays zero: a
      row of the token embedding that got no gradient within ``grace_steps`` would not move until
      the next reset, nor after that, if it is as rare again.
    * Weight decay acts on the parameter before the step, together with it; the code applies it
      after. With ``density < 1`` the code's decay of matrices acts on a copy, that is, on nothing.

    With ``density`` d < 1 every tensor with at least two axes keeps moments for a random fraction d
    of its elements only; the others get no update (no decay, either) until the next reset draws
    again. Chosen are, of every group of consecutive elements along the last axis, as many as give
    the fraction (1 of 4, 3 of 10), d being rounded to a fraction with a denominator of at most 32.
    The choice follows from the number of resets and the tensor's place in the tree: no index or
    mask is stored, nor is a sharded tensor gathered. Its moments are compact, ``[..., d * last]``.
    ``density_layers`` says which tensors: the authors leave out elements of the linear layers in
    attention and MLPs only, which is ``r"(attention|attn|mlp)/.*kernel"``, and not of embeddings.

    A tensor with a NaN or infinite gradient element is skipped: no update (and no weight decay),
    and its moments and clock (t and s) stand still. Elements beyond 1e17 count as 1e17, for their
    squares to stay in float32.

    State: two copies of the parameters (2 d for matrices) and the report. Cost: one reduction a
    tensor, over gradient and second moment; with ``density < 1`` also one random integer for every
    group of elements. Compiles in less than twice ``optax.adamw``'s time, with ``density`` in less
    than three times.

    Args:
      learning_rate: a number, an array or a schedule.
      b1: β1, decay of the first moment.
      b2: β2, decay of the second moment.
      eps: ε, added to the root of the second moment before its bias is corrected.
      weight_decay: λ, decoupled, not subject to the warm-up factor.
      mask: which parameters decay: a tree of bools, a prefix of one, or a function from parameters
        to it; ``None`` for all.
      threshold: θ, bound on :math:`g^2 / v`; infinity switches the clipping off.
      reset_interval: ΔT, number of updates between resets.
      warmup_steps: N, length of the warm-up after each reset.
      grace_steps: updates after start and reset without clipping.
      density: d, fraction of each matrix that has moments and is updated, in (0, 1]; ``None`` for
        all of it. Static: if given within ``optax.inject_hyperparams``, name it in ``static_args``.
      density_layers: regular expression, searched in paths such as
        ``image/blocks_0/mlp/up/kernel``, of the tensors that ``density`` is for; ``None`` for all
        with at least two axes.

    Returns:
      An ``optax.GradientTransformation``; the first element of its state is a :class:`SpamState`,
      whose ``norm`` is the largest :math:`g^2 / v` of each tensor and ``threshold`` is θ.

    Raises:
      ValueError: a number out of its range; from ``init``, ``density_layers`` matches no tensor.
      TypeError: ``density`` is not known when tracing, a number of updates is a schedule; from
        ``init``, a complex parameter.

    Examples:
      >>> import jax.numpy as jnp, optax
      >>> from jaxclip import optim
      >>> tx = optim.spam(1e-3, grace_steps=2)
      >>> params = {"w": jnp.ones(2)}
      >>> state = tx.init(params)
      >>> for size in (1.0, 1.0, 1000.0):
      ...     _, state = tx.update({"w": jnp.asarray([size, 1.0])}, state, params)
      >>> optim.read_metrics(state)["spam/clipped"].tolist(), state[0].threshold.tolist()
      ([True], [5000.0])

    References:
      Huang et al., `SPAM: Spike-Aware Adam with Momentum Reset for Stable LLM Training
      <https://arxiv.org/abs/2501.06842>`_, 2025.
    """
    core = _spam(
        "spam",
        (b1, b2),
        eps,
        _Clipping(threshold, grace_steps),
        _Resets(reset_interval, warmup_steps),
        _Density(density, density_layers),
        weight_decay,
        mask,
    )
    _base.check_number("spam.learning_rate", learning_rate, 0, below=math.inf)
    return optax.chain(core, optax.scale_by_learning_rate(learning_rate))


class _Clipping(NamedTuple):
    """Arguments of the clipping."""

    threshold: _base.Hyperparameter
    grace_steps: int | jax.Array


class _Resets(NamedTuple):
    """Arguments of momentum reset and warm-up."""

    reset_interval: int | jax.Array
    warmup_steps: int | jax.Array


class _Density(NamedTuple):
    """Arguments of what has moments."""

    density: float | None
    density_layers: str | None


def _spam(
    name: str,
    b: tuple[_base.Hyperparameter, _base.Hyperparameter],
    eps: _base.Hyperparameter,
    clipping: _Clipping,
    resets: _Resets,
    density: _Density,
    weight_decay: _base.Hyperparameter = 0.0,
    mask: _decay.Mask = None,
) -> optax.GradientTransformation:
    """Everything but the learning rate."""
    _moments.check(name, b1=b[0], b2=b[1], eps=eps, weight_decay=weight_decay)
    _base.check_number(f"{name}.threshold", clipping.threshold, above=0)
    _base.integer(f"{name}.grace_steps", clipping.grace_steps, 0)
    _base.integer(f"{name}.reset_interval", resets.reset_interval, 1)
    _base.integer(f"{name}.warmup_steps", resets.warmup_steps, 0)
    share = 1.0 if density.density is None else density.density
    sampling = Sampling.of(_base.static_number(f"{name}.density", share, above=0, high=1))

    def init_fn(params: Any) -> SpamState:
        _moments.refuse_complex(name, params)
        shapes = _moment_shapes(name, params, sampling, density.density_layers)
        return SpamState(
            count=jnp.zeros((), jnp.int32),
            mu=jax.tree.map(lambda p, shape: _moments.zeros(p, shape=shape.shape), params, shapes),
            nu=jax.tree.map(lambda p, shape: _moments.zeros(p, shape=shape.shape), params, shapes),
            **_base.initial_report((len(jax.tree.leaves(params)),), _base.statistics_dtype(params)),
        )

    def update_fn(updates: Any, state: SpamState, params: Any = None) -> tuple[Any, SpamState]:
        found = _moments.tensors(updates, state, params, weight_decay, mask, sampled=share < 1)
        count, dtype = state.count, state.norm.dtype
        fresh1, fresh2 = (_base.complement(decay, count, dtype) for decay in b)
        shared = _spam_step.Shared(
            fresh1=fresh1,
            fresh2=fresh2,
            eps=_base.hyperparameter(eps, count, dtype),
            theta=_base.hyperparameter(clipping.threshold, count, dtype),
            rate=_base.hyperparameter(weight_decay, count, dtype),
        )

        def numbers_of(nonfinite_count: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
            """Whether each tensor's spikes are clipped, and the numbers of its step."""
            clock = count + 1 - nonfinite_count
            phase = _spam_step.phase(clock, *resets, clipping.grace_steps, dtype)
            scale = jnp.sqrt(_base.bias_correction(fresh2, clock)) / _base.bias_correction(
                fresh1, clock
            )
            reset = phase.reset.astype(dtype)
            bound = jnp.where(phase.clips & ~phase.reset, shared.theta, jnp.inf)
            return phase.clips, (
                scale * phase.warmup,
                reset,
                bound.astype(dtype),
                *_spam_step.halves(_spam_step.seeds(phase.period), dtype),
            )

        clips, columns = together(numbers_of, state.nonfinite_count, state.norm.shape)
        pairs = zip(found.leaves, found.mu, strict=True)
        shapes = {leaf.shape for leaf, mu in pairs if leaf.shape != mu.shape}
        hashes = {shape: sampling.hashes(shape) for shape in shapes}

        def step(leaf: jax.Array, mu: jax.Array, *rest: Any, dtype: Any) -> _moments.Step:
            return _spam_step.step(
                leaf,
                mu,
                *rest,
                shared=shared,
                dtype=dtype,
                hashes=hashes[leaf.shape] if leaf.shape != mu.shape else None,
                sampling=sampling,
                positive=_moments.known_positive(eps),
            )

        numbers = columns if hashes else columns[:3]
        out, moments, (ratio, kept) = _moments.each(step, found, state, numbers)

        def judge(seen: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
            ratio, kept, clips, reset = seen
            # At a reset no element has a second moment.
            norm = jnp.minimum(ratio, jnp.finfo(dtype).max) * (1 - reset)
            norm = jnp.where(kept > 0, norm, jnp.nan)
            return norm, jnp.where(clips, shared.theta, norm)

        new_state = SpamState(
            count=optax.safe_increment(count),
            **moments,
            **_moments.report(state, (ratio, kept, clips, columns[1]), judge),
        )
        return out, new_state

    return optax.GradientTransformation(init_fn, _base.own_promotion(update_fn))


def _moment_shapes(name: str, params: Any, sampling: Sampling, layers: str | None) -> Any:
    """Tree of the shapes of the moments, as ``jax.ShapeDtypeStruct``.

    Raises:
      ValueError: ``layers`` is no regular expression or matches no tensor.
    """
    leaves, treedef = jax.tree.flatten(params)
    names = _base.tensor_names(params)
    try:
        chosen = [layers is None or re.search(layers, path) is not None for path in names]
    except (re.error, TypeError) as error:
        raise ValueError(
            f"{name}.density_layers={layers!r} is no regular expression: {error}"
        ) from error
    if leaves and not any(chosen):
        raise ValueError(
            f"{name}.density_layers={layers!r} matches no tensor; their paths are like {names[0]!r}"
        )
    shapes = [jnp.shape(leaf) for leaf in leaves]
    return jax.tree.unflatten(
        treedef,
        [
            jax.ShapeDtypeStruct(
                sampling.shape(shape) if use and sampling.applies(shape) else shape, jnp.float32
            )
            for shape, use in zip(shapes, chosen, strict=True)
        ],
    )
