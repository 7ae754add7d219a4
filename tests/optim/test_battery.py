"""The demands that every transformation of ``jaxclip.optim`` meets, one test each.

Cases come from ``registry.py``. Everything runs on one tiny tree, with one compiled step for each
case wherever a test can share it.
"""

from __future__ import annotations

import doctest
import functools
import importlib
import inspect
import math
import re
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxclip import optim
from tests.optim import registry
from tests.optim.registry import Case

EXAMPLES = 4


def parametrized(cases: list[Case]) -> Any:
    """All cases; further ones of the same transformation, which bear a label, among the slow."""
    slow = pytest.mark.slow
    return pytest.mark.parametrize(
        "case", [pytest.param(c, id=str(c), marks=[slow] if c.label else []) for c in cases]
    )


every_case = parametrized(list(registry.CASES))
without_examples = parametrized([case for case in registry.CASES if not case.per_example])


def make_params(dtype: Any = np.float32) -> dict[str, Any]:
    """A small tree: matrices, a vector, a scalar."""
    rng = np.random.default_rng(0)
    return {
        "image": {
            "bias": jnp.asarray(rng.normal(size=(6,)), dtype),
            "kernel": jnp.asarray(rng.normal(size=(5, 6)), dtype),
        },
        "logit_scale": jnp.asarray(2.5, dtype),
        "text": {"embedding": jnp.asarray(rng.normal(size=(9, 4)), dtype)},
    }


def make_gradients(case: Case, params: Any, steps: int, seed: int = 1) -> list[Any]:
    """Gradients of global norm about one, with a spike of 30 times every seventh step."""
    rng = np.random.default_rng(seed)
    leaves, treedef = jax.tree.flatten(params)
    axes = (EXAMPLES,) if case.per_example else ()
    scale = 1.0 / math.sqrt(max(1, sum(leaf.size for leaf in leaves)))
    gradients = []
    for step in range(steps):
        size = scale * rng.uniform(0.5, 1.5) * (30.0 if step % 7 == 6 else 1.0)
        values = [
            jnp.asarray(size * rng.normal(size=axes + leaf.shape), leaf.dtype) for leaf in leaves
        ]
        gradients.append(jax.tree.unflatten(treedef, values))
    return gradients


@functools.cache
def compiled(case: Case) -> Any:
    """The case's jitted ``update``; jit keeps one program for each tree."""
    return jax.jit(case.make().update)


def follow(case: Case, params: Any, gradients: list[Any], state: Any = None) -> Any:
    """Updates of all steps and the final state, with fixed parameters."""
    state = jax.jit(case.make().init)(params) if state is None else state
    updates = []
    for gradient in gradients:
        update, state = compiled(case)(gradient, state, params)
        updates.append(update)
    return updates, state


def assert_close(actual: Any, expected: Any, rtol: float = 1e-5, atol: float = 1e-7) -> None:
    """Trees of equal structure with close values; infinities and NaN at the same places."""
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(
            np.asarray(a, np.float64), np.asarray(b, np.float64), rtol=rtol, atol=atol
        ),
        actual,
        expected,
    )


def assert_finite(tree: Any) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        assert np.all(np.isfinite(np.asarray(leaf, np.float64))), jax.tree_util.keystr(path)


def reports(state: Any) -> dict[str, np.ndarray]:
    """What :func:`optim.read_metrics` says, by the last part of the name; exactly one report."""
    metrics = optim.read_metrics(state)
    found = {name.rpartition("/")[2]: np.asarray(v) for name, v in metrics.items()}
    assert len(found) == len(metrics), sorted(metrics)
    found.pop("streak", None)  # of zclip alone
    return found


# --- State and documentation ---------------------------------------------------------------------


@every_case
def test_state_follows_the_convention(case: Case) -> None:
    params = make_params()
    _, state = follow(case, params, make_gradients(case, params, 8))
    for node in jax.tree.leaves(state):
        assert isinstance(node, jax.Array)
    found = reports(state)
    assert set(found) == {"norm", "threshold", "clipped", "nonfinite_count"}
    shape = (len(jax.tree.leaves(params)),) if case.per_tensor else ()
    assert {name: value.shape for name, value in found.items()} == dict.fromkeys(found, shape)
    assert found["norm"].dtype == found["threshold"].dtype == np.float32
    assert found["clipped"].dtype == np.bool_
    assert found["nonfinite_count"].dtype == np.int32
    assert not found["nonfinite_count"].any()


