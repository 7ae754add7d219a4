"""Rules, their presets on every encoder and optimizer state, and initialisation in place."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from jaxclip import models, optim, parallel
from jaxclip.models import presets
from jaxclip.parallel import sharding as sharding_lib
from jaxclip.train import state as state_lib


def specs(tree, rules, mesh):
    shardings = parallel.specs_for(tree, parallel.sharding_rules(rules), mesh)
    return jax.tree.map(lambda s: s.spec, shardings)


def shape(*dims):
    return jax.ShapeDtypeStruct(dims, jnp.float32)


def bytes_each(tree, shardings):
    """Bytes a device holds of a tree."""
    sizes = jax.tree.map(
        lambda leaf, s: math.prod(s.shard_shape(leaf.shape)) * leaf.dtype.itemsize, tree, shardings
    )
    return sum(jax.tree.leaves(sizes))


@pytest.fixture(scope="module")
def mesh():
    return parallel.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})


def test_the_first_rule_that_matches_wins(mesh):
    tree = {"a": {"kernel": shape(8, 6)}, "b": {"kernel": shape(8, 6)}, "c": shape(3)}
    rules = [["a/kernel$", ["tensor", "fsdp"]], ["kernel", ["...", ["data", "fsdp"]]]]
    with pytest.raises(ValueError, match="b/kernel"):  # 6 is not divisible by 4
        specs(tree, rules, mesh)
    rules[1] = ["kernel", ["...", "tensor"]]
    assert specs(tree, rules, mesh) == {
        "a": {"kernel": P("tensor", "fsdp")},
        "b": {"kernel": P(None, "tensor")},
        "c": P(),
    }


def test_fill_takes_the_largest_free_dimension_that_divides(mesh):
    tree = {
        "x": shape(31, 64, 128),
        "square": shape(64, 64),
        "odd": shape(81, 81),
        "tiny": shape(8),
    }
    assert specs(tree, "fsdp", mesh) == {
        "x": P(None, None, "fsdp"),
        "square": P(None, "fsdp"),
        "odd": P(),
        "tiny": P(),
    }
    rules = [["", ["...", "tensor"], "fsdp"]]
    assert specs({"x": shape(31, 64, 128)}, rules, mesh)["x"] == P(None, "fsdp", "tensor")
    # A vocabulary that nothing divides, as RoBERTa's: what is cut already is cut once more.
    assert specs({"x": shape(81, 128)}, rules, mesh)["x"] == P(None, ("tensor", "fsdp"))
    assert specs({"x": shape(81, 126)}, rules, mesh)["x"] == P(None, "tensor")
    assert specs({"x": shape(8192)}, rules, mesh)["x"] == P("tensor")


def test_presets_and_rules_can_be_mixed(mesh):
    rules = parallel.sharding_rules([["^text/", []], "fsdp+tp"])
    tree = {name: {"mlp": {"up": {"kernel": shape(64, 128)}}} for name in ("image", "text")}
    result = jax.tree.map(lambda s: s.spec, parallel.specs_for(tree, rules, mesh))
    assert result["image"]["mlp"]["up"]["kernel"] == P("fsdp", "tensor")
    assert result["text"]["mlp"]["up"]["kernel"] == P()


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ("fdsp", r"unknown sharding preset 'fdsp'; did you mean 'fsdp'"),
        ([["kernel", ["model"]]], r"'kernel' names the mesh axis 'model'; known: data, fsdp"),
        ([["kernel", ["fsdp"], "fsdp"]], r"uses the mesh axis 'fsdp' twice"),
        ([["kernel(", []]], r"'kernel\(' is no regular expression"),
        ([["kernel", [None, "..."]]], r"'\.\.\.' stands first"),
        ([["kernel", "fsdp"]], r"is not \[pattern, \[axis or null"),
    ],
)
def test_bad_rules_are_refused(rules, message):
    with pytest.raises(ValueError, match=message):
        parallel.sharding_rules(rules)


def test_what_does_not_divide_is_named_with_axis_and_sizes(mesh):
    tree = {"image": {"out": {"kernel": shape(8, 7)}}}
    message = (
        r"image/out/kernel of shape \(8, 7\) .* dimension 1 has size 7, which mesh axis tensor of "
        r"size 2 does not divide"
    )
    with pytest.raises(ValueError, match=message):
        specs(tree, [["kernel", [None, "tensor"]]], mesh)
    with pytest.raises(ValueError, match=r"mesh axis data x fsdp of size 4"):
        specs(tree, [["kernel", [None, ["data", "fsdp"]]]], mesh)
    with pytest.raises(ValueError, match=r"gives 3 dimensions, but image/out/kernel has shape"):
        specs(tree, [["kernel", [None, None, "tensor"]]], mesh)


OPTIMIZERS = {
    "adam": optax.adam(1e-3),
    "adam_bf16": optax.adam(1e-3, mu_dtype=jnp.bfloat16),
    "adafactor": optax.adafactor(1e-3),
    "muon": optax.contrib.muon(1e-3),
    "lion": optax.lion(1e-3),
    "stable_spam": optim.stable_spam(1e-3),
    "spam_compact": optim.spam(1e-3, density=0.25),
    "multi_steps": optax.MultiSteps(optax.adam(1e-3), 4),
    "masked": optax.masked(optax.adam(1e-3), lambda p: jax.tree.map(lambda x: x.ndim > 1, p)),
    "partition": optax.partition(
        {"a": optax.adam(1e-3), "b": optax.set_to_zero()}, {"image": "a", "text": "b", "s": "b"}
    ),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_states_follow_their_parameters(name, mesh):
    params = {
        "image": {"mlp": {"up": {"kernel": shape(64, 256), "bias": shape(256)}}},
        "text": {"token_embedding": {"embedding": shape(512, 64)}},
        "s": shape(),
    }
    state = jax.eval_shape(
        lambda p: state_lib.create_state(lambda _: p, OPTIMIZERS[name], jax.random.key(0)), params
    )
    shardings = parallel.specs_for(state, parallel.sharding_rules("fsdp+tp"), mesh)
    by_parameter = {
        (64, 256): P("fsdp", "tensor"),
        (512, 64): P("fsdp", "tensor"),
        (256,): P("tensor"),
    }
    followers = 0
    for leaf, placed in zip(jax.tree.leaves(state), jax.tree.leaves(shardings), strict=True):
        if leaf.shape in by_parameter:
            assert placed.spec == by_parameter[leaf.shape]
            followers += 1
    assert followers >= 3 + (name != "partition")
    # Of all that is large, a device holds a quarter.
    total = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    assert bytes_each(state, shardings) < 0.27 * total


@pytest.mark.parametrize(
    "preset",
    [
        pytest.param(name, marks=[] if name in ("vit_b16", "siglip_b16") else pytest.mark.slow)
        for name in presets.names()
    ],
)
def test_every_encoder_under_every_preset(preset):
    """Parameters and Adam's state: each rule fits, and the large arrays are shared out."""
    model = models.build(presets.get(preset))
    state = jax.eval_shape(
        lambda rng: state_lib.create_state(model.init, optax.adam(1e-3), rng), jax.random.key(0)
    )

    def size(tree):
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))

    total, convolutions = size(state), 0
    if presets.get(preset).image.kind == "resnet":  # which no rule cuts over `tensor`
        image = {k: v for k, v in state.params["image"].items() if k.startswith(("blocks", "stem"))}
        convolutions = 3 * size(image)  # and Adam's two moments
    for shape_, rules, share in (
        ({"data": 8}, "dp", 1.0),
        ({"fsdp": 8}, "fsdp", 0.14),
        ({"data": 4, "tensor": 2}, "tp", 0.56),
        ({"fsdp": 4, "tensor": 2}, "fsdp+tp", 0.14),
        ({"data": 2, "fsdp": 4}, "fsdp", 0.27),
    ):
        shardings = parallel.specs_for(
            state, parallel.sharding_rules(rules), parallel.make_mesh(shape_)
        )
        whole = convolutions if "tensor" in shape_ else 0
        limit = share * (total - whole) + 1.05 * whole / shape_.get("fsdp", 1)
        assert bytes_each(state, shardings) <= limit, (shape_, rules)


