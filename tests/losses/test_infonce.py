"""InfoNCE's options: plain against the formula, blockwise on a mesh against plain."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip import losses, parallel

SIZE = 24
LABELS = jnp.array([0, 1, 0, -1, -1, 2, 2, 2] * 3, jnp.int32)
CASES = {
    "plain CLIP": {},
    "decoupled": {"decoupled": True},
    "labels": {"labels": LABELS},
    "weights": {"weights": jnp.linspace(0.1, 2.0, SIZE)},
    "smoothing": {"label_smoothing": 0.2},
    "negatives": {"negatives": 2},
}


def rows(*shape, seed):
    x = np.random.default_rng(seed).standard_normal((*shape, 6))
    return jnp.asarray(x / np.linalg.norm(x, axis=-1, keepdims=True), jnp.float32)


def formula(images, texts, options):
    """Of the definition, in float64."""
    images, texts = (np.asarray(x, np.float64) for x in (images, texts))
    logits = 10 * images @ texts.T
    eye = np.eye(SIZE, dtype=bool)
    target = eye.astype(float)
    if "labels" in options:
        labels = np.asarray(LABELS)
        equal = eye | ((labels[:, None] == labels) & (labels >= 0))
        target = equal / equal.sum(1, keepdims=True)
    smoothing = options.get("label_smoothing", 0.0)
    target = (1 - smoothing) * target + smoothing / SIZE
    total = 0.0
    for turn, matrix in enumerate((logits, logits.T)):
        extra = np.zeros((SIZE, 0))
        if "negatives" in options and turn == 0:
            wrong = np.asarray(options["negatives"], np.float64).reshape(-1, 6)
            extra = 10 * images @ wrong.T
        kept = np.where(eye, -np.inf, matrix) if options.get("decoupled") else matrix
        denominator = np.log(np.exp(np.concatenate([kept, extra], 1)).sum(1))
        total = total + (denominator - (target * matrix).sum(1)) / 2
    return (np.asarray(options.get("weights", 1.0)) * total).mean()


@pytest.mark.parametrize("case", CASES)
def test_blockwise_on_eight_devices_is_plain_and_plain_is_the_formula(case):
    images, texts = rows(SIZE, seed=0), rows(SIZE, seed=1)
    options = dict(CASES[case])
    if "negatives" in options:
        options["negatives"] = rows(SIZE, options["negatives"], seed=2)
    mesh = parallel.make_mesh({"data": 8, "fsdp": 1, "tensor": 1})

    def run(**how):
        def loss(images, texts, log_scale):
            return losses.infonce(images, texts, logit_scale=log_scale, **options, **how)

        step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))
        return step(images, texts, jnp.log(10.0))

    (value, metrics), gradient = run()
    np.testing.assert_allclose(value, formula(images, texts, options), rtol=2e-5)
    (other, other_metrics), other_gradient = run(implementation="blockwise", tile_size=2, mesh=mesh)
    np.testing.assert_allclose(other, value, rtol=1e-5)
    for a, b in zip(
        jax.tree.leaves((metrics, gradient)),
        jax.tree.leaves((other_metrics, other_gradient)),
        strict=True,
    ):
        np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("implementation", ["plain", "blockwise"])
def test_off_diagonal_of_one_set_of_rows_with_itself(implementation):
    x = rows(SIZE, seed=3)
    mesh = parallel.make_mesh({"data": 8, "fsdp": 1, "tensor": 1})

    def total(x):
        by_row, by_column = losses.off_diagonal_logsumexp(
            x, x, 4.0, implementation=implementation, tile_size=2, mesh=mesh
        )
        return jnp.sum(by_row), (by_row, by_column)

    (_, (by_row, by_column)), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(x)
    wide = np.asarray(x, np.float64)
    weights = np.where(np.eye(SIZE, dtype=bool), 0.0, np.exp(4 * wide @ wide.T))
    np.testing.assert_allclose(by_row, np.log(weights.sum(1)), rtol=1e-5)
    np.testing.assert_allclose(by_column, by_row, rtol=1e-5)
    share = weights / weights.sum(1, keepdims=True)
    np.testing.assert_allclose(gradient, 4 * (share + share.T) @ wide, rtol=1e-4, atol=1e-5)


def test_what_can_not_be_is_refused():
    images, texts = rows(4, seed=0), rows(4, seed=1)
    with pytest.raises(ValueError, match=r"decoupled and labels can't be combined"):
        losses.infonce(images, texts, logit_scale=0.0, decoupled=True, labels=jnp.zeros(4, int))
    with pytest.raises(ValueError, match=r"implementation='fast'; use 'plain' or 'blockwise'"):
        losses.off_diagonal_logsumexp(images, texts, 1.0, implementation="fast")
