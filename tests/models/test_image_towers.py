"""Convolutional image towers: what they give, what they refuse, and that they train."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip import config as config_lib
from jaxclip import config_check, models, parallel
from jaxclip.models import convolutions, presets
from jaxclip.models.batch_norm import FrozenBatchNorm
from jaxclip.models.image_towers import TOWERS
from jaxclip.plan import model_flops
from jaxclip.train import dry_run, setup, state_io

RESNET = {"kind": "resnet", "image_size": 64, "depths": [1, 1, 1, 2], "stem_width": 4}
RESNET |= {"num_heads": 4}
CONVNEXT = {"kind": "convnext", "image_size": 32, "depths": [1, 1, 3, 1], "widths": [4, 4, 8, 8]}
FASTVIT = {"kind": "fastvit", "image_size": 64, "depths": [1, 2, 1, 1], "widths": [4, 8, 16, 32]}
SMALL = {"resnet": RESNET, "convnext": CONVNEXT, "fastvit": FASTVIT}
TEXT = {"vocab_size": 64, "width": 16, "depth": 1, "num_heads": 2, "mlp_dim": 32}


def sizes_of(kind, **more):
    model = {"image": {**SMALL[kind], **more}, "text": {**TEXT, "context_length": 8}}
    return presets.CLIPConfig.from_dict({**model, "embed_dim": 8})


def shapes_of(model):
    return jax.eval_shape(model.init, jax.random.key(0))


def test_all_kinds_are_tested():
    assert set(SMALL) == set(TOWERS.names())


def test_batch_norm_on_frozen_statistics_is_its_closed_form_without_gradient():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((5, 3))
    params = {name: rng.uniform(0.5, 2, 3) for name in ("scale", "bias", "running_mean",
                                                        "running_var")}  # fmt: skip
    norm = FrozenBatchNorm(epsilon=1e-3)
    expected = (x - params["running_mean"]) / np.sqrt(params["running_var"] + 1e-3)
    expected = expected * params["scale"] + params["bias"]
    params = {name: jnp.asarray(value, jnp.float32) for name, value in params.items()}

    def total(params):
        return (norm.apply({"params": params}, jnp.asarray(x, jnp.float32)) ** 2).sum()

    out = norm.apply({"params": params}, jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)
    gradient = jax.grad(total)(params)
    for name in ("running_mean", "running_var"):
        np.testing.assert_array_equal(gradient[name], 0.0)
    assert np.abs(gradient["scale"]).min() > 0 and np.abs(gradient["bias"]).min() > 0


@pytest.mark.parametrize("kind", SMALL)
def test_features_have_the_shapes_that_they_say(kind):
    sizes = sizes_of(kind)
    model, size = models.build(sizes), sizes.image.image_size
    images = jax.ShapeDtypeStruct((2, size, 2 * size, 3), jnp.float32)
    found = jax.eval_shape(
        lambda p, x: model.image_features(p, x, hidden=(0, 1, -1)), shapes_of(model), images
    )
    places = 2 * sizes.image.grid**2
    assert found.embedding.shape == found.raw.shape == (2, 8)
    assert found.tokens.shape == (2, places, sizes.image.width)
    assert found.pooled.shape == (2, sizes.image.width)
    assert found.prefix.shape == (2, 0, sizes.image.width) and found.valid is None
    tower = model.image
    assert found.hidden[0].shape == (2, 2 * (size // 4) ** 2, tower.channels(-1))
    assert found.hidden[1].shape == (2, 2 * (size // 4) ** 2, tower.channels(0))
    assert found.hidden[-1].shape == (2, places, tower.channels(3))
    params = shapes_of(model)
    alone = jax.eval_shape(lambda p, x: tower.pool_tokens(p["image"], x), params, found.tokens)
    assert alone.shape == found.tokens.shape
    dense = jax.eval_shape(model.project_image, params, alone)
    assert dense.shape == (2, places, 8)


@pytest.mark.parametrize(
    ("option", "value"),
    [("keep", np.zeros((1, 1), np.int32)), ("insert", np.zeros((1, 8), np.float32)),
     ("attend", {0: None}), ("attention_bias", np.zeros((1, 1, 1, 1))), ("attention", (-1,))],
)  # fmt: skip
def test_what_convolutions_cannot_do_is_refused_in_one_line(option, value):
    sizes = sizes_of("convnext")
    model = models.build(sizes)
    with pytest.raises(
        ValueError, match=rf"^{option} can't be asked of .*'convnext', .*kind='vit'"
    ):
        model.image_features({"image": {}}, np.zeros((1, 32, 32, 3)), **{option: value})


def test_images_and_layers_that_do_not_fit_are_refused():
    model = models.build(sizes_of("convnext"))
    with pytest.raises(ValueError, match=r"\(1, 48, 32, 3\); .* multiples of 32"):
        model.image_features({"image": {}}, np.zeros((1, 48, 32, 3)))
    with pytest.raises(ValueError, match="hidden: there is no 5; use -5 to 4"):
        model.image_features({"image": {}}, np.zeros((1, 32, 32, 3)), hidden=(5,))


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [("resnet", {"image_size": 100}, "image_size=100 is no multiple of 32.*; use 96"),
     ("resnet", {"num_heads": 3}, "num_heads=3 does not divide the width 128"),
     ("resnet", {"stem_width": 5}, "stem_width=5; use an even number"),
     ("convnext", {"widths": [4, 8]}, r"widths=\[4, 8\]; use a positive width for each of the 4"),
     ("convnext", {"depths": [1, 0, 1, 1]}, r"depths=\[1, 0, 1, 1\]; use a positive number"),
     ("convnext", {"projection": "none"}, "projection='none'; use 'linear', 'mlp'"),
     ("fastvit", {"form": "fold"}, "form='fold'; use 'branches', 'folded'"),
     ("fastvit", {"widths": [4, 6, 16, 32]}, "6 is no multiple of 4"),
     ("fastvit", {"widths": [4, 8, 16, 48]}, "heads of 32, which does not divide 48"),
     ("fastvit", {"squeeze_stages": 5}, "squeeze_stages=5; use 0 to 4"),
     ("resnet", {"patch_size": 4}, "unknown field model.image.patch_size")],
)  # fmt: skip
def test_sizes_that_cannot_be_are_refused(kind, change, message):
    with pytest.raises(ValueError, match=message):
        sizes_of(kind, **change)


def test_an_unknown_kind_names_the_nearest():
    with pytest.raises(
        ValueError, match=r"unknown model.image.kind 'resnet50'; did you mean 'resn"
    ):
        config_lib.resolve({}, ["model.image.kind=resnet50"])
    with pytest.raises(ValueError, match="unknown model preset 'rn-50'; did you mean 'rn50"):
        config_lib.resolve({"model": {"preset": "rn-50"}})


def test_a_configuration_has_the_keys_of_its_kind():
    config = config_lib.resolve({"model": {"preset": "rn50"}})
    assert config["model"]["image"]["depths"] == [3, 4, 6, 3]
    assert config["model"]["image"]["image_size"] == config["data"]["image_size"]  # as of ViTs
    again = config_lib.resolve(config)  # as a run reads its own config.json
    assert again == config
    config = config_lib.resolve(
        {}, ["model.image.kind=convnext", "model.image.depths=[1, 1, 2, 1]", "data.image_size=64"]
    )
    sizes = setup.towers.model_sizes(config)
    assert sizes.image.depths == (1, 1, 2, 1) and sizes.image.image_size == 64
    changed = config_lib.changed_from_defaults(config)
    assert changed == [("model.image.depths", [3, 3, 27, 3], [1, 1, 2, 1])]
    with pytest.raises(ValueError, match=r"unknown config key 'model.image.patch_size'"):
        config_lib.resolve({"model": {"preset": "rn50"}}, ["model.image.patch_size=16"])


def test_flops_of_a_resnet_are_those_of_its_products():
    """Closed form: two for each multiply-add, of every convolution and layer of the attention."""
    sizes = sizes_of("resnet", depths=[1, 1, 1, 1])
    tower = models.build(sizes).image
    side, width = 64, 4
    count = (side // 2) ** 2 * 9 * (3 * 2 + 2 * 2 + 2 * 4)
    before, places = width, (side // 4) ** 2
    for stage in range(4):
        inner, outer = width * 2**stage, width * 2**stage * 4
        after = places // (4 if stage else 1)
        count += places * (before * inner + 9 * inner**2) + after * inner * outer
        count += after * before * outer
        before, places = outer, after
    tokens = places + 1
    count += before**2 * (1 + 2 * tokens) + 2 * tokens * before + before * 8
    images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    shapes = jax.eval_shape(tower.init, jax.random.key(0))
    assert model_flops.of_function(tower.encode, shapes, images) == 2 * count


TINY_RESNET = {"image_size": 16, "depths": [1, 1], "stem_width": 16}


def run(kind, image=None, **given):
    image = {**SMALL[kind], **(image or {})}
    config = {
        "total_steps": 10,
        "global_batch_size": 8,
        "data": {"image_size": image["image_size"]},
        "tokenizer": {"context_length": 8},
        "model": {"image": image, "text": TEXT, "embed_dim": 8},
        "optim": {"name": "adamw", "learning_rate": 1e-3, "weight_decay": 0.5, "no_decay": [],
                  "clip": "none", "schedule": {"name": "constant", "warmup_steps": 0}},
    }  # fmt: skip
    return config_lib.resolve({**config, **given})


def test_model_flops_of_a_training_step_are_three_forward_passes():
    """Of every product but the first convolution, whose input has no gradient."""
    config = run("resnet", TINY_RESNET)
    model = setup.build_model(config)
    tower, text = model.image, model.text
    images = jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32)
    tokens = jax.ShapeDtypeStruct((1, 8), jnp.int32)
    shapes = shapes_of(model)
    forward = model_flops.of_function(tower.encode, shapes["image"], images)
    forward += model_flops.of_function(text.encode, shapes["text"], tokens)
    first = 2 * 8 * 8 * 9 * 3 * 8
    assert model_flops.of_config(config) == 3 * forward - first


def drawn(shapes):
    """Parameters by NumPy, which compiles nothing; scales and variances near 1."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        ones = jax.tree_util.keystr(path).endswith(("scale']", "running_var']"))
        return (ones + 0.1 * rng.standard_normal(leaf.shape)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def test_a_resnet_trains_and_its_statistics_stay():
    """Weight decay of everything, and gradients through everything: the statistics do not move."""
    experiment = setup.build(run("resnet", TINY_RESNET), devices=jax.devices()[:1])
    start = drawn(shapes_of(experiment.model))
    state = experiment.create_state(jax.random.key(0), jax.tree.map(jnp.asarray, start))
    state = jax.device_put(state, experiment.state_shardings)
    batch = dry_run.made_up_batch(experiment.config, experiment.batch_spec)
    batch = parallel.to_global(batch, experiment.mesh)
    for _ in range(2):
        state, metrics = experiment.train_step(state, batch)
    assert experiment.train_step._cache_size() == 1
    assert np.isfinite(float(metrics["loss"])) and np.isfinite(float(metrics["grad_norm"]))
    start = state_io.named_leaves(start)
    now = state_io.named_leaves(state.params)
    still = {name for name in start if np.array_equal(start[name], now[name])}
    assert still == {name for name in start if name.split("/")[-1].startswith("running_")}
    moments = "|".join(state_io.named_leaves(state.opt_state))
    assert "running_mean" not in moments and "blocks_1/expand/kernel" in moments


def test_kernels_are_sharded_by_the_rules():
    mesh = {"mesh": {"data": 1, "fsdp": 2, "tensor": 2}, "sharding": "fsdp+tp"}
    experiment = setup.build(run("resnet", TINY_RESNET, **mesh), devices=jax.devices()[:4])
    image = experiment.state_shardings.params["image"]
    assert "fsdp" in str(image["blocks_1"]["expand"]["kernel"].spec)
    assert "tensor" in str(image["attention"]["query"]["kernel"].spec)


@pytest.mark.slow
@pytest.mark.parametrize("kind", SMALL)
def test_devices_change_nothing(kind):
    """One step on a mesh of four, sharded, looped and recomputed, is that on one device."""
    small = {"resnet": TINY_RESNET, "convnext": {"depths": [1, 3], "widths": [8, 16]}}
    small["fastvit"] = {"depths": [2, 1], "widths": [8, 32]}
    options = {"image_size": 16, **small[kind]}
    sgd = {"name": "sgd", "learning_rate": 0.1, "weight_decay": 0.0, "clip": "none",
           "schedule": {"name": "constant", "warmup_steps": 0}}  # fmt: skip
    mesh = {"mesh": {"data": 1, "fsdp": 2, "tensor": 2}, "sharding": "fsdp+tp", "remat": "full"}
    results = []
    for devices, more in ((1, {}), (4, {**mesh, "scan_layers": True})):
        config = run(kind, options, optim=sgd, **more)
        experiment = setup.build(config, devices=jax.devices()[:devices])
        start = jax.tree.map(jnp.asarray, drawn(shapes_of(experiment.model)))
        state = experiment.create_state(jax.random.key(0), start)
        state = jax.device_put(state, experiment.state_shardings)
        batch = dry_run.made_up_batch(config, experiment.batch_spec)
        state, _ = experiment.train_step(state, parallel.to_global(batch, experiment.mesh))
        results.append(jax.tree.map(np.asarray, state.params))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5), *results)


