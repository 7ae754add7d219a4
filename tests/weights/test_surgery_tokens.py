"""Another vocabulary, register tokens, a fourth channel: identities, and means of what."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip import models
from jaxclip.models.attend import MASKED
from jaxclip.weights import surgery
from tests.models import small

SIZES = small.change(small.CLIP, image={"depth": 1}, text={"depth": 1})
TOKENS = np.array([[3, 7, 5, 39, 0, 0], [7, 4, 9, 1, 6, 39]], np.int32)


@pytest.fixture(scope="module")
def params():
    return small.params_for(models.build(SIZES))


@pytest.fixture(scope="module")
def encode_text():
    """Programs by the sizes of their vocabulary."""
    return jax.jit(
        lambda sizes, params, tokens: models.build(sizes).encode_text(params, tokens),
        static_argnums=0,
    )


def test_the_same_vocabulary_changes_nothing(params):
    found, sizes = surgery.resize_vocabulary(params, SIZES, range(40))
    assert found is params and sizes is SIZES


def test_kept_tokens_are_embedded_as_before_wherever_they_stand(params, encode_text):
    rows = [0, 39, 3, 7, 5, 4, 9, 1, 6]
    found, sizes = surgery.resize_vocabulary(params, SIZES, rows)
    assert sizes.text.vocab_size == 9
    moved = np.vectorize(rows.index)(TOKENS).astype(np.int32)
    expected = encode_text(SIZES, params, TOKENS)
    np.testing.assert_array_equal(encode_text(sizes, found, moved), expected)
    assert found["image"] is params["image"]


def test_new_tokens_start_as_the_mean_of_old_ones(params):
    rows = [*range(40), [3, 4], [7, 8, 9]]
    found, sizes = surgery.resize_vocabulary(params, SIZES, rows)
    before = params["text"]["token_embedding"]["embedding"]
    after = found["text"]["token_embedding"]["embedding"]
    assert sizes.text.vocab_size == 42 and after.dtype == before.dtype
    np.testing.assert_array_equal(after[:40], before)
    np.testing.assert_allclose(after[40], before[3:5].mean(0), rtol=1e-6)
    np.testing.assert_allclose(after[41], before[7:10].mean(0), rtol=1e-6)
    jax.eval_shape(models.build(sizes).encode_text, found, jnp.asarray(TOKENS))


def test_a_decoders_logits_follow(params):
    kernel = np.random.default_rng(0).standard_normal((12, 40)).astype(np.float32)
    own = {"coca": {"decoder": {"logits": {"kernel": kernel}}}}
    found, _ = surgery.resize_vocabulary({**params, "objective": own}, SIZES, [0, 5, [1, 2]])
    new = found["objective"]["coca"]["decoder"]["logits"]["kernel"]
    np.testing.assert_array_equal(new[:, :2], kernel[:, [0, 5]])
    np.testing.assert_allclose(new[:, 2], kernel[:, 1:3].mean(1), rtol=1e-6)


def test_rows_of_names():
    old = {"a": 2, "cat": 5, "c": 6}
    pieces = {"cats": [5, 9], "dog": []}
    rows = surgery.rows_by_name(["cat", "cats", "dog"], old, pieces.__getitem__)
    assert rows == [5, [5, 9], [2, 5, 6]]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([1, 0], r"rows\[0\] is padding and must stay rows\[0\]=0"),
        ([0, 40], r"rows\[1\]=40: name one token or more, 0 to 39"),
        ([0, []], r"rows\[1\]=\[\]: name one token"),
    ],
)
def test_rows_that_cant_be_are_refused(params, rows, message):
    with pytest.raises(ValueError, match=message):
        surgery.resize_vocabulary(params, SIZES, rows)


# Registers.


def test_no_registers_change_nothing(params):
    found, sizes = surgery.add_registers(params, SIZES, 0)
    assert found is params and sizes is SIZES


@pytest.mark.parametrize("image", [{}, {"pool": "map", "pre_norm": False, "patch_bias": True}])
def test_a_model_with_hidden_registers_is_the_old_one(image):
    old = small.change(SIZES, image=image)
    params = small.params_for(models.build(old))
    new, sizes = surgery.add_registers(params, old, 2)
    assert sizes.image.num_registers == 2
    images = np.random.default_rng(0).standard_normal((2, 8, 8, 3)).astype(np.float32)
    places = np.arange(sizes.image.grid**2 + 2 + (old.image.pool == "cls"))
    first = int(old.image.pool == "cls")
    hidden = np.where((places >= first) & (places < first + 2), MASKED, 0.0)
    bias = np.broadcast_to(hidden, (1, 1, len(places), len(places))).astype(np.float32)
    model = models.build(sizes)
    found = jax.jit(lambda p, x: model.image_features(p, x, attention_bias=bias).embedding)
    expected = jax.jit(models.build(old).encode_image)(params, images)
    np.testing.assert_allclose(found(new, images), expected, atol=1e-6)
    bias_row = params["image"]["patch_embedding"].get("bias", 0.0)
    table = params["image"]["positions"][first:]
    for register in new["image"]["registers"]:
        np.testing.assert_allclose(register, table.mean(0) + bias_row, atol=1e-6)


def test_more_registers_come_behind(params):
    once, sizes = surgery.add_registers(params, SIZES, 1)
    once["image"]["registers"] = once["image"]["registers"] + 1.0
    twice, sizes = surgery.add_registers(once, sizes, 2)
    assert sizes.image.num_registers == 3 and twice["image"]["registers"].shape == (3, 16)
    np.testing.assert_array_equal(twice["image"]["registers"][:1], once["image"]["registers"])


def test_towers_that_cant_have_them_are_refused(params):
    with pytest.raises(ValueError, match=r"count=-1 registers"):
        surgery.add_registers(params, SIZES, -1)
    sincos = dataclasses.replace(SIZES, image=dataclasses.replace(SIZES.image, positions="sincos"))
    tower = {k: v for k, v in params["image"].items() if k != "positions"}
    with pytest.raises(ValueError, match=r"learned positions"):
        surgery.add_registers({**params, "image": tower}, sincos, 1)


# A fourth channel.


def test_a_new_alpha_channel_changes_nothing_until_it_is_trained(params):
    new, sizes = surgery.add_alpha(params, SIZES)
    again = surgery.add_alpha(new, sizes)
    assert again[0] is new and again[1] is sizes
    model = models.build(sizes)
    drawn = jax.eval_shape(model.init, jax.random.key(0))
    assert jax.tree.map(np.shape, new) == jax.tree.map(lambda leaf: leaf.shape, drawn)
    images = np.random.default_rng(0).random((2, 8, 8, 4)).astype(np.float32)
    encode = jax.jit(model.encode_image)
    expected = jax.jit(models.build(SIZES).encode_image)(params, images[..., :3])
    np.testing.assert_allclose(encode(new, images), expected, atol=1e-6)
    kernel = np.random.default_rng(1).standard_normal((16, 16)).astype(np.float32)
    trained = {**new["image"], "alpha_embedding": {"kernel": kernel}}
    assert np.abs(encode({**new, "image": trained}, images) - expected).max() > 1e-3


def test_towers_that_can_have_no_alpha_channel_are_refused(params):
    tower = {k: v for k, v in params["image"].items() if k != "patch_embedding"}
    with pytest.raises(ValueError, match=r"needs a patch embedding"):
        surgery.add_alpha({**params, "image": tower}, SIZES)
