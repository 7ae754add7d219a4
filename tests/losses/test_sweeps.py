"""Retrieval, hinges and left-out pairs by tiles: the same as from the matrix.

Rows do not fill the tiles here; objectives compare them on eight devices.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip import losses

ROWS, TILE = 13, 4


def rows(seed):
    x = np.random.default_rng(seed).standard_normal((ROWS, 5))
    return jnp.asarray(x / np.linalg.norm(x, axis=1, keepdims=True), jnp.float32)


def both(function, *arguments):
    """Values and gradients of a function of arrays, by implementation."""
    for how in ("plain", "blockwise"):
        options = {"tile_size": TILE} if how == "blockwise" else {}
        one = functools.partial(function, implementation=how, **options)
        values, pull = jax.vjp(lambda *args, one=one: one(*args), *arguments)
        # Cotangents that differ from row to row.
        weights = jax.tree.map(lambda x: jnp.cos(jnp.arange(x.size)).reshape(x.shape), values)
        yield values, pull(weights)


def check_same(function, *arguments):
    plain, tiles = both(function, *arguments)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5), plain, tiles)
    return plain[0]


def test_retrieval_is_attention():
    queries, stored = rows(0), rows(1)
    found = check_same(lambda q, x, **how: losses.retrieve(q, x, 3.0, **how), queries, stored)
    weights = np.exp(3.0 * np.asarray(queries, np.float64) @ np.asarray(stored, np.float64).T)
    expected = weights / weights.sum(1, keepdims=True) @ np.asarray(stored, np.float64)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_rows_may_look_up_themselves():
    check_same(lambda x, **how: losses.retrieve(x, x, 8.0, **how), rows(2))


def test_hinges_and_the_largest_of_others():
    a, b = rows(3), rows(4)
    offset = jnp.linspace(-4.0, 2.0, ROWS)
    total, largest = check_same(
        lambda a, b, s, c, **how: losses.hinge(a, b, s, c, **how), a, b, jnp.float32(7.0), offset
    )
    logits = 7.0 * np.asarray(a, np.float64) @ np.asarray(b, np.float64).T
    others = logits[~np.eye(ROWS, dtype=bool)].reshape(ROWS, -1)
    above = np.maximum(others + np.asarray(offset)[:, None], 0).sum(1)
    np.testing.assert_allclose(total, above, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(largest, others.max(1), rtol=1e-5)


def test_a_further_pair_is_left_out():
    a, b = rows(5), rows(6)
    left_out = jnp.where(jnp.arange(ROWS) % 3 == 0, (jnp.arange(ROWS) * 5 + 1) % ROWS, -1)
    found = check_same(
        lambda a, b, s, **how: losses.off_diagonal_logsumexp(a, b, s, left_out=left_out, **how),
        a, b, jnp.float32(9.0),
    )  # fmt: skip
    logits = 9.0 * np.asarray(a, np.float64) @ np.asarray(b, np.float64).T
    logits[np.eye(ROWS, dtype=bool)] = -np.inf
    for column, row in enumerate(np.asarray(left_out)):
        if row >= 0:
            logits[row, column] = -np.inf
    for axis, sums in zip((1, 0), found, strict=True):
        np.testing.assert_allclose(sums, np.log(np.exp(logits).sum(axis)), rtol=1e-5)


@pytest.mark.parametrize("function", [losses.retrieve, losses.hinge])
def test_an_unknown_implementation_is_refused(function):
    scale = (1.0, jnp.zeros(ROWS))[: 1 + (function is losses.hinge)]
    with pytest.raises(ValueError, match="implementation='ring'; use 'plain' or 'blockwise'"):
        function(rows(0), rows(1), *scale, implementation="ring")
