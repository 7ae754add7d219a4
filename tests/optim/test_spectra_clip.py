"""SPECTRA's spectral clipping against singular value decompositions."""

from __future__ import annotations

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip import optim
from tests.optim import reference
from tests.optim.reference import Step, Tree


def by_svd(matrix: np.ndarray, c: float) -> np.ndarray:
    u, s, vt = np.linalg.svd(np.asarray(matrix, np.float64), full_matrices=False)
    return (u * (s / np.sqrt(1 + (s / c) ** 2))) @ vt


def clip(update: np.ndarray, c: float, **options: int) -> tuple[np.ndarray, optim.SpectraClipState]:
    tx = optim.spectra_clip(c, **options)
    update = jnp.asarray(update, jnp.float32)
    out, state = jax.jit(tx.update)(update, tx.init(update))
    return np.asarray(out), state


def matrix_with(values: list[float], rows: int, columns: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    left, _ = np.linalg.qr(rng.normal(size=(rows, len(values))))
    right, _ = np.linalg.qr(rng.normal(size=(columns, len(values))))
    return (left * np.asarray(values)) @ right.T


@pytest.mark.parametrize("shape", [(12, 20), (20, 12), (3, 8, 6)])
def test_is_what_a_singular_value_decomposition_gives(shape: tuple[int, ...]) -> None:
    update = np.random.default_rng(1).normal(size=shape)
    out, _ = clip(update, 2.0)
    stack = update.reshape(-1, *shape[-2:])
    wanted = np.stack([by_svd(matrix, 2.0) for matrix in stack]).reshape(shape)
    np.testing.assert_allclose(out, wanted, atol=2e-5)


def test_closed_forms_of_single_values() -> None:
    out, state = clip(matrix_with([5.0, 0.05], 6, 4), 5.0)
    found = np.linalg.svd(out, compute_uv=False)[:2]
    np.testing.assert_allclose(found, [5 / np.sqrt(2), 0.05 / np.sqrt(1.0001)], rtol=1e-4)
    assert state.threshold.tolist() == [5.0]
    # The bound reported is one: between the largest value and the Frobenius norm.
    assert 5.0 * (1 - 1e-5) <= float(state.norm[0]) <= np.sqrt(25.0025) * 1.01


def test_without_a_bound_nothing_happens() -> None:
    update = np.random.default_rng(2).normal(size=(5, 7)).astype(np.float32)
    out, state = clip(update, np.inf)
    np.testing.assert_array_equal(out, update)
    assert not state.clipped.any() and not state.nonfinite_count.any()


@pytest.mark.parametrize(("size", "c"), [(1e20, np.inf), (1e-20, np.inf), (1e10, 1e30)])
def test_no_bound_leaves_any_size_alone(size: float, c: float) -> None:
    update = (size * np.random.default_rng(2).normal(size=(5, 7))).astype(np.float32)
    out, state = clip(update, c)
    np.testing.assert_array_equal(out, update)
    assert not state.clipped.any() and np.isfinite(state.norm).all()


def test_vectors_and_scalars_go_by_their_norm() -> None:
    for update, wanted in (([3.0, 4.0], [1.5, 2.0]), ([0.3, 0.4], [0.3, 0.4])):
        c = 2.5 / np.sqrt(0.75)  # 5 / sqrt(1 + 25 / c^2) = 2.5 at c = 5 / sqrt(3)
        out, _ = clip(np.asarray(update), c)
        np.testing.assert_allclose(out, wanted, rtol=1e-6)
    assert abs(float(clip(np.asarray(-1e30), 2.0)[0])) == pytest.approx(2.0)


def test_more_steps_keep_small_values_beside_a_large_spike() -> None:
    """What the docstring says of the number of steps, in numbers."""
    update = matrix_with([30.0, 0.5], 6, 8)
    kept = [np.linalg.svd(clip(update, 1.0)[0], compute_uv=False)[1] / by_value(0.5, 1.0)]
    update = matrix_with([3000.0, 0.5], 6, 8)
    kept += [
        np.linalg.svd(clip(update, 1.0, steps=steps)[0], compute_uv=False)[1] / by_value(0.5, 1.0)
        for steps in (10, 24)
    ]
    assert kept[0] > 0.9
    assert kept[1] < 0.1
    assert kept[2] > 0.9


def by_value(value: float, c: float) -> float:
    return value / np.sqrt(1 + (value / c) ** 2)


@pytest.mark.parametrize("size", [1e-20, 1e15, 1e30])
def test_any_finite_size(size: float) -> None:
    update = size * np.eye(4)
    out, state = clip(update, 2.0)
    wanted = size if size < 1 else 2.0
    np.testing.assert_allclose(np.diag(out), wanted, rtol=1e-3)
    assert np.isfinite(state.norm).all()


def test_matrices_of_a_group_are_each_clipped_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of very different sizes, one with a NaN, in several groups of one side."""
    monkeypatch.setattr(sys.modules["jaxclip.optim.spectra_clip"], "_LARGEST_GROUP", 64)
    rng = np.random.default_rng(4)
    updates = [jnp.asarray(rng.normal(size=(4, 6)) * 10.0**k, jnp.float32) for k in range(-3, 4)]
    updates[3] = updates[3].at[0, 0].set(jnp.nan)
    updates.append(jnp.asarray(rng.normal(size=(2, 7, 4)), jnp.float32))
    tx = optim.spectra_clip(10.0)
    lowered = jax.jit(tx.update).lower(updates, tx.init(updates))
    assert lowered.as_text().count("call @inverse_roots") == 3
    together, state = lowered.compile()(updates, tx.init(updates))
    assert not together[3].any() and np.isnan(state.norm[3])
    for place in (0, 4, 6, 7):
        stack = np.reshape(updates[place], (-1, *updates[place].shape[-2:]))
        wanted = np.stack([by_svd(matrix, 10.0) for matrix in stack])
        np.testing.assert_allclose(np.reshape(together[place], stack.shape), wanted, rtol=1e-2)
        largest = np.linalg.svd(stack, compute_uv=False).max()
        assert largest * 0.999 < state.norm[place] < 2 * largest


def test_follows_the_rule_in_both_precisions() -> None:
    def rule(gradient: Tree, params: Tree) -> Step:
        update = {
            name: by_svd(g, 1.0) if g.ndim == 2 else g / np.sqrt(1 + max(0.0, n**2) * (n > 1.0))
            for name, g in gradient.items()
            for n in [float(np.linalg.norm(g))]
        }
        return Step(update)

    tx = optim.spectra_clip(1.0, steps=30)
    reference.assert_follows(
        tx, lambda: rule, reference.spiky_gradients(60), step_size=0.1, float32=2e-3, float64=1e-8
    )


@pytest.mark.parametrize("shape", [(3, 5), (5, 3), (4,)])
def test_to_grad_the_factor_is_a_constant(shape: tuple[int, ...]) -> None:
    """As of all clippers: along the gradient itself the derivative is the update."""
    update = jnp.asarray(np.random.default_rng(3).normal(size=shape), jnp.float32)
    tx = optim.spectra_clip(1.0)
    out, slope = jax.jvp(lambda g: tx.update(g, tx.init(g))[0], (update,), (update,))
    np.testing.assert_allclose(slope, out, rtol=1e-5, atol=1e-6)
    assert np.any(np.asarray(out) != np.asarray(update))


def test_refuses_what_makes_no_sense() -> None:
    with pytest.raises(ValueError, match=r"spectra_clip\.threshold=0"):
        optim.spectra_clip(0.0)
    with pytest.raises(ValueError, match=r"spectra_clip\.steps=0"):
        optim.spectra_clip(1.0, steps=0)
