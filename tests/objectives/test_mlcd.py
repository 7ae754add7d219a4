"""Several clusters of each picture."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip import fields
from jaxclip.objectives.mlcd import MLCD, cluster_loss, with_margin
from tests.objectives import fixture_g as g

W = jnp.asarray(np.random.default_rng(5).normal(size=(5, 5)), jnp.float32)
LABELS = jnp.asarray([[0, 1], [2, -1], [4, 0], [1, 3], [-1, -1], [3, 2]], jnp.float32)


def test_numbers_of_the_specification():
    positive, negative = jnp.asarray([[0.4, 0.3]]), jnp.asarray([[0.1, 0.2, -0.1]])
    every = (positive > -1, negative > -1)
    loss = cluster_loss(positive, every[0], negative, every[1])
    assert float(loss[0]) == pytest.approx(2.3226345, rel=1e-6)
    a, b = np.exp(-np.asarray(positive)).sum(), np.exp(np.asarray(negative)).sum()
    assert np.log(1 + a * b) == pytest.approx(1.7155923, rel=1e-6)  # not decoupled
    assert float(loss[0]) == pytest.approx(np.log((1 + a) * (1 + b)), rel=1e-6)
    none = cluster_loss(positive, ~every[0], negative, ~every[1])
    assert float(none[0]) == pytest.approx(0.0, abs=1e-6)


def test_the_margin_is_an_angle():
    degrees = np.deg2rad([10.0, 90.0, 150.0])
    expected = np.cos(degrees + 0.3)
    np.testing.assert_allclose(with_margin(jnp.cos(degrees), 0.3), expected, atol=1e-6)
    far = with_margin(jnp.cos(jnp.asarray([2.9, 3.1])), 0.3)
    assert far[0] > far[1]  # falls on where the angle would turn over
    np.testing.assert_array_equal(with_margin(jnp.asarray([0.2]), 0.0), [np.float32(0.2)])


def reference(images, classes=W, drawn=range(5), scale=4.0, margin=0.2):
    classes = np.asarray(classes, np.float64)
    classes = classes / np.linalg.norm(classes, axis=1, keepdims=True)
    total = []
    for row, labels in zip(images, np.asarray(LABELS, int), strict=True):
        own = {k for k in labels if k >= 0}
        if own:
            cosines = classes @ row
            angle = np.arccos(cosines[sorted(own)]) + margin
            wrong = [k for k in drawn if k not in own]
            total.append(
                np.log1p(np.exp(-scale * np.cos(angle)).sum())
                + np.log1p(np.exp(scale * cosines[wrong]).sum())
            )
    return np.mean(total)


def test_value_and_gradient():
    objective = MLCD(num_classes=5, labels=2, negatives=1.0, scale=4.0, margin=0.2)
    made = {"image": g.random_rows("image")["image"], "cluster_labels": LABELS}
    params = {"classes": W}
    ctx = g.context(size=6)
    g.check_gradient(
        objective, made, lambda a, _: reference(a["image"]), ctx, wrt=["image"], params=params
    )
    _, metrics, _ = g.value(objective, made, ctx, params)
    assert float(metrics["labelled"]) == pytest.approx(5 / 6)


def test_negatives_are_drawn_for_the_whole_batch():
    objective = MLCD(num_classes=5, labels=2, negatives=0.6, scale=4.0, margin=0.2)
    made = {"image": g.random_rows("image")["image"], "cluster_labels": LABELS}
    ctx = g.context(size=6)
    [drawn] = np.asarray(objective._drawn(ctx)).tolist()
    assert len(set(drawn)) == 3
    loss, _, _ = g.value(objective, made, ctx, {"classes": W})
    images = np.asarray(made["image"], np.float64)
    assert float(loss) == pytest.approx(reference(images, drawn=drawn), rel=1e-5)


def test_each_shard_of_the_classes_gives_as_many_negatives():
    """On 4 devices that have a quarter of W each the loss is the same, and W stays where it is."""
    classes = jnp.asarray(np.random.default_rng(6).normal(size=(64, 5)), jnp.float32)
    objective = MLCD(num_classes=64, labels=2, negatives=0.25, shards=4, scale=4.0, margin=0.2)
    made = {"image": g.random_rows("image")["image"], "cluster_labels": LABELS}
    ctx = g.context(size=6)
    places = np.asarray(objective._drawn(ctx))
    assert places.shape == (4, 4) and all(len(set(row)) == 4 for row in places.tolist())
    assert len({tuple(row) for row in places.tolist()}) > 1  # not the same ones in each
    drawn = (places + 16 * np.arange(4)[:, None]).ravel().tolist()
    expected = reference(np.asarray(made["image"], np.float64), classes, drawn)

    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]), ("fsdp",))
    cut = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("fsdp"))
    sharded = jax.device_put(classes, cut)
    rows = jax.jit(lambda p: objective.rows({"classes": p}, made, ctx)["nll"])
    found = np.asarray(rows(sharded))
    assert found.sum() / 5 == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(found, rows(classes), rtol=1e-5)
    sizes = [math.prod(map(int, m.split(","))) for m in re.findall(
        r"= f32\[([\d,]+)\]\S* all-gather\(", rows.lower(sharded).compile().as_text()
    )]  # fmt: skip
    assert max(sizes, default=0) < classes.size  # the drawn rows at most


def test_what_it_asks_for_and_refuses():
    spec = MLCD(labels=3, key="near").fields
    assert spec == {"cluster_labels": fields.Stored("near", 3)}
    for options, message in (
        ({"negatives": 0}, r"mlcd\.negatives=0"),
        ({"num_classes": 1}, r"mlcd\.num_classes=1 must be a whole number of at least 2"),
        ({"num_classes": 2**25}, r"mlcd\.num_classes=33554432 must be at most 16777216"),
        ({"scale": -1}, r"mlcd\.scale=-1"),
        ({"shards": 3}, r"mlcd\.shards=3 does not divide mlcd\.num_classes=1000000"),
    ):
        with pytest.raises(ValueError, match=message):
            MLCD(**options)
