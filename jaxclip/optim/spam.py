"""SPAM: Adam that clips single elements by their own second moment and forgets regularly."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxclip.optim import _base, _moments
from jaxclip.optim._sample import Sampling


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
    eps: _base.Hyperparameter = 1e-8,
    threshold: _base.Hyperparameter = 5000.0,
    reset_interval: int | jax.Array = 500,
    warmup_steps: int | jax.Array = 150,
    grace_steps: int | jax.Array = 20,
    density: float | None = None,
) -> optax.GradientTransformation:
    r"""The direction of :func:`spam`, without learning rate and weight decay.

    .. math::

      u = w \, \frac{\hat m}{\sqrt{\hat v} + \epsilon}

    with the moments and the warm-up factor w explained there.

    State: two copies of the parameters (``density`` of that for matrices) and the report.
    Cost: one reduction a tensor.

    Args:
      b1: β1, decay of the first moment.
      b2: β2, decay of the second moment.
      eps: ε, added to the root of the second moment.
      threshold: θ, bound on :math:`g^2 / v`.
      reset_interval: ΔT, number of updates between resets.
      warmup_steps: N, length of the warm-up after each reset.
      grace_steps: updates after start and reset without clipping.
      density: d, fraction of each matrix that has moments and is updated; ``None`` for all of it.

    Returns:
      An ``optax.GradientTransformation`` with state :class:`SpamState`.

    Raises:
      ValueError: a number out of its range.
      TypeError: ``density`` is not known when tracing; from ``init``, a complex parameter.

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
    return _spam(
        "scale_by_spam",
        b1,
        b2,
        eps,
        threshold=threshold,
        reset_interval=reset_interval,
        warmup_steps=warmup_steps,
        grace_steps=grace_steps,
        density=density,
    )


def spam(
    learning_rate: optax.ScalarOrSchedule,
    b1: _base.Hyperparameter = 0.9,
    b2: _base.Hyperparameter = 0.999,
    eps: _base.Hyperparameter = 1e-8,
    weight_decay: _base.Hyperparameter = 0.0,
    mask: _moments.Mask = None,
    threshold: _base.Hyperparameter = 5000.0,
    reset_interval: int | jax.Array = 500,
    warmup_steps: int | jax.Array = 150,
    grace_steps: int | jax.Array = 20,
    density: float | None = None,
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
      p &\leftarrow p - \mathrm{lr} \left( w \frac{m / (1 - \beta_1^t)}
        {\sqrt{v / (1 - \beta_2^t)} + \epsilon} + \lambda p \right).

    As in the authors' code, an update at a reset already has fresh moments and w = 0.01, the first
    :math:`\Delta T` updates have no warm-up, and the bias corrections count through resets: with
    fresh moments and w = 1 steps would be :math:`(1 - \beta_1) / \sqrt{1 - \beta_2}` (3.2) times
    too long, which the warm-up is there to hide.

    Where this is not the authors' code:

    * An element with v = 0 is not clipped. As published it is clipped to zero, and v stays zero: a
      row of the token embedding that got no gradient within ``grace_steps`` would not move until
      the next reset, nor after that, if it is as rare again.
    * ε is added to :math:`\sqrt{\hat v}`, as in Adam's paper and optax; the code adds it to
      :math:`\sqrt v`.
    * Weight decay acts on the parameter before the step, together with it; the code applies it
      after. With ``density < 1`` the code's decay of matrices acts on a copy, that is, on nothing.

    With ``density`` d < 1 every tensor with at least two axes keeps moments for a random fraction d
    of its elements only; the others get no update (no decay, either) until the next reset draws
    again. Chosen are, of every group of consecutive elements along the last axis, as many as give
    the fraction (1 of 4, 3 of 10), d being rounded to a fraction with a denominator of at most 32.
    The choice follows from the number of resets and the tensor's place in the tree: no index or
    mask is stored, nor is a sharded tensor gathered. Its moments are compact, ``[..., d * last]``.

    A tensor with a NaN or infinite gradient element is skipped: no update (and no weight decay),
    and its moments and clock (t and s) stand still. Elements beyond 1e17 count as 1e17, for their
    squares to stay in float32.

    State: two copies of the parameters (2 d for matrices) and the report. Cost: one reduction a
    tensor, over gradient and second moment; with ``density < 1`` also one random integer for every
    group of elements.

    Args:
      learning_rate: a number, an array or a schedule.
      b1: β1, decay of the first moment.
      b2: β2, decay of the second moment.
      eps: ε, added to the root of the second moment.
      weight_decay: λ, decoupled, not subject to the warm-up factor.
      mask: which parameters decay: a tree of bools, a prefix of one, or a function from parameters
        to it; ``None`` for all.
      threshold: θ, bound on :math:`g^2 / v`; infinity switches the clipping off.
      reset_interval: ΔT, number of updates between resets.
      warmup_steps: N, length of the warm-up after each reset.
      grace_steps: updates after start and reset without clipping.
      density: d, fraction of each matrix that has moments and is updated, in (0, 1]; ``None`` for
        all of it. Static: if given within ``optax.inject_hyperparams``, name it in ``static_args``.

    Returns:
      An ``optax.GradientTransformation``; the first element of its state is a :class:`SpamState`,
      whose ``norm`` is the largest :math:`g^2 / v` of each tensor and ``threshold`` is θ.

    Raises:
      ValueError: a number out of its range.
      TypeError: ``density`` is not known when tracing; from ``init``, a complex parameter.

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
        b1,
        b2,
        eps,
        weight_decay=weight_decay,
        mask=mask,
        threshold=threshold,
        reset_interval=reset_interval,
        warmup_steps=warmup_steps,
        grace_steps=grace_steps,
        density=density,
    )
    return optax.chain(core, optax.scale_by_learning_rate(learning_rate))


