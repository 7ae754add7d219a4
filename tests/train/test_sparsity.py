"""Sparse weights and products of few bits in training: exact gradients, runs, exports."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxclip
from jaxclip import objectives
from jaxclip.models.products import rules as products
from jaxclip.models.sparsity import rules as sparsity
from jaxclip.train import checks, loop, step, towers
from jaxclip.train.state import create_state


@pytest.fixture(scope="module")
def parts(tiny_config):
    config = tiny_config()
    model = towers.build_model(config)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda s: jnp.asarray(0.3 * rng.standard_normal(s.shape), jnp.float32),
        jax.eval_shape(model.init, jax.random.key(0)),
    )
    batch = {
        "image": jnp.asarray(rng.integers(0, 256, (8, 16, 16, 3), np.uint8)),
        "text": jnp.asarray(rng.integers(1, 200, (8, 8), np.int32)),
    }
    return config, model, params, batch


def gradients(parts, rules, *, micro_batches=1, given=()):
    config, model, params, batch = parts
    own = towers.from_config(config, model, products=products.from_config(given))
    sparse = sparsity.from_config(rules, 10)
    function = step.make_gradient(
        objectives.from_config([], {"name": "softmax"}), own,
        num_micro_batches=micro_batches, seen=sparse if sparse.rules else None,
    )  # fmt: skip
    params = {**params, **sparse.init(params)}
    state = create_state(lambda key: params, optax.identity(), jax.random.key(0))
    state = state._replace(step=jnp.int32(9))
    return params, sparse, jax.jit(function)(params, state, batch)


@pytest.mark.slow
def test_the_gradient_is_that_of_the_sparse_weights_once(parts):
    """SR-STE's pull is added once, however many micro-batches there are."""
    given = [{"name": "n_m", "decay": "none", "weight_pull": 0.5}]
    params, sparse, ((loss, _), found) = gradients(parts, given, micro_batches=2)
    seen = sparse(params, 9)
    (dense_loss, _), plain = gradients((*parts[:2], seen, parts[3]), [])[2]
    np.testing.assert_allclose(loss, dense_loss, rtol=1e-5)
    for tower in ("image", "text"):
        for name in ("up", "down"):
            w, s, g, f = (
                np.asarray(tree[tower]["blocks_0"]["mlp"][name]["kernel"])
                for tree in (params, seen, plain, found)
            )
            np.testing.assert_allclose(f, g + 0.5 * np.where(s == 0, w, 0), rtol=1e-3, atol=1e-5)
    assert found.keys() == params.keys()


def test_a_rule_for_nothing_is_one_line(tiny_config):
    config = tiny_config("precision.products=[{'name': 'switchback', 'layers': 'image/gate'}]")
    with pytest.raises(ValueError, match="'image/gate' is left with no layer; there are image/att"):
        checks.build(config)
    config = tiny_config("sparsity=[{'name': 'n_m', 'tensors': 'image/gate'}]")
    with pytest.raises(ValueError, match="tensors='image/gate' is left with no kernel"):
        checks.build(config)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("precision.products", "switchback"),
        ("precision.products", "qwix"),
        ("precision.products", [{"name": "emulated", "format": "int4_octav", "gradient": "mad"}]),
        ("precision.products", [{"name": "one_bit", "layers": "mlp/"}]),
        ("sparsity", "auto_sparse"),
        ("sparsity", [{"name": "n_m", "n": 1, "m": 4, "structure": "geometric"}]),
        ("sparsity", [{"name": "gradual", "sparsity": 0.5}]),
    ],
)
def test_a_run_trains_goes_on_and_is_exported(tiny_config, tmp_path, key, value):
    if value == "qwix":
        pytest.importorskip("qwix")
    options = [f"{key}={value!r}", "scan_layers=True", "model.image.depth=2", "remat=full"]
    options += ["checkpoint.best_metric=", "evaluate.every_steps=0", "checkpoint.keep_last=9"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert loop.train(tiny_config(*options), whole).finished
    losses = [line["loss"] for line in metrics(whole)]
    assert losses[-1] < losses[0]
    shutil.copytree(whole, cut)
    (last,) = (cut / "checkpoints").glob("*20")
    shutil.rmtree(last)
    assert loop.train(tiny_config(*options), cut).finished
    one, two = (jaxclip.load(folder).params for folder in (whole, cut))
    jax.tree.map(np.testing.assert_array_equal, one, two)
    model = jaxclip.load(whole)
    assert "sparsity" not in model.params
    kernels = [
        np.asarray(model.params["image"][f"blocks_{i}"]["mlp"]["up"]["kernel"]) for i in range(2)
    ]
    if key == "sparsity" and value != "auto_sparse":
        wanted = 0.75 if "n_m" in str(value) else 0.5
        assert [round(float((k == 0).mean()), 2) for k in kernels] == [wanted] * 2
    found = model.encode_image(np.zeros((1, 16, 16, 3), np.uint8))
    assert np.isfinite(found).all()


def metrics(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, lines) if "loss" in line]
