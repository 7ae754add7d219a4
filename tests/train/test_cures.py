"""QK-Clip in the step, muP's learning rates, and what does not go together."""

import copy
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxclip import config as config_lib
from jaxclip import models, optim, parallel
from jaxclip.models import mup, presets
from jaxclip.train import cures, dry_run, setup, watch
from tests.objectives.battery import BASE

# No update but QK-Clip's.
STILL = {
    "name": "adamw", "learning_rate": 0.0, "weight_decay": 0.0,
    "schedule": {"name": "constant", "warmup_steps": 0},
}  # fmt: skip


def build(devices=1, model=(), **given):
    config = copy.deepcopy({**BASE, **given})
    for tower, options in dict(model).items():
        config["model"][tower].update(options)
    return setup.build(config_lib.resolve(config), devices=jax.devices()[:devices])


def sharpened(state, factor=30.0):
    """The state with queries of the image tower's first block times a factor."""
    params = jax.tree.map(np.asarray, state.params)
    query = params["image"]["blocks_0"]["attention"]["query"]
    query["kernel"] = query["kernel"] * np.float32(factor)
    return jax.tree.map(np.asarray, state)._replace(params=params)


@pytest.fixture(autouse=True, scope="module")
def quick(compilation_cache):
    """Most of the time is compilation: the compiler is told not to optimise."""
    option = "jax_disable_most_optimizations"
    before = jax.config.values[option]
    jax.config.update(option, True)
    try:
        with compilation_cache():
            yield
    finally:
        jax.config.update(option, before)


@pytest.fixture(scope="module", params=[1, pytest.param(8, marks=pytest.mark.slow)])
def clipped(request, compilation_cache):
    """Parameters before and after a step of QK-Clip alone, and what was read of both."""
    with compilation_cache():
        experiment = build(
            request.param,
            optim={**STILL, "qk_clip": {"threshold": 0.5}},
            num_micro_batches=1 if request.param == 1 else 2,
        )
        start = sharpened(experiment.init_state())
        batch = dry_run.made_up_batch(experiment.config, experiment.batch_spec)
        batch = parallel.to_global(batch, experiment.mesh)
        state, metrics = experiment.train_step(
            jax.device_put(start, experiment.state_shardings), batch
        )
        probe = watch.make_probe(
            experiment.towers, ("image", "text"), experiment.config["global_batch_size"]
        )
        before, after = (jax.device_get(probe(s.params, batch)) for s in (start, state))
    return start, jax.tree.map(np.asarray, state), jax.device_get(metrics), before, after


def test_the_largest_logit_of_a_clipped_head_is_the_threshold(clipped):
    _, _, metrics, before, after = clipped
    name = "watch/tensors/attention_logit_image"
    above = before[name][0] > 0.5
    assert above.any()
    # The first block's input does not change, so that it is exact there.
    np.testing.assert_allclose(after[name][0][above], 0.5, rtol=1e-4)
    np.testing.assert_allclose(after[name][0][~above], before[name][0][~above], rtol=1e-5)
    largest = metrics["watch/tensors/largest_logits_image"]
    np.testing.assert_allclose(largest, before[name], rtol=1e-4)
    assert metrics["qk_clip/largest_image"] == largest.max()
    both = [metrics[f"watch/tensors/largest_logits_{tower}"].ravel() for tower in ("image", "text")]
    assert metrics["qk_clip/clipped"] == pytest.approx(np.mean(np.concatenate(both) > 0.5))


def test_only_queries_and_keys_of_clipped_heads_change(clipped):
    start, state, metrics, *_ = clipped
    changed = set()
    flat = jax.tree_util.tree_leaves_with_path(start.params)
    for (path, old), new in zip(flat, jax.tree.leaves(state.params), strict=True):
        if not np.array_equal(old, new):
            changed.add(jax.tree_util.keystr(path, simple=True, separator="/"))
    assert changed and all("/query/" in name or "/key/" in name for name in changed)
    gamma = 0.5 / metrics["watch/tensors/largest_logits_image"][0]
    kernels = [s.params["image"]["blocks_0"]["attention"]["key"]["kernel"] for s in (start, state)]
    heads = [k.reshape(k.shape[0], len(gamma), -1) for k in kernels]
    expected = heads[0] * np.sqrt(np.minimum(gamma, 1))[:, None]
    np.testing.assert_allclose(heads[1], expected, rtol=1e-5)


def test_without_qk_clip_nothing_of_it_is_there():
    experiment = build()
    shapes = jax.eval_shape(
        experiment.train_step, experiment.abstract_state, experiment.abstract_batch()
    )[1]
    assert not [name for name in shapes if "logit" in name and name != "logit_scale"]
    assert not [name for name in shapes if name.startswith("watch")]


