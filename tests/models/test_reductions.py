"""Towers that run on fewer patches: FEATHER, BTP and ToMe."""

import dataclasses
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip import models
from jaxclip.models import reductions
from jaxclip.models.features import Tokens
from jaxclip.models.reductions import _base, btp, feather, tome
from tests.models import small

KINDS = {
    "cls": small.CLIP,
    "map": small.SIGLIP,
    "mean": small.change(small.CLIP, image={"pool": "mean", "num_registers": 1}),
}
RNG = np.random.default_rng(0)


def tower_of(kind, **image):
    config = small.change(KINDS[kind], image={"image_size": 16, "depth": 3, **image})
    model = models.build(config)
    return model.image, small.params_for(model)["image"]


@pytest.fixture(scope="module")
def images():
    return jnp.asarray(RNG.normal(size=(3, 16, 16, 3)), jnp.float32)


@pytest.fixture(scope="module")
def twins():
    """Pictures whose patches are equal in pairs, of which one stands in each of ToMe's sets."""
    half = RNG.normal(size=(3, 8, 4, 4, 3)).repeat(2, axis=1)
    picture = half.reshape(3, 4, 4, 4, 4, 3).transpose(0, 1, 3, 2, 4, 5).reshape(3, 16, 16, 3)
    return jnp.asarray(picture, jnp.float32)


class FirstBlock(tome.ToMe):
    """All twins at once: later, both of a pair may stand in one set."""

    def schedule(self, depth):
        return [self.r] + [0] * (depth - 1)


WHOLE = (
    {"name": "feather", "ratio": 0.0},
    {"name": "btp", "keep": [1, 1, 1], "layers": [0, 1, 2]},
    {"name": "tome", "r": 0},
)


@pytest.fixture(scope="module", params=["cls", "map", pytest.param("mean", marks=pytest.mark.slow)])
def outputs(request, images, twins):
    """What a tower gives whole and reduced, all of one program."""
    tower, params = tower_of(request.param, positions="none")

    @jax.jit
    def run(params, images, twins):
        def merged(**options):
            return FirstBlock(r=4, **options).features(tower, params, twins)

        found = {c["name"]: reductions.from_config(c).encode(tower, params, images) for c in WHOLE}
        found |= {"plain": tower.encode(params, images), "twins": tower.encode(params, twins)}
        return found | {"merged": merged(), "unweighted": merged(proportional=False).raw}

    return run(params, images, twins)


@pytest.mark.parametrize("name", [config["name"] for config in WHOLE])
def test_nothing_left_out_is_the_tower_itself(outputs, name):
    np.testing.assert_allclose(outputs[name], outputs["plain"], rtol=1e-4, atol=1e-5)


# FEATHER.


def test_feather_keeps_the_grid_and_the_best_of_the_others():
    stages = feather.Feather(layers=(2, 5)).stages(12, (27, 27))
    assert [stage.layer for stage in stages] == [2, 5]
    scores = jnp.asarray(RNG.random((2, 729)), jnp.float32) / 729
    places = jnp.broadcast_to(jnp.arange(729), (2, 729))
    kept = stages[0].select(scores, None, places)
    assert kept.shape == (2, 218 + 81)  # of 729 patches, as the paper's 27 x 27
    grid = {27 * row + column for row in range(0, 27, 3) for column in range(0, 27, 3)}
    for row in range(2):
        others = set(kept[row].tolist()) - grid
        assert set(kept[row].tolist()) >= grid and len(others) == 218
        left_out = set(range(729)) - set(kept[row].tolist())
        assert min(scores[row, list(others)]) >= max(scores[row, list(left_out)])
    assert stages[1].select(scores[:, :299], None, places[:, :299]).shape == (2, 26)


def test_feather_scores_attention_without_positions(images):
    tower, params = tower_of("cls", rope="yx", positions="none")

    @jax.jit
    def run(params, images):
        tokens = tower.embed(params, images)
        scores = _base.attention_to_patches(tower, params, tokens, 0)
        turned, _, _ = tower.qkv(params, tokens.x, 0, tower.turns(tokens))
        return scores, tower.qkv(params, tokens.x, 0), turned

    scores, (query, key, _), turned = run(params, images)
    logits = np.einsum("bhd,bhkd->bhk", query[:, :, 0], key[:, :, 1:]) / np.sqrt(query.shape[-1])
    weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    np.testing.assert_allclose(scores, weights.mean(1), rtol=1e-4)
    assert not np.allclose(turned, query)


# BTP.