@every_case
def test_state_is_no_larger_than_documented(case: Case) -> None:
    params = make_params()
    tensors = len(jax.tree.leaves(params))
    state = jax.eval_shape(case.make().init, params)
    numbers = sum(leaf.size for leaf in jax.tree.leaves(state))
    allowed = (
        case.state_copies * sum(leaf.size for leaf in jax.tree.leaves(params))
        + case.scalars_per_tensor * tensors
        + 4 * (tensors if case.per_tensor else 1)
        + case.extra_scalars
    )
    assert numbers <= allowed


@every_case
def test_parameter_sized_state_is_found_by_tree_map_params(case: Case) -> None:
    params = make_params()
    tx = case.make()
    sizes = []
    optax.tree_utils.tree_map_params(tx, lambda leaf: sizes.append(leaf.size), tx.init(params))
    expected = case.state_copies * sum(leaf.size for leaf in jax.tree.leaves(params))
    assert sum(sizes) == expected


@pytest.mark.parametrize("name", sorted({case.name for case in registry.CASES} | {*registry.PARTS}))
def test_documentation_is_complete_and_its_example_runs(name: str) -> None:
    function = getattr(optim, name)
    text = inspect.getdoc(function)
    for part in ("Args:", "Returns:", "Examples:", "References:", "State:", "Cost:"):
        assert part in text, f"{name}: no {part}"
    assert re.search(r":math:|\.\. math::", text), f"{name}: no formula"
    for argument in inspect.signature(function).parameters:
        assert re.search(rf"^ +{argument}: ", text, re.M), f"{name}: {argument} not explained"
    module = sys.modules[function.__module__]
    assert module is importlib.import_module(function.__module__)
    tests = doctest.DocTestFinder().find(function, name, module=module)
    runner = doctest.DocTestRunner()
    for test in tests:
        runner.run(test)
    assert runner.summarize(verbose=False).failed == 0
    assert runner.tries > 1


# --- jit, scan, vmap, donation, dtypes -----------------------------------------------------------


@every_case
def test_jit_gives_what_eager_gives(case: Case) -> None:
    params = make_params()
    gradients = make_gradients(case, params, 3)
    tx = case.make()
    state = tx.init(params)
    eager = []
    for gradient in gradients:
        update, state = tx.update(gradient, state, params)
        eager.append(update)
    updates, final = follow(case, params, gradients)
    assert_close(updates, eager)
    assert_close(final, state)


@every_case
def test_scan_of_200_steps_traces_once(case: Case) -> None:
    params = make_params()
    gradients = make_gradients(case, params, 200)
    tx = case.make()
    traces = 0

    def step(state: Any, gradient: Any) -> Any:
        nonlocal traces
        traces += 1
        updates, state = tx.update(gradient, state, params)
        return state, updates

    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *gradients)
    final, updates = jax.jit(lambda state: jax.lax.scan(step, state, stacked))(tx.init(params))
    # scan traces a second time when a carry comes out with another type than it went in with.
    assert traces == 1
    looped, looped_final = follow(case, params, gradients)
    assert_close(jax.tree.map(lambda leaf: leaf[-1], updates), looped[-1], rtol=1e-4, atol=1e-6)
    assert_close(final, looped_final, rtol=1e-4, atol=1e-6)
    assert_finite(final)


@every_case
def test_steps_are_compiled_once_and_may_be_donated(case: Case) -> None:
    params = make_params()
    tx = case.make()
    traces = 0

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(gradient: Any, state: Any) -> Any:
        nonlocal traces
        traces += 1
        return tx.update(gradient, state, params)

    state = tx.init(params)
    for gradient in make_gradients(case, params, 4):
        updates, state = step(gradient, state)
    assert traces == 1
    expected, _ = follow(case, params, make_gradients(case, params, 4))
    assert_close(updates, expected[-1])


@every_case
def test_vmap_over_replicas(case: Case) -> None:
    params = make_params()
    tx = case.make()
    runs = [make_gradients(case, params, 4, seed=seed) for seed in (1, 2)]
    state = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), tx.init(params))
    batched = jax.jit(jax.vmap(tx.update, in_axes=(0, 0, None)))
    for pair in zip(*runs, strict=True):
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *pair)
        updates, state = batched(stacked, state, params)
    for index, gradients in enumerate(runs):
        expected, _ = follow(case, params, gradients)
        assert_close(jax.tree.map(lambda leaf, i=index: leaf[i], updates), expected[-1])


