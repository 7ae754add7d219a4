"""ViLLA: attributes find their regions without being told where they are."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip import models
from jaxclip.objectives import _regions
from jaxclip.objectives.villa import ViLLA, attribute_loss
from tests.objectives import fixture_g as g
from tests.objectives.test_cloc import SIZES, rows_of, value
from tests.objectives.test_cloc import outputs as cloc_outputs

CONTEXT = g.context(sizes=SIZES)


@pytest.fixture(scope="module")
def params():
    return g.own_params(ViLLA(), SIZES)


def test_the_example_of_two_pictures():
    """Similarities 2 and 1, the attribute is the first one's; the released code has .407606."""
    similarity, present = jnp.array([[2.0], [1.0]]), jnp.array([[True], [False]])
    loss = attribute_loss(similarity, present, jnp.array([0]), jnp.array([True]))
    assert float(loss) == pytest.approx(0.313262, abs=1e-6)


def test_pictures_with_the_attribute_are_no_negatives():
    similarity = jnp.array([[2.0, 0.0], [9.0, 1.0], [1.0, 3.0]])
    present = jnp.array([[True, False], [True, True], [False, False]])
    owner, valid = jnp.array([0, 1]), jnp.array([True, True])
    loss = attribute_loss(similarity, present, owner, valid)
    first = np.log(np.exp(2) + np.exp(1)) - 2
    second = np.log(np.exp(1) + np.exp(0) + np.exp(3)) - 1
    assert float(loss) == pytest.approx((first + second) / 2, rel=1e-6)
    only = attribute_loss(similarity, present, owner, jnp.array([False, True]))
    assert float(only) == pytest.approx(second, rel=1e-6)
    none = attribute_loss(similarity, present, owner, jnp.array([False, False]))
    assert float(none) == 0.0
    # An attribute of all pictures teaches nothing.
    everywhere = attribute_loss(similarity, present | True, owner, valid)
    assert float(everywhere) == pytest.approx(0.0, abs=1e-6)


def test_the_mapping_trains_the_projector_alone(params):
    given = cloc_outputs()
    objective = ViLLA(contrastive=0.0, pairs=0.0)

    def loss(params, tokens, texts):
        varied = {**given, "image_tokens": tokens, "regions/text": texts}
        return g.value(objective, varied, CONTEXT, params)[0]

    own, tokens, texts = jax.jit(jax.grad(loss, (0, 1, 2)))(
        params, given["image_tokens"], given["regions/text"]
    )
    assert not jnp.any(tokens) and not jnp.any(texts)
    assert not any(jnp.any(leaf) for leaf in jax.tree.leaves(own["region"]))
    assert any(jnp.any(leaf) for leaf in jax.tree.leaves(own["projector"]))


def test_one_window_makes_pairs_of_pictures_and_attributes(params):
    given = cloc_outputs()
    objective = ViLLA(window_grid=1, temperature=0.1)
    rows = rows_of(objective, params, given)
    p = params["region"]["out"]
    expected = models.unit(given["image_tokens"].mean(1) @ p["kernel"] + p["bias"])
    np.testing.assert_allclose(rows["regions"][:, 0], expected, rtol=1e-4, atol=1e-5)
    _, metrics = value(objective, given, params)
    regions = np.repeat(np.asarray(expected, np.float64), 2, axis=0)
    texts = np.asarray(given["regions/text"], np.float64).reshape(6, 2)
    assert float(metrics["pairs"]) == pytest.approx(g.clip(regions, texts, 10.0), rel=1e-4)
    assert float(metrics["mapped"]) == 1.0


def test_windows_tile_the_picture():
    cells = _regions.windows(2)
    assert cells.tolist() == [
        [0, 0, 0.5, 0.5], [0.5, 0, 1, 0.5], [0, 0.5, 0.5, 1], [0.5, 0.5, 1, 1]
    ]  # fmt: skip


def test_without_attributes_it_is_clip(params):
    given = cloc_outputs()
    given["regions/text_input"] = jnp.zeros_like(given["regions/text_input"])
    loss, _ = value(ViLLA(), given, params)
    assert float(loss) == pytest.approx(0.1081597, rel=1e-5)


def test_windows_want_a_square_grid():
    ViLLA().check(SIZES, None)
    many = dataclasses.replace(SIZES.image, pool="map", max_patches=16)
    with pytest.raises(ValueError, match=r"villa finds patches .*max_patches=0, got 'map' and 16"):
        ViLLA().check(dataclasses.replace(SIZES, image=many), None)


def test_bad_options_are_refused():
    with pytest.raises(ValueError, match=r"villa.temperature=0 must be a positive number"):
        ViLLA(temperature=0)
