"""Whatever may be asked of a tower works on every preset, or is refused in one line.

Shapes alone are computed, of the presets at depth 2.
"""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from jaxclip import config as config_lib
from jaxclip import models
from jaxclip.models import features, patch_sequence, presets
from tests.models import small, test_variants

BATCH, LENGTH, INSERTED = 2, 6, 3

# Families of weights whose architecture is no preset of its own.
OTHERS = {
    name: small.change(small.CLIP, image=getattr(test_variants, name))
    for name in ("EVA02", "EVA_18B", "PE", "MIXED")
}

# One preset for each kind of tower and pool; `-m slow` takes all.
KINDS = ["vit_b16", "siglip_b16", "coca_vit_b32", "roberta_vit_b32", "siglip2_b16_naflex"]
KINDS += ["rn50", "convnext_base_w", "mobileclip2_s0", "EVA02"]

# What only a sequence of tokens can be asked.
OF_TOKENS = ("keep", "insert", "attend", "attention_bias", "attention", "largest_logits")


def cut(config):
    """The configuration with towers of two blocks, or of one a stage."""
    depth = {"depths": (1,) * len(config.image.depths)} if staged(config) else {"depth": 2}
    return dataclasses.replace(
        config,
        image=dataclasses.replace(config.image, **depth),
        text=dataclasses.replace(config.text, depth=2),
    )


def staged(config):
    return hasattr(config.image, "depths")


def configuration(name):
    return cut(OTHERS[name] if name in OTHERS else presets.get(name))


def inputs_of(config, tower, size=None):
    if tower == "text":
        return jnp.ones((BATCH, min(LENGTH, config.text.context_length)), jnp.int32)
    side = size or config.image.image_size
    return jax.ShapeDtypeStruct((BATCH, side, side, 3), jnp.float32)


class Tower:
    """A tower of a preset; :meth:`ask` gives shapes of its features, or why they are refused."""

    def __init__(self, config, tower):
        self.config, self.name = config, tower
        self.model = models.build(config)
        self.params = jax.eval_shape(self.model.init, jax.random.key(0))
        self.sizes = getattr(config, tower)

    def ask(self, inputs=None, **asked):
        features_of = getattr(self.model, f"{self.name}_features")
        inputs = inputs_of(self.config, self.name) if inputs is None else inputs
        arrays = {k: v for k, v in asked.items() if k in ("keep", "keys", "attention_bias")}
        rest = {k: v for k, v in asked.items() if k not in arrays}
        try:
            return jax.eval_shape(
                lambda params, inputs, arrays: features_of(params, inputs, **arrays, **rest),
                self.params,
                inputs,
                arrays,
            )
        except ValueError as error:
            return str(error)


def requests(tower, plain):
    """Everything that may be asked, by name."""
    width, heads = tower.sizes.width, getattr(tower.sizes, "num_heads", 1)
    length = plain.hidden[0].shape[1]
    kernels = [
        (jax.tree_util.keystr(path, simple=True, separator="/"), leaf.shape)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tower.params[tower.name])
    ]
    path, shape = next((p, s) for p, s in kernels if p.endswith("/kernel") and len(s) == 2)
    own = 4 if tower.name == "image" else 3
    return {
        "keep": {"keep": jnp.tile(jnp.arange(own), (BATCH, 1))},
        "insert": {"insert": {0: jnp.ones((INSERTED, width)), 1: jnp.ones((INSERTED, width))}},
        "attend": {"attend": {-1: features.Attend(weights, residual=False, mlp=False)}},
        # Of a ResNet's first stage it would take gigabytes.
        "attention_bias": {
            "attention_bias": jax.ShapeDtypeStruct((1, heads, length, length), jnp.float32)
        },
        "low_rank": {"low_rank": {path: (jnp.ones((shape[0], 2)), jnp.ones((2, shape[1])))}},
        "hidden": {"hidden": (0, 1, -1)},
        "attention": {"attention": (0, -1)},
        "largest_logits": {"largest_logits": True},
        "activation_sums": {"activation_sums": True},
    }


def weights(query, key, value, bias):
    return jnp.ones((1, 1, query.shape[2], key.shape[2])) / key.shape[2]