def _spam(
    name: str,
    b1: _base.Hyperparameter,
    b2: _base.Hyperparameter,
    eps: _base.Hyperparameter,
    *,
    threshold: _base.Hyperparameter,
    reset_interval: int | jax.Array,
    warmup_steps: int | jax.Array,
    grace_steps: int | jax.Array,
    density: float | None,
    weight_decay: _base.Hyperparameter = 0.0,
    mask: _moments.Mask = None,
) -> optax.GradientTransformation:
    """Everything but the learning rate."""
    _base.check_number(f"{name}.b1", b1, 0, below=1)
    _base.check_number(f"{name}.b2", b2, 0, below=1)
    _base.check_number(f"{name}.eps", eps, 0)
    _base.check_number(f"{name}.weight_decay", weight_decay, 0)
    _base.check_number(f"{name}.threshold", threshold, above=0)
    _base.check_number(f"{name}.reset_interval", reset_interval, 1)
    _base.check_number(f"{name}.warmup_steps", warmup_steps, 0)
    _base.check_number(f"{name}.grace_steps", grace_steps, 0)
    share = 1.0 if density is None else density
    sampling = Sampling.of(_base.static_number(f"{name}.density", share, above=0, high=1))

    def init_fn(params: Any) -> SpamState:
        def moment(leaf: Any) -> jax.Array:
            shape = jnp.shape(leaf)
            return _moments.zeros(
                leaf, shape=sampling.shape(shape) if sampling.applies(shape) else shape
            )

        return SpamState(
            count=jnp.zeros((), jnp.int32),
            mu=jax.tree.map(moment, params),
            nu=jax.tree.map(moment, params),
            **_base.initial_report((len(jax.tree.leaves(params)),), _base.statistics_dtype(params)),
        )

    def update_fn(updates: Any, state: SpamState, params: Any = None) -> tuple[Any, SpamState]:
        leaves, treedef = _base.flatten(updates, state.norm.size)
        count, dtype = state.count, state.norm.dtype
        decays = _moments.decay_terms(weight_decay, mask, params, leaves, count, dtype)
        fresh1, fresh2 = (_base.complement(b, count, dtype) for b in (b1, b2))
        small, theta = (_base.hyperparameter(h, count, dtype) for h in (eps, threshold))
        clock = count + 1 - state.nonfinite_count
        correction1, correction2 = (_base.bias_correction(f, clock) for f in (fresh1, fresh2))
        phase = _phase(clock, reset_interval, warmup_steps, grace_steps, dtype)

        def step(i: int, leaf: jax.Array, mu: jax.Array, nu: jax.Array) -> _moments.Step:
            gradient, decay, chosen = _moments.squarable(leaf, dtype), decays[i], None
            # Of the gradient all elements must be finite, those that are not chosen, too.
            finite = jnp.isfinite(leaf)
            if sampling.applies(leaf.shape):
                chosen = sampling.draw(_key(i, phase.period[i]), leaf.shape)
                gradient = sampling.take(gradient, chosen)
                finite = jnp.isfinite(_base.tensor_maxima([leaf], dtype)[0])
                decay = None if decay is None else sampling.take(decay, chosen)
            norm = _largest_ratio(_moments.aside(gradient, nu, finite), phase.reset[i])
            keep = jnp.isfinite(norm)

            def clipped(gradient: jax.Array, nu: jax.Array) -> jax.Array:
                return _clip_spikes(gradient, nu, theta, phase.clips[i] & ~phase.reset[i])

            def since_reset(moment: jax.Array) -> jax.Array:
                return jnp.where(phase.reset[i], 0, moment)

            m = _moments.average(since_reset(mu), clipped(gradient, nu), fresh1)
            mu, m = _moments.store(keep, m, mu)
            # All of mu before nu, which is then overwritten where it is.
            mu, m, gradient, nu = _moments.aside(mu, m, gradient, nu)
            square = jnp.square(clipped(gradient, nu))
            v = _moments.average(since_reset(nu), square, fresh2)
            nu, v = _moments.store(keep, v, nu)
            update = _moments.direction(m / correction1[i], v / correction2[i], small)
            update = _moments.add(phase.warmup[i] * update, decay)
            if chosen is not None:
                update = sampling.put(update, chosen, leaf.shape[-1])
            return _moments.Step(_moments.finish(keep, update, leaf), mu, nu, norm)

        moments = zip(treedef.flatten_up_to(state.mu), treedef.flatten_up_to(state.nu), strict=True)
        steps = [step(i, g, *old) for i, (g, old) in enumerate(zip(leaves, moments, strict=True))]
        norm = jnp.stack([s.norm for s in steps]) if steps else state.norm
        finite = jnp.isfinite(norm)
        bound = jnp.where(phase.clips, theta, norm)
        new_state = SpamState(
            count=optax.safe_increment(count),
            mu=jax.tree.unflatten(treedef, [s.mu for s in steps]),
            nu=jax.tree.unflatten(treedef, [s.nu for s in steps]),
            norm=norm,
            threshold=jnp.where(finite, bound, state.threshold),
            clipped=~(norm <= bound),
            nonfinite_count=_base.increment_where(state.nonfinite_count, ~finite),
        )
        return jax.tree.unflatten(treedef, [s.update for s in steps]), new_state

    return optax.GradientTransformation(init_fn, update_fn)


