"""Linear probe (Radford et al., 2021, section 3.2): logistic regression on frozen embeddings."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxclip.evaluate import ranking
from jaxclip.evaluate.base import Data, Evaluator, Model
from jaxclip.evaluate.encoding import EncodedSplit
from jaxclip.shapes import check_shapes

# Inverse strengths of the penalty: eight a decade from 1e-6 to 1e6.
GRID = np.logspace(-6, 6, 97)
_STRIDE = 16


@dataclasses.dataclass(frozen=True)
class LinearProbe(Evaluator):
    """How well do the classes come apart along straight lines?

    The recipe of CLIP: L-BFGS, the penalty chosen on a validation split by halving an interval
    around the best, then a last fit on training and validation examples together. Features are the
    embeddings (of unit length, behind the projection; CLIP takes those before it).

    Attributes:
      train_split: examples to fit.
      validation_split: examples to choose ``c`` by; empty: a part of ``train_split`` drawn with
        ``seed``.
      validation_fraction: how large that part is.
      c: inverse strength of the penalty, as in scikit-learn; 0: it is searched for.
      max_iterations: of L-BFGS, for each fit.
      seed: of the draw.
    """

    train_split: str = "train"
    validation_split: str = ""
    validation_fraction: float = 0.2
    c: float = 0.0
    max_iterations: int = 1000
    seed: int = 0

    def metric_names(self) -> list[str]:
        return ["top1", "accuracy_per_class"]

    def check(self, data: Data) -> None:
        """Refuse options out of range, splits that are missing, the same or without labels."""
        if self.c < 0 or self.max_iterations < 1 or not 0 < self.validation_fraction < 1:
            raise ValueError(
                f"c={self.c} must not be negative, max_iterations={self.max_iterations} at least "
                f"1, validation_fraction={self.validation_fraction} between 0 and 1"
            )
        splits = [data.split, self.train_split]
        splits += [self.validation_split] if self.validation_split else []
        for place, split in enumerate(splits):
            data.check_split(split)
            if split in splits[:place]:
                raise ValueError(f"split {split!r} has two parts to play; name different splits")
            sample = data.sample(split)
            if sample and all(label < 0 for label, _ in sample):
                raise ValueError(
                    f"the first {len(sample)} records of split {split!r} have no label"
                )

    def evaluate(self, model: Model, data: Data) -> dict[str, float]:
        """``top1``, ``accuracy_per_class`` (mean of the classes' recalls), ``c``, ``num_train``
        (validation included), ``num_examples``, ``num_classes``."""
        train = labelled(data.images(model, self.train_split))
        if self.validation_split:
            validation = labelled(data.images(model, self.validation_split))
        else:
            train, validation = divide(train, self.validation_fraction, self.seed)
        features, labels = (np.concatenate(pair) for pair in zip(train, validation, strict=True))
        classes = np.unique(labels)
        place = np.searchsorted(classes, labels)
        is_train = np.arange(len(labels)) < len(train[1])
        c = self.c or search(
            features, place, is_train, len(classes), max_iterations=self.max_iterations
        )
        weights, bias = fit(
            features, place, np.ones(len(labels)), len(classes), c, self.max_iterations
        )
        asked, truth = labelled(data.images(model))
        found = classes[predict(asked, weights, bias)]
        recalls = [np.mean(found[truth == label] == label) for label in np.unique(truth)]
        return {
            "top1": float(np.mean(found == truth)) if len(truth) else float("nan"),
            "accuracy_per_class": float(np.mean(recalls)) if recalls else float("nan"),
            "c": float(c),
            "num_train": len(labels),
            "num_examples": len(truth),
            "num_classes": len(classes),
        }


def labelled(split: EncodedSplit) -> tuple[np.ndarray, np.ndarray]:
    """``(float32[N, D], int64[N])`` of the images that have a label."""
    keep = split.labels >= 0
    return split.embeddings[keep], split.labels[keep]


def divide(
    examples: tuple[np.ndarray, np.ndarray], fraction: float, seed: int
) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Draw a part of ``(float32[N, D], int64[N])``; returns ``(the rest, the part)``, likewise.

    Raises:
      ValueError: there are fewer than two examples.
    """
    features, labels = examples
    if len(labels) < 2:
        raise ValueError(f"{len(labels)} labelled examples are too few to fit and to choose by")
    order = np.random.default_rng(seed).permutation(len(labels))
    count = min(max(1, round(fraction * len(labels))), len(labels) - 1)
    part, rest = order[:count], order[count:]
    return (features[rest], labels[rest]), (features[part], labels[part])


def search(
    features: np.ndarray,
    labels: np.ndarray,
    is_train: np.ndarray,
    num_classes: int,
    *,
    max_iterations: int = 1000,
) -> float:
    """The ``c`` of :data:`GRID` that does best on the examples that are not fitted.

    Seven values over the whole range first, then the neighbours of the best at half the distance,
    until they are next to each other. Of equal ones the smallest, which has the stronger penalty.

    Args:
      features: float[N, D].
      labels: int[N], below ``num_classes``.
      is_train: bool[N].
      num_classes: K.
      max_iterations: of each fit.

    Raises:
      ValueError: arrays that do not fit, or no examples to fit or to choose by.
    """
    check_shapes("search", features=(features, "N D"), is_train=(is_train, "N"))
    is_train = np.asarray(is_train, bool)
    if is_train.all() or not is_train.any():
        raise ValueError(
            f"search: is_train is {bool(is_train.all())} for all {len(is_train)} examples; some "
            "are to be fitted, the others to choose by"
        )
    scores: dict[int, float] = {}

    def score(index: int) -> None:
        if 0 <= index < len(GRID) and index not in scores:
            # The same arrays with other weights: all fits are one compiled program.
            weights, bias = fit(
                features, labels, is_train, num_classes, GRID[index], max_iterations
            )
            guess = predict(features[~is_train], weights, bias)
            scores[index] = float(np.mean(guess == labels[~is_train]))

    for index in range(0, len(GRID), _STRIDE):
        score(index)
    stride = _STRIDE
    while stride > 1:
        stride //= 2
        best = _best(scores)
        score(best - stride)
        score(best + stride)
    return float(GRID[_best(scores)])


def fit(
    features: np.ndarray,
    labels: np.ndarray,
    example_weights: np.ndarray,
    num_classes: int,
    c: float,
    max_iterations: int = 1000,
) -> tuple[np.ndarray, np.ndarray]:
    """Multinomial logistic regression: ``C * sum_i w_i CE_i + |W|^2 / 2``, the bias not penalised.

    Args:
      features: float[N, D].
      labels: int[N], below ``num_classes``.
      example_weights: float[N].
      num_classes: K.
      c: C, as in scikit-learn.
      max_iterations: of L-BFGS; it ends earlier where the gradient is small.

    Returns:
      ``(weights float32[D, K], bias float32[K])``.

    Raises:
      ValueError: arrays that do not fit, a label that is no class, features that are not
        finite, no weight at all, or ``c`` not above 0.
    """
    check_shapes(
        "fit",
        features=(features, "N D"),
        labels=(labels, "N"),
        example_weights=(example_weights, "N"),
    )
    labels = ranking.whole_numbers("fit", "labels", labels, num_classes)
    if labels.size and labels.min() < 0:
        raise ValueError(f"fit: labels has {labels.min()}; leave out examples without a label")
    if not np.all(np.isfinite(features)):
        raise ValueError("fit: features are not all finite; leave such rows out")
    if not c > 0 or not np.sum(example_weights) > 0:
        raise ValueError(
            f"fit: c={c} and the sum of example_weights, {np.sum(example_weights)}, must be above 0"
        )
    found = _fit(
        jnp.asarray(features, jnp.float32),
        jnp.asarray(labels, jnp.int32),
        jnp.asarray(example_weights, jnp.float32),
        jnp.float32(c),
        num_classes=num_classes,
        max_iterations=max_iterations,
    )
    return np.asarray(found["weights"]), np.asarray(found["bias"])


def predict(features: np.ndarray, weights: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """int[N], the likeliest class of each row."""
    return np.argmax(np.asarray(features, np.float32) @ weights + bias, axis=1)


@functools.partial(jax.jit, static_argnames=("num_classes", "max_iterations"))
def _fit(
    features: jax.Array,
    labels: jax.Array,
    example_weights: jax.Array,
    c: jax.Array,
    *,
    num_classes: int,
    max_iterations: int,
) -> dict[str, jax.Array]:
    # Divided by C and the weights, so that the objective is of order one whatever C.
    total = jnp.sum(example_weights)

    def objective(params: Any) -> jax.Array:
        logits = jnp.matmul(features, params["weights"], precision="highest") + params["bias"]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        penalty = 0.5 * jnp.sum(params["weights"] ** 2) / (c * total)
        return jnp.sum(example_weights * losses) / total + penalty

    tx = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(objective)
    start = {
        "weights": jnp.zeros((features.shape[1], num_classes)),
        "bias": jnp.zeros(num_classes),
    }

    def step(carry: Any) -> Any:
        count, params, state, _ = carry
        value, grad = value_and_grad(params, state=state)
        updates, state = tx.update(grad, state, params, value=value, grad=grad, value_fn=objective)
        return count + 1, optax.apply_updates(params, updates), state, optax.tree.norm(grad)

    def goes_on(carry: Any) -> jax.Array:
        count, _, _, norm = carry
        return (count < max_iterations) & (norm > 1e-6)

    carry = (jnp.int32(0), start, tx.init(start), jnp.float32(jnp.inf))
    return jax.lax.while_loop(goes_on, step, carry)[1]


def _best(scores: dict[int, float]) -> int:
    return min(scores, key=lambda index: (-scores[index], index))
