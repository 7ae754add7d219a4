"""``read_metrics``: names and values, wherever optax hides a state."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxclip import optim

PARAMS = {"a": jnp.ones(4), "b": jnp.ones((2, 3))}
FIELDS = ("norm", "threshold", "clipped", "nonfinite_count")


def names_of(tx: optax.GradientTransformation) -> list[str]:
    found = optim.read_metrics(tx.init(PARAMS))
    names = [name for name in found if not name.endswith("/streak")]
    assert [name.rpartition("/")[2] for name in names] == list(FIELDS) * (len(names) // 4)
    return [name.rpartition("/")[0] for name in names[::4]]


def test_names() -> None:
    zclip, adagc = optim.zclip(), optim.adagc()
    assert names_of(optax.adamw(1e-3)) == []
    assert names_of(zclip) == ["zclip"]
    assert names_of(optax.chain(zclip, optax.adam(1e-3), adagc)) == ["zclip", "adagc"]
    assert names_of(optax.chain(zclip, optax.chain(zclip, zclip))) == [
        "zclip",
        "zclip_1",
        "zclip_2",
    ]
    assert names_of(optax.named_chain(("before", zclip), ("after", zclip))) == [
        "before/zclip",
        "after/zclip",
    ]
    assert names_of(optax.partition({"x": adagc, "y": adagc}, {"a": "x", "b": "y"})) == [
        "x/adagc",
        "y/adagc",
    ]
    assert names_of(optax.masked(zclip, {"a": True, "b": False})) == ["zclip"]
    assert names_of(optax.MultiSteps(optax.chain(zclip, adagc), 2)) == ["zclip", "adagc"]
    injected = optax.inject_hyperparams(optim.zclip)(alpha=0.9)
    assert names_of(optax.chain(injected, optax.sgd(0.1))) == ["zclip"]


def test_values_under_jit() -> None:
    tx = optax.chain(optim.zclip(max_norm=1.0), optim.adagc())

    @jax.jit
    def step(state: optax.OptState) -> tuple:
        updates, state = tx.update(PARAMS, state, PARAMS)
        return updates, state, optim.read_metrics(state)

    _, state, found = step(tx.init(PARAMS))
    np.testing.assert_allclose(found["zclip/norm"], np.sqrt(10), rtol=1e-6)
    assert float(found["zclip/threshold"]) == 1.0 and bool(found["zclip/clipped"])
    np.testing.assert_allclose(found["adagc/norm"], np.sqrt([0.4, 0.6]), rtol=1e-5)
    assert optim.tensor_names(PARAMS) == ["a", "b"]
    zclip = [f"zclip/{field}" for field in (*FIELDS, "streak")]
    assert list(optim.read_metrics(state)) == [*zclip, *(f"adagc/{field}" for field in FIELDS)]


def test_states_are_named_as_people_name_the_transformation() -> None:
    assert names_of(optim.stable_adamw(1e-3)) == ["stable_adamw"]
    assert names_of(optim.scale_by_stable_spam()) == ["stable_spam"]


def test_the_former_name_still_works() -> None:
    """``optax.monitor`` is another thing, so ours has another name."""
    state = optim.zclip().init(PARAMS)
    with pytest.warns(PendingDeprecationWarning, match="optim.read_metrics"):
        assert list(optim.monitor(state)) == list(optim.read_metrics(state))