@every_case
def test_bfloat16_parameters_keep_float32_statistics(case: Case) -> None:
    params = make_params(jnp.bfloat16)
    gradients = make_gradients(case, params, 8)
    updates, state = follow(case, params, gradients)
    assert jax.tree.leaves(jax.tree.map(lambda u: u.dtype, updates[-1])) == [jnp.bfloat16] * 4
    before = jax.eval_shape(case.make().init, params)
    assert jax.tree.map(lambda a, b: a.dtype == b.dtype and a.shape == b.shape, before, state)
    found = reports(state)
    assert found["norm"].dtype == found["threshold"].dtype == np.float32
    assert_finite((updates, state))
    # The same gradients in float32 are seen with the same norms, but for rounding.
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), (params, gradients))
    _, expected = follow(case, *wide)
    np.testing.assert_allclose(found["norm"], reports(expected)["norm"], rtol=0.05)


@every_case
def test_float64(case: Case) -> None:
    with jax.enable_x64(True):
        params = make_params(np.float64)
        tx = case.make()
        gradients = make_gradients(case, params, 8)
        step = jax.jit(tx.update)
        state = tx.init(params)
        for gradient in gradients:
            updates, state = step(gradient, state, params)
        assert all(leaf.dtype == np.float64 for leaf in jax.tree.leaves(updates))
        found = reports(state)
        assert found["norm"].dtype == found["threshold"].dtype == np.float64
        # Single precision parameters have float32 statistics also where float64 is enabled.
        narrow = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
        first = tx.init(narrow)
        _, second = step(jax.tree.map(lambda p: p * 0.1, gradients[0]), first, narrow)
        assert jax.tree.map(_dtype, first) == jax.tree.map(_dtype, second)
        assert reports(second)["norm"].dtype == np.float32
    plain, _ = follow(
        case, *jax.tree.map(lambda leaf: leaf.astype(np.float32), (params, gradients))
    )
    assert_close(updates, plain[-1], rtol=1e-3, atol=1e-5)


def _dtype(leaf: jax.Array) -> np.dtype:
    return leaf.dtype


@parametrized([c for c in registry.CASES if c.kind == "optimizer" or c.name == "median_clip"])
def test_float32_parameters_get_float32_updates_of_bfloat16_gradients(case: Case) -> None:
    """As optax.adamw: bfloat16 would round weight decay and learning rate away."""
    params = make_params()
    narrow = [
        jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), gradient)
        for gradient in make_gradients(case, params, 4)
    ]
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), narrow)
    updates, _ = follow(case, params, narrow)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(updates))
    expected, _ = follow(case, params, wide)
    assert_close(updates, expected, rtol=1e-6)


# --- optax's wrappers ----------------------------------------------------------------------------


@every_case
def test_chain(case: Case) -> None:
    params = make_params()
    gradients = make_gradients(case, params, 3)
    tx = optax.chain(case.make(), optax.scale(-2.0))
    state, step = tx.init(params), jax.jit(tx.update)
    for gradient in gradients:
        updates, state = step(gradient, state, params)
    expected, _ = follow(case, params, gradients)
    assert_close(updates, jax.tree.map(lambda leaf: -2.0 * leaf, expected[-1]))


@every_case
def test_masked_looks_only_at_what_it_may(case: Case) -> None:
    params = make_params()
    gradients = make_gradients(case, params, 8)
    mask = {"image": True, "logit_scale": False, "text": True}
    tx = optax.masked(case.make(), mask)
    state, step = tx.init(params), jax.jit(tx.update)
    for gradient in gradients:
        updates, state = step(gradient, state, params)
    assert_close(updates["logit_scale"], gradients[-1]["logit_scale"])

    def without(tree: Any) -> Any:
        return {key: value for key, value in tree.items() if key != "logit_scale"}

    expected, _ = follow(case, without(params), [without(g) for g in gradients])
    assert_close(without(updates), expected[-1])
    assert reports(state)["norm"].shape == ((3,) if case.per_tensor else ())


