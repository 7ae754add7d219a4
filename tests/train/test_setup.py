"""What a configuration builds, on one device: precision, frozen towers, decay, donation."""

import jax
import numpy as np
import pytest

from jaxclip import parallel
from jaxclip.train import dry_run, setup


@pytest.fixture
def build(tiny_config, compilation_cache):
    """``build(*overrides) -> (experiment, state, batch)``."""

    def make(*overrides):
        experiment = setup.build(tiny_config(*overrides), devices=jax.devices()[:1])
        batch = dry_run.made_up_batch(experiment.config)
        return experiment, experiment.init_state(), parallel.to_global(batch, experiment.mesh)

    with compilation_cache():
        yield make


def path_of(path):
    return jax.tree_util.keystr(path, simple=True, separator="/")


def by_path(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {path_of(path): np.asarray(leaf) for path, leaf in leaves}


FREEZE = "optim.freeze=['^image/']"
GROUP = "optim.groups=[{'pattern': '^image/', 'frozen': True}]"


@pytest.mark.parametrize(
    ("term", "teacher", "message"),
    [
        ("{'name': 'm2_encoder', 'num_groups': 3}", "none", r"num_groups=3 does not .* use 2, or"),
        ("{'name': 'm2_encoder', 'num_groups': 16}", "none", "one row to a group: there is no wr"),
        ("{'name': 'protoclip', 'num_clusters': 2, 'episode_size': 8}", "none", "batch of 16"),
        *(
            (f"{{'name': {name!r}}}", "none", rf"^{name} needs a teacher .* teacher\.kind='ema'$")
            for name in ("silc", "tips", "a_clip", "byolip")
        ),
        ("{'name': 'silc'}", "stored", r"but teacher\.kind='stored'; set teacher\.kind='ema'$"),
    ],
)
def test_batches_and_teachers_that_can_not_work_are_refused_when_it_is_built(
    tiny_config, term, teacher, message
):
    config = tiny_config(f"objective=[{term}]", f"teacher.kind={teacher!r}", "teacher.size=16")
    with pytest.raises(ValueError, match=message) as caught:
        setup.build(config, devices=jax.devices()[:1])
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_teacher_that_is_not_finite_changes_nothing_and_is_counted(build):
    term = {"name": "affinity", "teacher_scale": 50.0}
    experiment, state, batch = build(f"objective=[{term}]", "teacher.kind='ema'")
    before = by_path(state.params)
    good, metrics = experiment.train_step(jax.tree.map(jax.numpy.copy, state), batch)
    assert int(metrics["nonfinite_count"]) == 0 and int(good.step) == 1
    broken = jax.tree.map(lambda x: x.at[(0,) * x.ndim].set(np.nan), state.ema_teacher["image"])
    state = state._replace(ema_teacher={**state.ema_teacher, "image": broken})
    after, metrics = experiment.train_step(state, batch)
    assert int(metrics["nonfinite_count"]) == 1
    for key, value in by_path(after.params).items():
        np.testing.assert_array_equal(value, before[key])


def test_a_frozen_tower_costs_nothing(tiny_config):
    flops = []
    for overrides in ([], [FREEZE], [GROUP]):
        experiment = setup.build(tiny_config(*overrides), devices=jax.devices()[:1])
        shapes = experiment.abstract_state, experiment.abstract_batch()
        flops.append(experiment.train_step.lower(*shapes).cost_analysis()["flops"])
    whole, *without = flops
    assert all(each < 0.9 * whole for each in without)  # no backward pass of the image tower


def test_a_frozen_tower_is_not_touched(build):
    """Locked-image tuning: the image tower keeps its bits, and nothing flows back into it."""
    experiment, state, batch = build(FREEZE, "optim.weight_decay=0.5")
    before = by_path(state.params)
    averaged = by_path(state.ema_params)
    state, metrics = experiment.train_step(state, batch)
    after = by_path(state.params)
    changed = {name for name in after if not np.array_equal(before[name], after[name])}
    assert {name for name in after if name.startswith("image/")}.isdisjoint(changed)
    assert {name for name in after if name.endswith("kernel") and "text" in name} <= changed
    assert float(metrics["grad_norm"]) > 0
    for name, value in by_path(state.ema_params).items():
        if name.startswith("image/"):
            np.testing.assert_allclose(value, averaged[name], rtol=1e-6)
    # No moments are kept for what is frozen.
    assert not any("image/" in name for name in by_path(state.opt_state))


def test_bfloat16_computes_in_bfloat16_and_keeps_float32(build):
    experiment, state, batch = build("precision.compute_dtype=bfloat16")
    lowered = experiment.train_step.lower(state, batch)
    state, metrics = experiment.train_step(state, batch)
    assert {x.dtype for x in jax.tree.leaves(state.params)} == {np.dtype("float32")}
    assert metrics["loss"].dtype == np.float32 and np.isfinite(float(metrics["loss"]))
    # Attention multiplies bfloat16 and adds up in float32; the loss (logits, and the gradients of
    # both embeddings) is float32 altogether.
    products = [line for line in lowered.as_text().splitlines() if "dot_general" in line]
    assert len(products) > 40
    whole = [line for line in products if "bf16" not in line]
    assert len(whole) == 3, whole
    full, state, batch = build()
    _, expected = full.train_step(state, batch)
    np.testing.assert_allclose(metrics["loss"], expected["loss"], rtol=0.05)


def test_the_state_is_donated_and_images_cross_as_bytes(build):
    experiment, state, batch = build()
    assert batch["image"].dtype == np.uint8
    old = jax.tree.leaves(state)
    state, _ = experiment.train_step(state, batch)
    assert all(leaf.is_deleted() for leaf in old)
    assert not batch["image"].is_deleted() and int(state.step) == 1


def test_weight_decay_is_for_matrices_alone(build):
    from jaxclip import optim

    _, state, _ = build()
    tx = optim.from_config({"name": "adamw", "learning_rate": 1.0, "weight_decay": 0.1}, 10)
    params = jax.tree.map(lambda x: np.ones(x.shape, np.float32), state.params)
    zeros = jax.tree.map(np.zeros_like, params)
    updates, _ = tx.update(zeros, tx.init(params), params)
    decayed = {name for name, value in by_path(updates).items() if value.any()}
    assert decayed == {
        name
        for name, value in by_path(params).items()
        if value.ndim >= 2 and not name.endswith("positions")
    }
    assert any(name.endswith("kernel") for name in decayed)


def test_sharpness_aware_minimisation_takes_a_second_gradient(tiny_config):
    flops = []
    for overrides in ([], ["optim.sam={'rho': 0.1}"]):
        experiment = setup.build(tiny_config(*overrides), devices=jax.devices()[:1])
        shapes = experiment.abstract_state, experiment.abstract_batch()
        flops.append(experiment.train_step.lower(*shapes).cost_analysis()["flops"])
    one, two = flops
    assert 1.6 * one < two < 2.1 * one


def test_a_batch_that_does_not_divide(tiny_config):
    with pytest.raises(ValueError, match=r"global_batch_size=10 .* use a multiple of 8, for ins"):
        setup.build(tiny_config("global_batch_size=10"))
