"""Measures of sharpness against quadratics worked out by hand, and their invariances."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip import losses
from jaxclip.evaluate import sharpness

W = {"w": jnp.asarray([1.0, 2.0])}
KEY = jax.random.key(0)


def bowl(params):
    """(w1^2 + 3 w2^2) / 2: Hessian diag(1, 3), gradient (1, 6) at (1, 2)."""
    return (params["w"][0] ** 2 + 3 * params["w"][1] ** 2) / 2


def network(params):
    """Two layers with a norm between, so that one may be scaled up and the other down."""
    x = jnp.linspace(-1.0, 1.0, 12).reshape(4, 3)
    hidden = jax.nn.relu(x @ params["first"]["kernel"])
    hidden = (hidden - hidden.mean()) / (hidden.std() + 1e-3)
    return jnp.mean((hidden * params["gain"]) @ params["second"]["kernel"]) ** 2 + jnp.mean(
        jnp.tanh((hidden * params["gain"]) @ params["second"]["kernel"])
    )


@pytest.fixture(scope="module")
def layers():
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)  # noqa: E731
    return {"first": {"kernel": draw(3, 5)}, "gain": draw(5), "second": {"kernel": draw(5, 2)}}


def rescaled(params, a):
    second = {"kernel": params["second"]["kernel"] / a}
    return {**params, "gain": params["gain"] * a, "second": second}


def test_hvp_and_the_sharpness_along_an_update():
    product = sharpness.hvp(bowl, W, {"w": jnp.asarray([1.0, 2.0])})
    np.testing.assert_allclose(product["w"], [1.0, 6.0])
    found = sharpness.directional_sharpness(bowl, W, {"w": jnp.asarray([1.0, 2.0]) / 5**0.5})
    np.testing.assert_allclose(found.sharpness, 13 / 5, rtol=1e-6)
    np.testing.assert_allclose(found.slope, 13 / 5**0.5, rtol=1e-6)
    np.testing.assert_allclose(found.predicted, 13 / 5**0.5 + 1.3, rtol=1e-6)
    # The prediction is exact where the loss is a quadratic.
    step = {"w": jnp.asarray([-0.1, -0.6])}
    change = bowl({"w": W["w"] + step["w"]}) - bowl(W)
    found = sharpness.directional_sharpness(bowl, W, step)
    np.testing.assert_allclose(found.predicted, change, rtol=1e-5)
    # Of the gradient it is Rayleigh's quotient (1 + 3 * 36) / 37.
    found = sharpness.directional_sharpness(bowl, W, {"w": -jnp.asarray([1.0, 6.0])})
    np.testing.assert_allclose(found.sharpness, 109 / 37, rtol=1e-6)
    zero = sharpness.directional_sharpness(bowl, W, {"w": jnp.zeros(2)})
    assert float(zero.sharpness) == 0


@pytest.mark.parametrize(
    ("parts", "expected"),
    [([9.0, 0.5, 0.3, 0.2], 1 / 4), ([1.0] * 10, 0.9), ([5.0, 5.0, -5.0], 1 / 3)],
)
def test_share_of_coordinates(parts, expected):
    parts = {"a": jnp.asarray(parts[:2]), "b": jnp.asarray(parts[2:])}
    np.testing.assert_allclose(sharpness.share_of_coordinates(parts), expected, rtol=1e-6)


def test_no_share_where_the_curvature_is_not_positive():
    assert np.isnan(sharpness.share_of_coordinates({"a": jnp.asarray([1.0, -3.0])}))


def test_the_trace_by_group_is_exact_with_one_probe_on_a_diagonal():
    h = {"image": {"blocks_0": {"a": jnp.asarray([1.0, 2.0]), "b": jnp.asarray(5.0)}, "c": 7.0}}
    params = jax.tree.map(lambda x: jnp.ones_like(x), h)
    loss = lambda p: sum(jax.tree.leaves(jax.tree.map(lambda h, x: jnp.sum(h * x**2) / 2, h, p)))  # noqa: E731
    diagonal = sharpness.hessian_diagonal(loss, params, KEY, 1)
    groups = sharpness.groups_of(params)
    assert groups["image/blocks_0"] == ["image/blocks_0/a", "image/blocks_0/b"]
    traces = sharpness.trace_by_group(diagonal, groups)
    np.testing.assert_allclose(traces["image/blocks_0"], 8.0, rtol=1e-6)
    np.testing.assert_allclose(traces["image/c"], 7.0, rtol=1e-6)


@pytest.mark.slow
def test_the_trace_of_a_full_hessian_by_many_probes(layers):
    diagonal = sharpness.hessian_diagonal(network, layers, KEY, 400)
    flat, unravel = jax.flatten_util.ravel_pytree(layers)
    exact = jnp.diagonal(jax.hessian(lambda x: network(unravel(x)))(flat))
    found = jax.flatten_util.ravel_pytree(diagonal)[0]
    assert abs(found.sum() - exact.sum()) < 0.15 * jnp.abs(exact).sum()


@pytest.mark.parametrize(("adaptive", "norm", "expected"), [
    (False, "l2", 0.02), (True, "l2", 0.065), (True, "linf", 0.065 / 3),
])  # fmt: skip
def test_average_sharpness_of_a_quadratic(adaptive, norm, expected):
    scale = sharpness.scales(W, adaptive=adaptive)
    found = sharpness.average_sharpness(bowl, W, scale, KEY, 0.1, norm=norm, samples=4000)
    np.testing.assert_allclose(found, expected, rtol=0.06)


def test_worst_sharpness_of_a_quadratic():
    scale = sharpness.scales(W, adaptive=True)
    found = sharpness.worst_sharpness(bowl, W, scale, 0.1, norm="linf")
    np.testing.assert_allclose(found, 1.365, rtol=1e-5)
    plain = sharpness.scales(W, adaptive=False)
    found = sharpness.worst_sharpness(bowl, W, plain, 0.1, norm="linf")
    np.testing.assert_allclose(found, 0.1 + 0.6 + 0.02, rtol=1e-5)
    # l2: the maximum over the circle, searched for by brute force.
    angles = np.linspace(0, 2 * np.pi, 100_001)
    for scale, c in ((plain, (1, 1)), (sharpness.scales(W, adaptive=True), (1, 2))):
        x, y = 1 + 0.5 * c[0] * np.cos(angles), 2 + 0.5 * c[1] * np.sin(angles)
        best = ((x**2 + 3 * y**2) / 2).max() - 6.5
        found = sharpness.worst_sharpness(bowl, W, scale, 0.5)
        np.testing.assert_allclose(found, best, rtol=1e-4)


@pytest.mark.slow
def test_nothing_is_perturbed_outside_of_the_chosen_tensors(layers):
    scale = sharpness.scales(layers, adaptive=False, only=lambda path: path.startswith("second"))
    assert float(jnp.sum(scale["first"]["kernel"])) == 0
    none = sharpness.scales(layers, adaptive=False, only=lambda path: False)
    np.testing.assert_allclose(
        sharpness.average_sharpness(network, layers, none, KEY, 0.3, samples=2), 0, atol=1e-6
    )
    assert float(sharpness.worst_sharpness(network, layers, none, 0.3, steps=3)) == 0
    whole = sharpness.scales(layers, adaptive=False)
    one, all_ = (float(sharpness.worst_sharpness(network, layers, s, 0.3)) for s in (scale, whole))
    assert 0 < one < all_


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_adaptive_sharpness_does_not_see_a_rescaling(layers, norm):
    def measured(params, adaptive):
        scale = sharpness.scales(params, adaptive=adaptive)
        return (
            sharpness.average_sharpness(network, params, scale, KEY, 0.1, norm=norm, samples=3),
            sharpness.worst_sharpness(network, params, scale, 0.1, norm=norm, steps=8),
        )

    other = rescaled(layers, 7.0)
    np.testing.assert_allclose(network(layers), network(other), rtol=1e-5)
    np.testing.assert_allclose(measured(layers, True), measured(other, True), rtol=2e-3, atol=1e-6)
    assert not np.allclose(measured(layers, False), measured(other, False), rtol=0.2)


def test_another_norm_is_refused():
    with pytest.raises(ValueError, match="norm='l1' is neither of l2, linf"):
        sharpness.worst_sharpness(bowl, W, W, 0.1, norm="l1")


def test_barriers_are_zero_at_the_ends_and_between_equal_ends(layers):
    other = jax.tree.map(lambda x: x + 0.5 * jnp.cos(7 * x), layers)
    groups = {"first": ["first/kernel"], "second": ["second/kernel", "gain"]}
    alphas = jnp.linspace(0, 1, 5)
    same = sharpness.layer_barriers(network, layers, layers, groups, alphas)
    np.testing.assert_allclose(np.stack(list(same.values())), 0, atol=1e-6)
    found = sharpness.layer_barriers(network, layers, other, groups, alphas)
    values = np.stack(list(found.values()))
    np.testing.assert_array_equal(values[:, [0, -1]], 0)
    assert np.abs(values[:, 1:-1]).max() > 1e-3
    # By hand: only this layer moves, the other one is that of the end.
    half = {
        **other,
        "first": jax.tree.map(lambda a, b: (a + b) / 2, layers["first"], other["first"]),
    }
    ends = network({**other, "first": layers["first"]}), network(other)
    np.testing.assert_allclose(found["first"][2], network(half) - sum(ends) / 2, atol=1e-6)


def test_the_ends_of_an_interpolation_are_exact(layers):
    other = jax.tree.map(lambda x: 3 * x + 1, layers)
    jax.tree.map(np.testing.assert_array_equal, sharpness.interpolate(layers, other, 0.0), layers)
    jax.tree.map(np.testing.assert_array_equal, sharpness.interpolate(layers, other, 1.0), other)
    values = sharpness.losses_between(network, layers, other, jnp.asarray([0.0, 1.0]))
    np.testing.assert_allclose(values, [network(layers), network(other)], rtol=1e-6)


def test_the_largest_changes_stay():
    before = {"a": jnp.zeros(4), "b": jnp.zeros(2)}
    after = {"a": jnp.asarray([0.1, -3.0, 2.0, 0.2]), "b": jnp.ones(2)}
    pruned = sharpness.prune_task_vector(before, after, ["a"], 0.5)
    np.testing.assert_array_equal(pruned["a"], [0, -3, 2, 0])
    np.testing.assert_array_equal(pruned["b"], 1)
    np.testing.assert_array_equal(sharpness.prune_task_vector(before, after, ["a"], 0)["a"], 0)
    with pytest.raises(ValueError, match="keep=2 must be"):
        sharpness.prune_task_vector(before, after, ["a"], 2)


def test_units_of_a_direction_are_as_long_as_those_of_the_weights():
    rng = np.random.default_rng(0)
    params = {
        "kernel": jnp.asarray(rng.standard_normal((6, 3)) * [1, 10, 100], jnp.float32),
        "embedding": jnp.asarray(rng.standard_normal((4, 5)) * [[1], [9], [0], [3]], jnp.float32),
        "bias": jnp.ones(3),
        "class_token": jnp.ones((1, 1, 3)),
    }
    found = sharpness.random_direction(params, KEY)
    norm = np.linalg.norm
    np.testing.assert_allclose(
        norm(found["kernel"], axis=0), norm(params["kernel"], axis=0), rtol=1e-5
    )
    np.testing.assert_allclose(
        norm(found["embedding"], axis=1), norm(params["embedding"], axis=1), rtol=1e-5
    )
    assert not np.any(found["bias"]) and not np.any(found["class_token"])
    layer = sharpness.random_direction(params, KEY, "layer")["kernel"]
    np.testing.assert_allclose(norm(layer), norm(params["kernel"]), rtol=1e-5)
    weight = sharpness.random_direction(params, KEY, "weight")["kernel"]
    np.testing.assert_allclose(np.abs(weight), np.abs(params["kernel"]))
    with pytest.raises(ValueError, match="mode='row' is none of"):
        sharpness.random_direction(params, KEY, "row")


def test_slices(layers):
    directions = [sharpness.random_direction(layers, jax.random.key(i)) for i in (1, 2)]
    x, y = np.linspace(-1, 1, 5), np.linspace(-0.5, 0.5, 3)
    values = sharpness.grid_losses(network, layers, directions, [x, y], chunk=4)
    assert values.shape == (5, 3)
    np.testing.assert_allclose(values[2, 1], network(layers), rtol=1e-5)
    corner = jax.tree.map(lambda w, a, b: w + x[0] * a + y[2] * b, layers, *directions)
    np.testing.assert_allclose(values[0, 2], network(corner), rtol=1e-5)
    # A network of other scales, and of the same function, has the same slice.
    scaled = {**layers, "second": {"kernel": layers["second"]["kernel"] * 4}}
    scaled["gain"] = layers["gain"] / 4
    other = [sharpness.random_direction(scaled, jax.random.key(i)) for i in (1, 2)]
    np.testing.assert_allclose(
        sharpness.grid_losses(network, scaled, other, [x, y]), values, rtol=1e-3, atol=1e-5
    )
    line = sharpness.grid_losses(network, layers, directions[:1], [x])
    np.testing.assert_allclose(line, values[:, 1], rtol=1e-5)
    with pytest.raises(ValueError, match="1 directions, but 2 axes"):
        sharpness.grid_losses(network, layers, directions[:1], [x, y])


def pairs():
    rng = np.random.default_rng(0)
    batches = {
        n: jnp.asarray(rng.standard_normal((3, 4, 5)), jnp.float32) for n in ("image", "text")
    }
    params = {n: jnp.asarray(rng.standard_normal((5, 6)), jnp.float32) for n in batches}

    def encode(params, tower, x):
        y = x @ params[tower]
        return y / jnp.linalg.norm(y, axis=-1, keepdims=True)

    return batches, params, encode


def test_the_loss_of_pairs_is_the_mean_of_those_of_its_batches():
    batches, params, encode = pairs()
    scale = jnp.log(10.0)
    loss = sharpness.pair_loss(encode, batches, scale)
    one = [
        losses.softmax(*(encode(params, n, batches[n][i]) for n in batches), logit_scale=scale)[0]
        for i in range(3)
    ]
    np.testing.assert_allclose(loss(params), np.mean(one), rtol=1e-6)


@pytest.mark.slow
def test_with_normalised_logits_the_temperature_says_nothing():
    batches, params, encode = pairs()
    hot, cold = (
        sharpness.pair_loss(encode, batches, jnp.log(t), normalize_logits=True)(params)
        for t in (3.0, 50.0)
    )
    np.testing.assert_allclose(hot, cold, rtol=1e-5)
    plain = sharpness.pair_loss(encode, batches, jnp.log(3.0))(params)
    assert abs(hot - plain) > 1e-3
