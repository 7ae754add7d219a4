"""Mixtures of MLPs: routing, capacity, statistics, upcycling, a mesh."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip import models, parallel
from jaxclip.models import experts, presets
from jaxclip.objectives import clip_moe
from jaxclip.weights import surgery

TOWER = {"width": 16, "depth": 3, "num_heads": 2, "mlp_dim": 24}


def architecture(**changes):
    base = presets.get("vit_b32").to_dict()
    base["image"] |= {**TOWER, "image_size": 16, "patch_size": 8, **changes}
    base["text"] |= {**TOWER, "vocab_size": 32, "context_length": 6, **changes}
    return presets.CLIPConfig.from_dict({**base, "embed_dim": 16})


@pytest.fixture(scope="module")
def plain():
    shapes = jax.eval_shape(models.build(architecture()).init, jax.random.key(0))
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda s: jnp.asarray(0.3 * rng.standard_normal(s.shape), jnp.float32), shapes
    )


def inputs(rows=4):
    rng = np.random.default_rng(1)
    images = rng.standard_normal((rows, 16, 16, 3)).astype(np.float32)
    return images, rng.integers(1, 32, (rows, 6)).astype(np.int32)


def test_weights_are_the_softmax_of_the_chosen():
    weights, choices = experts.route(jnp.array([[[1.0, 0.0, -1.0]]]), 2)
    np.testing.assert_allclose(weights[0, 0], [0.731059, 0.268941], atol=1e-6)
    np.testing.assert_array_equal(choices[0, 0], [[1, 0, 0], [0, 1, 0]])


@pytest.mark.parametrize(
    ("logits", "k", "expected"),
    [([[2, 0], [0, 2]], 1, 1.0), ([[2, 0], [0, 2]], 2, 2.0), ([[2, 0], [2, 0]], 1, 1.761594)],
)
def test_balance_has_the_published_values(logits, k, expected):
    logits = jnp.array([logits], jnp.float32)
    rows = experts.statistics(logits, experts.route(logits, k)[1])
    assert float(clip_moe.balance_of(rows[:, None])[0]) == pytest.approx(expected, abs=1e-6)
    z = np.log(np.exp(np.asarray(logits, np.float64)).sum(-1)) ** 2
    np.testing.assert_allclose(rows[0, -1], z.mean(), rtol=1e-6)


def test_places_go_to_first_choices_and_earlier_tokens():
    index = jnp.array([[[0, 1], [1, 0], [0, 1], [0, 1]]])  # tokens' first and second choices
    taken = experts.assign(jax.nn.one_hot(index, 2), 2)  # [1, L, k, E, P]
    assert taken.shape == (1, 4, 2, 2, 2)
    found = {tuple(map(int, at)) for at in np.argwhere(np.asarray(taken[0]))}
    # Expert 0 has tokens 0 and 2; expert 1 the first choice of token 1, then the second of token 0.
    assert found == {(0, 0, 0, 0), (2, 0, 0, 1), (1, 0, 1, 0), (0, 1, 1, 1)}


def reference(params, x, k, capacity):
    """One token after the other."""
    x = np.asarray(x, np.float64)
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    out = np.zeros_like(x)
    for row in range(len(x)):
        logits = x[row] @ p["router"]["kernel"]
        share = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        order = np.argsort(-share, axis=1)[:, :k]
        free = np.full(logits.shape[1], capacity)
        for rank in range(k):
            for token in range(x.shape[1]):
                e = order[token, rank]
                if not free[e]:
                    continue
                free[e] -= 1
                up, down = (p["experts"][n] for n in ("up", "down"))
                hidden = np.maximum(x[row, token] @ up["kernel"][e] + up["bias"][e], 0)
                weight = share[token, e] / share[token, order[token]].sum()
                out[row, token] += weight * (hidden @ down["kernel"][e] + down["bias"][e])
    return out


@pytest.mark.parametrize("capacity", [0.0, 0.75])
def test_the_layer_is_the_sum_over_the_chosen(capacity):
    x = np.random.default_rng(0).standard_normal((2, 8, 6)).astype(np.float32)
    layer = experts.Experts(4, 5, jax.nn.relu, jnp.float32, 2, capacity)
    shapes = jax.eval_shape(layer.init, jax.random.key(0), x)["params"]
    rng = np.random.default_rng(2)
    params = jax.tree.map(lambda s: np.float32(rng.standard_normal(s.shape)), shapes)
    found, rows = jax.jit(layer.apply)({"params": params}, x)
    places = math.ceil(capacity * 2 * 8 / 4) if capacity else 99
    np.testing.assert_allclose(found, reference(params, x, 2, places), atol=2e-5)
    np.testing.assert_allclose(rows[:, :2].sum((1, 2)), 2.0, rtol=1e-6)


@pytest.mark.parametrize("scan", [False, True])
def test_an_upcycled_model_computes_what_it_did(plain, scan):
    sizes = architecture()
    params, wider = surgery.upcycle(plain, sizes, 4, jax.random.key(0), blocks=2)
    model, before = models.build(wider, scan_layers=scan), models.build(sizes)
    expected = jax.eval_shape(model.init, jax.random.key(0))
    assert jax.tree.structure(expected) == jax.tree.structure(params)
    jax.tree.map(lambda s, a: np.testing.assert_array_equal(s.shape, a.shape), expected, params)
    images, tokens = inputs()
    np.testing.assert_allclose(jax.jit(model.encode_image)(params, images),
                               jax.jit(before.encode_image)(plain, images), atol=2e-6)  # fmt: skip
    features = jax.jit(model.text_features)(params, tokens)
    np.testing.assert_allclose(features.embedding, jax.jit(before.encode_text)(plain, tokens),
                               atol=2e-6)  # fmt: skip
    assert features.aux["router"].shape == (4, 2, 4, 4)  # rows, blocks, k + 2, experts


def test_other_models_become_experts(plain):
    other = jax.tree.map(lambda x: x + 1.0, plain)
    params, sizes = surgery.upcycle(plain, architecture(), 3, jax.random.key(0), others=[other],
                                    towers=["image"])  # fmt: skip
    kernel = params["image"]["blocks_0"]["mlp"]["experts"]["up"]["kernel"]
    own = plain["image"]["blocks_0"]["mlp"]["up"]["kernel"]
    np.testing.assert_array_equal(kernel, jnp.stack([own, own + 1.0, own]))
    assert sizes.text.num_experts == 0 and params["text"] is plain["text"]
    with pytest.raises(ValueError, match="has 3 experts already"):
        surgery.upcycle(params, sizes, 3, jax.random.key(0))
    with pytest.raises(ValueError, match="3 models make no 2 experts"):
        surgery.upcycle(plain, architecture(), 2, jax.random.key(0), others=[other, other])
    with pytest.raises(ValueError, match=r"image\.kind='convnext' has no blocks that take experts"):
        surgery.upcycle(plain, presets.get("convnext_base_w"), 2, jax.random.key(0))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_experts": 1}, "use at least two experts"),
        ({"num_experts": 4, "experts_per_token": 5}, "takes one to all"),
        ({"num_experts": 4, "expert_blocks": 4}, r"expert_blocks=4 must be 0 \(all\) to depth=3"),
    ],
)
def test_sizes_that_can_not_be(changes, message):
    with pytest.raises(ValueError, match=message):
        architecture(**changes)


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["fsdp", "fsdp+tp"])
def test_experts_lie_on_the_devices_of_a_mesh_and_train_alike(sharding):
    from jaxclip import config as config_lib
    from jaxclip.train import dry_run, setup

    tower = {**TOWER, "num_experts": 4, "expert_blocks": 2, "expert_capacity": 1.0}
    base = {
        "global_batch_size": 16,
        "data": {"image_size": 16},
        "tokenizer": {"context_length": 8},
        "model": {"image": {"patch_size": 8, **tower}, "text": {"vocab_size": 64, **tower}},
        "objective": [{"name": "clip_moe", "balance": 0.5, "z": 0.1}],
        "optim": {"clip": "none"},
    }
    values = []
    for mesh, micro in (({"data": 1}, 1), ({"data": 2, "fsdp": 2, "tensor": 2}, 4)):
        config = config_lib.resolve({**base, "mesh": mesh, "sharding": sharding,
                                     "num_micro_batches": micro})  # fmt: skip
        devices = jax.devices()[: 1 if micro == 1 else 8]
        experiment = setup.build(config, devices=devices)
        state = experiment.init_state()
        kernel = state.params["image"]["blocks_2"]["mlp"]["experts"]["up"]["kernel"]
        if micro > 1 and sharding == "fsdp+tp":
            assert kernel.sharding.spec[0] == "tensor"
        batch = parallel.to_global(
            dry_run.made_up_batch(config, experiment.batch_spec), experiment.mesh
        )
        state, metrics = experiment.train_step(state, batch)
        values.append({k: float(metrics[k]) for k in ("loss", "clip_moe/balance", "grad_norm")})
    assert values[0] == pytest.approx(values[1], rel=1e-4)
    assert 2.0 < values[0]["clip_moe/balance"] < 8.0  # two towers, k = 2 each where all is even


def test_dataclass_fields_survive_json():
    sizes = architecture(num_experts=4, expert_blocks=1, expert_capacity=1.25)
    assert presets.CLIPConfig.from_dict(sizes.to_dict()) == sizes
    assert dataclasses.asdict(sizes.image)["experts_per_token"] == 2
