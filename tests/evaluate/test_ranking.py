"""Tiled top-k search against a full sort."""

import hypothesis
import jax
import numpy as np
import pytest
from hypothesis import strategies as st

from jaxclip.evaluate import ranking


def naive(queries, gallery, k):
    """All scores, one stable descending sort; NaN last."""
    scores = np.asarray(queries, np.float64) @ np.asarray(gallery, np.float64).T
    order = np.argsort(np.where(np.isnan(scores), np.inf, -scores), axis=1, kind="stable")
    return order[:, :k]


@hypothesis.settings(max_examples=40, deadline=None)
@hypothesis.given(
    num_queries=st.integers(1, 12),
    num_gallery=st.integers(1, 23),
    k=st.integers(1, 11),
    query_tile=st.sampled_from([1, 5, 64]),
    gallery_tile=st.sampled_from([1, 4, 7, 64]),
    seed=st.integers(0, 2**16),
)
def test_equals_a_stable_sort_with_many_ties(
    num_queries, num_gallery, k, query_tile, gallery_tile, seed
):
    # Small integers: scores are exact in float32, and most of them tie.
    rng = np.random.default_rng(seed)
    queries = rng.integers(-1, 2, (num_queries, 3)).astype(np.float32)
    gallery = rng.integers(-1, 2, (num_gallery, 3)).astype(np.float32)
    scores, indices = ranking.top_k(
        queries, gallery, k, query_tile=query_tile, gallery_tile=gallery_tile
    )
    np.testing.assert_array_equal(indices, naive(queries, gallery, k))
    np.testing.assert_array_equal(scores, np.take_along_axis(queries @ gallery.T, indices, axis=1))


@pytest.mark.parametrize("num_devices", [1, 3, 8])
def test_number_of_devices_does_not_matter(num_devices):
    rng = np.random.default_rng(0)
    queries, gallery = rng.normal(size=(101, 16)), rng.normal(size=(57, 16))
    _, indices = ranking.top_k(
        queries, gallery, 7, query_tile=24, gallery_tile=20, devices=jax.devices()[:num_devices]
    )
    np.testing.assert_array_equal(indices, naive(queries, gallery, 7))


@pytest.mark.parametrize("gallery_tile", [2, 64])
def test_nan_ranks_last_and_never_crowds_out_a_number(gallery_tile):
    queries = np.ones((1, 1), np.float32)
    gallery = np.array([[np.nan], [-5.0], [np.nan], [2.0], [-np.inf]], np.float32)
    _, indices = ranking.top_k(queries, gallery, 5, gallery_tile=gallery_tile)
    assert indices[0, :2].tolist() == [3, 1]
    assert sorted(indices[0, 2:].tolist()) == [0, 2, 4]  # never the padding


def test_a_collapsed_model_gets_no_more_than_chance():
    same = np.ones((50, 4), np.float32)
    _, indices = ranking.top_k(same, same, 1, gallery_tile=8)
    assert (indices[:, 0] == np.arange(50)).mean() == 1 / 50


def test_k_is_at_most_the_gallery():
    scores, indices = ranking.top_k(np.eye(3), np.eye(3)[:2], 10)
    assert scores.shape == indices.shape == (3, 2)


def test_no_queries():
    scores, indices = ranking.top_k(np.zeros((0, 4)), np.eye(4), 3)
    assert scores.shape == indices.shape == (0, 3)


@pytest.mark.parametrize(
    ("queries", "gallery", "k"),
    [
        (np.eye(3), np.eye(4), 1),
        (np.eye(3)[0], np.eye(3), 1),
        (np.eye(3), np.zeros((0, 3)), 1),
        (np.eye(3), np.eye(3), 0),
    ],
)
def test_misfits_are_refused(queries, gallery, k):
    with pytest.raises(ValueError):
        ranking.top_k(queries, gallery, k)


def test_hits_at_counts_rows_not_hits():
    hits = np.array([[0, 1, 1], [0, 0, 0], [1, 0, 0]], bool)
    assert ranking.hits_at(hits, (1, 2, 10)) == {1: 1, 2: 2, 10: 2}
