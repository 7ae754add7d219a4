"""The train step on encoders small enough to check by hand."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxclip.train import state as state_lib
from jaxclip.train import step as step_lib
from jaxclip.train import towers


def init(rng):
    keys = jax.random.split(rng, 2)
    return {
        "image": {"kernel": jax.random.normal(keys[0], (12, 4))},
        "text": {"kernel": jax.random.normal(keys[1], (5, 4))},
        "logit_scale": jnp.float32(1.0),
    }


def gradient(params, state, batch):
    """That of :func:`value_and_grad`, as the step wants it."""
    (loss, metrics), grads = value_and_grad(params, batch)
    return (loss, (metrics, state.objective)), grads


def value_and_grad(params, batch):
    """Squared distance between the two embeddings, times the scale."""

    def loss_of(params):
        params = state_lib.stop_frozen_gradients(params, batch.get("is_frozen", lambda path: False))
        image = batch["image"] @ params["image"]["kernel"]
        text = batch["text"] @ params["text"]["kernel"]
        return jnp.mean((image - text) ** 2) * params["logit_scale"], {"extra": jnp.float32(7)}

    return jax.value_and_grad(loss_of, has_aux=True)(params)


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    return {
        "image": rng.normal(size=(8, 12)).astype(np.float32),
        "text": rng.normal(size=(8, 5)).astype(np.float32),
    }


def new_state(tx, **options):
    return state_lib.create_state(init, tx, jax.random.key(0), **options)


def test_one_step_is_gradient_descent(batch):
    tx = optax.sgd(0.1)
    before = new_state(tx)
    (loss, _), grads = value_and_grad(before.params, batch)
    expected = jax.tree.map(lambda p, g: p - 0.1 * g, before.params, grads)
    after, metrics = step_lib.make_train_step(gradient, tx)(before, batch)
    assert int(after.step) == 1
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-6)
    np.testing.assert_allclose(metrics["grad_norm"], optax.tree.norm(grads), rtol=1e-6)
    assert metrics["extra"] == 7
    for name in ("image", "text"):
        np.testing.assert_allclose(
            after.params[name]["kernel"], expected[name]["kernel"], rtol=1e-6
        )


def test_logit_scale_is_capped_after_the_update(batch):
    tx = optax.sgd(-1e4)  # drives every parameter up its gradient
    state, metrics = step_lib.make_train_step(gradient, tx)(new_state(tx), batch)
    assert float(state.params["logit_scale"]) == pytest.approx(math.log(100))
    assert float(metrics["logit_scale"]) == pytest.approx(100, rel=1e-5)


def test_moving_average_follows_its_warmed_up_decay(batch):
    tx = optax.sgd(0.1)
    step = step_lib.make_train_step(gradient, tx, ema_decay=0.5)
    state = new_state(tx, with_ema=True)
    average = np.asarray(state.params["image"]["kernel"])
    for count in range(6):
        state, _ = step(state, batch)
        decay = min(0.5, (1 + count) / (10 + count))
        average = decay * average + (1 - decay) * np.asarray(state.params["image"]["kernel"])
    np.testing.assert_allclose(state.ema_params["image"]["kernel"], average, rtol=1e-5)


def test_a_nan_batch_changes_nothing_and_is_counted(batch):
    tx = optax.adamw(0.1)
    step = step_lib.make_train_step(gradient, tx, ema_decay=0.9)
    state, _ = step(new_state(tx, with_ema=True), batch)
    kept = jax.tree.map(np.asarray, state)
    bad = {**batch, "image": batch["image"] * np.float32("nan")}
    for repeat in (1, 2):
        state, metrics = step(state, bad)
        assert int(metrics["nonfinite_count"]) == int(metrics["nonfinite_streak"]) == repeat
    assert int(state.step) == 3
    for name in ("params", "opt_state", "ema_params"):
        jax.tree.map(np.testing.assert_array_equal, getattr(state, name), getattr(kept, name))
    state, metrics = step(state, batch)
    assert int(metrics["nonfinite_count"]) == 2 and int(metrics["nonfinite_streak"]) == 0
    assert not np.array_equal(state.params["image"]["kernel"], kept.params["image"]["kernel"])


def test_a_large_finite_gradient_is_not_taken_for_a_broken_one(batch):
    """The norm of 1e30s overflows float32; the gradient is finite all the same."""
    tx = optax.chain(optax.clip(1.0), optax.sgd(0.1))

    def huge(params, state, batch):
        (loss, aux), grads = gradient(params, state, batch)
        return (loss, aux), jax.tree.map(lambda g: jnp.sign(g) * 1e30, grads)

    before = new_state(tx)
    kept = np.asarray(before.params["text"]["kernel"])
    state, metrics = step_lib.make_train_step(huge, tx)(before, batch)
    assert int(metrics["nonfinite_count"]) == 0
    assert not np.array_equal(state.params["text"]["kernel"], kept)


def test_sam_gets_its_second_gradient(batch):
    """Opaque SAM: the update is the gradient at params + rho * g / |g|, from the same batch."""
    rho, lr = 0.05, 0.1
    tx = optax.contrib.sam(
        optax.sgd(lr), optax.chain(optax.contrib.normalize(), optax.sgd(rho)), opaque_mode=True
    )
    before = new_state(tx)
    params = before.params
    _, grads = value_and_grad(params, batch)
    norm = optax.tree.norm(grads)
    ascended = jax.tree.map(lambda p, g: p + rho * g / norm, params, grads)
    _, second = value_and_grad(ascended, batch)
    expected = jax.tree.map(lambda p, g: np.asarray(p - lr * g), params, second)
    step = step_lib.make_train_step(gradient, tx, extra_args=("grad_fn",))
    after, _ = step(before, batch)
    np.testing.assert_allclose(
        after.params["image"]["kernel"], expected["image"]["kernel"], rtol=1e-5
    )


def test_frozen_parameters_get_no_gradient(batch):
    params = init(jax.random.key(0))

    def grads_of(params):
        return value_and_grad(
            params, {**batch, "is_frozen": lambda path: path.startswith("image/")}
        )[1]

    grads = grads_of(params)
    assert not np.any(grads["image"]["kernel"]) and np.any(grads["text"]["kernel"])
    # Nothing is computed for them either: no product has the frozen kernel's shape.
    text = jax.jit(grads_of).lower(params).compile().as_text()
    assert "f32[12,4]" not in "".join(line for line in text.splitlines() if "dot(" in line)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_normalize_images(dtype):
    images = np.arange(2 * 2 * 2 * 3).reshape(2, 2, 2, 3).astype(dtype)
    mean, std = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]
    expected = (images.astype(np.float64) / 255 - mean) / std
    result = towers.normalize_images(jnp.asarray(images), mean, std)
    assert result.dtype == jnp.float32
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)
