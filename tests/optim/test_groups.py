"""``groups`` and ``layer_decay`` of a configuration, by what they must do to the update."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip import optim
from jaxclip.optim.groups import layer_factors


def layer(size: int = 2) -> dict[str, jax.Array]:
    return {"kernel": 0.5 * jnp.ones((3, size)), "bias": 0.5 * jnp.ones(size)}


PARAMS = {
    "image": {
        "patch_embedding": layer(),
        "positions": jnp.ones((4, 2)),
        "blocks_0": layer(),
        "blocks_1": layer(),
        "blocks_2": layer(),
        "projection": layer(),
    },
    "text": {"token_embedding": jnp.ones((5, 2)), "blocks_0": layer(), "head": layer()},
    "logit_scale": jnp.asarray(2.0),
}
CONFIG = {"name": "adamw", "learning_rate": 0.1, "weight_decay": 0.2, "eps": 0.0}


def update(**options: Any) -> tuple[Any, Any]:
    """The first update on gradients of ones, by path, and the state."""
    tx = optim.from_config({**CONFIG, **options}, total_steps=10)
    gradients = jax.tree.map(jnp.ones_like, PARAMS)
    updates, state = tx.update(gradients, tx.init(PARAMS), PARAMS)
    return dict(zip(optim.tensor_names(PARAMS), jax.tree.leaves(updates), strict=True)), state


def test_a_factor_scales_the_update_exactly_and_the_first_match_counts() -> None:
    plain, _ = update()
    found, _ = update(
        groups=[
            {"pattern": "^image/blocks_1/", "learning_rate_factor": 0.25},
            {"pattern": "^image/", "learning_rate_factor": 4.0},
        ]
    )
    for path, expected in plain.items():
        factor = 0.25 if "image/blocks_1/" in path else 4.0 if path.startswith("image/") else 1.0
        np.testing.assert_array_equal(found[path], factor * expected, err_msg=path)


def test_weight_decay_of_a_group() -> None:
    found, _ = update(
        groups=[
            {"pattern": "text/.*kernel", "weight_decay": False},
            {"pattern": "blocks_0/bias", "weight_decay": True},
        ]
    )
    # Adam's first step is the learning rate; decay adds lr * 0.2 * 0.5.
    decayed, plain = -0.1 * (1 + 0.2 * 0.5), -0.1
    np.testing.assert_allclose(found["text/head/kernel"], plain, rtol=1e-5)
    np.testing.assert_allclose(found["image/projection/kernel"], decayed, rtol=1e-5)
    np.testing.assert_allclose(found["image/blocks_0/bias"], decayed, rtol=1e-5)
    np.testing.assert_allclose(found["image/blocks_1/bias"], plain, rtol=1e-5)


def test_a_frozen_group_has_no_update_and_no_state() -> None:
    _, everything = update()
    found, state = update(groups=[{"pattern": "^image/", "frozen": True}])
    for path, value in found.items():
        assert np.all(np.asarray(value) == 0) == path.startswith("image/"), path

    def size(tree: Any) -> int:
        return sum(leaf.size for leaf in jax.tree.leaves(tree))

    assert size(everything) - size(state) == 2 * size(PARAMS["image"])


def test_layer_decay_by_closed_form() -> None:
    plain, _ = update()
    found, _ = update(layer_decay=0.5, groups=[{"pattern": "^text/head", "frozen": True}])
    factors = {
        "image/patch_embedding/kernel": 0.5**4,
        "image/positions": 0.5**4,
        "image/blocks_0/bias": 0.5**3,
        "image/blocks_1/kernel": 0.5**2,
        "image/blocks_2/kernel": 0.5,
        "image/projection/kernel": 1.0,
        "text/token_embedding": 0.5**2,
        "text/blocks_0/kernel": 0.5,
        "text/head/kernel": 0.0,
        "logit_scale": 1.0,
    }
    for path, factor in factors.items():
        np.testing.assert_array_equal(found[path], factor * plain[path], err_msg=path)


def test_layers_inside_other_modules() -> None:
    params = {
        "image": {"encoder": {"blocks_0": layer(), "blocks_1": layer()}, "embedding": layer()}
    }
    factors = layer_factors(params, 0.75)
    assert factors["image/encoder/blocks_1/kernel"] == 0.75
    assert factors["image/embedding/kernel"] == 0.75**3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groups": [{"pattern": "^imag/"}]}, r"groups\[0\].*matches no parameter; did you mean"),
        ({"groups": [{"pattern": "("}]}, r"groups\[0\]\.pattern='\(' is no regular expression"),
        ({"groups": [{"learning_rate_factor": 2}]}, r"groups\[0\]=.*with a pattern"),
        ({"groups": [{"pattern": "a", "froze": True}]}, r"froze: .*did you mean 'frozen'"),
        ({"groups": [{"pattern": "a", "weight_decay": 0.1}]}, r"weight_decay=0\.1 must be True"),
        ({"groups": {"pattern": "a"}}, r"must be a list"),
        ({"layer_decay": 1.5}, r"optim\.layer_decay=1\.5 must be"),
    ],
    ids=str,
)
def test_mistakes_are_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        optim.from_config({**CONFIG, **options}, 10).init(PARAMS)


def test_layer_decay_needs_blocks() -> None:
    tx = optim.from_config({**CONFIG, "layer_decay": 0.75}, 10)
    with pytest.raises(ValueError, match=r"layer_decay needs parameters with blocks_<i>"):
        tx.init({"image": layer()})
