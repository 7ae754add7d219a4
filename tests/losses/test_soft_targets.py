"""Cross-entropy and divergence to soft targets."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip import losses, parallel

STUDENT = jnp.array([[2.0, 0.0], [1.0, 1.0]])
TEACHER = jnp.array([[3.0, 1.0], [0.0, 2.0]])


def both(fn, student, teacher):
    rows = fn(student, jax.nn.softmax(teacher))
    columns = fn(student.T, jax.nn.softmax(teacher.T))
    return float(rows.mean() + columns.mean()) / 2


def test_published_values():
    cross_entropy = both(losses.soft_cross_entropy, STUDENT, TEACHER)
    assert cross_entropy == pytest.approx(0.500343, abs=1e-6)
    divergence = both(losses.soft_kl, STUDENT, TEACHER)
    assert divergence == pytest.approx(0.124409, abs=1e-6)
    assert cross_entropy - divergence == pytest.approx(0.375934, abs=1e-6)


def test_an_ensembles_targets_are_averaged_after_the_softmax():
    def pair(targets_of):
        sides = ((STUDENT, lambda x: x), (STUDENT.T, lambda x: x.T))
        return sum(
            float(losses.soft_cross_entropy(student, targets_of(turn)).mean()) / 2
            for student, turn in sides
        )

    def after(turn):
        return (jax.nn.softmax(turn(TEACHER)) + jax.nn.softmax(turn(jnp.eye(2)))) / 2

    def before(turn):
        return jax.nn.softmax(turn((TEACHER + jnp.eye(2)) / 2))

    assert pair(after) == pytest.approx(0.565467, abs=1e-6)
    assert pair(before) == pytest.approx(0.549898, abs=1e-6)


def test_divergence_is_zero_with_a_zero_gradient_where_both_agree():
    targets = jax.nn.softmax(TEACHER)
    np.testing.assert_allclose(losses.soft_kl(TEACHER, targets), 0.0, atol=1e-6)
    gradient = jax.grad(lambda x: losses.soft_kl(x, targets).sum())(TEACHER)
    np.testing.assert_allclose(gradient, 0.0, atol=1e-6)


def test_one_hot_targets_are_cross_entropy():
    expected = -jnp.diagonal(jax.nn.log_softmax(STUDENT))
    for fn in (losses.soft_kl, losses.soft_cross_entropy):
        np.testing.assert_allclose(fn(STUDENT, jnp.eye(2)), expected, rtol=1e-6)


SIZE = 12  # on 8 devices, tiles of 2: with padding


def rows(dim, seed):
    x = np.random.default_rng(seed).standard_normal((SIZE, dim))
    return jnp.asarray(x / np.linalg.norm(x, axis=1, keepdims=True), jnp.float32)


def contrast(images, texts, log_scale, teachers, options):
    return losses.soft_contrast(
        images, texts, jnp.exp(log_scale), [losses.Teacher(*each) for each in teachers], **options
    )


def formula(images, texts, scale, teachers, own_share=0.0, divergence=False):
    """Of the definition, in float64."""
    images, texts = (np.asarray(x, np.float64) for x in (images, texts))
    values = []
    for turn in (lambda x: x, lambda x: x.T):
        logits = turn(scale * images @ texts.T)
        target = 0.0
        for a, b, s in teachers:
            weights = np.exp(turn(s * np.asarray(a, np.float64) @ np.asarray(b, np.float64).T))
            target += weights / weights.sum(1, keepdims=True) / len(teachers)
        target = own_share * np.eye(SIZE) + (1 - own_share) * target
        log_softmax = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        entropy = -(target * np.log(np.maximum(target, 1e-300))).sum(1)
        values.append(-(target * log_softmax).sum(1) - (entropy if divergence else 0.0))
    return values


@pytest.mark.parametrize(
    ("count", "options"),
    [
        (1, {}),
        (2, {"own_share": 0.25}),
        (1, {"own_share": 0.5, "divergence": True}),
        (1, {"own_share": 1.0, "divergence": True}),
    ],
)
def test_blockwise_on_eight_devices_is_plain_and_plain_is_the_formula(count, options):
    images, texts = rows(6, 0), rows(6, 1)
    teachers = [(rows(5, 2), rows(5, 3), 8.0), (rows(4, 4), rows(4, 5), 3.0)][:count]
    weights = jnp.linspace(0.2, 1.5, SIZE)

    def run(**how):
        def total(images, texts, log_scale):
            out = contrast(images, texts, log_scale, teachers, options | how)
            return jnp.sum(weights * (out.rows + 2.0 * out.columns)), out

        step = jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True))
        (_, out), gradient = step(images, texts, jnp.log(10.0))
        return out, gradient

    plain, plain_gradient = run()
    expected = formula(images, texts, 10.0, teachers, **options)
    for found, wanted in zip(plain[:2], expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=2e-6)
    mesh = parallel.make_mesh({"data": 8, "fsdp": 1, "tensor": 1})
    tiles, gradient = run(implementation="blockwise", tile_size=1, mesh=mesh)
    for found, wanted in zip(
        jax.tree.leaves((tiles, gradient)), jax.tree.leaves((plain, plain_gradient)), strict=True
    ):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=3e-6)


def test_blockwise_holds_no_matrix():
    def gradient(implementation):
        def total(images, texts):
            options = {"implementation": implementation, "tile_size": 64}
            out = contrast(images, texts, jnp.log(10.0), [(images, texts, 5.0)], options)
            return jnp.mean(out.rows + out.columns)

        shape = jax.ShapeDtypeStruct((2048, 4), jnp.float32)
        step = jax.jit(jax.grad(total, argnums=(0, 1))).lower(shape, shape).compile()
        return step.memory_analysis().temp_size_in_bytes

    matrix = 2048 * 2048 * 4
    assert gradient("plain") > 2 * matrix
    assert gradient("blockwise") < matrix / 4


def test_no_gradient_goes_into_the_teacher():
    def total(teacher, implementation):
        options = {"divergence": True, "implementation": implementation, "tile_size": 4}
        out = contrast(rows(6, 0), rows(6, 1), 0.0, [(teacher, rows(5, 3), 8.0)], options)
        return jnp.mean(out.rows + out.columns)

    for implementation in ("plain", "blockwise"):
        assert not np.any(jax.grad(total)(rows(5, 2), implementation))


def test_what_can_not_be_is_refused():
    teachers = [(rows(6, 0), rows(6, 1), 1.0)] * 2
    with pytest.raises(ValueError, match="2 teachers; soft_contrast takes some, a divergence one"):
        contrast(rows(6, 0), rows(6, 1), 0.0, teachers, {"divergence": True})
    with pytest.raises(ValueError, match=r"implementation='fast'; use 'plain' or 'blockwise'"):
        contrast(rows(6, 0), rows(6, 1), 0.0, teachers, {"implementation": "fast"})