@every_case
def test_partition_keeps_groups_apart(case: Case) -> None:
    params = make_params()
    gradients = make_gradients(case, params, 8)
    labels = {"image": "a", "logit_scale": "b", "text": "a"}
    tx = optax.partition({"a": case.make(), "b": case.make()}, labels)
    state, step = tx.init(params), jax.jit(tx.update)
    for gradient in gradients:
        updates, state = step(gradient, state, params)
    for group in (("image", "text"), ("logit_scale",)):
        expected, _ = follow(
            case,
            {key: params[key] for key in group},
            [{key: gradient[key] for key in group} for gradient in gradients],
        )
        assert_close({key: updates[key] for key in group}, expected[-1])
    names = [name for name in optim.read_metrics(state) if not name.endswith("/streak")]
    assert len(names) == 8 and len({name.partition("/")[0] for name in names}) == 2


@without_examples
def test_multisteps_sees_the_mean_gradient(case: Case) -> None:
    params = make_params()
    gradients = make_gradients(case, params, 8)
    tx = optax.MultiSteps(case.make(), every_k_schedule=2)
    state, step = tx.init(params), jax.jit(tx.update)
    emitted = []
    for index, gradient in enumerate(gradients):
        updates, state = step(gradient, state, params)
        if index % 2:
            emitted.append(updates)
        else:
            assert not any(np.any(leaf) for leaf in jax.tree.leaves(updates))
    means = [
        jax.tree.map(lambda a, b: (a + b) / 2, *pair)
        for pair in zip(gradients[::2], gradients[1::2], strict=True)
    ]
    expected, final = follow(case, params, means)
    assert_close(emitted, expected)
    assert_close(reports(state), reports(final))


@every_case
def test_inject_hyperparams(case: Case) -> None:
    assert case.inject, "name float hyperparameters to inject"
    params = make_params()
    gradients = make_gradients(case, params, 8)
    tx = optax.inject_hyperparams(case.factory, static_args=case.static_args)(
        **{**case.options, **case.inject}
    )
    state, step = tx.init(params), jax.jit(tx.update)
    for gradient in gradients[:4]:
        updates, state = step(gradient, state, params)
    expected, _ = follow_with(case.make(**case.inject), params, gradients[:4])
    assert_close(updates, expected, rtol=1e-4)
    assert set(case.inject) <= set(state.hyperparams)
    # They may be changed from outside, without a new compilation.
    for name in case.inject:
        value = case.options.get(name, inspect.signature(case.factory).parameters[name].default)
        state.hyperparams[name] = jnp.asarray(value, state.hyperparams[name].dtype)
    step(gradients[4], state, params)
    assert step._cache_size() == 1
    assert len(reports(state)) == 4


@every_case
def test_injected_hyperparameters_are_not_rounded_to_bfloat16(case: Case) -> None:
    """optax casts them to the parameters' dtype, in which b2 = 0.999 is 1."""
    params = make_params(jnp.bfloat16)
    options = {**case.options, **case.inject}
    with pytest.raises(TypeError, match=rf"{case.name}\.\w+ is .*bfloat16.*hyperparam_dtype"):
        optax.inject_hyperparams(case.factory, static_args=case.static_args)(**options).init(params)
    wide = optax.inject_hyperparams(
        case.factory, static_args=case.static_args, hyperparam_dtype=jnp.float32
    )(**options)
    found = jax.eval_shape(wide.init, params).hyperparams
    assert all(found[name].dtype == jnp.float32 for name in case.inject)


def follow_with(tx: optax.GradientTransformation, params: Any, gradients: list[Any]) -> Any:
    """Last update and final state of a transformation of one's own."""
    state, step = tx.init(params), jax.jit(tx.update)
    for gradient in gradients:
        updates, state = step(gradient, state, params)
    return updates, state


@every_case
def test_float_hyperparameters_may_be_schedules(case: Case) -> None:
    params = make_params()
    gradients = make_gradients(case, params, 4)
    constants = case.make(**case.inject)
    counts = []

    def schedule(value: float) -> Any:
        def at(count: Any) -> Any:
            counts.append(count)
            return jnp.asarray(value, jnp.float32)

        return at

    scheduled = case.make(**{name: schedule(value) for name, value in case.inject.items()})
    updates, _ = follow_with(scheduled, params, gradients)
    expected, _ = follow_with(constants, params, gradients)
    assert_close(updates, expected, rtol=1e-4)
    assert counts


