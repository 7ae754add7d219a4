"""Every transformation under JAX's debugging switches, differentiated, and with odd dtypes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxclip import optim
from tests.optim import registry
from tests.optim.registry import Case
from tests.optim.test_battery import make_gradients, make_params

# optax's own Adam fails under "strict": wrappers get what does not.
INNER = {"inner": optax.sgd(1e-2, momentum=0.9)}
PARTS = [
    Case("cautious", INNER),
    Case("kahan_summation", INNER),
    Case("skip_nonfinite", INNER),
    Case("spam", {"learning_rate": 1e-2, "density": 0.5, "weight_decay": 0.1}, label="density"),
    Case("stochastic_rounding", {**INNER, "seed": 0}),
]
CASES = [*registry.CASES, *PARTS]
every_case = pytest.mark.parametrize("case", CASES, ids=str)
BASE = {case.label or case.name: case for case in CASES if not case.label}


def made(case: Case) -> optax.GradientTransformation:
    return case.make(**INNER) if "inner" in case.options else case.make()


def traced(case: Case, dtype: Any = np.float32) -> Any:
    """Shapes of update and state after two steps; nothing is compiled."""
    with jax.numpy_dtype_promotion("standard"):
        params = make_params(dtype)
        gradients = make_gradients(case, params, 2)

    def steps(params: Any, gradients: Any) -> Any:
        tx = made(case)
        state = tx.init(params)
        for gradient in gradients:
            updates, state = tx.update(gradient, state, params)
        return updates, state

    return jax.eval_shape(steps, params, gradients)


@pytest.mark.parametrize("name", BASE)
def test_a_callers_rules_of_promotion_are_not_ours(name: str) -> None:
    """In bfloat16, where nearly every operation has operands of two dtypes."""
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        updates, _ = traced(BASE[name], jnp.bfloat16)
    assert all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in jax.tree.leaves(updates))


SWITCHES = {
    "jax_debug_nans": True,
    "jax_disable_jit": True,
    "jax_enable_checks": True,
    "jax_check_tracer_leaks": True,
    "jax_numpy_dtype_promotion": "strict",
    "jax_numpy_rank_promotion": "raise",
}


@pytest.mark.slow
@every_case
@pytest.mark.parametrize("switch", SWITCHES)
def test_switches(case: Case, switch: str) -> None:
    params = make_params()
    gradients = make_gradients(case, params, 3)
    before = getattr(jax.config, switch)
    jax.config.update(switch, SWITCHES[switch])
    try:
        tx = made(case)
        state, step = tx.init(params), jax.jit(tx.update)
        for gradient in gradients:
            updates, state = step(gradient, state, params)
        jax.block_until_ready(updates)
    finally:
        jax.config.update(switch, before)


# --- Differentiation -----------------------------------------------------------------------------


def learned(tx: optax.GradientTransformation, zero: bool, size: Any) -> Any:
    """A function of parameters after three steps, the second in a direction of that size."""
    params = {"a": jnp.arange(1.0, 5.0), "b": jnp.ones((2, 3))}
    rng = np.random.default_rng(0)
    state = tx.init(params)
    for step in range(3):
        gradients = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), p.dtype), params)
        if step == 1:
            gradients["a"] = gradients["a"] * (1 + size)
        if zero:
            # Of the parameter, too: JAX would leave out what does not depend on it.
            gradients["b"] = size * jnp.zeros_like(gradients["b"])
        updates, state = tx.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
    return sum(jnp.sum(leaf**3) for leaf in jax.tree.leaves(params))


# `spam` and `clip_radagrad_d` with bounds at which they do not act: to `jax.grad` their factors are
# constants. The other two shorten steps here.
DIFFERENTIABLE: dict[str, Callable[[], optax.GradientTransformation]] = {
    "spam": lambda: optim.spam(0.1),
    "acclip": lambda: optim.acclip(0.1, alpha=1.5),
    "stable_adam": lambda: optim.scale_by_stable_adam(),
    "clip_radagrad_d": lambda: optim.clip_radagrad_d(0.1, clip=1e3, b1=0.9),
    "skip_nonfinite": lambda: optim.skip_nonfinite(optax.sgd(0.1, momentum=0.9)),
}


@pytest.mark.parametrize(
    "name",
    [
        n if n in ("spam", "acclip") else pytest.param(n, marks=pytest.mark.slow)
        for n in DIFFERENTIABLE
    ],
)
def test_updates_are_differentiated(name: str) -> None:
    """As meta-learning does; also where a tensor has had no gradient so far."""
    with jax.enable_x64(True):
        of = functools.partial(learned, DIFFERENTIABLE[name]())
        value, slope = jax.jit(jax.value_and_grad(functools.partial(of, True)))(0.0)
        difference = (of(True, 1e-5) - float(value)) / 1e-5
        slope = float(slope)
    assert slope == pytest.approx(float(difference), rel=1e-3) and abs(slope) > 1e-6


@pytest.mark.slow
@every_case
def test_no_update_refuses_to_be_differentiated(case: Case) -> None:
    params = make_params()
    gradients = make_gradients(case, params, 2)

    def loss(size: Any) -> Any:
        tx = made(case)
        state, moved = tx.init(params), params
        for gradient in gradients:
            scaled = jax.tree.map(lambda leaf: size * leaf, gradient)
            updates, state = tx.update(scaled, state, moved)
            moved = optax.apply_updates(moved, updates)
        return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(moved))

    assert np.isfinite(jax.jit(jax.grad(loss))(1.0))


# --- Dtypes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["zclip", "adaclip", "median_clip", "stable_adamw"])
def test_eight_bit_floats(name: str) -> None:
    """JAX promotes them to nothing of itself."""
    updates, state = traced(BASE[name], jnp.float8_e4m3fn)
    assert {leaf.dtype for leaf in jax.tree.leaves(updates)} == {jnp.dtype(jnp.float8_e4m3fn)}
    assert all(leaf.dtype.itemsize >= 2 or leaf.dtype == bool for leaf in jax.tree.leaves(state))


@pytest.mark.parametrize("name", ["stable_adamw", "acclip"])
def test_whole_numbers_do_not_decay(name: str) -> None:
    """5 - 0.001 is 4 as a whole number."""
    params = {"w": jnp.ones(2), "counter": jnp.asarray(5)}
    gradients = {"w": jnp.ones(2), "counter": jnp.asarray(0)}
    tx = getattr(optim, name)(0.1, weight_decay=0.1)
    updates, _ = tx.update(gradients, tx.init(params), params)
    assert optax.apply_updates(params, updates)["counter"] == 5


@pytest.mark.parametrize("dtype", [jax.dtypes.float0, np.bool_])
def test_what_is_no_gradient_is_named(dtype: Any) -> None:
    params = {"w": jnp.ones(2), "counter": jnp.asarray(5)}
    gradients = {"w": jnp.ones(2), "counter": np.zeros((), dtype)}
    for tx in (optim.zclip(), optim.scale_by_stable_adam()):
        with pytest.raises(TypeError, match=r"updates hold counter of dtype (float0|bool), which"):
            tx.update(gradients, tx.init(params), params)


# --- States --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["stable_adamw", "median_clip", "clip_radagrad_d"])
def test_a_state_of_other_parameters_is_refused(name: str) -> None:
    tx = BASE[name].make()
    state = tx.init({"a": jnp.ones((3, 4)), "b": jnp.ones(4)})
    # [4] would go with [3, 4].
    swapped = {"a": jnp.ones(4), "b": jnp.ones((3, 4))}
    with pytest.raises(ValueError, match=r"updates hold a of shape \(4,\).*\(3, 4\).*`init`"):
        tx.update(swapped, state, swapped)
    renamed = {"a": jnp.ones((3, 4)), "c": jnp.ones(4)}
    with pytest.raises(
        ValueError, match=r"updates and state are of different structures: .*`init`"
    ):
        tx.update(renamed, state, renamed)


def test_a_state_of_numpy_arrays_goes_on() -> None:
    """As `flax.serialization.from_bytes` gives it."""
    tx = optim.autoclip(history_size=3)
    state = jax.tree.map(np.asarray, tx.init(jnp.ones(2)))
    _, state = tx.update(jnp.ones(2), state)
    assert state.history[0] == pytest.approx(np.sqrt(2))


def test_a_state_is_made_from_shapes_alone() -> None:
    """As optax's own optimizers take what `jax.eval_shape` gives."""
    shapes = jax.eval_shape(lambda: {"w": jnp.ones((2, 3), jnp.bfloat16)})
    for case in BASE.values():
        if "inner" not in case.options:
            assert all(
                isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(made(case).init(shapes))
            )


