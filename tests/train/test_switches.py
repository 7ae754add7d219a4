"""What the switches for scale do: memory, sharding, losses, offload."""

import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxclip import config as config_lib
from jaxclip import parallel
from jaxclip.train import setup, state, step

TOWER = {"width": 32, "depth": 2, "num_heads": 4, "mlp_dim": 128}


def build(overrides=(), **given):
    base = {
        "global_batch_size": 16,
        "total_steps": 10,
        "data": {"image_size": 16},
        "tokenizer": {"context_length": 8},
        "model": {
            "preset": "tiny",
            "embed_dim": 16,
            "image": {**TOWER, "patch_size": 8},
            "text": {**TOWER, "vocab_size": 128},
        },
        "optim": {"schedule": {"name": "constant"}},
    }
    return setup.build(config_lib.resolve({**base, **given}, overrides))


def lowered(experiment):
    return experiment.train_step.lower(experiment.abstract_state, experiment.abstract_batch())


def test_model_switches_reach_both_towers():
    experiment = build(
        ["remat=attention", "scan_layers=True", "attention_implementation=xla"],
        precision={"compute_dtype": "bfloat16", "residual_dtype": "float32"},
    )
    for tower in (experiment.model.image, experiment.model.text):
        assert (tower.remat, tower.scan_layers) == ("attention", True)
        assert tower.attention_implementation == "xla" and tower.dtype == jnp.bfloat16
        assert tower.outer_dtype == jnp.float32
    # The layout of a checkpoint does not depend on them.
    assert jax.tree.structure(experiment.abstract_state) == jax.tree.structure(
        build().abstract_state
    )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("remat=half", r"remat='half'; use 'none', 'full'"),
        ("attention_implementation=flash", r"attention_implementation='flash'"),
        ("loss.name=softmaxx", r"unknown loss 'softmaxx'; did you mean 'softmax'"),
        ("loss.smoothing=0.1", r"unknown option 'smoothing' of loss 'softmax'"),
        ("sharding=fspd", r"unknown sharding preset 'fspd'; did you mean 'fsdp'"),
        ("mesh.tensor=3", r"does not divide 8 devices"),
        (
            "global_batch_size=12",
            r"global_batch_size=12 does not divide over data x fsdp=8 devices",
        ),
    ],
)
def test_bad_switches_are_refused_before_any_compile(override, message):
    with pytest.raises(ValueError, match=message):
        build([override])


def test_the_first_moment_in_bfloat16():
    experiment = build(["optim.mu_dtype=bfloat16"])
    dtypes = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(experiment.abstract_state.opt_state):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        for moment in ("mu", "nu"):
            if f"/{moment}/" in name:
                dtypes.setdefault(moment, set()).add(leaf.dtype.name)
    assert dtypes == {"mu": {"bfloat16"}, "nu": {"float32"}}


def test_the_whole_state_is_donated():
    experiment = build(ema_decay=0.9)
    donated = re.findall(r"tf\.aliasing_output|jax\.buffer_donor", lowered(experiment).as_text())
    assert len(donated) == len(jax.tree.leaves(experiment.abstract_state))


@pytest.mark.parametrize("loss", ["softmax", "sigmoid", "softmax_blockwise", "sigmoid_blockwise"])
def test_every_loss_works_with_accumulation_and_a_mesh(loss):
    experiment = build(
        [f"loss.name={loss}", "num_micro_batches=2", "sharding=fsdp+tp"],
        mesh={"data": 2, "fsdp": 2, "tensor": 2},
    )
    text = lowered(experiment).as_text()
    assert ("collective_permute" in text) == ("blockwise" in loss)


def init(rng):
    keys = jax.random.split(rng, 2)
    tower = {"image": {"kernel": (128, 64)}, "text": {"kernel": (96, 64)}}
    params = jax.tree.map(
        lambda key, dims: 0.1 * jax.random.normal(key, dims),
        {"image": {"kernel": keys[0]}, "text": {"kernel": keys[1]}},
        tower,
        is_leaf=lambda x: isinstance(x, tuple),
    )
    return {**params, "logit_scale": jnp.float32(1.0)}


def gradient(params, state, batch):
    def loss_of(params):
        image = batch["image"] @ params["image"]["kernel"]
        text = batch["text"] @ params["text"]["kernel"]
        loss = jnp.mean((image - text) ** 2) * params["logit_scale"]
        return loss, ({}, state.objective)

    return jax.value_and_grad(loss_of, has_aux=True)(params)


def train(offload):
    """Three steps of Adam with its state on the device or on the host."""
    mesh = parallel.make_mesh({"fsdp": 8})
    tx = optax.adam(1e-2)

    def create(rng):
        return state.create_state(init, tx, rng)

    shapes = jax.eval_shape(create, jax.random.key(0))
    shardings = parallel.specs_for(shapes, parallel.sharding_rules("fsdp"), mesh)
    if offload:
        shardings = shardings._replace(
            opt_state=parallel.on_host(shapes.opt_state, shardings.opt_state, mesh)
        )
    train_step = step.make_train_step(
        gradient, tx, state_shardings=shardings, batch_shardings=parallel.batch_sharding(mesh)
    )
    current = parallel.init_sharded(create, jax.random.key(0), shardings)
    rng = np.random.default_rng(0)
    for _ in range(3):
        batch = {
            "image": rng.standard_normal((8, 128)).astype(np.float32),
            "text": rng.standard_normal((8, 96)).astype(np.float32),
        }
        current, _ = train_step(current, parallel.to_global(batch, mesh))
    return current


def test_an_offloaded_optimizer_state_lies_on_the_host_and_changes_nothing():
    offloaded, plain = train(True), train(False)
    jax.tree.map(np.testing.assert_array_equal, offloaded, plain)
    kinds = jax.tree.map(lambda x: x.sharding.memory_kind, offloaded)
    adam = kinds.opt_state[0]
    assert set(jax.tree.leaves((adam.mu["image"], adam.nu["text"]))) == {"pinned_host"}
    assert set(jax.tree.leaves((kinds.params, adam.count))) == {"device"}


def test_offload_through_the_configuration():
    experiment = build(["offload_optimizer_state=True", "sharding=fsdp"], mesh={"fsdp": 8})
    kinds = {
        s.memory_kind
        for leaf, s in zip(
            jax.tree.leaves(experiment.abstract_state.opt_state),
            jax.tree.leaves(experiment.state_shardings.opt_state),
            strict=True,
        )
        if leaf.size >= 2**12
    }
    assert kinds == {"pinned_host"}
    assert "pinned_host" in lowered(experiment).as_text()


def test_offload_is_refused_where_the_host_has_no_such_memory(monkeypatch):
    monkeypatch.setattr(parallel.offload, "_memory_kinds", lambda mesh: {"device"})
    with pytest.raises(ValueError, match=r"offload_optimizer_state=True needs .* have device; set"):
        build(["offload_optimizer_state=True"])


@pytest.mark.slow
def test_compiled_programs_are_kept_in_the_folder_of_the_configuration(tiny_config_file, tmp_path):
    """In a process of its own: JAX looks at the folder once."""
    command = [sys.executable, "-m", "jaxclip", "train", "--dry_run"]
    options = [
        f"--config={tiny_config_file}",
        f"--config.compilation_cache_dir={tmp_path / 'kept'}",
    ]
    subprocess.run([*command, *options], check=True, capture_output=True, timeout=600)
    assert any("step" in file.name for file in (tmp_path / "kept").iterdir())
