"""Every loss of the registry against its closed form, value and gradient."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip import losses, parallel
from tests.losses import reference

# Odd sizes: 13 rows in tiles of 4 leave a tile with padding.
SIZE, WIDTH, TILE = 13, 5, 4

CASES = {
    "softmax": ({"name": "softmax"}, reference.softmax),
    "softmax_smoothed": (
        {"name": "softmax", "label_smoothing": 0.1},
        functools.partial(reference.softmax, label_smoothing=0.1),
    ),
    "sigmoid": ({"name": "sigmoid"}, reference.sigmoid),
    "softmax_blockwise": (
        {"name": "softmax_blockwise", "tile_size": TILE},
        reference.softmax,
    ),
    "softmax_blockwise_smoothed": (
        {"name": "softmax_blockwise", "tile_size": TILE, "label_smoothing": 0.1},
        functools.partial(reference.softmax, label_smoothing=0.1),
    ),
    "sigmoid_blockwise": ({"name": "sigmoid_blockwise", "tile_size": TILE}, reference.sigmoid),
}


def embeddings(size=SIZE, width=WIDTH, seed=0):
    """Two sets of unit rows, close enough in pairs that some but not all are hits."""
    rng = np.random.default_rng(seed)
    images = rng.standard_normal((size, width))
    texts = images + rng.standard_normal((size, width))
    return tuple(x / np.linalg.norm(x, axis=1, keepdims=True) for x in (images, texts))


@functools.cache
def value_and_grad(case, mesh=None):
    """Jitted ``(images, texts, logit_scale, logit_bias) -> ((loss, metrics), gradients)``."""
    loss = losses.from_config(CASES[case][0])
    options = {"mesh": mesh} if mesh is not None and "blockwise" in case else {}

    def run(images, texts, logit_scale, logit_bias):
        return loss(images, texts, logit_scale=logit_scale, logit_bias=logit_bias, **options)

    return jax.jit(jax.value_and_grad(run, argnums=(0, 1, 2, 3), has_aux=True))


def check(result, case, images, texts, logit_scale, logit_bias, rtol, atol):
    (loss, metrics), gradients = result
    expected, expected_gradients = CASES[case][1](
        np.asarray(images, np.float64),
        np.asarray(texts, np.float64),
        logit_scale=logit_scale,
        logit_bias=logit_bias,
    )
    np.testing.assert_allclose(loss, expected, rtol=rtol, atol=atol)
    for gradient, (name, value) in zip(gradients, expected_gradients.items(), strict=True):
        np.testing.assert_allclose(
            np.asarray(gradient, np.float64), value, rtol=rtol, atol=atol, err_msg=name
        )
    if "softmax" in case:
        hits = metrics["accuracy_image_to_text"], metrics["accuracy_text_to_image"]
        np.testing.assert_allclose(hits, reference.accuracies(images, texts), rtol=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_value_and_gradient_in_float64(case):
    images, texts = embeddings()
    with jax.enable_x64(True):
        for logit_scale, logit_bias in ((math.log(10), -10.0), (math.log(100), 3.0)):
            arguments = images, texts, np.float64(logit_scale), np.float64(logit_bias)
            result = value_and_grad(case)(*arguments)
            assert result[0][0].dtype == jnp.float64
            check(result, case, *arguments, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("case", CASES)
def test_extreme_scales_stay_finite_and_right(case):
    images, texts = (x.astype(np.float32) for x in embeddings())
    for logit_scale in (-20.0, 0.0, math.log(100), math.log(1e6)):
        arguments = images, texts, np.float32(logit_scale), np.float32(-10.0)
        result = value_and_grad(case)(*arguments)
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(result))
        check(result, case, *arguments, rtol=2e-4, atol=2e-5 * math.exp(max(logit_scale, 0)))


@pytest.mark.parametrize("case", ["softmax", "sigmoid", "softmax_blockwise", "sigmoid_blockwise"])
def test_bfloat16_embeddings_are_computed_with_in_float32(case):
    images, texts = (jnp.asarray(x, jnp.bfloat16) for x in embeddings())
    arguments = images, texts, np.float32(math.log(100)), np.float32(0)
    result = value_and_grad(case)(*arguments)
    assert result[0][0].dtype == jnp.float32
    assert result[1][0].dtype == jnp.bfloat16
    exact, _ = CASES[case][1](
        np.asarray(images, np.float64), np.asarray(texts, np.float64), logit_scale=math.log(100)
    )
    np.testing.assert_allclose(result[0][0], exact, rtol=1e-5)


@pytest.mark.parametrize("name", ["softmax", "sigmoid"])
def test_the_plain_losses_on_eight_devices(name):
    mesh = parallel.make_mesh({"data": 4, "fsdp": 2})
    images, texts = (x.astype(np.float32) for x in embeddings(16))
    sharded = parallel.to_global((images, texts), mesh)
    scale, bias = np.float32(math.log(20)), np.float32(-5)
    result = value_and_grad(name)(*sharded, scale, bias)
    check(result, name, images, texts, scale, bias, rtol=1e-5, atol=1e-6)


def test_the_losses_are_symmetric():
    images, texts = embeddings()
    for name in ("softmax_smoothed", "sigmoid"):
        one = CASES[name][1](images, texts, logit_scale=2.0)[0]
        loss = losses.from_config(CASES[name][0])
        for pair in ((images, texts), (texts, images)):
            np.testing.assert_allclose(loss(*pair, logit_scale=2.0)[0], one, rtol=1e-5)


@pytest.mark.parametrize("name", losses.names())
def test_one_pair(name):
    """No negatives: InfoNCE is 0 with gradient 0, the sigmoid loss has its one positive."""
    x = jnp.ones((1, 1))

    def run(x, scale):
        return losses.get(name)(x, x, logit_scale=scale)[0]

    loss, gradient = jax.value_and_grad(run)(x, 0.0)
    if "softmax" in name:
        assert loss == 0 and gradient == 0
    else:
        np.testing.assert_allclose(loss, math.log1p(math.exp(-1)), rtol=1e-6)
        np.testing.assert_allclose(gradient, -2 / (1 + math.e), rtol=1e-6)


def test_ties_are_no_hits():
    x = np.ones((3, 2), np.float32)
    for name in ("softmax", "softmax_blockwise"):
        _, metrics = losses.get(name)(x, x, logit_scale=0.0)
        assert metrics["accuracy_image_to_text"] == metrics["accuracy_text_to_image"] == 0


def test_unknown_names_and_options_get_a_hint():
    with pytest.raises(ValueError, match=r"unknown loss 'soft_max'; did you mean 'softmax'\?"):
        losses.from_config({"name": "soft_max"})
    message = r"unknown option 'label_smooth' of loss 'softmax'; did you mean 'label_smoothing'"
    with pytest.raises(ValueError, match=message):
        losses.from_config({"name": "softmax", "label_smooth": 0.1})
    with pytest.raises(ValueError, match=r"'mesh' of loss 'sigmoid'; known: implement.*precision"):
        losses.from_config({"name": "sigmoid", "mesh": None})
    with pytest.raises(ValueError, match=r"loss\.label_smoothing=1 must be in \[0, 1\)"):
        losses.from_config({"name": "softmax", "label_smoothing": 1})
    with pytest.raises(ValueError, match=r"loss\.precision='exact'; use 'default'"):
        losses.from_config({"name": "softmax", "precision": "exact"})
    with pytest.raises(ValueError, match=r"loss\.tile_size=0 must be at least 1"):
        losses.from_config({"name": "sigmoid_blockwise", "tile_size": 0})


def test_precision_reaches_every_product():
    x = jax.ShapeDtypeStruct((8, 4), jnp.float32)
    for name in losses.names():
        products = {}
        for precision in ("default", "highest"):
            loss = losses.from_config({"name": name, "precision": precision})
            gradient = jax.grad(lambda a, b, loss=loss: loss(a, b, logit_scale=0.0)[0], (0, 1))
            text = jax.jit(gradient).lower(x, x).as_text()
            assert text.count("dot_general") >= 3
            products[precision] = re.findall(r"dot_general .*precision = \[(\w+), (\w+)\]", text)
            assert len(products[precision]) == text.count("stablehlo.dot_general")
        assert set(products["default"]) == {("DEFAULT", "DEFAULT")}, name
        assert set(products["highest"]) == {("HIGHEST", "HIGHEST")}, name


# --- Mistakes ------------------------------------------------------------------------------------

PAIRS = {
    **{name: losses.get(name) for name in losses.names()},
    "infonce": losses.infonce,
    "simclr": losses.simclr,
}


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize(
    ("images", "texts", "message"),
    [
        ((6, 4), (4, 4), r"has shape \[4, 4\], where \[B, D\] is wanted with B=6"),
        ((1, 4), (6, 4), r"has shape \[6, 4\], where \[B, D\] is wanted with B=1"),
        ((6, 4), (6, 5), "with B=6 as .* has, D=4"),
        ((4,), (4,), r"has shape \[4\], where \[B, D\] is wanted"),
        ((0, 4), (0, 4), "has no rows; a batch holds one at least"),
    ],
)
def test_embeddings_that_would_broadcast_are_refused(name, images, texts, message):
    with pytest.raises(ValueError, match=rf"\A{name}: .*{message}"):
        PAIRS[name](np.ones(images, np.float32), np.ones(texts, np.float32), logit_scale=0.0)


@pytest.mark.parametrize("name", PAIRS)
def test_what_are_no_numbers_is_named(name):
    x = np.ones((2, 3), np.float32)
    for images, given, found in ((None, 0.0, "NoneType"), (x + 1j, 0.0, "complex64")):
        with pytest.raises(TypeError, match=rf"{name}: (image_embeddings|first) is of {found}"):
            PAIRS[name](images, x, logit_scale=given)
    with pytest.raises(TypeError, match=rf"{name}: logit_scale is of str"):
        PAIRS[name](x, x, logit_scale="2.6")
    with pytest.raises(ValueError, match=rf"{name}: logit_scale has shape \[2\], a scalar"):
        PAIRS[name](x, x, logit_scale=np.zeros(2))
    with pytest.raises(ValueError, match="precision='exact'; use 'default', 'high' or 'highest'"):
        PAIRS[name](x, x, logit_scale=0.0, precision="exact")


def test_a_scale_in_half_precision_is_raised_to_its_power_in_float32():
    """bfloat16 has 100 as 99.5, and 1% less of the next power."""
    images, texts = (x.astype(np.float32) for x in embeddings())
    for name in ("softmax", "sigmoid"):
        half = jnp.asarray(2.3, jnp.bfloat16)
        loss = losses.get(name)
        given, exact = (loss(images, texts, logit_scale=s)[0] for s in (half, float(half)))
        np.testing.assert_allclose(given, exact, rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x: losses.softmax(x, x, logit_scale=0.0, label_smoothing=2.0), ValueError,
         r"softmax\.label_smoothing=2\.0 must be in \[0, 1\)"),
        (lambda x: losses.infonce(x, x, logit_scale=0.0, label_smoothing="a"), TypeError,
         r"infonce\.label_smoothing='a' must be a number"),
        (lambda x: losses.infonce(x, x, logit_scale=0.0, weights=np.ones((2, 1))), ValueError,
         r"infonce: weights has shape \[2, 1\], where \[B\] is wanted"),
        (lambda x: losses.infonce(x, x, logit_scale=0.0, labels=[0.5, 1.0]), TypeError,
         "infonce: labels are float"),
        (lambda x: losses.softmax_blockwise(x, x, logit_scale=0.0, tile_size=2.5), ValueError,
         r"tile_size=2\.5 must be at least 1"),
        (lambda x: losses.soft_contrast(x, x, 1.0, [losses.Teacher(x[:1], x[:1])]), ValueError,
         r"soft_contrast: images has shape \[1, 3\]"),
        (lambda x: losses.soft_contrast(x, x, 1.0, [losses.Teacher(x, x)], own_share=2.0),
         ValueError, r"soft_contrast\.own_share=2\.0 must be in \[0, 1\]"),
        (lambda x: losses.soft_kl(x, x[:, :1]), ValueError, "must be of one shape"),
        (lambda x: losses.cosine_distance(x, x[:1]), ValueError, r"must be \[B, D\] both"),
        (lambda x: losses.hinge(x, x, 1.0, np.ones((2, 1))), ValueError, "hinge: offset has"),
        (lambda x: losses.retrieve(x, x[:1], 1.0), ValueError, "retrieve: stored has shape"),
        (lambda x: losses.products(x, x.T), ValueError, "products: b has shape"),
        (lambda x: losses.token_sums(x[None], np.zeros((1, 1), int), np.ones((1, 2), bool)),
         ValueError, r"token_sums: targets has shape \[1, 1\].* with B=1.*, L=2"),
        (lambda x: losses.tokenwise_similarity(x[None], x[None, :, :2]), ValueError,
         "tokenwise_similarity: text_tokens has shape"),
        (lambda x: losses.group_weights(x[None], x[None, :, :2]), ValueError,
         "group_weights: patches has shape"),
    ],
)  # fmt: skip
def test_other_arrays_and_options_that_do_not_fit(call, error, message):
    with pytest.raises(error, match=message):
        call(np.ones((2, 3), np.float32))


def test_lists_and_one_element_do():
    x = [[1.0, 0.0], [0.0, 1.0]]
    one = losses.softmax(np.asarray(x), np.asarray(x), logit_scale=1.0)[0]
    assert losses.softmax(x, x, logit_scale=[1.0])[0] == one


def test_what_serves_as_a_number_and_as_rows():
    """NumPy's integers, arrays of one element, and lists of traced rows."""
    x, y = np.eye(3, dtype=np.float32), np.full((3, 3), 0.5, np.float32)
    plan = losses.softmax_blockwise(x, y, logit_scale=0.0, tile_size=np.int64(2))[0]
    np.testing.assert_allclose(plan, losses.softmax(x, y, logit_scale=0.0)[0], rtol=1e-6)
    one, same = (losses.hinge(x, y, scale, np.ones(3))[0] for scale in (jnp.ones(1), 1.0))
    np.testing.assert_array_equal(one, same)

    @jax.jit
    def of_rows(rows):
        return losses.softmax(list(rows), y, logit_scale=[rows[0, 0] - 1])[0]

    np.testing.assert_allclose(of_rows(x), losses.softmax(x, y, logit_scale=0.0)[0], rtol=1e-6)
    given, exact = (
        losses.infonce(x, y, logit_scale=0.0, weights=w)[0]
        for w in ([1, 2, 0], np.array([1, 2, 0]))
    )
    np.testing.assert_array_equal(given, exact)
