"""TinyCLIP's weight inheritance."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxclip import models
from jaxclip.models import presets
from jaxclip.train import state_io
from jaxclip.weights.surgery import inherit

TOWER = {"width": 32, "depth": 12, "num_heads": 4, "mlp_dim": 48}


def architecture(**changes):
    base = presets.get("vit_b32").to_dict()
    base["image"] |= {**TOWER, "image_size": 16, "patch_size": 8, **changes}
    base["text"] |= {**TOWER, "vocab_size": 32, "context_length": 6, **changes}
    return presets.CLIPConfig.from_dict({**base, "embed_dim": 16})


def drawn(sizes):
    shapes = jax.eval_shape(models.build(sizes).init, jax.random.key(0))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda s: np.float32(0.2 * rng.standard_normal(s.shape)), shapes)


@pytest.fixture(scope="module")
def large():
    return drawn(architecture())


def test_with_equal_sizes_it_is_the_identity(large):
    found = inherit(large, architecture(), architecture())
    jax.tree.map(np.testing.assert_array_equal, found, large)


def test_blocks_rows_and_heads_are_the_papers(large):
    smaller = architecture(width=16, depth=5, num_heads=2, mlp_dim=20)
    smaller = dataclasses.replace(smaller, embed_dim=8)
    found, given = (
        state_io.named_leaves(t) for t in (inherit(large, architecture(), smaller), large)
    )
    for index, source in enumerate((0, 2, 4, 6, 8)):
        name = "image/blocks_{}/attention/key/kernel"
        np.testing.assert_array_equal(
            found[name.format(index)], given[name.format(source)][:16, :16]
        )
        name = "text/blocks_{}/mlp/down/kernel"
        np.testing.assert_array_equal(
            found[name.format(index)], given[name.format(source)][:20, :16]
        )
    np.testing.assert_array_equal(found["image/projection/kernel"],
                                  given["image/projection/kernel"][:16, :8])  # fmt: skip
    expected = jax.eval_shape(models.build(smaller).init, jax.random.key(0))
    assert {k: v.shape for k, v in found.items()} == {
        k: v.shape for k, v in state_io.named_leaves(expected).items()
    }


def test_what_adds_nothing_may_go():
    """Blocks that add nothing and hidden channels that go nowhere."""
    sizes, smaller = architecture(depth=3), architecture(depth=1, mlp_dim=20)
    params = drawn(sizes)
    for tower in ("image", "text"):
        for index in range(3):
            block = params[tower][f"blocks_{index}"]
            block["mlp"]["down"]["kernel"][20:] = 0
            if index % 3:
                for layer in (block["mlp"]["down"], block["attention"]["out"]):
                    layer["kernel"][:], layer["bias"][:] = 0, 0
    cut = inherit(params, sizes, smaller)
    rng = np.random.default_rng(1)
    images = rng.standard_normal((2, 16, 16, 3)).astype(np.float32)
    tokens = rng.integers(1, 32, (2, 6)).astype(np.int32)
    before, after = models.build(sizes), models.build(smaller)
    for encode, inputs in (("encode_image", images), ("encode_text", tokens)):
        found = jax.jit(getattr(after, encode))(cut, inputs)
        expected = jax.jit(getattr(before, encode))(params, inputs)
        np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 16}, r"heads of 4 channels can't inherit from heads of 8; use num_heads=2"),
        ({"depth": 13}, r"depth=13 is more than 12"),
        ({"mlp_dim": 49}, r"mlp/down/kernel of shape \[49, 32\] is no part of \[48, 32\]"),
        ({"width": 40, "num_heads": 5}, "is no part of"),
    ],
)
def test_what_is_not_smaller_is_refused(large, changes, message):
    with pytest.raises(ValueError, match=message):
        inherit(large, architecture(), architecture(**changes))


def test_a_convolutional_tower_stays_as_it_is():
    sizes = presets.get("convnext_base_w").to_dict()
    sizes["image"] |= {"depths": [1, 1, 1, 1], "widths": [4, 6, 8, 10], "image_size": 32}
    sizes["text"] |= {**TOWER, "vocab_size": 32, "context_length": 6}
    sizes = presets.CLIPConfig.from_dict({**sizes, "embed_dim": 16})
    given = drawn(sizes)
    found = inherit(
        given, sizes, dataclasses.replace(sizes, text=dataclasses.replace(sizes.text, depth=6))
    )
    jax.tree.map(np.testing.assert_array_equal, found["image"], given["image"])
    last = found["text"]["blocks_5"]["mlp"]["up"]["kernel"]
    np.testing.assert_array_equal(last, given["text"]["blocks_10"]["mlp"]["up"]["kernel"])
    fewer = dataclasses.replace(sizes, image=dataclasses.replace(sizes.image, depths=(2, 1, 1, 1)))
    with pytest.raises(ValueError, match=r"image.depths=\(1, 1, 1, 1\) can't inherit from \(2, 1"):
        inherit(given, fewer, sizes)