# --- Hard input ----------------------------------------------------------------------------------


@every_case
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nonfinite_gradients_leave_no_trace(case: Case, bad: float) -> None:
    params = make_params()
    gradients = make_gradients(case, params, 12)
    broken = jax.tree.map(jnp.asarray, gradients[8])
    kernel = broken["image"]["kernel"]
    broken["image"]["kernel"] = kernel.at[(0,) * kernel.ndim].set(bad)
    _, state = follow(case, params, gradients[:8])
    (update,), state = follow(case, params, [broken], state)
    after, final = follow(case, params, gradients[8:], state)
    assert_finite((update, after))

    found = reports(state)
    number = jax.tree.leaves(jax.tree.map(lambda leaf: leaf.size, params)).index(30)
    at = number if case.per_tensor else ()
    assert found["nonfinite_count"][at] == 1 and found["nonfinite_count"].sum() == 1
    assert found["clipped"][at]
    assert not np.isfinite(found["norm"][at])
    assert np.all(np.isfinite(found["threshold"]))
    if case.skips_nonfinite:
        assert not np.any(update["image"]["kernel"])
        if not case.per_tensor:
            assert not any(np.any(leaf) for leaf in jax.tree.leaves(update))
        expected, _ = follow(case, params, gradients)
        name = ("image", "kernel")
        assert_close(
            [leaves[name[0]][name[1]] for leaves in after],
            [leaves[name[0]][name[1]] for leaves in expected[8:]],
        )
    assert reports(final)["nonfinite_count"].sum() == 1


@every_case
def test_zero_gradients(case: Case) -> None:
    params = make_params()
    gradients = make_gradients(case, params, 8)
    zeros = jax.tree.map(jnp.zeros_like, gradients[0])
    # First of all, in the middle (warm-up and after), and many in a row.
    (first,), state = follow(case, params, [zeros])
    if case.kind == "clipper":
        assert not any(np.any(leaf) for leaf in jax.tree.leaves(first))
    updates, state = follow(case, params, [*gradients, zeros, zeros, zeros, *gradients], state)
    assert_finite((first, updates, reports(state)))
    if case.zero_in_zero_out:
        assert not any(np.any(leaf) for leaf in jax.tree.leaves(updates[8:11]))
    # It comes back to life.
    assert all(np.any(leaf) for leaf in jax.tree.leaves(updates[-1]))
    assert not reports(state)["nonfinite_count"].any()


@every_case
@pytest.mark.parametrize("when", [0, 3, 9])
def test_huge_gradients_are_finite_numbers(case: Case, when: int) -> None:
    params = make_params()
    gradients = make_gradients(case, params, 12)
    huge = jax.tree.map(lambda leaf: jnp.full_like(leaf, 1e30), gradients[0])
    _, state = follow(case, params, gradients[:when])
    (update,), state = follow(case, params, [huge], state)
    found = reports(state)
    assert not found["nonfinite_count"].any()
    assert_finite((update, found))
    updates, state = follow(case, params, gradients[when:], state)
    assert_finite((updates, reports(state)))
    assert not reports(state)["nonfinite_count"].any()


STRUCTURES = {
    "empty": {},
    "scalar": np.float32(0.5),
    "nothing_but_masked": {"a": optax.MaskedNode(), "b": None},
    "with_holes": {
        "masked": optax.MaskedNode(),
        "no_elements": np.ones((0, 3), np.float32),
        "none": None,
        "nothing": {},
        "one_element": np.ones((1, 1), np.float32),
        "tensor": np.ones((3, 2), np.float32),
    },
}


@every_case
@pytest.mark.parametrize("structure", STRUCTURES)
def test_structures(case: Case, structure: str) -> None:
    params = STRUCTURES[structure]
    gradients = make_gradients(case, jax.tree.map(jnp.asarray, params), 2)
    tx = case.make()
    state = tx.init(params)
    for gradient in gradients:
        updates, state = jax.jit(tx.update)(gradient, state, params)
    assert jax.tree.structure(updates) == jax.tree.structure(params)
    assert jax.tree.map(jnp.shape, updates) == jax.tree.map(jnp.shape, params)
    assert_finite(updates)
    assert not reports(state)["nonfinite_count"].any()


# --- Many devices, checkpoints -------------------------------------------------------------------

