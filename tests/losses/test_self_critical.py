"""Policy gradient of captions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip.losses.self_critical import self_critical

LOGS = jnp.log(jnp.asarray([[[0.5, 0.25, 0.1], [0.2, 0.9, 0.9]]]))
REAL = jnp.asarray([[[True, True, False], [True, False, False]]])
REWARDS, BASELINE = jnp.asarray([[0.9, 0.3]]), jnp.asarray([0.5])


def test_value_and_gradient():
    value = lambda logs, rewards: self_critical(logs, REAL, rewards, BASELINE)[0]  # noqa: E731
    loss, (to_logs, to_rewards) = jax.value_and_grad(value, argnums=(0, 1))(LOGS, REWARDS)
    expected = -(0.4 * np.log(0.125) + -0.2 * np.log(0.2)) / 2
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    # What was better than the greedy caption becomes likelier; padding and rewards have no part.
    np.testing.assert_allclose(to_logs, [[[-0.2, -0.2, 0], [0.1, 0, 0]]], atol=1e-6)
    assert not to_rewards.any()


def test_the_baseline_itself_teaches_nothing():
    loss, metrics = self_critical(LOGS, REAL, jnp.full((1, 2), 0.5), BASELINE)
    assert float(loss) == 0.0 == float(metrics["advantage"])
