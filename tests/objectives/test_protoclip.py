"""ProtoCLIP, and k-means inside a step."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip import models
from jaxclip.objectives import _episodes
from jaxclip.objectives.protoclip import ProtoCLIP
from tests.objectives import fixture_g as g

SIZES = models.CLIPConfig(embed_dim=5)
SMALL = ProtoCLIP(num_clusters=3, episode_size=12, hidden=16, size=4, target_temperature=0.5)


def start(objective=SMALL):
    return objective.init_params(jax.random.key(3), SIZES), objective.init_state(SIZES)


def test_episodes_finds_separate_clusters():
    rng = np.random.default_rng(0)
    middles = np.array([[0.0, 0], [9, 0], [0, 9], [9, 9]])
    kinds = rng.integers(0, 4, 90)
    rows = jnp.asarray(middles[kinds] + 0.1 * rng.standard_normal((90, 2)), jnp.float32)
    centroids, labels = _episodes.kmeans(jax.random.key(1), rows, 4, restarts=16)
    place = np.argsort(np.abs(np.asarray(centroids)[:, None] - middles).sum(-1), 0)[0]
    assert sorted(place) == [0, 1, 2, 3]
    np.testing.assert_array_equal(labels, place[kinds])
    for k in range(4):
        expected = np.asarray(rows)[kinds == k].mean(0)
        np.testing.assert_allclose(np.asarray(centroids)[place[k]], expected, atol=1e-5)


def test_nearest_and_means_by_hand():
    rows = jnp.array([[0.0, 0], [1, 0], [5, 5]])
    labels = _episodes.nearest(rows, jnp.array([[0.4, 0], [5, 4], [99, 99]]), batch_size=2)
    np.testing.assert_array_equal(labels, [0, 0, 1])
    means = _episodes.means(rows, labels, 3, 0.0)
    np.testing.assert_allclose(means, [[0.5, 0], [5, 5], [0, 0]])


def test_published_value_of_one_prototype_loss():
    # A row whose text is of cluster 0, of an image whose feature is next to prototype 0.
    centroids = jnp.array([[1.0, 0.0], [0.6, 0.8]])
    prototypes = jnp.array([[0.0, 1.0], [1.0, 0.0]])
    logits = jnp.array([[0.0, 1.0]]) @ prototypes.T / 0.07
    for temperature, expected in ((0.01, 6.249e-7), (0.5, 4.428937)):
        objective = ProtoCLIP(target_temperature=temperature)
        found = float(objective.to_clusters(logits, centroids[:1], centroids)[0])
        assert found == pytest.approx(expected, rel=1e-6, abs=1e-7)


def test_the_first_episode_is_clip_alone_and_the_next_has_prototypes():
    params, state = start()
    protos = []
    for step in range(4):  # batches of 6, episodes of 12
        rows = g.random_rows("image", "text", seed=step)
        loss, metrics, state = g.value(SMALL, rows, g.context(size=6, step=step), params, state)
        protos.append(float(metrics["proto"]))
        if step == 0:
            image, text = (np.asarray(rows[k], np.float64) for k in ("image", "text"))
            assert float(loss) == pytest.approx(g.clip(image, text, 10.0), rel=1e-5)
        assert int(state["place"]) == (step + 1) * 6 % 12
        assert int(state["episodes"]) == (step + 1) // 2
        if step == 1:
            clusters = jax.tree.map(np.asarray, (state["centroids"], state["prototypes"]))
        if step == 2:  # between two ends of episodes nothing moves
            again = (state["centroids"], state["prototypes"])
            jax.tree.map(np.testing.assert_array_equal, clusters, again)
    assert protos[0] == 0.0 and all(value > 0.1 for value in protos[1:])


def test_an_episodes_prototypes_are_means_by_the_other_modalitys_cluster():
    objective = ProtoCLIP(num_clusters=2, episode_size=6, hidden=16, size=4)
    _, _, state = g.value(
        objective, g.random_rows("image", "text"), g.context(size=6), *start(objective)
    )
    labels = {
        t: _episodes.nearest(state["bank"][t], state["centroids"][t]) for t in ("image", "text")
    }
    for tower, other in (("image", "text"), ("text", "image")):
        bank, label = np.asarray(state["bank"][tower]), np.asarray(labels[other])
        np.testing.assert_allclose(np.linalg.norm(bank, axis=1), 1.0, rtol=1e-5)
        for k in range(2):
            expected = bank[label == k].mean(0)
            np.testing.assert_allclose(state["prototypes"][tower][k], expected, atol=1e-5)
            own = np.asarray(labels[tower]) == k
            np.testing.assert_allclose(state["centroids"][tower][k], bank[own].mean(0), atol=1e-5)


def test_one_cluster_or_no_weight_is_clip():
    rows = g.random_rows("image", "text")
    expected = g.clip(*(np.asarray(rows[k], np.float64) for k in ("image", "text")), 10.0)
    for options in ({"num_clusters": 1}, {"proto": 0.0, "num_clusters": 2}):
        objective = ProtoCLIP(episode_size=6, hidden=8, size=4, **options)
        loss, _, state = g.value(objective, rows, g.context(size=6), *start(objective))
        assert int(state["episodes"]) == 1
        assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_gradient_reaches_both_heads_and_towers():
    params, state = start()
    rows = g.random_rows("image", "text")
    for step in range(2):
        _, _, state = g.value(SMALL, rows, g.context(size=6, step=step), params, state)
    only = dataclasses.replace(SMALL, contrastive=0.0)

    def loss(params, rows, state):
        return g.value(only, rows, g.context(size=6), params, state)[0]

    gradients = jax.grad(loss, argnums=(0, 1))(params, rows, state)
    assert all(float(jnp.abs(x).max()) > 0 for x in jax.tree.leaves(gradients))


def test_gradient_is_that_of_the_formula():
    params, state = start()
    for step in range(2):  # to the end of an episode
        rows = g.random_rows("image", "text", seed=step)
        _, _, state = g.value(SMALL, rows, g.context(size=6, step=step), params, state)

    def head(name, rows):
        own = {key: np.asarray(value, np.float64) for key, value in params[name].items()}
        x = rows @ own["in"]
        x = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)
        x = np.maximum(x * own["scale"] + own["bias"], 0) @ own["out"]
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    def reference(x, base):
        total = 0.5 * g.clip(x["image"], x["text"], 10.0)
        for tower, other in (("image", "text"), ("text", "image")):
            centroids = np.asarray(state["centroids"][other], np.float64)
            gaps = head(other, base[other])[:, None] - centroids
            labels = (gaps**2).sum(-1).argmin(1)
            target = g.softmax_rows(centroids[labels] @ centroids.T / 0.5)
            prototypes = np.asarray(state["prototypes"][tower], np.float64)
            logits = head(tower, x[tower]) @ prototypes.T / 0.07
            total -= (target * (logits - g.lse(logits)[:, None])).sum(1).mean()
        return total

    objective = dataclasses.replace(SMALL, proto=2.0, contrastive=0.5)
    rows = g.random_rows("image", "text", seed=5)
    g.check_gradient(objective, rows, reference, params=params, state=state, rtol=2e-3)


def test_bad_options_are_refused():
    with pytest.raises(ValueError, match=r"protoclip.episode_size=10 must be a whole number of"):
        ProtoCLIP(num_clusters=20, episode_size=10)
    small = ProtoCLIP(num_clusters=2, episode_size=4, hidden=8, size=4)
    with pytest.raises(
        ValueError, match=r"protoclip.episode_size=4 must be at least the batch of 6"
    ):
        g.value(small, g.random_rows("image", "text"), g.context(size=6), *start(small))