SPECS = {
    "image": {"bias": PartitionSpec("x"), "kernel": PartitionSpec("x", None)},
    "logit_scale": PartitionSpec(),
    "text": {"embedding": PartitionSpec(None, "x")},
}
COLLECTIVE = re.compile(
    r"= (.*?) (?:all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(?:-start)?\("
)


def collective_sizes(program: str) -> list[int]:
    """Elements of the largest array that each collective of a compiled program makes."""
    sizes = []
    for line in COLLECTIVE.findall(program):
        shapes = re.findall(r"\[([\d,]*)\]", re.sub(r"\{[^}]*\}", "", line))
        sizes.append(max(math.prod(int(n) for n in shape.split(",") if n) for shape in shapes))
    return sizes


@every_case
def test_sharded_parameters_give_the_same_and_are_not_gathered(case: Case) -> None:
    rng = np.random.default_rng(0)
    shapes = {
        "image": {"bias": (64,), "kernel": (64, 32)},
        "logit_scale": (),
        "text": {"embedding": (40, 64)},
    }
    params = jax.tree.map(
        lambda shape: jnp.asarray(rng.normal(size=shape), jnp.float32),
        shapes,
        is_leaf=lambda node: isinstance(node, tuple),
    )
    gradients = make_gradients(case, params, 8)
    expected, expected_state = follow(case, params, gradients)

    mesh = jax.make_mesh((8,), ("x",))
    is_spec = {"is_leaf": lambda node: isinstance(node, PartitionSpec)}
    shardings = jax.tree.map(lambda spec: NamedSharding(mesh, spec), SPECS, **is_spec)
    if case.per_example:
        of_gradients = jax.tree.map(
            lambda spec: NamedSharding(mesh, PartitionSpec(None, *spec)), SPECS, **is_spec
        )
    else:
        of_gradients = shardings
    tx = case.make()
    state = tx.init(params)
    of_state = optax.tree_utils.tree_map_params(
        tx,
        lambda _, sharding: sharding,
        state,
        shardings,
        transform_non_params=lambda _: NamedSharding(mesh, PartitionSpec()),
    )
    step = jax.jit(
        tx.update,
        in_shardings=(of_gradients, of_state, shardings),
        out_shardings=(shardings, of_state),
    )
    program = step.lower(gradients[0], state, params).compile()
    sizes = collective_sizes(program.as_text())
    # A few scalars a tensor (candidates of a quantile, say), never a tensor.
    assert max(sizes, default=0) <= case.largest_collective, sizes
    for gradient, wanted in zip(gradients, expected, strict=True):
        updates, state = program(
            jax.device_put(gradient, of_gradients),
            jax.device_put(state, of_state),
            jax.device_put(params, shardings),
        )
        assert_close(updates, wanted, rtol=1e-4, atol=1e-6)
    assert_close(state, expected_state, rtol=1e-4, atol=1e-6)


def test_the_gather_check_sees_a_gather() -> None:
    mesh = jax.make_mesh((8,), ("x",))
    sharded = NamedSharding(mesh, PartitionSpec("x"))
    replicated = NamedSharding(mesh, PartitionSpec())
    gather = jax.jit(lambda x: x * 2, in_shardings=sharded, out_shardings=replicated)
    program = gather.lower(jax.ShapeDtypeStruct((64, 32), jnp.float32)).compile()
    assert max(collective_sizes(program.as_text())) == 2048


def test_checkpoints_continue_the_same_trajectory(tmp_path: Any) -> None:
    checkpoint = pytest.importorskip("orbax.checkpoint")
    params = make_params()
    middle, wanted = {}, {}
    for case in registry.CASES:
        gradients = make_gradients(case, params, 12)
        _, middle[str(case)] = follow(case, params, gradients[:8])
        wanted[str(case)] = follow(case, params, gradients[8:], middle[str(case)])
    with checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "states", middle)
        checkpointer.wait_until_finished()
        fresh = {str(case): jax.eval_shape(case.make().init, params) for case in registry.CASES}
        one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        fresh = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=one), fresh
        )
        restored = checkpointer.restore(tmp_path / "states", fresh)
    for case in registry.CASES:
        gradients = make_gradients(case, params, 12)
        continued = follow(case, params, gradients[8:], restored[str(case)])
        jax.tree.map(np.testing.assert_array_equal, continued, wanted[str(case)])
