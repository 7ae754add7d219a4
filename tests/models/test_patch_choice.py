"""Which patches run."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip.models import patch_choice


@pytest.mark.parametrize(("share", "count"), [(0.5, 3), (0.0, 1), (1.0, 4)])
def test_the_blocks_with_the_best_mean_run_whole(share, count):
    scores = np.random.default_rng(0).random((5, 4, 4)).astype(np.float32)
    patches = np.asarray(patch_choice.best_blocks(jnp.asarray(scores.reshape(5, 16)), 4, 2, share))
    assert patches.shape == (5, 4 * count)
    for row, kept in zip(scores, patches, strict=True):
        means = {(r, c): row[2 * r : 2 * r + 2, 2 * c : 2 * c + 2].mean() for r in (0, 1)
                 for c in (0, 1)}  # fmt: skip
        best = sorted(means, key=means.get, reverse=True)[:count]
        expected = {4 * (2 * r + i) + 2 * c + j for r, c in best for i in (0, 1) for j in (0, 1)}
        assert kept.tolist() == sorted(expected)


def test_a_224_picture_keeps_100_of_196_patches():
    assert patch_choice.best_blocks(jnp.zeros((1, 196)), 14, 2, 0.5).shape == (1, 100)
