"""RMS of Adam's step from its states: closed forms of a gradient that grows thirtyfold."""

import jax
import jax.numpy as jnp
import optax
import pytest

from jaxclip import optim
from jaxclip.lab import moments
from jaxclip.lab.injectors import stale_v


@pytest.mark.parametrize(("b2", "expected"), [(0.999, 21.8), (0.99, 9.5), (0.95, 4.4)])
def test_closed_forms(b2, expected):
    # The numbers of the paper's cause, k = 30 after a long time.
    assert stale_v.rms_after(30.0, b2, 100_000) == pytest.approx(expected, abs=0.05)


def test_closed_form_after_a_short_time():
    assert stale_v.rms_after(30.0, 0.999, 110) == pytest.approx(9.7, abs=0.1)
    assert stale_v.rms_after(1.0, 0.999, 10) == 1.0


def growing(tx, section, start, k=30.0):
    """RMS of two tensors at the step at which one's gradient grows."""
    params = {"a": jnp.ones((3, 2)), "b": jnp.ones(4)}

    def update(state, factor):
        gradient = {"a": jnp.full((3, 2), 0.3) * factor, "b": jnp.full(4, -0.2)}
        return tx.update(gradient, state, params)[1], state

    factors = jnp.where(jnp.arange(start + 1) == start, 1.0, 1 / k)
    after, states = jax.jit(lambda: jax.lax.scan(update, tx.init(params), factors))()
    before = jax.tree.map(lambda leaf: leaf[-1], states)
    return moments.rms(before, after, section, ("^a$", "^b$", "^c"))


@pytest.mark.parametrize("b2", [0.99, 0.95])
def test_rms_of_adamw(b2):
    section = {"name": "adamw", "b2": b2}
    found = growing(optax.adamw(1e-3, b2=b2), section, 60)
    assert set(found) == {"rms/^a$", "rms/^b$"}
    assert float(found["rms/^a$"]) == pytest.approx(stale_v.rms_after(30.0, b2, 60), rel=1e-4)
    assert float(found["rms/^b$"]) == pytest.approx(1.0, rel=1e-4)


def test_rms_of_stable_adamw_is_its_own():
    section = {"name": "stable_adamw", "b2": 0.95}
    found = growing(optim.stable_adamw(1e-3, b2=0.95), section, 60)
    assert float(found["rms/^a$"]) == pytest.approx(stale_v.rms_after(30.0, 0.95, 60), rel=1e-4)


def test_rms_is_of_what_adam_saw():
    # Behind a clipper that takes the growth away there is nothing to see.
    tx = optax.chain(optax.clip_by_block_rms(0.01), optax.adamw(1e-3, b2=0.95))
    found = growing(tx, {"name": "adamw", "b2": 0.95}, 60)
    assert float(found["rms/^a$"]) == pytest.approx(1.0, rel=1e-3)


def test_an_optimizer_without_this_moment():
    assert growing(optax.sgd(0.1), {"name": "sgd"}, 2) == {}
