"""What experts say of the places of a picture."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip import fields, models
from jaxclip.objectives.cliptex import CLIPTeX, disagreement
from tests.objectives import fixture_g as g

EXPERTS = [
    {"key": "s", "kind": "segments", "classes": 3},
    {"key": "d", "kind": "depth", "weight": 2.0},
    {"key": "n", "kind": "normals", "weight": 0.5},
]
IMAGE = models.ImageConfig(image_size=8, patch_size=4, width=6, num_heads=2)
SIZES = models.CLIPConfig(IMAGE, embed_dim=2)
RNG = np.random.default_rng(0)
OBJECTIVE = CLIPTeX(experts=EXPERTS, grid=2)
MADE = {
    "image": g.I,
    "text": g.T,
    "image_tokens": jnp.asarray(RNG.normal(size=(3, 4, 6)), jnp.float32),
    "map/s": jnp.asarray([[0, 1, 2, -1], [2, 2, 0, 0], [5, 1, 1, 1]], jnp.float32),
    "map/d": jnp.asarray([[1, 2, 0.5, 0], [1, 1, 1, 1], [-1, 2, 3, 4]], jnp.float32),
    "map/n": jnp.asarray(RNG.normal(size=(3, 4, 3)), jnp.float32).at[1, 2].set(0).reshape(3, 12),
}


def test_value_in_float64_and_places_that_do_not_count():
    params = g.own_params(OBJECTIVE, SIZES)
    loss, metrics, _ = g.value(OBJECTIVE, MADE, params=params)
    made = {key: np.asarray(x, np.float64) for key, x in MADE.items()}

    def told(key):
        head = jax.tree.map(lambda x: np.asarray(x, np.float64), params[key]["out"])
        return made["image_tokens"] @ head["kernel"] + head["bias"]

    label, every = made["map/s"].astype(int), told("s")
    real = (label >= 0) & (label < 3)
    nll = g.lse(every) - np.take_along_axis(every, np.where(real, label, 0)[..., None], 2)[..., 0]
    depth = np.abs(told("d")[..., 0] - made["map/d"])[made["map/d"] > 0].mean()
    normals = made["map/n"].reshape(3, 4, 3)
    length = np.linalg.norm(normals, axis=-1)
    cosine = (told("n") * normals).sum(-1) / np.linalg.norm(told("n"), axis=-1)
    angle = (1 - cosine[length > 0] / length[length > 0]).mean()
    assert real.sum() == 10 and (length > 0).sum() == 11
    for key, expected in (("s", nll[real].mean()), ("d", depth), ("n", angle)):
        assert float(metrics[key]) == pytest.approx(expected, rel=1e-5)
    expected = 0.1081597 + nll[real].mean() + 2 * depth + 0.5 * angle
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_a_head_that_tells_the_map_itself_is_at_0():
    maps = jnp.abs(jnp.asarray(RNG.normal(size=(2, 4, 1)), jnp.float32))
    np.testing.assert_array_equal(disagreement("depth", maps, maps)[0], 0.0)
    normals = jnp.asarray(RNG.normal(size=(2, 4, 3)), jnp.float32)
    np.testing.assert_allclose(disagreement("normals", 3 * normals, normals)[0], 0.0, atol=1e-6)
    label = jnp.asarray([[[0.0], [2.0]]])
    sure = 50.0 * jax.nn.one_hot(label[..., 0].astype(int), 3)
    np.testing.assert_allclose(disagreement("segments", sure, label)[0], 0.0, atol=1e-6)


def test_mirrored_with_its_map_nothing_changes_but_the_normals_x():
    normals = jnp.asarray(RNG.normal(size=(1, 4, 3)), jnp.float32)
    told = jnp.asarray(RNG.normal(size=(1, 4, 3)), jnp.float32)
    turn, order = jnp.asarray([-1.0, 1, 1]), jnp.asarray([1, 0, 3, 2])
    plain, _ = disagreement("normals", told, normals)
    both, _ = disagreement("normals", (told * turn)[:, order], (normals * turn)[:, order])
    np.testing.assert_allclose(both, plain[:, order], atol=1e-6)
    wrong, _ = disagreement("normals", (told * turn)[:, order], normals[:, order])
    assert np.abs(wrong - plain[:, order]).max() > 1e-2


def test_what_it_asks_for_and_refuses():
    assert OBJECTIVE.fields["map/n"] == fields.Stored("n", 12)
    OBJECTIVE.check(SIZES, None)
    many = dataclasses.replace(IMAGE, pool="map", max_patches=4)  # of any aspect ratio
    for image in (many, dataclasses.replace(IMAGE, pool="queries")):
        with pytest.raises(ValueError, match="cliptex finds patches by their place in a square"):
            OBJECTIVE.check(dataclasses.replace(SIZES, image=image), None)
    with pytest.raises(ValueError, match=r"cliptex\.grid=14 is that of the maps; .* has 2 patches"):
        CLIPTeX().check(SIZES, None)
    for experts, message in (
        ([], "must be a list of dicts of key, kind, classes, weight"),
        (["depth"], "must be a list of dicts"),
        ([{"kind": "depth"}], "needs a 'key'"),
        ([{"key": "a", "kind": "colour"}], "use 'segments', 'depth' or 'normals'"),
        ([{"key": "a", "kind": "segments"}], "classes=0 must be a whole number of at least 2"),
        ([{"key": "a", "knid": "depth"}], "unknown option 'knid' .*; did you mean 'kind'"),
        ([{"key": "a", "kind": "depth"}] * 2, "must differ"),
    ):
        with pytest.raises(ValueError, match=message):
            CLIPTeX(experts=experts)
