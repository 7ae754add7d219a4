"""Record linkage on pooled vectors."""

import numpy as np
import pytest

from jaxclip.evaluate import base, linkage
from jaxclip.evaluate.linkage import Linkage


def at(*degrees):
    angles = np.deg2rad(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], 1)


def test_the_rand_index():
    truth = np.array([0, 0, 1, 1, 2, 2])
    assert linkage.adjusted_rand_index(truth[::-1], truth[::-1]) == 1.0
    assert linkage.adjusted_rand_index(np.array([7, 7, 3, 3, 5, 5]), truth) == 1.0  # renamed
    # By hand: 2 pairs agree of 3 and 3; 0.6 expected.
    found = np.array([0, 0, 1, 1, 2, 3])
    ours, theirs = 2.0, 3.0
    expected = ours * theirs / 15
    assert linkage.adjusted_rand_index(found, truth) == pytest.approx(
        (2 - expected) / (2.5 - expected)
    )
    rng = np.random.default_rng(0)
    by_chance = [
        linkage.adjusted_rand_index(rng.integers(0, 4, 200), rng.integers(0, 4, 200))
        for _ in range(30)
    ]
    assert abs(np.mean(by_chance)) < 0.01


def test_single_link_goes_on_from_neighbour_to_neighbour():
    vectors = at(0, 10, 20, 90, 95, 180)
    near = 1 - np.cos(np.deg2rad(11))
    np.testing.assert_array_equal(linkage.clusters(vectors, near), [0, 0, 0, 3, 3, 5])
    np.testing.assert_array_equal(linkage.clusters(vectors, 2.0), np.zeros(6))
    assert len(np.unique(linkage.clusters(vectors, 0.0))) == 6


@pytest.mark.parametrize("distance", [0.003, 0.01, 0.03, 0.1])
def test_clusters_are_what_steps_from_row_to_row_reach(distance):
    vectors = np.random.default_rng(1).normal(size=(120, 3))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    reached = vectors @ vectors.T >= 1.0 - distance
    for _ in range(7):  # 2**7 steps
        reached = reached @ reached
    np.testing.assert_array_equal(linkage.clusters(vectors, distance), reached.argmax(axis=1))


def test_tiles_change_nothing(monkeypatch):
    vectors = np.random.default_rng(0).normal(size=(30, 3))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    labels = np.arange(30) % 7
    whole = linkage.clusters(vectors, 0.05), linkage.nearest_shares_label(vectors, labels)
    monkeypatch.setattr(linkage, "_TILE", 4)
    np.testing.assert_array_equal(linkage.clusters(vectors, 0.05), whole[0])
    assert linkage.nearest_shares_label(vectors, labels) == whole[1]


class Texts:
    def texts(self, texts):
        return at(*map(float, texts))


def data():
    # Images alone mistake the second thing for the first, texts the third for the second.
    images, texts = at(0, 2, 6, 8, 60, 62), ["0", "1", "40", "41", "45", "46"]
    splits = {
        name: base.arrays(images, [0, 0, 1, 1, 2, 2], [[text] for text in texts])
        for name in ("test", "val")
    }
    return base.ArrayData(splits, "test")


def test_both_modalities_are_better_than_either():
    results = {}
    for share in (0.0, 0.5, 1.0):
        evaluator = Linkage(image_share=share, validation_split="val")
        evaluator.check(data())
        results[share] = evaluator.evaluate(Texts(), data())
    assert results[0.5]["adjusted_rand_index"] == 1.0 == results[0.5]["nearest"]
    assert results[0.5]["num_clusters"] == 3
    fixed = [
        Linkage(image_share=share, distance=0.01).evaluate(Texts(), data())["adjusted_rand_index"]
        for share in (0.0, 0.5, 1.0)
    ]
    assert fixed[1] == 1.0 and fixed[0] < 1.0 and fixed[2] < 1.0


def test_what_it_refuses():
    for options, message in (
        ({"image_share": 2.0, "distance": 0.1}, "image_share=2.0 must be in"),
        ({}, "distance=0 is chosen on validation_split"),
        ({"validation_split": "test"}, "is the split that is judged"),
        ({"validation_split": "other"}, "no split 'other'"),
    ):
        with pytest.raises(ValueError, match=message):
            Linkage(**options).check(data())
    nothing = base.ArrayData({"test": base.arrays(at(0, 1))})
    with pytest.raises(ValueError, match="have no label"):
        Linkage(distance=0.1).check(nothing)
    assert np.isnan(linkage.nearest_shares_label(at(0, 9), np.array([0, 1])))
