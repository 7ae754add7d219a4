"""Norms and maxima at sizes where XLA takes other paths than for the battery's tiny tensors."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip import optim
from jaxclip.optim import _base


@pytest.fixture(scope="module")
def large() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(600, 700)).astype(np.float32)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_bad_element_of_many_is_seen(large: np.ndarray, bad: float) -> None:
    norms = jax.jit(lambda leaf: _base.tensor_norms([leaf], jnp.float32))
    maxima = jax.jit(lambda leaf: _base.tensor_maxima([leaf], jnp.float32))
    total = jax.jit(lambda leaf: _base.sum_or_nan(jnp.abs(leaf), ~jnp.isfinite(leaf)))
    for place in ((0, 0), (599, 699), (123, 456)):
        leaf = large.copy()
        leaf[place] = bad
        assert not np.isfinite(norms(leaf)[0])
        assert np.isnan(maxima(leaf)[0]) if np.isnan(bad) else maxima(leaf)[0] == np.inf
        assert np.isnan(total(leaf)) and np.isnan(jax.jit(_base.zero_or_nan)(leaf))
        assert jax.jit(lambda leaf: _base.max_and_flag(jnp.abs(leaf), ~jnp.isfinite(leaf))[1])(leaf)
    assert jax.jit(_base.zero_or_nan)(large) == 0


def test_sums_of_many_are_exact_enough(large: np.ndarray) -> None:
    for tensor in (large, large.reshape(-1), large.reshape(2, 3, 100, 700), large[0, 0]):
        wide = tensor.astype(np.float64)
        fine = jnp.zeros(tensor.shape, bool)
        total = jax.jit(_base.sum_or_nan)(jnp.square(tensor), fine)
        np.testing.assert_allclose(total, (wide**2).sum(), rtol=2e-6)
        norm = jax.jit(lambda leaf: _base.tensor_norms([leaf], jnp.float32))(tensor)[0]
        np.testing.assert_allclose(norm, np.sqrt((wide**2).sum()), rtol=2e-6)
        largest, flag = jax.jit(_base.max_and_flag)(jnp.abs(tensor), fine)
        assert largest == np.abs(tensor).max() and flag == 0


@pytest.mark.parametrize(
    "tx",
    [
        optim.adaclip(),
        optim.adagc(warmup_steps=0),
        optim.adagn(),
        optim.clip_radagrad_d(1e-3),
        optim.scale_by_spam(),
        optim.scale_by_spam(density=0.25),
        optim.scale_by_stable_adam(),
        optim.scale_by_stable_spam(),
        optim.zclip(),
    ],
    ids=["adaclip", "adagc", "adagn", "radagrad", "spam", "sparse", "adam", "stable_spam", "zclip"],
)
def test_a_nan_among_many_is_skipped(large: np.ndarray, tx: object) -> None:
    leaf = large.copy()
    leaf[321, 123] = np.nan
    update, state = jax.jit(tx.update)(jnp.asarray(leaf), tx.init(jnp.asarray(large)))
    assert not np.any(update)
    counts = [v for k, v in optim.read_metrics(state).items() if k.endswith("nonfinite_count")]
    assert np.asarray(counts).sum() == 1
