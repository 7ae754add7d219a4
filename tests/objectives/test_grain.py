"""GRAIN: queries, matched boxes, descriptions."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip.objectives import _regions
from jaxclip.objectives.grain import GRAIN, best_match
from tests.objectives import fixture_g as g
from tests.objectives.test_cloc import SIZES, rows_of, value
from tests.objectives.test_cloc import outputs as cloc_outputs

CONTEXT = g.context(sizes=SIZES)
OBJECTIVE = GRAIN(**GRAIN.small)


@pytest.fixture(scope="module")
def params():
    return g.own_params(OBJECTIVE, SIZES)


def test_every_box_gets_the_query_that_makes_the_sum_least():
    rng = np.random.default_rng(0)
    found, boxes = (np.sort(rng.random((4, 5, 2, 2)), 2).reshape(4, 5, 4) for _ in range(2))
    valid = np.array([[1] * 5, [1, 1, 0, 1, 0], [0] * 5, [0, 0, 0, 0, 1]], bool)
    order = np.asarray(best_match(*map(jnp.asarray, (found, boxes, valid))))
    a, b = jnp.asarray(found)[:, :, None], jnp.asarray(boxes)[:, None]
    cost = np.asarray(5 * jnp.abs(a - b).sum(-1) - 2 * _regions.giou(a, b)) * valid[:, None]
    for row in range(4):
        ways = list(itertools.permutations(range(5)))
        totals = [cost[row, way, range(5)].sum() for way in ways]
        assert cost[row, order[row], range(5)].sum() <= min(totals) + 1e-5
        assert sorted(order[row]) == list(range(5))
    # Boxes that are the queries' own find them in any order.
    shuffled = np.array([3, 0, 4, 1, 2])
    order = best_match(*map(jnp.asarray, (found, found[:, shuffled], np.ones((4, 5), bool))))
    assert order.tolist() == [shuffled.tolist()] * 4


def test_boxes_and_descriptions_may_come_in_any_order(params):
    given = cloc_outputs()
    loss, metrics = value(OBJECTIVE, given, params)
    turned = {k: v[:, ::-1] if k.startswith(("boxes", "regions/")) else v for k, v in given.items()}
    again, _ = value(OBJECTIVE, turned, params)
    assert float(again) == pytest.approx(float(loss), rel=1e-5)
    parts = [0.1081597, metrics["query_clip"], 1.5 * metrics["box"], metrics["describe"]]
    assert float(loss) == pytest.approx(float(sum(map(float, parts))), rel=1e-5)


def test_a_perfect_match_has_no_box_loss_and_its_description_one_direction(params):
    given = cloc_outputs()
    rows = rows_of(OBJECTIVE, params, given)
    given["boxes"] = rows["found_boxes"][:, ::-1]
    _, metrics = value(OBJECTIVE, given, params)
    assert float(metrics["box"]) == pytest.approx(0.0, abs=1e-5)
    regions = np.asarray(rows["regions"][:, ::-1], np.float64).reshape(6, 2)
    logits = 10 * regions @ np.asarray(given["regions/text"], np.float64).reshape(6, 2).T
    expected = (g.lse(logits) - np.diagonal(logits)).mean()
    assert float(metrics["describe"]) == pytest.approx(expected, rel=1e-4)


def test_without_boxes_it_is_clip_through_the_decoder(params):
    given = cloc_outputs()
    given["boxes"] = jnp.zeros_like(given["boxes"])
    objective = GRAIN(**{**GRAIN.small, "contrastive": 0.0})
    loss, metrics = value(objective, given, params)
    query = objective.image_query(params, given["image_tokens"], SIZES)
    np.testing.assert_allclose(jnp.linalg.norm(query, axis=1), 1.0, rtol=1e-5)
    expected = g.clip(np.asarray(query, np.float64), np.asarray(g.T, np.float64), 10.0)
    assert float(loss) == pytest.approx(expected, rel=1e-4) and float(metrics["regions"]) == 0


def test_bad_options_are_refused():
    with pytest.raises(ValueError, match=r"grain.num_regions=7: at most 6"):
        GRAIN(num_regions=7)
    with pytest.raises(ValueError, match=r"grain.width=10 must be a multiple of num_heads=4"):
        GRAIN(width=10, num_heads=4)