# --- Hyperparameters -----------------------------------------------------------------------------

LEARNING = ("acclip", "clip_radagrad_d", "spam", "stable_adamw", "stable_spam")
WRONG = [
    *((name, {"learning_rate": bad}) for name in LEARNING for bad in ("1e-3", True, -1e-3, np.nan)),
    ("stable_adamw", {"learning_rate": 0.1, "weight_decay": np.inf}),
    ("stable_adamw", {"learning_rate": 0.1, "b2": jnp.ones(2)}),
    ("spam", {"learning_rate": 0.1, "density": "0.5"}),
    ("zclip", {"warmup_steps": 1e300}),
    ("zclip", {"skip_update_on_spike": "False"}),
    ("adagc", {"inclusive_warmup": "False"}),
]


@pytest.mark.parametrize(("name", "options"), WRONG)
def test_hyperparameters_that_can_not_be(name: str, options: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError), match=rf"{name}\.{list(options)[-1]}"):
        getattr(optim, name)(**options)


def test_a_schedule_of_vectors_is_not_one_number_a_tensor() -> None:
    tx = optim.adagc(beta=lambda count: jnp.full(2, 0.9))
    params = {"a": jnp.ones(2), "b": jnp.ones(3)}
    with pytest.raises(TypeError, match=r"has shape \(2,\): it must be a scalar"):
        tx.update(params, tx.init(params))