def test_the_most_different_are_one_of_each_direction():
    x = jnp.array([[[1.0, 0], [1, 0], [0, 1], [0, 1]]])
    found = btp.most_different(x, 2)[0].tolist()
    assert {index // 2 for index in found} == {0, 1}
    assert sorted(btp.most_different(x, 4)[0].tolist()) == [0, 1, 2, 3]


def test_farthest_is_the_greedy_choice():
    points = RNG.normal(size=(12, 2))
    distance = np.linalg.norm(points[:, None] - points[None], axis=-1)
    chosen = [3]
    while len(chosen) < 6:
        nearest = distance[:, chosen].min(axis=1)
        nearest[chosen] = -1
        chosen.append(int(nearest.argmax()))
    found = btp.farthest(jnp.asarray(distance[None]), jnp.array([3]), 6)[0]
    assert found.tolist() == chosen


def test_places_are_spread_over_the_grid():
    assert btp.far_places((3, 3), 3).tolist() == [0, 8, 2]  # the far corner, then a third one
    assert sorted(btp.far_places((4, 4), 16).tolist()) == list(range(16))


def test_each_part_of_the_quota_is_there_and_rows_are_alone():
    scores = jnp.asarray(RNG.random((4, 16)), jnp.float32)
    x = jnp.asarray(RNG.normal(size=(4, 16, 5)), jnp.float32)
    places = btp.far_places((4, 4), 4)
    kept = np.asarray(btp.balanced(scores, x, 10, (0.3, 0.3), places))
    for row in range(4):
        chosen = set(kept[row].tolist())
        assert len(chosen) == 10 and chosen >= set(places.tolist())
        assert chosen >= set(np.argsort(-scores[row])[:3].tolist())
        assert chosen >= set(btp.most_different(x, 3)[row].tolist())
    order = jnp.array([2, 0, 3, 1])
    again = np.asarray(btp.balanced(scores[order], x[order], 10, (0.3, 0.3), places))
    assert [set(row) for row in again] == [set(row) for row in kept[order]]
    alone = btp.balanced(scores, x, 5, (0.0, 1.0))
    np.testing.assert_array_equal(np.sort(alone), np.sort(np.argsort(-scores)[:, :5]))


def test_stages_leave_their_shares(images):
    tower, params = tower_of("cls")
    reduction = reductions.from_config({"name": "btp", "layers": [0, 1, 2]})
    features = jax.eval_shape(lambda: reduction.features(tower, params, images))
    assert features.tokens.shape == (3, 1, 16) and features.raw.shape == (3, 8)  # 16 / 12
    layers = [stage.layer for stage in btp.BTP().stages(32, (24, 24))]
    assert layers == [4, 7, 15]  # LLaMA's, at its depth


def test_what_stays_runs_as_if_the_others_had_never_been(images):
    """Pruned in front of block 0, the tower is that of ``keep``."""
    tower, params = tower_of("mean")
    reduction = feather.Feather(ratio=0.5, stride=2, layers=(0, 2))
    first, second = reduction.stages(3, (4, 4))

    @jax.jit
    def run(params, images):
        scores = _base.attention_to_patches(tower, params, tower.embed(params, images), 0)
        places = jnp.broadcast_to(jnp.arange(16), (3, 16))
        keep = jnp.sort(first.select(scores, None, places), axis=1)
        kept = tower.features(params, images, keep=keep, hidden=(2,))
        tokens = Tokens(kept.hidden[2])
        last = _base.attention_to_patches(tower, params, tokens, 2)
        chosen = jnp.sort(second.select(last, None, keep), axis=1)
        tokens, _ = tower.blocks(params, _base.take(tokens, chosen, tower.prefix), 2)
        return keep, tower.head(params, tokens).raw, reduction.encode(tower, params, images)

    keep, expected, found = run(params, images)
    assert keep.shape == (3, 12)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


# ToMe.


def test_two_similar_tokens_become_their_mean():
    x = jnp.array([[[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.2, 0.8]]])
    unit = np.asarray(x[0] / jnp.linalg.norm(x[0], axis=1, keepdims=True))
    np.testing.assert_allclose(
        unit[::2] @ unit[1::2].T, [[0.993884, 0.242536], [0.110432, 0.970143]], atol=1e-6
    )
    merge = tome.match(x, 1)
    assert merge.sources.tolist() == [[0]] and merge.targets.tolist() == [[0]]
    tokens, sizes = tome.merged(Tokens(x), jnp.ones((1, 4)), merge)
    np.testing.assert_allclose(tokens.x[0], [[0, 1], [0.95, 0.05], [0.2, 0.8]], atol=1e-6)
    assert sizes.tolist() == [[1, 2, 1]]
    # Sizes weigh the next mean: 2 of (0.95, 0.05) and 1 of (0, 1).
    merge = tome.Merge(
        jnp.zeros((1, 0), int), jnp.array([[0]]), jnp.array([[0]]), jnp.array([1, 2])
    )
    tokens, sizes = tome.merged(tokens, sizes, merge)
    np.testing.assert_allclose(tokens.x[0, 0], [1.9 / 3, 1.1 / 3], atol=1e-6)
    assert sizes.tolist() == [[3, 1]]


def test_the_second_half_of_a_block_rounds_as_the_block_does():
    tower, params = tower_of("cls")
    tower = dataclasses.replace(tower, dtype=jnp.bfloat16, residual_dtype=jnp.float32)
    block = params["blocks_0"]
    silent = jax.tree.map(jnp.zeros_like, block["attention"])
    params = {**params, "blocks_0": {**block, "attention": silent}}
    x = jnp.asarray(RNG.normal(size=(2, 5, tower.config.width)), jnp.float32)
    whole, _ = tower.blocks(params, Tokens(x), 0, 1)
    np.testing.assert_allclose(tome.mlp_half(tower, params, x, 0), whole.x, atol=1e-5)


def test_equal_patches_merge_without_a_trace(outputs):
    """Proportional attention and weighted pools make merged copies count as what they are."""
    assert outputs["merged"].tokens.shape[1] == 12
    np.testing.assert_allclose(outputs["merged"].raw, outputs["twins"], rtol=1e-3, atol=1e-4)
    assert not np.allclose(outputs["unweighted"], outputs["twins"], rtol=1e-3, atol=1e-4)


def test_the_class_token_is_the_first_of_the_first_set():
    keys = jnp.asarray(RNG.normal(size=(1, 5, 3)), jnp.float32)
    merge = tome.match(keys, 2, first=1)
    assert merge.second.tolist() == [0, 2, 4] and sorted(merge.sources[0].tolist()) == [1, 3]


def test_schedules_rise_or_fall():
    assert tome.ToMe(r=8).schedule(3) == [8, 8, 8]
    assert tome.ToMe(r=8, inflect=-1.0).schedule(3) == [16, 8, 0]
    assert tome.ToMe(r=8, inflect=0.5).schedule(3) == [4, 8, 12]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"name": "tomee"}, "unknown token reduction 'tomee'; did you mean 'tome'"),
        ({"name": "feather", "ratio": 1.0}, r"feather.ratio=1.0 must be in \[0, 1\)"),
        ({"name": "feather", "layers": [1]}, r"feather.layers=\[1\]: name two blocks"),
        ({"name": "btp", "keep": [0.2, 0.5, 0.1]}, "three shares in"),
        ({"name": "tome", "r": -1}, "tome.r=-1 must not be negative"),
        ({"name": "tome", "inflect": 2}, "tome.inflect=2 must be in"),
    ],
)
def test_bad_options_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        reductions.from_config(config)


