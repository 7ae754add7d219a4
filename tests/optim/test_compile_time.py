"""What keeps compile time low: equal tensors share their kernels, and loops copy no gradients."""

from __future__ import annotations

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxclip import optim
from jaxclip.optim import _moments, _norms, _places, _stacks, _together, _unpack, _where

TRANSFORMATIONS = {
    "adaclip": optim.adaclip(),
    "adagc": optim.adagc(),
    "adagn": optim.adagn(),
    "clip_by_coordinate": optim.clip_by_coordinate(),
    "median_clip": optim.median_clip(0.1),
    "zclip": optim.zclip(),
    "clip_radagrad_d": optim.clip_radagrad_d(1e-3),
    "clip_radagrad_d tensor": optim.clip_radagrad_d(1e-3, kind="tensor"),
    "spam": optim.spam(1e-3),
    "stable_adamw": optim.stable_adamw(1e-3, weight_decay=0.1),
    "stable_spam": optim.stable_spam(1e-3),
    "cautious": optim.cautious(optax.adamw(1e-3)),
    "stochastic_rounding": optim.stochastic_rounding(optax.sgd(1e-3)),
}


SHAPE = (96, 128)  # too large to be put together with others


def compiled(tx: optax.GradientTransformation, tensors: int, dtype: jnp.dtype = jnp.float32):
    params = [jax.ShapeDtypeStruct(SHAPE, dtype)] * tensors
    state = jax.eval_shape(tx.init, params)
    return jax.jit(tx.update).lower(params, state, params).compile()


def kernels(program: str) -> set[str]:
    """Bodies of fused computations, without names and source lines."""
    bodies = re.findall(r"^%fused_computation\S* (.*?)^}", program, re.M | re.S)
    return {re.sub(r"%[\w.-]+|, metadata=\{.*?\}|\w+[.\d]*:", "", body) for body in bodies}


@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_tensors_of_one_shape_share_their_kernels(name: str) -> None:
    """Four times the tensors, and not one kernel more."""
    dtype = jnp.bfloat16 if name == "stochastic_rounding" else jnp.float32
    few, many = (
        len(kernels(compiled(TRANSFORMATIONS[name], tensors, dtype).as_text()))
        for tensors in (9, 36)
    )
    # One for each kind of work on the shape, and few for all numbers of all tensors.
    assert few <= 16
    assert many <= few + 3  # vectors of all tensors are cut up another way


@pytest.mark.parametrize("name", ["adagc", "clip_by_coordinate"])
def test_no_kernel_looks_which_of_a_few_arrays_an_element_is_from(name: str) -> None:
    """XLA makes one of a concatenation of few arrays that are computed: slow to compile."""
    shapes = [*[(96, 128), (64,), (4, 16)] * 5, *[(64,)] * 5]
    params = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    tx = TRANSFORMATIONS[name]
    state = jax.eval_shape(tx.init, params)
    program = jax.jit(tx.update).lower(params, state, params).compile().as_text()
    assert not [body for body in kernels(program) if " concatenate(" in body]


def test_matrices_with_one_shorter_side_share_a_loop() -> None:
    params = [jnp.zeros(shape) for shape in ((4, 6), (6, 4), (4, 4), (2, 4, 5), (3, 5), (7,))]
    tx = optim.spectra_clip(1.0)
    program = jax.jit(tx.update).lower(params, tx.init(params)).as_text()
    # One for each side, and that of the norms.
    assert program.count("stablehlo.while") == 3


def test_kernels_are_told_their_places() -> None:
    """All places that there are, zero and neighbours among them, and not one kernel more."""

    def function(vector: jax.Array, leaves: list[jax.Array]) -> list[jax.Array]:
        vector = jax.lax.reduce(vector, jnp.float32(0), jax.lax.add, (0,))
        places = _places.places(range(8), range(7, -1, -1))
        return [
            leaf * _places.at(vector, place) + _places.at(vector, place, 1)
            for leaf, place in zip(leaves, places, strict=True)
        ]

    leaves = [jnp.ones((96, 128))] * 8
    vector = jnp.stack([jnp.arange(8.0), jnp.ones(8)])
    program = jax.jit(function).lower(vector, leaves).compile()
    assert len(kernels(program.as_text())) == 1
    for i, found in enumerate(program(vector, leaves)):
        np.testing.assert_array_equal(found, (i + 1.0) + (8.0 - i))


def test_a_choice_of_elements_is_drawn_once() -> None:
    """Where they are taken; it need not be drawn again where they are put back."""
    program = compiled(optim.spam(1e-3, density=0.25), 2).as_text()
    first_factor = "constant(2246822507)"
    assert sum(first_factor in kernel for kernel in kernels(program)) == 2  # the seeds', and that