class _Phase(NamedTuple):
    """Where each tensor is in the rule's schedule, ``[num_tensors]`` each.

    Attributes:
      period: int32, number of resets so far, that of this update included.
      reset: bool, whether this update begins with one.
      clips: bool, whether the grace period is over.
      warmup: factor on the update.
    """

    period: jax.Array
    reset: jax.Array
    clips: jax.Array
    warmup: jax.Array


def _phase(clock: jax.Array, reset_interval: Any, warmup: Any, grace: Any, dtype: Any) -> _Phase:
    """The phase at an update, the first of which is number one."""
    # inject_hyperparams makes floats of integers.
    interval = jnp.asarray(reset_interval).astype(jnp.int32)
    period, since = clock // interval, clock % interval
    length = jnp.asarray(warmup, dtype)
    # 1 - 0.99 (1 + cos 2x) / 2 without the cancellation.
    x = jnp.pi / 2 * since.astype(dtype) / (length + 1)
    rising = 0.01 + 0.99 * jnp.square(jnp.sin(x))
    return _Phase(
        period=period,
        reset=since == 0,
        clips=since >= jnp.asarray(grace),
        warmup=jnp.where((period > 0) & (since < length), rising, 1.0).astype(dtype),
    )


def _largest_ratio(tensors: tuple[jax.Array, ...], reset: jax.Array) -> jax.Array:
    """Largest ``g² / v`` where v > 0, a finite number; NaN if the gradient is not finite.

    Args:
      tensors: gradient, second moment, and which elements of the gradient are finite.
      reset: whether the second moment is about to become zero.
    """
    gradient, nu, finite = tensors
    known = (nu > 0) & ~reset
    ratio = jnp.square(gradient) / jnp.where(known, nu.astype(gradient.dtype), 1)
    largest = jnp.finfo(ratio.dtype).max
    return _base.max_or_nan(jnp.where(known, jnp.minimum(ratio, largest), 0), ~finite)


def _clip_spikes(
    gradient: jax.Array, nu: jax.Array, theta: jax.Array, clips: jax.Array
) -> jax.Array:
    """The gradient with ``sqrt(theta v)`` for its spikes; v = 0 says nothing of what is one."""
    bound = theta * nu
    spike = clips & (jnp.square(gradient) > bound) & (nu > 0)
    return jnp.where(spike, jnp.sign(gradient) * jnp.sqrt(bound), gradient)


def _key(tensor: int, period: jax.Array) -> jax.Array:
    """The key for a tensor's choice of elements between two resets."""
    key = jax.random.key(0, impl="threefry2x32")
    return jax.random.fold_in(jax.random.fold_in(key, tensor), period)
