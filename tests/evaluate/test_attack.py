"""Projected gradient ascent beside closed forms, and what counts as a success."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip.evaluate import attack

IMAGES = np.random.default_rng(0).integers(0, 256, (2, 3, 3, 3)).astype(np.uint8)
WEIGHTS = np.random.default_rng(1).normal(size=IMAGES.shape).astype(np.float32)


def linear(images):
    return jnp.sum(images * WEIGHTS)


def test_of_a_linear_loss_it_is_the_corner():
    """max w·x within the radius is x + radius sign(w), cut to what a picture may hold."""
    found = jax.jit(lambda x: attack.pgd(linear, x, radius=8.0, steps=5))(IMAGES)
    expected = np.clip(IMAGES.astype(np.float32) + 8 * np.sign(WEIGHTS), 0, 255)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    started = attack.pgd(linear, IMAGES, radius=8.0, steps=5, key=jax.random.key(0))
    np.testing.assert_allclose(started, expected, atol=1e-4)


def test_it_goes_no_further_than_its_steps_and_stays_within_the_radius():
    one = attack.pgd(jnp.sum, jnp.full((1, 2, 2, 3), 100.0), steps=2, step_size=1.0)
    np.testing.assert_allclose(one, 102.0)
    # A loss with its maximum inside is found there, to a step.
    inside = attack.pgd(
        lambda x: -jnp.sum((x - 103.0) ** 2), jnp.full((1, 2, 2, 3), 100.0), steps=40, step_size=0.5
    )
    np.testing.assert_allclose(inside, 103.0, atol=0.5)
    random = attack.pgd(lambda x: 0.0 * jnp.sum(x), IMAGES, radius=3.0, key=jax.random.key(1))
    change = np.asarray(random) - IMAGES
    assert 2.0 < np.abs(change).max() <= 3.0 + 1e-4 and np.asarray(random).min() >= 0


def test_success_is_of_what_was_right():
    before = jnp.asarray([True, True, False, True])
    after = jnp.asarray([False, True, False, False])
    assert float(attack.success_rate(before, after)) == pytest.approx(2 / 3)
    assert np.isnan(attack.success_rate(jnp.zeros(4, bool), after))


@pytest.mark.parametrize("wrong", [{"radius": 0.0}, {"steps": 0}, {"step_size": -1.0}])
def test_mistakes(wrong):
    with pytest.raises(ValueError, match="all must be above 0"):
        attack.pgd(linear, IMAGES, **wrong)