# --- Mistakes that people make -------------------------------------------------------------------

WRAPPERS = ("asam", "cautious", "kahan_summation", "skip_nonfinite", "skip_on_spike")


@pytest.mark.parametrize("name", [*WRAPPERS, "stochastic_rounding"])
def test_wrappers_name_what_is_no_transformation(name: str) -> None:
    with pytest.raises(TypeError, match=rf"{name}\.inner=.*call it, with its learning rate"):
        getattr(optim, name)(optax.adamw)
    with pytest.raises(TypeError, match=rf"{name}\.inner=0.001 is no optax.Gradient.*such as"):
        getattr(optim, name)(1e-3)


INFINITE = {
    "adagc": "eps",
    "adagn": "eps",
    "aggc": "low",
    "zclip": "clip_factor",
    "gradient_stabilizer": "eps",
}


@pytest.mark.parametrize(("name", "argument"), INFINITE.items())
def test_an_infinite_number_that_would_end_all_training(name: str, argument: str) -> None:
    with pytest.raises(ValueError, match=rf"{name}\.{argument}=inf must be"):
        getattr(optim, name)(**{argument: np.inf})


@pytest.mark.parametrize("value", [1e300, 10**400])
def test_numbers_that_float32_does_not_hold(value: Any) -> None:
    with pytest.raises(ValueError, match=r"zclip\.max_norm=1.* is more than float32 holds"):
        optim.zclip(max_norm=value)


def test_a_number_beyond_float32_is_told_how_to_say_no_limit() -> None:
    with pytest.raises(ValueError, match=r"zclip\.max_norm=1e\+39 .*; inf is no limit\Z"):
        optim.zclip(max_norm=1e39)
    with pytest.raises(ValueError, match=r"adagn\.eps=1e\+39 is more than float32 holds\Z"):
        optim.adagn(eps=1e39)


def _of_two(count: Any, rate: float) -> Any:
    return rate + 0 * count


@functools.wraps(_of_two)
def _of_one(count: Any) -> Any:
    return _of_two(count, 0.5)


class _Schedule:
    def __call__(self, count: Any, scale: float = 0.5) -> Any:
        return scale


@pytest.mark.parametrize(
    "schedule",
    [_of_one, jax.jit(_of_one), functools.partial(_of_two, rate=0.5), _Schedule(), lambda *_: 0.5],
)
def test_schedules_of_all_kinds_are_taken(schedule: Any) -> None:
    """Also those that functools.wraps gives the signature of another function."""
    gradients = jnp.ones(2)
    tx = optim.dicesgd(schedule, 10.0, 10.0, 0.0, seed=np.array(1))  # of no axis: an integer
    updates, _ = tx.update(gradients[None], tx.init(gradients))
    np.testing.assert_allclose(updates, -0.5 * gradients, rtol=1e-6)


