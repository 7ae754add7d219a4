"""The order of training examples: permutations, seekable, and random numbers by place."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from jaxclip.data import order


@hypothesis.given(
    num_records=st.integers(1, 60),
    window=st.integers(1, 70),
    chunk=st.integers(1, 20),
    seed=st.integers(0, 2**40),
)
def test_every_epoch_is_a_permutation(num_records, window, chunk, seed):
    shuffled = order.ShuffledOrder(num_records, seed, window, chunk)
    for epoch in range(3):
        places = np.arange(epoch * num_records, (epoch + 1) * num_records)
        assert sorted(shuffled(places)) == list(range(num_records))


@hypothesis.given(places=st.lists(st.integers(0, 10_000), min_size=1, max_size=30))
def test_a_place_does_not_depend_on_what_was_asked_before(places):
    shuffled = order.ShuffledOrder(23, 7, window=10, chunk=3)
    together = shuffled(np.array(places))
    alone = [order.ShuffledOrder(23, 7, window=10, chunk=3)(np.array([p]))[0] for p in places]
    assert together.tolist() == alone


def test_epochs_and_seeds_differ():
    first = order.ShuffledOrder(1000, seed=0)
    epochs = first(np.arange(2000)).reshape(2, 1000)
    other = order.ShuffledOrder(1000, seed=1)(np.arange(1000))
    # Two random permutations of 1000 agree in about one place.
    assert (epochs[0] == epochs[1]).sum() < 10
    assert (epochs[0] == other).sum() < 10
    assert (epochs[0] == np.arange(1000)).sum() < 10


def test_large_data_is_shuffled_within_windows_of_chunks():
    shuffled = order.ShuffledOrder(1000, seed=3, window=100, chunk=10)
    first_window = shuffled(np.arange(100))
    assert len(set(first_window // 10)) == 10  # ten whole chunks …
    assert len(np.unique(first_window)) == 100
    assert not np.array_equal(first_window, np.sort(first_window))  # … their records mixed
    assert np.abs(np.diff(np.unique(first_window // 10))).max() > 1  # from all over the data


def test_order_never_changes():
    # Somebody's run started with this order; a new version must go on with it.
    assert order.ShuffledOrder(10, seed=0)(np.arange(12)).tolist() == [
        4,
        3,
        7,
        6,
        8,
        9,
        5,
        2,
        0,
        1,
        0,
        4,
    ]
    bits = order.uniforms(0, np.array([0, 1, 2**40]), 2) * 2**24
    assert bits.tolist() == [
        [13926335.0, 12265180.0],
        [3005189.0, 13921104.0],
        [2462049.0, 1774477.0],
    ]


def test_uniforms_depend_on_seed_place_and_number_alone():
    places = np.array([5, 2**40, 0])
    draws = order.uniforms(3, places, 4)
    assert draws.dtype == np.float32 and draws.shape == (3, 4)
    for row, place in zip(draws, places, strict=True):
        np.testing.assert_array_equal(order.uniforms(3, np.array([place]), 4)[0], row)
    np.testing.assert_array_equal(order.uniforms(3, places, 2), draws[:, :2])
    assert not (order.uniforms(4, places, 4) == draws).any()


def test_uniforms_are_uniform_and_uncorrelated():
    draws = order.uniforms(11, np.arange(20_000), 6)
    assert draws.min() >= 0 and draws.max() < 1
    # 20 000 draws: the mean is within 5 standard errors, the tenths within 5 of theirs.
    assert np.abs(draws.mean(0) - 0.5).max() < 5 / np.sqrt(12 * 20_000)
    counts = np.stack([np.histogram(column, 10, (0, 1))[0] for column in draws.T])
    assert np.abs(counts - 2000).max() < 5 * np.sqrt(2000 * 0.9)
    correlation = np.corrcoef(np.concatenate([draws, np.roll(draws, 1, axis=0)], axis=1).T)
    assert np.abs(correlation - np.eye(12)).max() < 5 / np.sqrt(20_000)


def test_replacements_are_drawn_from_all_records():
    shuffled = order.ShuffledOrder(7, seed=0)
    drawn = [shuffled.replacement(place, attempt) for place in range(50) for attempt in range(3)]
    assert set(drawn) == set(range(7))
    assert drawn == [shuffled.replacement(p, a) for p in range(50) for a in range(3)]


@pytest.mark.parametrize("name", ["num_records", "window", "chunk"])
def test_sizes_below_one_are_refused(name):
    arguments = {"num_records": 5, "window": 5, "chunk": 5, name: 0}
    with pytest.raises(ValueError, match=f"{name}=0 must be at least 1"):
        order.ShuffledOrder(seed=0, **arguments)


# --- classes that stand together ----------------------------------------------------------------


@pytest.mark.parametrize("window", [order.DEFAULT_WINDOW, 64])
@pytest.mark.parametrize("group", [2, 3, 4])
def test_groups_of_a_class(window, group):
    labels = np.random.default_rng(0).integers(-1, 6, 203)
    grouped = order.GroupedOrder(203, 7, labels, group, window, chunk=8)
    plain = order.ShuffledOrder(203, 7, window, chunk=8)
    places = np.arange(5 * 203)
    records = grouped(places)
    # Each epoch is a permutation, and so is each window: reads stay as local as they were.
    assert (np.sort(records.reshape(5, 203), axis=1) == np.arange(203)).all()
    if window < 203:
        for epoch in range(5):
            first = slice(epoch * 203, epoch * 203 + 32)
            last = slice(epoch * 203, epoch * 203 + window + 8)
            assert set(records[first]) <= set(plain(places)[last])
    # Groups start at multiples of their size, all but few of them whole.
    blocks = labels[records[: len(records) // group * group]].reshape(-1, group)
    whole = (blocks == blocks[:, :1]).all(1) & (blocks[:, 0] >= 0)
    possible = sum(np.bincount(labels[labels >= 0]) // group) * 5
    enough = 0.9 if window > 203 else 0.55
    assert whole.sum() >= enough * possible
    # Any place by itself.
    np.testing.assert_array_equal(grouped(places[500:520]), records[500:520])
    other = order.GroupedOrder(203, 8, labels, group, window, chunk=8)(places)
    assert not np.array_equal(records, other)


def test_groups_without_classes_are_a_permutation():
    labels = np.full(50, -1)
    records = order.GroupedOrder(50, 1, labels, 4)(np.arange(100))
    assert (np.sort(records.reshape(2, 50), axis=1) == np.arange(50)).all()


def test_streams_are_independent_and_the_first_is_what_it_was():
    places = np.arange(1000)
    plain, named, other = (order.uniforms(3, places, 4, name) for name in ("", "a", "b"))
    np.testing.assert_array_equal(plain, order.uniforms(3, places, 4))
    for one, two in ((plain, named), (plain, other), (named, other)):
        assert abs(np.corrcoef(one.ravel(), two.ravel())[0, 1]) < 5 / np.sqrt(one.size)
    np.testing.assert_array_equal(named[:, :2], order.uniforms(3, places, 2, "a"))