@pytest.mark.parametrize(
    ("model", "section", "message"),
    [
        ({"text": {"qk_norm": True}}, {}, r"no effect with model.text.qk_norm"),
        ({"image": {"attention_soft_cap": 50.0}}, {}, r"model.image.attention_soft_cap both bound"),
        ({}, {"freeze": ["^text/"]}, r"scales text/blocks_0/attention/.*, which optim freezes"),
        ({}, {"qk_clip": {"tau": 1.0}}, r"unknown option 'tau' of optim.qk_clip"),
        ({}, {"qk_clip": {"threshold": 0}}, r"optim.qk_clip.threshold=0.* must be above 0"),
        ({}, {"qk_clip": 100}, r"optim.qk_clip=100 must be a mapping"),
    ],
)
def test_what_does_not_go_with_qk_clip(model, section, message):
    with pytest.raises(ValueError, match=message):
        build(model=model, optim={**STILL, "qk_clip": {}, **section})


# muP.


def wide(**options):
    config = presets.get("tiny")
    image = dataclasses.replace(config.image, mup_base_width=48, **options)
    return dataclasses.replace(config, image=image)


def test_mup_divides_the_rates_of_hidden_kernels():
    config = {"optim": {"name": "adamw", "learning_rate": 0.1, "weight_decay": 0.0}}
    tree = {
        "image": {
            "patch_embedding": {"kernel": jnp.ones((3, 4))},
            "blocks_0": {"mlp": {"up": {"kernel": jnp.ones((4, 4)), "bias": jnp.ones(4)}}},
        },
        "text": {"blocks_0": {"mlp": {"up": {"kernel": jnp.ones((4, 4))}}}},
    }
    tx = cures.with_mup(optim.from_config(config["optim"], 10), config, wide())
    updates, state = tx.update(tree, tx.init(tree), tree)
    found = {
        jax.tree_util.keystr(path, simple=True, separator="/"): float(leaf.ravel()[0])
        for path, leaf in jax.tree_util.tree_leaves_with_path(updates)
    }
    whole = found["image/patch_embedding/kernel"]
    assert found["image/blocks_0/mlp/up/kernel"] == pytest.approx(whole * 48 / 192)
    assert found["image/blocks_0/mlp/up/bias"] == whole == found["text/blocks_0/mlp/up/kernel"]
    assert [type(node).__name__ for node in watch._moments(state)] == ["ScaleByAdamState"]


def test_mup_divides_the_rates_of_all_kernels_that_read_what_is_wide():
    """Gates, experts, their router and projections of two layers among them."""
    tiny = presets.get("tiny")
    image = dataclasses.replace(tiny.image, mup_base_width=96, mlp="gated", pool="map")
    options = {"num_experts": 2, "expert_blocks": 1, "projection": "mlp", "mup_base_width": 64}
    sizes = dataclasses.replace(tiny, image=image, text=dataclasses.replace(tiny.text, **options))
    params = jax.eval_shape(models.build(sizes).init, jax.random.key(0))
    factors, found = mup.rate_factors(sizes), set()
    for path, _ in jax.tree_util.tree_leaves_with_path(params):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        is_wide = name.endswith("/kernel") and "patch_embedding" not in name
        assert mup.factor_of(name, factors) == (0.5 if is_wide else 1.0), name
        found.add(name.split("/", 2)[-1] if "blocks" in name else name)
    assert found >= {"mlp/gate/kernel", "mlp/experts/down/kernel", "mlp/router/kernel"}
    assert "text/projection/hidden/kernel" in found


def test_mup_is_for_adam_and_its_like():
    config = {"optim": {"name": "sgd", "learning_rate": 0.1}}
    with pytest.raises(ValueError, match=r"optim.name='sgd' with model.*mup_base_width.* to 0"):
        cures.with_mup(optax.sgd(0.1), config, wide())
    tx = optax.sgd(0.1)
    assert cures.with_mup(tx, config, presets.get("tiny")) is tx


def test_a_frozen_patch_embedding_keeps_its_bits_and_has_no_moments():
    """MoCo v3's cure, by optim.groups: nothing of it is trained, decayed or remembered."""
    groups = [{"pattern": "^image/patch_embedding", "frozen": True}]
    experiment = build(optim={**STILL, "weight_decay": 0.5, "groups": groups})
    names = {
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, _ in jax.tree_util.tree_leaves_with_path(experiment.abstract_state.opt_state)
    }
    assert not [name for name in names if "patch_embedding" in name]
    assert [name for name in names if "blocks_0" in name]
