"""``from_config``: what a configuration names becomes one transformation; nothing is ignored."""

from __future__ import annotations

import pathlib
import re
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxclip import optim
from jaxclip.optim import _direction
from jaxclip.optim import config as config_lib
from jaxclip.registry import option_names

ADAMW = {"name": "adamw", "learning_rate": 0.1, "weight_decay": 0.5}


def make_params() -> dict[str, Any]:
    return {
        "image": {
            "blocks": {"norm": {"scale": jnp.ones((2, 3))}, "up": {"kernel": jnp.ones((2, 3, 4))}},
            "positions": jnp.ones((5, 3)),
        },
        "logit_scale": jnp.asarray(2.0),
        "text": {"embedding": jnp.ones((6, 3)), "up": {"bias": jnp.ones(3)}},
    }


def one_step(config: dict[str, Any], gradients: Any = None, total_steps: int = 100, **extra: Any):
    """Updates and state after one step on gradients of one."""
    params = make_params()
    gradients = jax.tree.map(jnp.ones_like, params) if gradients is None else gradients
    tx = optax.with_extra_args_support(optim.from_config(config, total_steps))
    step = jax.jit(lambda *arguments: tx.update(*arguments, **extra))
    return step(gradients, tx.init(params), params)


def means(tree: Any) -> dict[str, float]:
    names = optim.tensor_names(tree)
    return {
        name: round(float(jnp.mean(leaf)), 4)
        for name, leaf in zip(names, jax.tree.leaves(tree), strict=True)
    }


def test_weight_decay_is_for_matrices_alone() -> None:
    updates, _ = one_step(ADAMW)
    # Adam's first step is the learning rate; the decay adds half of it.
    assert means(updates) == {
        "image/blocks/norm/scale": -0.1,  # a matrix only because scanned layers are stacked
        "image/blocks/up/kernel": -0.15,
        "image/positions": -0.1,
        "logit_scale": -0.1,
        "text/embedding": -0.15,
        "text/up/bias": -0.1,
    }
    updates, _ = one_step({**ADAMW, "no_decay": ["embedding", "scale$"]})
    assert means(updates)["image/positions"] == -0.15
    assert means(updates)["text/embedding"] == means(updates)["text/up/bias"] == -0.1


def test_frozen_parameters_stay_and_keep_no_state() -> None:
    updates, state = one_step({**ADAMW, "freeze": ["^image/", "embedding"], "clip": "zclip"})
    moved = {name for name, value in means(updates).items() if value}
    assert moved == {"logit_scale", "text/up/bias"}
    # Two moments of four numbers; the rest are scalars.
    assert sum(leaf.size for leaf in jax.tree.leaves(state) if leaf.ndim) == 2 * 3
    norm = optim.read_metrics(state)["zclip/norm"]
    np.testing.assert_allclose(norm, 2.0, rtol=1e-6)  # of four ones


def test_learning_rate_multipliers_by_path() -> None:
    pairs = [["positions", 0.0], ["^image/", 0.1], ["logit_scale", 2]]
    updates, _ = one_step({**ADAMW, "learning_rate_multipliers": pairs})
    assert means(updates) == {
        "image/blocks/norm/scale": -0.01,
        "image/blocks/up/kernel": -0.015,
        "image/positions": 0.0,
        "logit_scale": -0.2,
        "text/embedding": -0.15,
        "text/up/bias": -0.1,
    }


