"""Classes by their most similar examples."""

import numpy as np
import pytest

from jaxclip.evaluate import base, inspection, tasks
from jaxclip.evaluate.inspection import Inspection


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def classes(count, seed, spread=0.6):
    """Examples of two classes around two directions each: no mean lies near its examples."""
    rng = np.random.default_rng(seed)
    centres = np.array([[[1.0, 0, 0], [-1, 0, 0]], [[0, 1, 0.2], [0, -1, 0.2]]])
    labels = rng.integers(0, 2, count)
    rows = centres[labels, rng.integers(0, 2, count)] + spread * rng.standard_normal((count, 3))
    return unit(rows).astype(np.float32), labels


BANK, KNOWN = classes(300, 0)
ASKED, TRUTH = classes(400, 1)


def test_a_picture_of_the_bank_scores_1_and_duplicates_change_nothing():
    plain = inspection.scores(ASKED, BANK, KNOWN)
    assert plain.shape == (400, 2)
    own = inspection.scores(BANK[:5], BANK, KNOWN)
    np.testing.assert_allclose(own[np.arange(5), KNOWN[:5]], 1.0, rtol=1e-6)
    twice = inspection.scores(ASKED, np.repeat(BANK, 2, axis=0), np.repeat(KNOWN, 2))
    np.testing.assert_allclose(twice, plain, rtol=1e-6)
    row, label = 7, 1
    by_hand = max(float(ASKED[row] @ one) for one, k in zip(BANK, KNOWN, strict=True) if k == label)
    assert plain[row, label] == pytest.approx(by_hand, rel=1e-6)


def test_draws_are_nested_and_balanced():
    small, large = (inspection.draw(KNOWN, size, seed=3) for size in (5, 20))
    assert set(small) <= set(large) and len(large) == 40
    assert np.bincount(KNOWN[large]).tolist() == [20, 20]
    assert len(inspection.draw(KNOWN, 0, seed=3)) == 300


def data(labels=TRUTH):
    splits = {"test": base.arrays(ASKED, labels), "train": base.arrays(BANK, KNOWN)}
    return base.ArrayData(splits, "test")


def test_metrics_by_hand_and_more_examples_help():
    found = np.argmax(inspection.scores(ASKED, BANK, KNOWN), axis=1)
    result = Inspection().evaluate(None, data())
    assert result["accuracy"] == pytest.approx(np.mean(found == TRUTH))
    assert result["sensitivity"] == pytest.approx(np.mean(found[TRUTH == 1] == 1))
    assert result["specificity"] == pytest.approx(np.mean(found[TRUTH == 0] == 0))
    assert (result["num_examples"], result["num_bank"], result["num_classes"]) == (400, 300, 2)
    other = Inspection(positive=0).evaluate(None, data())
    assert other["sensitivity"] == result["specificity"]
    few = [Inspection(bank_size=1, seed=seed).evaluate(None, data()) for seed in range(8)]
    assert np.mean([each["accuracy"] for each in few]) < result["accuracy"] - 0.1


def test_accuracy_rises_with_the_bank():
    """The specification's check, from 10 to 100 examples of each class: defects of many kinds."""
    rng = np.random.default_rng(4)
    kinds = rng.standard_normal((2, 20, 6))

    def split(count):
        labels = rng.integers(0, 2, count)
        rows = kinds[labels, rng.integers(0, 20, count)] + 0.3 * rng.standard_normal((count, 6))
        return base.arrays(unit(rows).astype(np.float32), labels)

    parts = base.ArrayData({"test": split(400), "train": split(260)}, "test")
    means = [
        np.mean([Inspection(bank_size=n, seed=s).evaluate(None, parts)["accuracy"] for s in (0, 1)])
        for n in (10, 30, 100)
    ]
    assert means[0] + 0.05 < means[1] < means[2] - 0.05


def test_pictures_without_a_label_do_not_count():
    labels = np.where(np.arange(400) < 100, TRUTH, -1)
    assert Inspection().evaluate(None, data(labels))["num_examples"] == 100


def test_what_it_refuses():
    Inspection().check(data())
    with pytest.raises(ValueError, match="each picture would find itself"):
        Inspection(bank_split="test").check(data())
    with pytest.raises(ValueError, match="no split 'bank'"):
        Inspection(bank_split="bank").check(data())
    with pytest.raises(ValueError, match="have no label"):
        Inspection().check(data(np.full(400, -1)))
    with pytest.raises(ValueError, match="bank_size=-1 must not be negative"):
        Inspection(bank_size=-1).check(data())
    with pytest.raises(ValueError, match="the bank of examples is empty"):
        inspection.scores(ASKED, BANK[:0], KNOWN[:0])
    assert "inspection" in tasks.EVALUATORS.names()
