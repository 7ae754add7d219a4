"""Parameters as other people's trainers hold them: the paths are the same at init and update."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training import train_state

from jaxclip import optim

CONFIG = {
    "name": "sgd",
    "learning_rate": 1.0,
    "clip": [
        {"name": "adagc", "warmup_steps": 1},
        {"name": "adagn", "exempt": ["bias$", "^logit_scale$"]},
    ],
    "freeze": ["(^|/)frozen/kernel$"],
}
# Gradient of every element; AdaGC lets it through at first, AdaGN brings a tensor to norm one.
GRADIENT = 0.125


def expected(path: str, shape: tuple[int, ...]) -> float:
    """Every element of a tensor after one step of :data:`CONFIG` from a tensor of ones."""
    if path == "frozen/kernel":
        return 1.0
    if path == "logit_scale":  # no per-tensor rule sees it
        return 1.0 - GRADIENT
    if path.endswith("bias"):  # AdaGC alone
        return 1.0 - GRADIENT
    return 1.0 - 1.0 / np.sqrt(np.prod(shape))


SHAPES = {
    "frozen/bias": (3,),
    "frozen/kernel": (2, 3),
    "logit_scale": (),
    "value/bias": (2,),
    "value/kernel": (3, 2),
}


class Dense(NamedTuple):
    kernel: Any
    bias: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Layer:
    kernel: Any
    bias: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Model:
    frozen: Layer
    value: Layer
    logit_scale: Any


def ones(path: str) -> jax.Array:
    return jnp.ones(SHAPES[path])


def plain_dict() -> dict[str, Any]:
    return {
        "frozen": {"kernel": ones("frozen/kernel"), "bias": ones("frozen/bias")},
        "value": {"kernel": ones("value/kernel"), "bias": ones("value/bias")},
        "logit_scale": ones("logit_scale"),
    }


def dataclass() -> Model:
    tree = plain_dict()
    return Model(Layer(**tree["frozen"]), Layer(**tree["value"]), tree["logit_scale"])


def named_tuples() -> dict[str, Any]:
    tree = plain_dict()
    return {**tree, "frozen": Dense(**tree["frozen"]), "value": Dense(**tree["value"])}


def boxed() -> dict[str, Any]:
    return jax.tree.map(lambda leaf: nn.Partitioned(leaf, (None,) * leaf.ndim), plain_dict())


def equinox() -> Any:
    module = pytest.importorskip("equinox")

    class EquinoxLayer(module.Module):
        kernel: jax.Array
        bias: jax.Array

    class EquinoxModel(module.Module):
        frozen: EquinoxLayer
        value: EquinoxLayer
        logit_scale: jax.Array

    tree = plain_dict()
    layers = {name: EquinoxLayer(**tree[name]) for name in ("frozen", "value")}
    return EquinoxModel(**layers, logit_scale=tree["logit_scale"])


def check(params: Any, paths: list[str]) -> None:
    """Every tensor is what the rule of its path makes of it."""
    leaves = jax.tree.leaves(params)
    assert len(leaves) == len(paths) == len(SHAPES)
    for path, leaf in zip(paths, leaves, strict=True):
        np.testing.assert_allclose(leaf, expected(path, leaf.shape), rtol=1e-5, err_msg=path)


@pytest.mark.parametrize("make", [plain_dict, dataclass, named_tuples, boxed, equinox])
def test_functional_trainers(make: Callable[[], Any]) -> None:
    params = make()
    tx = optim.from_config(CONFIG, 10)
    gradients = jax.tree.map(lambda leaf: GRADIENT * jnp.ones_like(leaf), params)
    state = jax.jit(tx.init)(params)
    updates, state = jax.jit(tx.update)(gradients, state, params)
    paths = optim.tensor_names(params)
    assert sorted(paths) == sorted(SHAPES)
    check(optax.apply_updates(params, updates), paths)
    assert optim.read_metrics(state)["adagc/norm"].shape == (3,)


class Linen(nn.Module):
    boxes: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = nn.initializers.ones
        kernel = nn.with_partitioning(init, (None, None)) if self.boxes else init
        x = nn.Dense(3, kernel_init=kernel, bias_init=init, name="frozen")(x)
        x = nn.Dense(2, kernel_init=kernel, bias_init=init, name="value")(x)
        return x * self.param("logit_scale", init, ())


@pytest.mark.parametrize("boxes", [False, True])
def test_linen_train_state(boxes: bool) -> None:
    model = Linen(boxes)
    params = model.init(jax.random.key(0), jnp.ones((1, 2)))["params"]
    state = train_state.TrainState.create(
        apply_fn=model.apply, params=params, tx=optim.from_config(CONFIG, 10)
    )
    gradients = jax.tree.map(lambda leaf: GRADIENT * jnp.ones_like(leaf), state.params)
    state = jax.jit(lambda state, gradients: state.apply_gradients(grads=gradients))(
        state, gradients
    )
    assert sorted(optim.tensor_names(params)) == sorted(SHAPES)
    check(state.params, optim.tensor_names(state.params))


class Nnx(nnx.Module):
    def __init__(self) -> None:
        rngs, init = nnx.Rngs(0), nnx.initializers.ones
        self.frozen = nnx.Linear(2, 3, kernel_init=init, bias_init=init, rngs=rngs)
        self.value = nnx.Linear(3, 2, kernel_init=init, bias_init=init, rngs=rngs)
        self.logit_scale = nnx.Param(jnp.ones(()))


def test_nnx_optimizer() -> None:
    model = Nnx()
    optimizer = nnx.Optimizer(model, optim.from_config(CONFIG, 10), wrt=nnx.Param)
    gradients = jax.tree.map(
        lambda leaf: GRADIENT * jnp.ones_like(leaf), nnx.state(model, nnx.Param)
    )

    @nnx.jit
    def step(model: Nnx, optimizer: nnx.Optimizer, gradients: Any) -> None:
        optimizer.update(model, gradients)

    step(model, optimizer, gradients)
    params = nnx.state(model, nnx.Param)
    assert sorted(optim.tensor_names(params)) == sorted(SHAPES)
    assert optim.tensor_names(params) == optim.tensor_names(nnx.as_pure(params))
    check(params, optim.tensor_names(params))


def test_nnx_weight_decay_and_multipliers_go_by_path() -> None:
    model = Nnx()
    config = {
        "name": "adamw",
        "learning_rate": 0.1,
        "weight_decay": 1.0,
        "no_decay": ["^frozen/"],
        "learning_rate_multipliers": [["^value/bias$", 0.0]],
    }
    optimizer = nnx.Optimizer(model, optim.from_config(config, 10), wrt=nnx.Param)
    optimizer.update(model, jax.tree.map(jnp.ones_like, nnx.state(model, nnx.Param)))
    params = nnx.state(model, nnx.Param)
    means = dict(
        zip(
            optim.tensor_names(params),
            (float(p.mean()) for p in jax.tree.leaves(params)),
            strict=True,
        )
    )
    wanted = {
        "frozen/bias": 0.9,
        "frozen/kernel": 0.9,
        "logit_scale": 0.9,
        "value/bias": 1.0,
        "value/kernel": 0.8,
    }
    assert means == pytest.approx(wanted, abs=1e-5)


def test_none_gradients() -> None:
    """As ``equinox.filter_grad`` gives for what is not trained: the tensor is left as it is."""
    params = {"a": jnp.ones(2), "b": jnp.ones(3)}
    gradients = {"a": 5.0 * jnp.ones(2), "b": None}
    for tx in (
        optim.zclip(),
        optim.adagc(warmup_steps=0),
        optim.adagn(),
        optim.adaclip(),
        optim.clip_by_coordinate(),
        optim.median_clip(0.1),
        optim.median_clip(0.1, kind="vector"),
    ):
        state = tx.init(params)
        for _ in range(2):
            updates, state = jax.jit(tx.update)(gradients, state)
        assert updates["b"] is None and np.all(np.isfinite(updates["a"]))
        norm = np.asarray(state.norm)
        if norm.ndim:
            assert norm[0] > 0 and norm[1] == 0
        # Both come back with the next gradient.
        updates, state = jax.jit(tx.update)(params, state)
        assert updates["b"].shape == (3,)