@pytest.mark.parametrize("name", ["adagc", "adaclip", "adagn", "agc", "clip_by_coordinate"])
def test_per_tensor_clippers_do_not_see_the_temperature(name: str) -> None:
    """Gradients a hundred times the last step's: only the exempt one passes as it is."""
    sgd = {"name": "sgd", "learning_rate": 1.0}
    gradients = jax.tree.map(lambda leaf: 100.0 * jnp.ones_like(leaf), make_params())
    options = {"adagc": {"warmup_steps": 1}, "agc": {"clipping": 0.01}}.get(name, {})
    updates, state = one_step({**sgd, "clip": {"name": name, **options}}, gradients)
    assert float(updates["logit_scale"]) == -100.0
    _, seeing = one_step({**sgd, "clip": {"name": name, "exempt": [], **options}}, gradients)
    if name != "agc":
        assert optim.read_metrics(state)[f"{name}/norm"].shape == (5,)
        assert optim.read_metrics(seeing)[f"{name}/norm"].shape == (6,)
    _, some = one_step({**sgd, "clip": {"name": "zclip", "exempt": "^text"}}, gradients)
    number = sum(leaf.size for leaf in jax.tree.leaves({**make_params(), "text": {}}))
    norm = optim.read_metrics(some)["zclip/norm"]
    np.testing.assert_allclose(norm, 100 * np.sqrt(number), rtol=1e-6)


def test_clippers_in_a_row_and_after_the_optimizer() -> None:
    config = {
        **ADAMW,
        "clip": [{"name": "elementwise", "max_delta": 0.01}, "zclip", {"name": "none"}],
        "update_clip": {"name": "clip_by_coordinate", "fraction": 0.2},
    }
    updates, state = one_step(config)
    monitored = optim.read_metrics(state)
    size = sum(leaf.size for leaf in jax.tree.leaves(updates))
    np.testing.assert_allclose(monitored["zclip/norm"], 0.01 * np.sqrt(size), rtol=1e-5)
    # The update, decay and learning rate included, of all but the temperature.
    np.testing.assert_allclose(monitored["clip_by_coordinate/norm"].max(), 0.15, rtol=1e-3)


def test_sharpness_aware_minimisation_asks_for_a_second_gradient() -> None:

    def grad_fn(params: Any, step: Any) -> Any:
        return jax.tree.map(lambda leaf: 3.0 * jnp.ones_like(leaf), params)

    config = {"name": "sgd", "learning_rate": 0.1, "sam": {"rho": 0.5}, "freeze": "positions"}
    updates, _ = one_step(config, grad_fn=grad_fn)
    assert means(updates)["text/up/bias"] == -0.3 and means(updates)["image/positions"] == 0.0
    with pytest.raises(ValueError, match="grad_fn"):
        one_step(config)


@pytest.mark.parametrize("name", sorted(config_lib.OPTIMIZERS))
def test_every_optimizer_can_be_built_with_everything_around_it(name: str) -> None:
    config = {
        "name": name,
        "learning_rate": 0.01,
        "schedule": {"name": "cosine", "warmup_steps": 10},
        "clip": ["zclip", "adagc"],
        "freeze": ["embedding"],
    }
    params, tx = make_params(), optim.from_config(config, 100)
    state = jax.eval_shape(tx.init, params)
    updates, after = jax.eval_shape(tx.update, params, state, params)
    assert jax.tree.map(jnp.shape, updates) == jax.tree.map(jnp.shape, params)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), after) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), state
    )


def test_muon_takes_the_kernels_of_layers_and_adam_the_rest() -> None:
    gradients = jax.tree.map(jnp.ones_like, make_params())
    gradients["image"]["blocks"]["up"]["kernel"] *= jnp.asarray([1.0, 1000.0])[:, None, None]
    config = {"name": "muon", "learning_rate": 0.1, "weight_decay": 0.0}
    updates, _ = one_step(config, gradients)
    # Each of the stacked matrices is made orthogonal by itself: of rank one, they become alike.
    kernel = np.asarray(updates["image"]["blocks"]["up"]["kernel"])
    np.testing.assert_allclose(kernel[0], kernel[1], rtol=0.01)
    assert np.ptp(kernel[0]) < 1e-3 * abs(kernel[0].mean())
    np.testing.assert_allclose(updates["text"]["embedding"], -0.1, rtol=0.5)


def test_mu_dtype_reaches_the_moments() -> None:
    _, state = one_step({**ADAMW, "mu_dtype": "bfloat16"})
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(state) if leaf.size == 24}
    assert dtypes == {jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float32)}


