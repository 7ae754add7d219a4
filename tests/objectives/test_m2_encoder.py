"""CLIP within groups."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip.objectives.m2_encoder import M2Encoder
from tests.objectives import fixture_g as g

LOGITS = np.array([[2.0, 0, 1, 0], [0, 2, 0, 1], [1, 0, 2, 0], [0, 1, 0, 2]])


@pytest.mark.parametrize(("groups", "expected"), [(1, 0.493812), (2, 0.126928)])
def test_numbers_of_the_specification(groups, expected):
    made = {"image": jnp.asarray(LOGITS, jnp.float32), "text": jnp.eye(4)}
    loss, _, _ = g.value(M2Encoder(num_groups=groups), made, g.context(1.0, size=4))
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_one_group_is_clip_and_groups_have_its_gradient():
    made = {"image": g.I, "text": g.T}
    assert float(g.value(M2Encoder(num_groups=1), made)[0]) == pytest.approx(0.1081597, rel=1e-5)

    def reference(arrays, base):
        parts = [slice(0, 3), slice(3, 6)]
        return np.mean([g.clip(arrays["image"][p], arrays["text"][p], 10.0) for p in parts])

    g.check_gradient(M2Encoder(num_groups=2), g.random_rows("image", "text"), reference)


def test_what_does_not_divide_is_refused():
    with pytest.raises(
        ValueError, match=r"m2_encoder\.num_groups=2 does not divide the batch of 3; use 1"
    ):
        g.value(M2Encoder(num_groups=2), {"image": g.I, "text": g.T})
    with pytest.raises(ValueError, match="leaves one row to a group: there is no wrong answer"):
        g.value(M2Encoder(num_groups=3), {"image": g.I, "text": g.T})
    with pytest.raises(ValueError, match=r"m2_encoder\.num_groups=0"):
        M2Encoder(num_groups=0)
