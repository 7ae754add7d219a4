"""Accumulated gradients equal those of the whole batch."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxclip import losses, parallel
from jaxclip.train import grad_cache

BATCH, INPUT, HIDDEN, EMBED = 32, 6, 10, 4


def make_params(seed=0):
    rng = np.random.default_rng(seed)

    def tower():
        return {
            "in": rng.standard_normal((INPUT, HIDDEN)).astype(np.float32),
            "out": rng.standard_normal((HIDDEN, EMBED)).astype(np.float32),
        }

    return {
        "image": tower(),
        "text": tower(),
        "logit_scale": np.float32(math.log(10)),
        "logit_bias": np.float32(-3),
    }


def make_batch(seed=1):
    rng = np.random.default_rng(seed)
    return {
        name: rng.standard_normal((BATCH, INPUT)).astype(np.float32) for name in ("image", "text")
    }


def encode(tower, params, batch):
    hidden = jnp.tanh(batch[tower] @ params[tower]["in"])
    if "row" in batch:  # dropout, by the row's own key
        keys = jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(5)))(batch["row"])
        draw = jax.vmap(lambda key: jax.random.bernoulli(key, 0.5, (HIDDEN,)))
        hidden *= 2.0 * draw(keys)
    out = hidden @ params[tower]["out"]
    return out / jnp.linalg.norm(out, axis=-1, keepdims=True)


ENCODERS = functools.partial(encode, "image"), functools.partial(encode, "text")


def build(loss, count=1, encoders=ENCODERS, mesh=None):
    loss_fn = losses.from_config(loss)

    def forward(params, batch):
        image, text = (encoder(params, batch) for encoder in encoders)
        # Integers go through as well: their place in the batch must not change.
        return {"image": image, "text": text, "sign": (batch["text"][:, 0] > 0).astype(jnp.int32)}

    def total(params, outputs, batch):
        scale, bias = params["logit_scale"], params["logit_bias"]
        pair = outputs["image"], outputs["text"]
        value, metrics = loss_fn(*pair, logit_scale=scale, logit_bias=bias, mesh=mesh)
        wrong = jnp.sum((batch["text"][:, 0] > 0) != (outputs["sign"] > 0))
        return value, metrics | {"wrong": wrong}

    return jax.jit(grad_cache.value_and_grad(forward, total, num_micro_batches=count, mesh=mesh))


def assert_same(result, expected, tolerance=1e-5):
    """Loss, metrics and gradients: each array to a share of its largest element."""

    def check(path, a, b):
        scale = max(np.abs(b).max(), 1e-3)
        name = jax.tree_util.keystr(path)
        np.testing.assert_allclose(a, b, atol=tolerance * scale, rtol=0, err_msg=name)

    jax.tree_util.tree_map_with_path(check, result, expected)


LOSSES = [
    {"name": "softmax", "label_smoothing": 0.1},
    {"name": "sigmoid"},
    {"name": "softmax_blockwise", "tile_size": 3},
    {"name": "sigmoid_blockwise", "tile_size": 3},
]


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss["name"])
def test_accumulated_equals_whole(loss):
    params, batch = make_params(), make_batch()
    assert_same(build(loss, 4)(params, batch), build(loss)(params, batch))


def test_it_is_not_the_mean_of_small_losses():
    """The mistake that this is not: a contrastive loss of each micro-batch alone."""
    params, batch = make_params(), make_batch()
    small = [
        build(LOSSES[0])(params, {k: v[i : i + 8] for k, v in batch.items()})[0][0]
        for i in range(0, BATCH, 8)
    ]
    whole = build(LOSSES[0], 4)(params, batch)[0][0]
    assert abs(np.mean(small) - whole) > 0.5


@pytest.mark.parametrize("loss", [LOSSES[0], LOSSES[3]], ids=lambda loss: loss["name"])
def test_with_remat_on_a_mesh_with_sharded_parameters(loss):
    params, batch = make_params(), make_batch()
    expected = build(loss)(params, batch)
    mesh = parallel.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    specs = {
        "image": {"in": P("fsdp", "tensor"), "out": P("tensor", "fsdp")},
        "text": {"in": P(None, "tensor"), "out": P()},
        "logit_scale": P(),
        "logit_bias": P(),
    }
    placed = jax.device_put(params, jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs))
    remat = tuple(jax.checkpoint(encoder) for encoder in ENCODERS)
    result = build(loss, 4, remat, mesh)(placed, parallel.to_global(batch, mesh))
    assert_same(result, expected)


def test_randomness_of_a_row_does_not_depend_on_the_cut():
    params = make_params()
    batch = {**make_batch(), "row": np.arange(BATCH, dtype=np.int32)}
    expected = build(LOSSES[1])(params, batch)
    assert_same(build(LOSSES[1], 4)(params, batch), expected)
    # and the dropout did something
    assert abs(expected[0][0] - build(LOSSES[1])(params, make_batch())[0][0]) > 1e-3


def test_rows_come_back_in_their_places():
    mesh = parallel.make_mesh({"data": 8})
    batch = parallel.to_global(make_batch(), mesh)
    (_, metrics), _ = build(LOSSES[1], 4, mesh=mesh)(make_params(), batch)
    assert metrics["wrong"] == 0


def test_no_activation_of_the_first_pass_is_kept():
    """Temporaries shrink with the number of micro-batches."""
    wide = 2048
    params = jax.tree.map(jnp.asarray, make_params())
    for tower in ("image", "text"):
        params[tower] = {"in": jnp.zeros((INPUT, wide)), "out": jnp.zeros((wide, EMBED))}
    batch = make_batch()

    def temporaries(count):
        lowered = build(LOSSES[1], count).lower(params, batch)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    assert temporaries(8) < temporaries(1) / 2 + weights


def test_no_row_moves_to_another_device():
    mesh = parallel.make_mesh({"data": 8})
    batch = parallel.to_global(make_batch(), mesh)
    program = build(LOSSES[3], 4, mesh=mesh).lower(make_params(), batch).compile().as_text()
    assert "all-to-all" not in program and "all-gather" not in program


def test_counts_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="num_micro_batches=0 must be at least 1"):
        build(LOSSES[0], 0)
    mesh = parallel.make_mesh({"data": 8})
    with pytest.raises(ValueError, match=r"=8 does not divide the 4 examples .* multiple of 64"):
        build(LOSSES[0], 8, mesh=mesh)(make_params(), make_batch())