def test_towers_that_can_not_be_reduced_say_so(images):
    tower, params = tower_of("cls")
    with pytest.raises(ValueError, match=r"feather.layers=.*: must ascend within 0 to 2"):
        feather.Feather(layers=(2, 9)).encode(tower, params, images)
    with pytest.raises(ValueError, match="ToMe is for vision transformers, not str"):
        tome.ToMe().encode("a tower", params, images)
    with pytest.raises(ValueError, match="not for patch sequences"):
        tome.ToMe().encode(tower, params, ())


def test_every_file_is_an_entry_with_its_paper():
    for name in reductions.REDUCTIONS.names():
        made = reductions.REDUCTIONS.get(name)
        assert dataclasses.is_dataclass(made) and "arXiv:" in inspect.getdoc(made)


def test_evaluation_takes_it_from_the_configuration():
    from jaxclip import config as config_lib
    from jaxclip.train import setup

    tower = {"width": 16, "depth": 2, "num_heads": 2, "mlp_dim": 24}
    base = {
        "data": {"image_size": 16},
        "model": {"image": {"patch_size": 4, **tower}, "text": tower, "embed_dim": 8},
    }
    config = config_lib.resolve(base, ["evaluate.token_reduction.name=tome",
                                       "evaluate.token_reduction.r=5"])  # fmt: skip
    assert config["evaluate"]["token_reduction"] == {"name": "tome", "r": 5}
    model = setup.build_model(config)
    params = small.params_for(model)
    pixels = jnp.asarray(RNG.integers(0, 256, (2, 16, 16, 3)), jnp.uint8)
    experiment = setup.build(config, devices=jax.devices()[:1])
    reduced, whole = experiment.encode_image, setup.encoders(experiment.towers)[0]
    found, expected = jax.jit(lambda p, x: (reduced(p, x), whole(p, x)))(params, pixels)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1.0, rtol=1e-5)
    assert not np.allclose(found, expected, atol=1e-3)
    wrong = {**base, "evaluate": {"token_reduction": {"name": "tome", "rr": 5}}}
    with pytest.raises(ValueError, match="unknown option 'rr' of token reduction 'tome'"):
        setup.build(config_lib.resolve(wrong), devices=jax.devices()[:1])
