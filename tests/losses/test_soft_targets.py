"""Cross-entropy and divergence to soft targets."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip import losses

STUDENT = jnp.array([[2.0, 0.0], [1.0, 1.0]])
TEACHER = jnp.array([[3.0, 1.0], [0.0, 2.0]])


def both(fn, student, teacher):
    rows = fn(student, jax.nn.softmax(teacher))
    columns = fn(student.T, jax.nn.softmax(teacher.T))
    return float(rows.mean() + columns.mean()) / 2


def test_published_values():
    cross_entropy = both(losses.soft_cross_entropy, STUDENT, TEACHER)
    assert cross_entropy == pytest.approx(0.500343, abs=1e-6)
    divergence = both(losses.soft_kl, STUDENT, TEACHER)
    assert divergence == pytest.approx(0.124409, abs=1e-6)
    assert cross_entropy - divergence == pytest.approx(0.375934, abs=1e-6)


def test_an_ensembles_targets_are_averaged_after_the_softmax():
    def pair(targets_of):
        sides = ((STUDENT, lambda x: x), (STUDENT.T, lambda x: x.T))
        return sum(
            float(losses.soft_cross_entropy(student, targets_of(turn)).mean()) / 2
            for student, turn in sides
        )

    def after(turn):
        return (jax.nn.softmax(turn(TEACHER)) + jax.nn.softmax(turn(jnp.eye(2)))) / 2

    def before(turn):
        return jax.nn.softmax(turn((TEACHER + jnp.eye(2)) / 2))

    assert pair(after) == pytest.approx(0.565467, abs=1e-6)
    assert pair(before) == pytest.approx(0.549898, abs=1e-6)


def test_divergence_is_zero_with_a_zero_gradient_where_both_agree():
    targets = jax.nn.softmax(TEACHER)
    np.testing.assert_allclose(losses.soft_kl(TEACHER, targets), 0.0, atol=1e-6)
    gradient = jax.grad(lambda x: losses.soft_kl(x, targets).sum())(TEACHER)
    np.testing.assert_allclose(gradient, 0.0, atol=1e-6)


def test_one_hot_targets_are_cross_entropy():
    expected = -jnp.diagonal(jax.nn.log_softmax(STUDENT))
    for fn in (losses.soft_kl, losses.soft_cross_entropy):
        np.testing.assert_allclose(fn(STUDENT, jnp.eye(2)), expected, rtol=1e-6)
