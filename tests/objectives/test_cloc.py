"""CLOC: region embeddings of prompted patches."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip import models
from jaxclip.models import presets
from jaxclip.objectives import _regions
from jaxclip.objectives.cloc import CLOC
from tests.objectives import fixture_g as g

TOWER = {"width": 16, "depth": 1, "num_heads": 2, "mlp_dim": 32}
MODEL = {"image": {"image_size": 16, "patch_size": 4, **TOWER}, "text": TOWER, "embed_dim": 2}
RNG = np.random.default_rng(3)
SIZES = presets.CLIPConfig.from_dict(MODEL)
CONTEXT = g.context(sizes=SIZES)


@functools.partial(jax.jit, static_argnums=0)
def value(objective, outputs, params):
    """The term's loss and metrics, compiled once for an objective."""
    return g.value(objective, outputs, CONTEXT, params)[:2]


@functools.partial(jax.jit, static_argnums=0)
def rows_of(objective, params, outputs):
    return objective.rows(params, outputs, CONTEXT)


def outputs():
    """Three pictures of 4 x 4 patches with two boxes each, the last one of padding."""
    boxes = np.sort(RNG.random((3, 2, 2, 2)), axis=2).reshape(3, 2, 4)
    boxes[2, 1] = 0
    ids = RNG.integers(1, 60, (3, 2, 5))
    texts = RNG.normal(size=(3, 2, 2))
    return {
        "image": g.I,
        "text": g.T,
        "image_tokens": jnp.asarray(RNG.normal(size=(3, 16, 16)), jnp.float32),
        "boxes": jnp.asarray(boxes, jnp.float32),
        "regions/text": models.unit(jnp.asarray(texts, jnp.float32)),
        "regions/text_input": jnp.asarray(ids, jnp.int32),
    }


@pytest.fixture(scope="module")
def params():
    return g.own_params(CLOC(), SIZES)


def test_without_its_weight_it_is_clip(params):
    loss, _ = value(CLOC(region_weight=0.0), outputs(), params)
    assert float(loss) == pytest.approx(0.1081597, rel=1e-5)


def test_padded_regions_change_nothing(params):
    given = outputs()
    loss, metrics = value(CLOC(), given, params)
    assert float(metrics["regions"]) == 5
    for key in ("regions/text", "regions/text_input"):
        given[key] = given[key].at[2, 1].set(given[key][0, 0])
    again, _ = value(CLOC(), given, params)
    assert float(again) == pytest.approx(float(loss), rel=1e-6)


def test_the_pool_of_a_whole_picture_is_the_mean_token(params):
    given = outputs()
    given["boxes"] = jnp.broadcast_to(jnp.array([0.0, 0, 1, 1]), (3, 2, 4))
    rows = rows_of(CLOC(prompter="pool", grounding=0.0), params, given)
    mean = given["image_tokens"].mean(1)
    p = params["out"]["out"]
    expected = models.unit(mean @ p["kernel"] + p["bias"])
    np.testing.assert_allclose(rows["regions"][:, 1], expected, rtol=1e-4, atol=1e-5)
    assert "found_boxes" not in rows


def test_the_loss_is_the_sum_of_its_parts(params):
    given = outputs()
    objective = CLOC(contrastive=0.5, region_weight=2.0, grounding=3.0)
    rows = rows_of(objective, params, given)
    loss, metrics = value(objective, given, params)
    valid = np.array([1, 1, 1, 1, 1, 0], bool)
    regions, texts = (
        np.asarray(x, np.float64).reshape(6, 2)[valid]
        for x in (rows["regions"], given["regions/text"])
    )
    assert float(metrics["region"]) == pytest.approx(g.clip(regions, texts, 10.0), rel=1e-4)
    found = _regions.corners(rows["found_boxes"])
    each = jnp.abs(found - given["boxes"]).sum(-1) + 1 - _regions.giou(found, given["boxes"])
    ground = float(np.asarray(each).reshape(6)[valid].mean())
    assert float(metrics["grounding"]) == pytest.approx(ground, rel=1e-5)
    expected = 0.5 * 0.1081597 + 2 * (float(metrics["region"]) + 3 * ground)
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_prompts_do_not_see_each_other(params):
    given = outputs()
    rows = rows_of(CLOC(), params, given)
    given["boxes"] = given["boxes"].at[:, 1].set(0.5)
    again = rows_of(CLOC(), params, given)
    np.testing.assert_allclose(rows["regions"][:, 0], again["regions"][:, 0], atol=1e-6)


def test_bad_options_are_refused():
    with pytest.raises(ValueError, match=r"cloc.prompter='pol'; use 'attention' or 'pool'"):
        CLOC(prompter="pol")
    with pytest.raises(ValueError, match=r"cloc.grounding=-1 must be"):
        CLOC(grounding=-1)