def check_found(tower, name, found, plain, alone=True):
    """Shapes of what was asked for; all else is as it was."""
    assert found.embedding.shape == (BATCH, tower.config.embed_dim)
    tokens = plain.tokens.shape
    if name == "keep" and tower.name == "text":
        tokens = (BATCH, 3, tokens[2])
    elif name == "keep" and tower.sizes.pool != "queries":
        tokens = (BATCH, 4, tokens[2])
    assert found.tokens.shape == tokens
    if name == "insert":
        assert found.aux["inserted"].shape[:2] == (BATCH, INSERTED)
    if name == "hidden":
        assert set(found.hidden) == {0, 1, -1}
    if name == "attention":
        length = plain.hidden[0].shape[1] + (0 if alone else INSERTED)
        shape = (BATCH, tower.sizes.num_heads, length, length)
        assert [found.attention[block].shape for block in (0, -1)] == [shape, shape]
    if name == "largest_logits":
        assert found.aux[name].shape == (BATCH, 2, tower.sizes.num_heads)
    if name == "activation_sums":
        blocks = (
            0 if tower.name == "image" and staged(tower.config) else 2 if alone else 1
        )  # an attend has no MLP
        assert found.aux[name].shape == (BATCH, blocks, 2)


def check_dropout(name, config, tower):
    sizes = getattr(config, tower)
    if "dropout" not in {field.name for field in dataclasses.fields(sizes)}:
        with pytest.raises(ValueError, match=f"unknown config key 'model.{tower}.dropout'"):
            config_lib.resolve({"model": {"preset": name, tower: {"dropout": 0.1}}})
        return
    changed = dataclasses.replace(sizes, dropout=0.1)
    random = Tower(dataclasses.replace(config, **{tower: changed}), tower)
    assert f"model.{tower}.dropout" in random.ask(train=True)
    keys = jax.random.split(jax.random.key(0), BATCH)
    assert random.ask(train=True, keys=keys).embedding.shape == (BATCH, config.embed_dim)


def check_another_size(tower, plain):
    c = tower.config.image
    step = c.reduction if staged(tower.config) else c.patch_size
    larger = tower.ask(inputs_of(tower.config, "image", c.image_size + 2 * step))
    assert larger.embedding.shape == plain.embedding.shape
    if c.pool != "queries":
        assert larger.tokens.shape[1] > plain.tokens.shape[1]
    uneven = tower.ask(inputs_of(tower.config, "image", c.image_size + 1))
    assert "H and W multiples of" in uneven and "\n" not in uneven


def check_preset(name, separately):
    """Each request by itself, or all that go together in one call, which costs less."""
    config = configuration(name)
    for which in ("image", "text"):
        tower = Tower(config, which)
        plain = tower.ask(hidden=(0,))
        every = requests(tower, plain)
        if which == "image" and staged(config):
            for request in OF_TOKENS:
                found = tower.ask(**every.pop(request))
                assert found.startswith(f"{request} can't be asked of the image tower"), found
                assert "use a Vision Transformer" in found and "\n" not in found
        asked = {(request,): options for request, options in every.items()}
        if not separately:
            alone = {("keep",): every.pop("keep")} if "keep" in every else {}  # the bias is of all
            together = {key: value for options in every.values() for key, value in options.items()}
            asked = {tuple(every): together, **alone}
        for names, options in asked.items():
            found = tower.ask(**options)
            assert not isinstance(found, str), f"{which}, {names}: {found}"
            for request in names:
                check_found(tower, request, found, plain, separately)
        check_dropout(name, config, which)
        if which == "image":
            check_another_size(tower, plain)


@pytest.mark.parametrize("name", KINDS)
def test_each_kind_of_tower_takes_every_request(name):
    check_preset(name, separately=False)


@pytest.mark.slow
@pytest.mark.parametrize("separately", [False, True])
@pytest.mark.parametrize("name", [*presets.names(), *OTHERS])
def test_each_preset_takes_every_request(name, separately):
    check_preset(name, separately)


def test_patch_sequences_take_what_pictures_take():
    config = configuration("siglip2_b16_naflex")
    tower = Tower(config, "image")
    patches = jax.ShapeDtypeStruct((BATCH, 12, 3 * config.image.patch_size**2), jnp.float32)
    sequence = patch_sequence.PatchSequence(
        patches,
        jax.ShapeDtypeStruct((BATCH, 12), jnp.bool_),
        jax.ShapeDtypeStruct((BATCH, 2), jnp.int32),
    )
    plain = tower.ask(sequence, hidden=(0,))
    for request, options in requests(tower, plain).items():
        found = tower.ask(sequence, **options)
        assert not isinstance(found, str), f"{request}: {found}"
        check_found(tower, request, found, plain)