SCHEDULES = {
    "constant": ({"name": "constant"}, {0: 1.0, 99: 1.0}),
    "cosine": ({"name": "cosine"}, {0: 1.0, 50: 0.5, 100: 0.0}),
    "warm cosine": (
        {"name": "cosine", "warmup_steps": 20, "final_fraction": 0.1},
        {0: 0.05, 9: 0.5, 19: 1.0, 20: 1.0, 60: 0.55, 100: 0.1},
    ),
    "linear": ({"name": "linear", "warmup_steps": 1}, {0: 1.0, 1: 1.0, 100: 0.0}),
    "cooled constant": (
        {"name": "constant", "warmup_steps": 10, "cooldown_steps": 40, "final_fraction": 0.2},
        {9: 1.0, 60: 1.0, 80: 0.6, 100: 0.2},
    ),
    "rsqrt": (
        {"name": "rsqrt", "timescale": 30, "warmup_steps": 10, "cooldown_steps": 45},
        {10: 1.0, 55: (30 / 75) ** 0.5, 100: 0.0},
    ),
    "warm-up only": ({"name": "cosine", "warmup_steps": 100}, {99: 1.0}),
}


@pytest.mark.parametrize("kind", SCHEDULES)
def test_schedules(kind: str) -> None:
    section, values = SCHEDULES[kind]
    schedule = optim.learning_rate_schedule({"learning_rate": 0.3, "schedule": section}, 100)
    for count, share in values.items():
        np.testing.assert_allclose(schedule(jnp.int32(count)), 0.3 * share, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "adam_w"}, "unknown optim.name='adam_w'; did you mean 'adamw'?"),
        ({"name": "sgd"}, "optim.weight_decay=0.5, but 'sgd' has no decoupled weight decay"),
        ({"bta2": 0.9}, "optim.bta2: 'adamw' has no such option; did you mean 'b2'?"),
        ({"mask": None}, "optim.mask: 'adamw' has no such option"),
        ({"ema_decay": 0.9}, "set by ema_decay at the top level"),
        ({"learning_rate": "fast"}, "optim.learning_rate='fast' must be a number"),
        ({"learning_rate": -1.0}, "optim.learning_rate=-1.0 must be a finite number >= 0"),
        ({"clip": {"name": "zcip"}}, "unknown optim.clip.name='zcip'; did you mean 'zclip'?"),
        ({"clip": {"max_norm": 1.0}}, "has no name"),
        ({"clip": {"name": "zclip", "alfa": 1}}, "optim.clip.alfa: .*did you mean 'alpha'"),
        ({"clip": ["zclip", "glob_norm"]}, r"optim.clip\[1\].name=.*did you mean 'global_norm'"),
        ({"clip": "median_clip"}, "optim.clip.tau is required by 'median_clip'"),
        ({"clip": {"name": "none", "alpha": 1}}, "optim.clip.alpha: 'none' has no such option"),
        ({"update_clip": "dpsgd"}, "unknown optim.update_clip.name='dpsgd'"),
        ({"schedule": {"name": "cosin"}}, "optim.schedule.name='cosin'; did you mean 'cosine'?"),
        ({"schedule": {"name": "cosine", "warmup": 3}}, "did you mean 'warmup_steps'?"),
        (
            {"schedule": {"name": "cosine", "warmup_steps": 101}},
            "warmup_steps = 101 is more than total_steps=100; lower it",
        ),
        ({"schedule": {"name": "cosine", "warmup_steps": 1.5}}, "must be an integer"),
        ({"schedule": {"name": "linear", "final_fraction": 2}}, r"must be in \[0, 1\]"),
        ({"freeze": ["imge/"]}, "optim.freeze: pattern 'imge/' matches no parameter"),
        ({"no_decay": ["("]}, r"optim.no_decay: '\(' is no regular expression"),
        ({"clip": {"name": "adagc", "exempt": ["logit_scal$"]}}, "did you mean 'logit_scale'?"),
        ({"learning_rate_multipliers": {"image": 0.1}}, r"must be a list of \[pattern, factor\]"),
        ({"sam": {"radius": 0.1}}, "optim.sam=.* must be {'rho': number}"),
    ],
)
def test_what_is_not_understood_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(
        ValueError, match=message.replace("?", r"\?") if "?" in message else message
    ):
        optim.from_config({**ADAMW, **change}, 100).init(make_params())