def test_norms_begin_without_a_kernel() -> None:
    norms = jax.jit(lambda leaf: _norms.tensor_norms([leaf, leaf], jnp.float32))
    program = norms.lower(jax.ShapeDtypeStruct(SHAPE, jnp.float32)).compile().as_text()
    assert "broadcast" not in re.findall(r"ENTRY.*", program, re.S)[0]


def test_small_tensors_of_one_size_are_put_together() -> None:
    shapes = [*[(12,)] * 15, *[(3, 4)] * 5, (2, 2), (96, 128)]
    leaves = [jnp.full(shape, 1.0 + i) for i, shape in enumerate(shapes)]
    none = [None] * len(leaves)
    found = _moments.Tensors(leaves, leaves, leaves, none, none, None)
    vectors = _moments.small_as_vectors(found)
    assert [leaf.shape for leaf in vectors.mu] == [*[(12,)] * 20, (2, 2), (96, 128)]
    assert len(_moments.stacks_of(vectors, by_one_kernel=True)) == 3
    tx = optim.stable_spam(1e-3)
    updates, state = jax.jit(tx.update)(leaves, tx.init(leaves))
    assert [leaf.shape for leaf in updates] == shapes
    # The first step is one of length lr for each element, of every tensor its own.
    np.testing.assert_array_equal(state[0].norm, 1.0 + np.arange(len(leaves)))
    jax.tree.map(lambda leaf: np.testing.assert_allclose(leaf, -1e-3, rtol=1e-5), updates)