def test_tensor_rules_cut_every_block():
    """Column-parallel in, row-parallel out, for all matrices of all blocks of both towers."""
    mesh = parallel.make_mesh({"data": 4, "tensor": 2})
    params = jax.eval_shape(models.build(presets.get("siglip_b16")).init, jax.random.key(0))
    found = specs(params, "tp", mesh)
    for tower in ("image", "text"):
        for index in range(12):
            block = found[tower][f"blocks_{index}"]
            for name in ("query", "key", "value"):
                assert block["attention"][name] == {
                    "kernel": P(None, "tensor"),
                    "bias": P("tensor"),
                }
            assert block["attention"]["out"] == {"kernel": P("tensor"), "bias": P()}
            assert block["mlp"]["up"] == {"kernel": P(None, "tensor"), "bias": P("tensor")}
            assert block["mlp"]["down"] == {"kernel": P("tensor"), "bias": P()}


def test_initialisation_happens_in_place():
    """The same values on any mesh, and no device ever holds a whole large array."""
    mesh = parallel.make_mesh({"fsdp": 8})

    def init(rng):
        keys = jax.random.split(rng, 2)
        params = {str(i): jax.random.normal(k, (512, 1024)) for i, k in enumerate(keys)}
        return {"params": params, "mu": jax.tree.map(jnp.zeros_like, params)}

    shardings = parallel.specs_for(
        jax.eval_shape(init, jax.random.key(0)), parallel.sharding_rules("fsdp"), mesh
    )
    key = jax.random.key(3)
    compiled = jax.jit(init, out_shardings=shardings).lower(key).compile()
    memory = compiled.memory_analysis()
    whole, share = 512 * 1024 * 4, 512 * 1024 * 4 // 8
    assert memory.output_size_in_bytes < 4 * share + 4096
    assert memory.temp_size_in_bytes < whole
    assert "all-gather" not in compiled.as_text()
    created = parallel.init_sharded(init, key, shardings)
    assert created["params"]["0"].addressable_shards[0].data.nbytes == share
    alone = init(key)
    np.testing.assert_array_equal(created["params"]["1"], alone["params"]["1"])


def test_small_arrays_are_not_worth_a_collective():
    assert sharding_lib.MIN_FILL_SIZE == 4096
    mesh = parallel.make_mesh({"fsdp": 8})
    tree = {"below": shape(8, 511), "at": shape(8, 512)}
    assert specs(tree, "fsdp", mesh) == {"below": P(), "at": P(None, "fsdp")}