@pytest.mark.parametrize("name", config_lib.OPTIMIZERS)
def test_what_is_declared_of_optimizers_is_so(name: str) -> None:
    arguments = option_names(config_lib.OPTIMIZERS[name])
    masks = [argument for argument in arguments if argument in ("mask", "weight_decay_mask")]
    assert masks == ([_direction.DECAY_MASKS[name]] if name in _direction.DECAY_MASKS else [])
    assert ("weight_decay" in arguments) == (name in _direction.DECAYING)


def test_config_dicts_are_understood() -> None:
    ml_collections = pytest.importorskip("ml_collections")
    config = ml_collections.ConfigDict({**ADAMW, "clip": {"name": "zclip", "max_norm": 0.5}})
    config.learning_rate_multipliers = (("^image/", 0.1),)
    updates, state = one_step(config)
    assert means(updates)["image/positions"] == -0.01
    assert float(optim.read_metrics(state)["zclip/threshold"]) == 0.5


def test_the_documentation_lists_every_name() -> None:
    """docs/optim.md is where a user looks up what a configuration may say."""
    text = (pathlib.Path(__file__).parents[2] / "docs/optim.md").read_text()
    for name in (*config_lib.CLIPPERS, *config_lib.OPTIMIZERS):
        assert re.search(rf"`{re.escape(name)}`", text), f"{name} is not in docs/optim.md"


def own_sgd(learning_rate, weight_decay=0.0, mask=None):
    """An optimizer of a user's own, with optax's names of arguments."""
    return optax.chain(
        optax.add_decayed_weights(weight_decay, mask), optax.scale_by_learning_rate(learning_rate)
    )


def own_clip(limit):
    return optax.clip(limit)


def no_decay_sgd(learning_rate):
    return optax.scale_by_learning_rate(learning_rate)


def test_functions_of_ones_own_by_their_place(monkeypatch):
    monkeypatch.setitem(sys.modules, "own", sys.modules[__name__])
    params = {"a": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}}
    grads = jax.tree.map(lambda leaf: 3.0 * leaf, params)
    tx = optim.from_config(
        {
            "name": "own:own_sgd",
            "learning_rate": 0.1,
            "schedule": {"name": "constant"},
            "weight_decay": 0.5,
            "clip": {"name": "own:own_clip", "limit": 2.0},
        },
        10,
    )
    updates, _ = tx.update(grads, tx.init(params), params)
    # The gain is clipped, too, but does not decay.
    np.testing.assert_allclose(updates["a"]["kernel"], -0.25, rtol=1e-6)
    np.testing.assert_allclose(updates["a"]["bias"], -0.2, rtol=1e-6)


@pytest.mark.parametrize(
    "section, message",
    [
        ({"name": "nowhere:sgd"}, "optim.name 'nowhere:sgd' can't be imported"),
        ({"name": "own:absent"}, "optim.name 'own:absent' can't be imported"),
        ({"name": "nowhere:sgd"}, "put its folder on PYTHONPATH"),
        ({"name": "broken_module:sgd"}, "SyntaxError in it; correct it"),
        ({"name": ":sgd"}, "can't be imported"),
        ({"name": "own:jnp"}, "is no function"),
        ({"name": "own:own_sgd", "wait_decay": 0.1}, "weight_decay"),
        (
            {"name": "own:no_decay_sgd", "weight_decay": 0.1},
            "decay; set it to 0, or let it take 'mask'",
        ),
        ({"name": "own:own_sgd", "direction": "cautious"}, "can't be taken apart"),
        ({"name": "sgd", "clip": "own:own_clip"}, "optim.clip.limit is required"),
    ],
)
def test_wrong_functions_of_ones_own(section, message, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "own", sys.modules[__name__])
    (tmp_path / "broken_module.py").write_text("def sgd(:\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=message):
        optim.from_config({"learning_rate": 0.1, **section}, 10)
