"""Linear probe: the fit against float64, the search, the evaluator on arrays and on files."""

import numpy as np
import pytest
import scipy.optimize

from jaxclip.evaluate import base, linear_probe
from jaxclip.evaluate.linear_probe import LinearProbe

N, D, K = 60, 4, 3


def examples(seed=0, spread=0.6, n=N):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, K, n)
    centres = np.random.default_rng(9).normal(size=(K, D))
    return (centres[labels] + spread * rng.normal(size=(n, D))).astype(np.float32), labels


def objective(flat, features, labels, weights, c):
    """scikit-learn's, in float64."""
    w, b = flat[: D * K].reshape(D, K), flat[D * K :]
    logits = features.astype(np.float64) @ w + b
    logits -= logits.max(axis=1, keepdims=True)
    ce = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(labels)), labels]
    return c * (weights * ce).sum() + 0.5 * (w**2).sum()


@pytest.mark.parametrize("c", [1e-3, 1.0, 100.0])
def test_the_fit_is_the_minimum(c):
    features, labels = examples()
    weights = np.where(np.arange(N) < 45, 1.0, 0.0)
    w, b = linear_probe.fit(features, labels, weights, K, c, max_iterations=500)
    arguments = (features, labels, weights, c)
    best = scipy.optimize.minimize(
        objective, np.zeros(D * K + K), arguments, method="L-BFGS-B",
        options={"maxiter": 2000, "ftol": 1e-15, "gtol": 1e-9},
    )  # fmt: skip
    found = objective(np.concatenate([w.ravel(), b]).astype(np.float64), *arguments)
    assert found <= best.fun * (1 + 1e-4)
    # Examples of weight 0 have no say.
    again, _ = linear_probe.fit(features[:45], labels[:45], np.ones(45), K, c, 500)
    np.testing.assert_allclose(again, w, atol=2e-3 * max(1, np.abs(w).max()))


def test_a_strong_penalty_leaves_the_shares_of_the_classes():
    features, labels = examples()
    w, b = linear_probe.fit(features, labels, np.ones(N), K, 1e-8)
    assert np.abs(w).max() < 1e-5
    shares = np.exp(b) / np.exp(b).sum()
    np.testing.assert_allclose(shares, np.bincount(labels) / N, atol=1e-3)


def test_the_search_halves_its_way_to_the_best(monkeypatch):
    asked = []

    def fit(features, labels, weights, num_classes, c, max_iterations):
        asked.append(int(np.argmin(np.abs(linear_probe.GRID - c))))
        return c, None

    # Accuracy falls with the distance from place 37 of the grid.
    def predict(features, c, bias):
        right = 100 - abs(int(np.argmin(np.abs(linear_probe.GRID - c))) - 37)
        return np.where(np.arange(100) < right, 0, 1)

    monkeypatch.setattr(linear_probe, "fit", fit)
    monkeypatch.setattr(linear_probe, "predict", predict)
    is_train = np.arange(200) < 100
    found = linear_probe.search(np.zeros((200, 1)), np.zeros(200, int), is_train, 2)
    assert found == linear_probe.GRID[37]
    assert asked[:7] == [0, 16, 32, 48, 64, 80, 96] and len(asked) == len(set(asked)) <= 15


def data(**splits):
    return base.ArrayData({name: base.arrays(*rows) for name, rows in splits.items()}, split="test")


def test_it_tells_classes_apart_and_counts_what_it_used():
    features, labels = examples(seed=1, spread=0.15)
    asked, truth = examples(seed=2, spread=0.15, n=40)
    truth = np.where(np.arange(40) == 0, 7, truth)  # a class that training never saw
    truth = np.where(np.arange(40) == 1, -1, truth)
    known = np.where(np.arange(N) == 3, -1, labels)
    d = data(train=(features, known), test=(asked, truth))
    probe = LinearProbe(max_iterations=100)
    probe.check(d)
    found = probe.evaluate(None, d)
    assert (found["num_train"], found["num_examples"], found["num_classes"]) == (N - 1, 39, K)
    assert found["c"] in linear_probe.GRID
    assert 0.85 < found["top1"] < 1.0
    assert found["accuracy_per_class"] < found["top1"]  # the unknown class counts like the others
    assert found == probe.evaluate(None, d)
    assert set(probe.metric_names()) <= set(found)
    given = LinearProbe(c=1.0, validation_split="val", max_iterations=100)
    d = data(
        train=(features[:30], labels[:30]), val=(features[30:], labels[30:]), test=(asked, truth)
    )
    given.check(d)
    assert given.evaluate(None, d)["c"] == 1.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"c": -1.0}, "c=-1.0"),
        ({"validation_fraction": 1.0}, "validation_fraction=1.0"),
        ({"train_split": "tset"}, "no split 'tset'"),
        ({"train_split": "test"}, "'test' has two parts"),
        ({"validation_split": "train"}, "'train' has two parts"),
        ({"train_split": "bare"}, "records of split 'bare' have no label"),
    ],
)
def test_mistakes(options, message):
    features, labels = examples()
    d = data(train=(features, labels), test=(features, labels), bare=(features,))
    with pytest.raises(ValueError, match=message):
        LinearProbe(**options).check(d)


def test_too_few_examples():
    features, labels = examples(n=1)
    with pytest.raises(ValueError, match="1 labelled examples are too few"):
        LinearProbe().evaluate(None, data(train=(features, labels), test=(features, labels)))