def test_flags_may_be_zero_and_one_and_names_any_collection() -> None:
    params = {"a": jnp.ones(2), "b": jnp.ones(2)}
    found = []
    for mask in ({"a": True, "b": False}, {"a": 1, "b": 0}, {"a": np.True_, "b": jnp.array(False)}):
        tx = optim.stable_adamw(0.1, weight_decay=0.1, mask=mask)
        found.append(tx.update(params, tx.init(params), params)[0])
    for one in found[1:]:
        jax.tree.map(np.testing.assert_array_equal, found[0], one)
    assert not np.array_equal(found[0]["a"], found[0]["b"])
    optim.skip_nonfinite(optax.sgd(0.1), extra_args={"value": 1}.keys())


def test_functions_that_are_no_schedules() -> None:
    with pytest.raises(TypeError, match=r"zclip\.alpha=.* is no schedule, a function of the"):
        optim.zclip(alpha=lambda: 0.9)
    with pytest.raises(TypeError, match=r"zclip\.alpha is an array of dtype key<fry>: no number"):
        optim.zclip(alpha=jax.random.key(0))
    for found in ("0.9", None, 1j):
        tx = optim.zclip(alpha=lambda count, found=found: found)
        with pytest.raises(TypeError, match=r"the value of a schedule, is .*: no number"):
            tx.update(jnp.ones(2), tx.init(jnp.ones(2)))


def test_what_is_no_list_of_names_or_patterns() -> None:
    """The letters of a string would be the names."""
    with pytest.raises(TypeError, match=r"skip_nonfinite\.extra_args='grad_fn' must be a list"):
        optim.skip_nonfinite(optax.sgd(0.1), extra_args="grad_fn")
    with pytest.raises(TypeError, match=r"aggc\.groups=None must be a list"):
        optim.aggc(groups=None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"private_mean_by_group\.groups=None must be a list"):
        optim.private_mean_by_group(None, [1.0], noise_multiplier=0.0)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"dicesgd\.seed='abc' must be an integer or a key"):
        optim.dicesgd(0.1, 1.0, 1.0, 1.0, seed="abc")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"autoclip\.history_size=True must be an integer"):
        optim.autoclip(history_size=True)


@pytest.mark.parametrize(
    ("mask", "message"),
    [("kernel", "mask holds 'kernel'; it is a tree of True"), ({"a": 2}, "mask holds 2")],
)
def test_a_mask_that_is_no_tree_of_flags(mask: Any, message: str) -> None:
    """Whatever is true would decay all."""
    tx = optim.stable_adamw(0.1, weight_decay=0.1, mask=mask)
    params = {"a": jnp.ones(2)}
    with pytest.raises(TypeError, match=message):
        tx.update(params, tx.init(params), params)


def test_a_mask_of_another_structure_is_one_line() -> None:
    tx = optim.stable_adamw(0.1, weight_decay=0.1, mask={"b": True})
    params = {"a": jnp.ones(2)}
    with pytest.raises(ValueError, match=r"\Amask and parameters are of different .*\Z"):
        tx.update(params, tx.init(params), params)


@pytest.mark.parametrize("name", ["stable_adamw", "acclip", "spam", "stable_spam"])
def test_parameters_of_another_shape_do_not_broadcast(name: str) -> None:
    tx = getattr(optim, name)(0.1, weight_decay=0.1)
    params = {"b": jnp.ones(4)}
    with pytest.raises(ValueError, match=r"parameters hold b of shape \(4, 1\).*shape \(4,\)"):
        tx.update(params, tx.init(params), {"b": jnp.ones((4, 1))})


def test_no_state_has_an_array_that_orbax_can_not_save() -> None:
    """It refuses those of size zero."""
    params = {"half": jnp.ones(2, jnp.bfloat16), "full": jnp.ones(2)}
    for case in CASES:
        sizes = [leaf.size for leaf in jax.tree.leaves(jax.eval_shape(made(case).init, params))]
        assert min(sizes) > 0, case


def test_complex_matrices_have_no_bounded_spectrum() -> None:
    tx = optim.spectra_clip(threshold=0.1)
    params = jnp.ones((2, 3), jnp.complex64)
    with pytest.raises(TypeError, match="spectra_clip: singular values of complex matrices"):
        tx.update(params, tx.init(params))


@pytest.mark.parametrize("wrap", [optim.kahan_summation, optim.stochastic_rounding])
def test_none_updates_of_wrapped_ones_are_one_line(wrap: Any) -> None:
    tx = wrap(optax.sgd(0.1))
    params = {"a": jnp.ones(2), "b": jnp.ones(2)}
    with pytest.raises(ValueError, match=r"\Aupdates and parameters are of different .*\Z"):
        tx.update({"a": jnp.ones(2), "b": None}, tx.init(params), params)