def test_a_step_of_small_tensors_is_one_kernel() -> None:
    """And what takes a stack of them apart is one more."""

    def step(leaf: jax.Array, param: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        update = leaf * 2 + 1 if param is None else leaf * 2 + param
        return (leaf / update).astype(jnp.bfloat16), update

    leaves = [jnp.arange(1.0, 8) * i for i in range(1, 12)]
    stacks = _stacks.Stacks(leaves)

    def steps(leaves: list[jax.Array]) -> list[list[jax.Array]]:
        results = stacks.each(
            lambda leaf: _together.in_one_kernel(step, leaf, None), stacks.arrays(leaves)
        )
        return stacks.tensors(list(zip(*results, strict=True)), settled=True)

    program = jax.jit(steps).lower(leaves).compile()
    work, *others = sorted(kernels(program.as_text()), key=len, reverse=True)
    assert "divide" in work and not any(" divide(" in other for other in others)
    assert len(others) <= 3  # slices of two dtypes, and the cast to one of them
    for found, expected in zip(
        map(list, zip(*program(leaves), strict=True)), [step(x, None) for x in leaves], strict=True
    ):
        jax.tree.map(np.testing.assert_array_equal, found, list(expected))


def test_no_array_of_agreement_is_held() -> None:
    """One for the direction, and none of its signs beside it."""
    program = compiled(TRANSFORMATIONS["cautious"], 1)
    assert program.memory_analysis().temp_size_in_bytes < 1.1 * 4 * math.prod(SHAPE)


def test_a_choice_is_that_of_numpy() -> None:
    condition, yes, no = jnp.asarray([True, False]), jnp.asarray([1.5, 2.5]), jnp.float32(7)
    for arguments in (
        (condition, yes, -yes),
        (condition, yes, 0.0),
        (condition, jnp.nan, yes),
        (condition[0], yes, 1),
        (condition, yes, no),  # of two shapes
        (condition[1], yes, jnp.asarray([1, 2])),  # of two dtypes
        (condition[:, None], yes, 0.0),
    ):
        found, wanted = _where.where(*arguments), jnp.where(*arguments)
        assert found.dtype == wanted.dtype
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("name", ["adagc", "adagn", "zclip"])
def test_no_copy_of_the_gradients_is_held(name: str, dtype: jnp.dtype) -> None:
    program = compiled(TRANSFORMATIONS[name], 4, dtype)
    assert program.memory_analysis().temp_size_in_bytes < math.prod(SHAPE)


def test_unpack_is_exact() -> None:
    for number in (0, 1, 2, 7, 16, 300):
        vector = np.random.default_rng(number).normal(size=number).astype(np.float32)
        vector[: number // 3] = np.resize([np.nan, np.inf, -np.inf, 0.0], number // 3)
        parts = jax.jit(_unpack.unpack)(jnp.asarray(vector))
        assert len(parts) == number and all(part.shape == () for part in parts)
        np.testing.assert_array_equal(np.asarray(parts, np.float32), vector)
    for number in (1, 7, 300):
        rows = np.arange(3.0 * number).reshape(number, 3)
        np.testing.assert_array_equal(
            np.stack(_unpack.unpack_columns(list(jnp.asarray(rows).T))), rows
        )
    columns = [jnp.arange(7) * 1.5, jnp.arange(7) % 2 == 0]
    for i, found in enumerate(_unpack.unpack_columns(columns)):
        np.testing.assert_array_equal(found, [1.5 * i, i % 2 == 0])


@pytest.mark.parametrize("exponent", [-30, -20, -5, 0, 15, 25, 35])
def test_norms_of_any_size(exponent: int) -> None:
    """Squares of these leave float32; each beside a tensor of usual size."""
    wide = np.random.default_rng(0).normal(size=(5, 7)) * 10.0**exponent
    leaves = [jnp.asarray(wide, jnp.float32), jnp.ones(4)]
    norms = jax.jit(lambda tensors: _norms.tensor_norms(tensors, jnp.float32, exact_small=True))
    expected = [np.linalg.norm(np.asarray(leaf, np.float64)) for leaf in leaves]
    np.testing.assert_allclose(norms(leaves), expected, rtol=1e-6)
    minus = [leaf / 2 for leaf in leaves]
    halves = _norms.tensor_norms(leaves, jnp.float32, minus, exact_small=True)
    np.testing.assert_allclose(halves, np.divide(expected, 2), rtol=1e-6)


def test_norms_within_shard_map() -> None:
    """The loop's start must vary over devices as the gradients do."""
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("x")
    norms = jax.shard_map(
        lambda leaf: _norms.tensor_norms([leaf], jnp.float32),
        mesh=mesh,
        in_specs=spec,
        out_specs=spec,
    )
    values = jnp.arange(16.0)
    np.testing.assert_allclose(
        jax.jit(norms)(values), np.linalg.norm(np.arange(16.0).reshape(8, 2), axis=1), rtol=1e-6
    )


@pytest.mark.parametrize(
    "tx",
    [
        optim.stable_adamw(
            1e-3, weight_decay=0.1, mask=lambda p: [i % 3 > 0 for i in range(len(p))]
        ),
        optim.spam(1e-3, density=0.5, reset_interval=2, grace_steps=0),
        optim.stable_spam(1e-3),
        optim.acclip(1e-3),
    ],
    ids=["stable_adamw", "spam", "stable_spam", "acclip"],
)
def test_steps_of_tensors_together_are_those_of_each(
    tx: optax.GradientTransformation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small tensors of one type, not all of which decay, and one whose gradient is NaN."""
    rng = np.random.default_rng(0)
    shapes = [(6, 4), (5,), (6, 4), (5,), (5,), (6, 4), (3,)]
    params = [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]
    steps = [
        [jnp.asarray(rng.normal(size=s) * 3**k, jnp.float32) for s in shapes] for k in range(3)
    ]
    steps[1][2] = steps[1][2].at[0, 0].set(jnp.nan)

    def trajectory(enough: int) -> list:
        monkeypatch.setattr(_moments, "ENOUGH", enough)
        update = jax.jit(lambda *arguments: tx.update(*arguments))
        state, found = tx.init(params), []
        for gradients in steps:
            updates, state = update(gradients, state, params)
            found.append((updates, state))
        return found

    for one, other in zip(*map(jax.tree.leaves, (trajectory(100), trajectory(2))), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)


def test_stacks_put_back_what_they_took() -> None:
    leaves = [
        jnp.full(shape, float(i)) for i, shape in enumerate([(2,), (3,), (2,), (), (2,), (3,)])
    ]
    leaves.append(jnp.full(2 * _stacks.LARGEST, 6.0))
    for least in (2, 3, 9):
        stacks = _stacks.Stacks(leaves, least=least)
        arrays = stacks.arrays(leaves)
        assert len(arrays) == {2: 4, 3: 5, 9: 7}[least]
        (back,) = jax.jit(lambda a, s=stacks: s.tensors([a]))(arrays)
        jax.tree.map(np.testing.assert_array_equal, back, leaves)
        largest = stacks.each(jnp.max, arrays)
        np.testing.assert_array_equal(stacks.vector(largest), np.arange(7.0))
        doubled = stacks.each(
            lambda x, y: jnp.max(x) + y[0], arrays, numbers=stacks.numbers([jnp.arange(7.0)])
        )
        np.testing.assert_array_equal(stacks.vector(doubled), 2 * np.arange(7.0))


def test_a_scalar_computed_once_is_the_same() -> None:
    for value in (1.5, -0.25, np.nan, np.inf, True, False, 7):
        found = jax.jit(_unpack.computed_once)(jnp.asarray(value))
        np.testing.assert_array_equal(found, value)