def test_statistics_are_frozen_by_name_whatever_else_is():
    config = run("resnet")
    assert config_check.is_frozen(config, "image/blocks_0/conv_norm/running_var")
    assert not config_check.is_frozen(config, "image/blocks_0/conv_norm/scale")
    section = config_check.frozen_statistics({"freeze": "^text/"}, True)
    assert section["freeze"] == ["^text/", config_check.STATISTICS]
    assert config_check.frozen_statistics({"name": "sgd"}, False) == {"name": "sgd"}


@pytest.mark.parametrize(("stride", "multiple", "mesh"), [(1, 1, (2, 1, 2)), (2, 2, (1, 2, 2))])
def test_gradients_of_depthwise_convolutions(stride, multiple, mesh):
    """JAX's own on one device; on a mesh with a whole axis, too, where XLA's is twice as large."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4, 6, 6, 2)).astype(np.float32)
    kernel = rng.standard_normal((3, 3, 1, 2 * multiple)).astype(np.float32)

    def plain(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), [(1, 1), (1, 1)],
            dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=2,
        )  # fmt: skip

    def gradient(conv):
        return jax.grad(lambda x, k: jnp.sum(jnp.sin(conv(x, k))), argnums=(0, 1))

    own = gradient(lambda x, k: convolutions.depthwise_conv(x, k, stride))
    axes = ("data", "fsdp", "tensor")
    devices = jax.make_mesh(mesh, axes, devices=jax.devices()[:4])
    batch = jax.NamedSharding(devices, jax.P(axes[:2]))
    whole = jax.NamedSharding(devices, jax.P())
    found = jax.jit(own, in_shardings=(batch, whole), out_shardings=(batch, whole))(x, kernel)
    for ours, expected in zip(found, jax.jit(gradient(plain))(x, kernel), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)


def test_loops_and_recomputation_change_no_gradient():
    """One stage of a ConvNeXt, whose blocks have the same shapes."""
    sizes = sizes_of("convnext", depths=[3], widths=[8], image_size=8)
    plain = models.build(sizes)
    looped = models.build(sizes, scan_layers=True, remat="full")
    params = drawn(jax.eval_shape(plain.image.init, jax.random.key(0)))
    images = np.random.default_rng(0).standard_normal((2, 8, 8, 3)).astype(np.float32)

    def gradient(tower):
        return jax.jit(jax.grad(lambda p: (tower.encode(p, images) ** 2).sum()))(params)

    assert "scan" in str(jax.make_jaxpr(looped.image.encode)(params, images))
    for a, b in zip(
        jax.tree.leaves(gradient(plain.image)), jax.tree.leaves(gradient(looped.image)), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_positions_of_the_pool_are_interpolated_for_other_images():
    """A table linear in the places is linear again, between; the mean's own row stays."""
    sizes = sizes_of("resnet", depths=[1, 1, 1, 1])
    tower = models.build(sizes).image
    wide = dataclasses.replace(sizes.image, image_size=128)
    seen = []
    params = {"positions": jnp.arange(5.0)[:, None] * jnp.ones((5, 128)), "attention": {}}

    class Spy:
        def apply(self, params, x):
            seen.append(x)
            return x[:, 0]

    object.__setattr__(tower, "__class__", type("T", (type(tower),), {"attention": Spy()}))
    tower.pool(params, jnp.zeros((1, wide.grid, wide.grid, 128)))
    table = np.asarray(seen[0])[0, :, 0]
    assert table.shape == (17,) and table[0] == 0.0
    grid = table[1:].reshape(4, 4)
    np.testing.assert_allclose(grid + grid[::-1, ::-1], 5.0, atol=1e-5)
    assert (np.diff(grid, axis=0) > 0).all() and (np.diff(grid, axis=1) > 0).all()
