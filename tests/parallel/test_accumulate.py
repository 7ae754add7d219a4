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


def encode(tower, params, x, rng=None):
    hidden = jnp.tanh(x @ params[tower]["in"])
    if rng is not None:  # dropout
        hidden *= 2.0 * jax.random.bernoulli(rng, 0.5, hidden.shape)
    out = hidden @ params[tower]["out"]
    return out / jnp.linalg.norm(out, axis=-1, keepdims=True)


ENCODERS = functools.partial(encode, "image"), functools.partial(encode, "text")


def build(loss, count=1, encoders=ENCODERS, mesh=None):
    return jax.jit(
        parallel.contrastive_value_and_grad(
            *encoders, losses.from_config(loss), num_micro_batches=count, mesh=mesh
        )
    )


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


def test_random_keys_are_the_same_in_both_passes():
    """Against the unsplit gradient of the same dropout, micro-batch by micro-batch."""
    params, batch, count = make_params(), make_batch(), 4
    rng = jax.random.key(5)
    keys = [jax.random.split(key) for key in jax.random.split(rng, count)]

    def pieces_of(which, tower):
        def encode_all(params, x):
            parts = x.reshape(count, -1, INPUT)
            return jnp.concatenate(
                [
                    encode(tower, params, part, key[which])
                    for part, key in zip(parts, keys, strict=True)
                ]
            )

        return encode_all

    expected = build(LOSSES[1], 1, (pieces_of(0, "image"), pieces_of(1, "text")))(params, batch)
    assert_same(build(LOSSES[1], count)(params, batch, rng), expected)
    # and the dropout did something
    assert abs(expected[0][0] - build(LOSSES[1])(params, batch)[0][0]) > 1e-3


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
