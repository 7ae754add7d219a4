"""Products of few bits against rules written out, and what configurations are refused."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip.models import layers
from jaxclip.models.products import PRODUCTS, one_bit, rules
from jaxclip.models.products._base import Product
from jaxclip.models.products.emulated import Emulated
from jaxclip.models.products.one_bit import OneBit
from jaxclip.models.products.split_bfloat16 import SplitBfloat16
from jaxclip.models.products.switchback import SwitchBack

RNG = np.random.default_rng(0)
X, W, G = (
    jnp.asarray(RNG.standard_normal(shape), jnp.float32) for shape in ((24, 16), (16, 8), (24, 8))
)


def both_passes(product, x=X, w=W, g=G):
    def passes(x, w, g):
        out, back = jax.vjp(product, x, w)
        return out, *back(g)

    return jax.jit(passes)(x, w, g)


def rounded(x, axis, top=127):
    x = np.asarray(x, np.float64)
    scale = np.abs(x).max(axis=axis, keepdims=True) / top
    return np.minimum(np.round(x / scale), np.floor(top)) * scale


@pytest.mark.parametrize(("terms", "least", "most"), [(2, 3e-4, 5e-3), (3, 0, 3e-5)])
def test_split_bfloat16_is_its_sum_in_float64(terms, least, most):
    """Two terms lose the activations' remainders alone, three next to nothing."""
    x, w, g = (np.asarray(each, np.float32) for each in (X, W, G))

    def parts(a):
        high = a.astype(jnp.bfloat16).astype(np.float64)
        return high, (a - high).astype(jnp.bfloat16).astype(np.float64)

    def product(a, b):
        (a1, a2), (b1, b2) = parts(a), parts(b)
        return a1 @ (b1 + b2) + (a2 @ b1 if terms == 3 else 0)

    found = jax.jit(lambda x, w, g: both_passes(SplitBfloat16(terms), x, w, g))(x, w, g)
    exact = (x @ w, g @ w.T, x.T @ g)
    for each, expected, true in zip(
        found, (product(x, w), product(g, w.T), product(x.T, g)), exact, strict=True
    ):
        scale = np.abs(true).max()
        np.testing.assert_allclose(each, expected, atol=2e-6 * scale)
        assert least * scale < np.abs(each - true).max() < most * scale
    with pytest.raises(ValueError, match=r"terms=1 of split_bfloat16 must be 2 or 3"):
        rules.from_config({"name": "split_bfloat16", "terms": 1})


def test_switchback_is_its_rule_written_out():
    out, to_x, to_w = both_passes(SwitchBack())
    np.testing.assert_allclose(out, rounded(X, 1) @ rounded(W, None), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(to_x, rounded(G, 1) @ rounded(W, None).T, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(to_w, X.T @ G, rtol=1e-5, atol=1e-5)
    assert np.abs(out - X @ W).max() > 1e-3
    zeros = both_passes(SwitchBack(), 0 * X, 0 * W, 0 * G)
    assert all(not np.any(each) for each in zeros)


def test_switchback_is_the_form_that_qwix_gives_it():
    qwix = pytest.importorskip("qwix")
    rule = qwix.QtRule(
        module_path=".*",
        weight_qtype="int8",
        act_qtype="int8",
        bwd_qtype="int8",
        additional_qt_config={
            "rhs_disable_channelwise_axes": True,
            "use_original_residuals": True,
            "dlhs_residual_qtype": "int8",
            "dlhs_residual_disable_channelwise_axes": True,
            "drhs_grad_qtype": None,
        },
    )
    layer = qwix.quantize_model(nn.Dense(8, use_bias=False), qwix.QtProvider([rule]))
    theirs = both_passes(lambda x, w: layer.apply({"params": {"kernel": w}}, x))
    ours = both_passes(SwitchBack())
    np.testing.assert_allclose(ours[2], theirs[2], atol=6e-6)
    # Their scale is max|x| / 127.5, ours max|x| / 127; the rule is the same. The largest number of
    # all is a tie at theirs, which may round either way: so most elements, and none by much.
    for top, (out, to_x, _) in ((127.5, theirs), (127, ours)):
        kernel = rounded(W, None, top)
        for found, wanted in (
            (out, rounded(X, 1, top) @ kernel),
            (to_x, rounded(G, 1, top) @ kernel.T),
        ):
            error = np.abs(found - wanted)
            assert np.median(error) < 1e-5 and error.max() < 0.25


FP8 = {"weight": "float8_e4m3fn", "activation": "float8_e4m3fn"}


@pytest.mark.parametrize("options", [{}, {"backward": "int8"}, FP8])
def test_qwix_products(options):
    pytest.importorskip("qwix")
    product = PRODUCTS.build({"name": "qwix", **options})
    product.check()
    exact = X @ W, G @ W.T, X.T @ G
    for name, found, wanted in zip(("y", "dx", "dw"), both_passes(product), exact, strict=True):
        error = np.abs(found - wanted).max()
        assert error < 0.7, name
        rounds = name == "y" or "backward" in options
        assert (error > 1e-4) == rounds, name


def test_qwix_has_no_four_bits_on_a_cpu():
    with pytest.raises(ValueError, match=r"weight='int4': qwix has no products of 4 bits on CPUs"):
        PRODUCTS.build({"name": "qwix", "weight": "int4"}).check()
    with pytest.raises(ValueError, match="weight='in8' is no type of qwix; did you mean 'int8'"):
        PRODUCTS.build({"name": "qwix", "weight": "in8"}).check()


def test_emulated_products_go_straight_through():
    out, to_x, to_w = both_passes(Emulated("int4"))
    np.testing.assert_allclose(out, rounded(X, 1, 7) @ rounded(W, 0, 7), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(to_x, G @ rounded(W, 0, 7).T, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(to_w, rounded(X, 1, 7).T @ G, rtol=1e-4, atol=1e-5)
    plain = both_passes(Emulated("float32"))
    np.testing.assert_array_equal(plain[0], X @ W)


@pytest.mark.parametrize(("gradient", "outside"), [("ste", 1.0), ("clipped", 0.0), ("mad", None)])
def test_gradients_beyond_the_clip(gradient, outside):
    """int2 of (.1, -.5, 1, -4) clips at 3.764706: the last number is beyond."""
    x, w = jnp.asarray([[0.1, -0.5, 1.0, -4.0]]), jnp.eye(4)
    product = Emulated("int2_octav", gradient)
    product.check()
    slope = jax.grad(lambda x: jnp.sum(product(x, w)))(x)[0]
    np.testing.assert_allclose(slope[:3], slope[0] * np.ones(3))
    wanted = 3.764706 / 4 if outside is None else outside
    np.testing.assert_allclose(slope[3] / slope[0], wanted, rtol=1e-5)


def test_rows_of_the_largest_elements_stay():
    kept = one_bit.keep_rows(jnp.asarray([[1.0, 0], [0, -5], [2, 2], [0, 0]]), 2)
    np.testing.assert_array_equal(kept, [[0, 0], [0, -5], [2, 2], [0, 0]])


@pytest.mark.parametrize("bits", [1, 4])
def test_stochastic_rounding_is_unbiased(bits):
    x = jnp.asarray([[0.0, 0.3, 0.77, 1.0], [5.0, 5.0, 5.0, 5.0]])
    keys = jax.random.split(jax.random.key(0), 100_000)
    drawn = jax.jit(jax.vmap(lambda key: one_bit.stochastic_round(x, key, bits, 1)))(keys)
    np.testing.assert_allclose(jnp.mean(drawn, axis=0), x, atol=4 * 0.5 / 1e5**0.5 + 1e-5)
    places = np.asarray(drawn[:, 0]) * (2**bits - 1)
    np.testing.assert_allclose(places, np.round(places), atol=1e-5)
    assert len(np.unique(np.round(places[:, 1]))) == 2


def test_one_bit_keeps_all_rows_and_is_the_same_each_time():
    first, second = both_passes(OneBit(bits=1)), both_passes(OneBit(bits=1))
    for one, two in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(first[0], both_passes(lambda x, w: x @ w)[0])
    assert np.all(np.any(np.asarray(first[1]) != 0, axis=1))
    few = both_passes(OneBit(bits=4))
    assert (np.asarray(few[1]) != 0).any(axis=1).sum() == 24 // 4
    exact = np.asarray(X.T @ G)
    cosine = (few[2] * exact).sum() / np.linalg.norm(few[2]) / np.linalg.norm(exact)
    assert 0.5 < cosine < 0.999


def test_signs():
    x = jnp.asarray([[2.0, -0.5, 0.0, -1.5]])
    value, slope = jax.value_and_grad(lambda x: jnp.sum(one_bit.signs(x, 1) * jnp.arange(4)))(x)
    np.testing.assert_allclose(value, (-1 + 2 - 3) * 1.0)
    np.testing.assert_allclose(slope, [[0, 1, 2, 0]])


def test_every_file_is_a_product():
    for name in PRODUCTS.names():
        assert issubclass(PRODUCTS.get(name), Product), name


class Spy(Product):
    def __init__(self):
        self.shapes = []

    def __call__(self, x, kernel):
        self.shapes.append((x.shape, kernel.shape))
        return x @ kernel


def test_which_layers_a_rule_reaches():
    block = layers.Block(2, 12, "gelu", 1e-5, jnp.float32)
    x = jnp.asarray(RNG.standard_normal((2, 3, 8)), jnp.float32)
    shapes = jax.eval_shape(block.init, jax.random.key(0), x, None)["params"]
    params = jax.tree.map(lambda s: RNG.standard_normal(s.shape, np.float32), shapes)
    expected, _ = block.apply({"params": params}, x, None)
    spies = Spy(), Spy()
    given = [rules.Rule("image/mlp/up$", spies[0]), rules.Rule("^(image|text)/", spies[1])]
    with rules.applied(given, "image"):
        out, _ = block.apply({"params": params}, x, None)
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-4)
    assert spies[0].shapes == [((6, 8), (8, 12))]
    assert spies[1].shapes == [((6, 8), (8, 8))] * 4 + [((6, 12), (12, 8))]
    with rules.applied([rules.Rule("text/", spies[0])], "image"):
        block.apply({"params": params}, x, None)
    assert len(spies[0].shapes) == 1
    # A pool has attention and an MLP, too, but is no block.
    pool = layers.AttentionPool(2, 12, "gelu", 1e-5, jnp.float32)
    with rules.applied([rules.Rule("", spies[0])], "image"):
        pool.init_with_output(jax.random.key(0), x)
    assert len(spies[0].shapes) == 1


def test_rules_of_a_configuration():
    assert rules.from_config([]) == ()
    one = rules.from_config("switchback")
    assert one == rules.from_config([{"name": "switchback"}])
    assert one[0].layers == rules.ALL_LAYERS
    names = rules.layer_names(
        ["image/patch_embedding/kernel", "image/blocks_0/mlp/up/kernel", "text/projection/kernel",
         "image/blocks_1/mlp/up/kernel", "image/blocks_0/attention/query/bias",
         "text/blocks_0/attention/out/kernel", "image/attention_pool/mlp/up/kernel"]
    )  # fmt: skip
    assert names == ["image/mlp/up", "text/attention/out"]
    rules.check_used(one, names)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("switchbak", r"products\[0\]: unknown product 'switchbak'; did you mean 'switchback'"),
        ([{"name": "emulated", "formt": "int8"}], "unknown option 'formt' of product 'emulated'"),
        ([{"name": "emulated", "format": "int5"}], "unknown precision 'int5'"),
        ([{"name": "emulated", "gradient": "mad"}], "is for formats that clip"),
        ([{"name": "one_bit", "bits": 0}], "bits=0 must be from 1 to 8"),
        ([{"name": "switchback", "layers": "image/blocks_0/mlp"}], "names blocks, but"),
        ([{"name": "switchback", "layers": "mlp/(up"}], "is no pattern"),
        ([3], "is neither a name nor a dict"),
    ],
)
def test_what_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        rules.from_config(given)


def test_rules_that_are_for_nothing():
    names = ["image/mlp/up", "image/mlp/down"]
    given = rules.from_config([{"name": "switchback", "layers": "image/mlp/upp"}])
    with pytest.raises(ValueError, match=r"'image/mlp/upp' is left with no layer; there are image"):
        rules.check_used(given, names)
    hidden = rules.from_config(["switchback", {"name": "emulated", "layers": "mlp/up"}])
    with pytest.raises(ValueError, match=r"precision.products\[1\]"):
        rules.check_used(hidden, names)
    with pytest.raises(ValueError, match="there are no linear layers of Transformer blocks"):
        rules.check_used(given, [])
