"""Masks of the towers' parts."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip import models
from jaxclip.models import part_masks
from jaxclip.objectives import tinyclip
from jaxclip.objectives.tinyclip import TinyCLIP
from jaxclip.weights.surgery import remove_soft
from tests.objectives import fixture_g as g
from tests.objectives.test_coca import PIXELS, TEXTS

TOWER = {"width": 16, "depth": 3, "num_heads": 2, "mlp_dim": 6}
SIZES = models.CLIPConfig(
    models.ImageConfig(image_size=8, patch_size=4, **TOWER),
    models.TextConfig(vocab_size=11, context_length=6, **TOWER),
    embed_dim=4,
)
TEACHER = {"teacher/image": g.I, "teacher/text": g.T}


@functools.cache
def setting():
    model = models.build(SIZES)
    return model, g.drawn(model.init)


def test_numbers_of_the_specification():
    a = jnp.asarray([0.0, math.log(100), -math.log(100), 10.0])
    np.testing.assert_allclose(
        tinyclip.chance(a), [0.831822, 0.997982, 0.047130, 0.997982], atol=1e-6
    )
    u = jnp.linspace(1e-6, 1 - 1e-6, 20001)
    for value in (-1.0, 0.0, 2.0):
        z = tinyclip.hard_concrete(jnp.full(u.shape, value), u)
        assert float(jnp.mean(z > 0)) == pytest.approx(
            float(tinyclip.chance(jnp.asarray(value))), abs=1e-3
        )
        assert 0 <= float(z.min()) <= float(z.max()) <= 1
    np.testing.assert_array_equal(
        tinyclip.hard_concrete(jnp.asarray([-4.6, 4.6]), None), [0.0, 1.0]
    )
    # Out of bounds the gradient still goes through.
    assert float(jax.grad(tinyclip.chance)(7.0)) > 0


def test_the_expected_share_is_that_of_the_weights():
    own = TinyCLIP().init_params(jax.random.key(0), SIZES)
    p = float(tinyclip.chance(jnp.asarray(4.6)))
    assert float(tinyclip.expected_share(own, SIZES)) == pytest.approx(p**2, rel=1e-5)
    own["image"]["attention"] = own["image"]["attention"].at[0].set(-50.0)
    low = float(tinyclip.chance(jnp.asarray(-50.0)))
    # A block's attention is 4 · 16², its MLP 2 · 16 · 6; there are six of each.
    share = 4 * 256 / (6 * (4 * 256 + 2 * 96))
    expected = p**2 - share * (p - low) * p
    assert float(tinyclip.expected_share(own, SIZES)) == pytest.approx(expected, rel=1e-5)


def test_a_pruned_towers_heads_count_at_their_own_width():
    pruned = dataclasses.replace(SIZES.image, num_heads=1, head_dim=8)
    sizes = dataclasses.replace(SIZES, image=pruned)
    own = TinyCLIP(start=4.5).init_params(jax.random.key(0), sizes)
    own["image"]["attention"] = jnp.full(3, -50.0)
    p, low = (float(tinyclip.chance(jnp.asarray(a))) for a in (4.5, -50.0))
    # Of 16 channels one head of 8 is left: 4 · 16 · 8 weights of each image block's attention.
    lost = 3 * 512 / (3 * (512 + 192) + 3 * (1024 + 192))
    expected = p**2 - lost * (p - low) * p
    assert float(tinyclip.expected_share(own, sizes)) == pytest.approx(expected, rel=1e-5)
    gated = dataclasses.replace(sizes, image=dataclasses.replace(pruned, mlp="gated"))
    lost = 3 * 512 / (3 * (512 + 288) + 3 * (1024 + 192))
    expected = p**2 - lost * (p - low) * p
    assert float(tinyclip.expected_share(own, gated)) == pytest.approx(expected, rel=1e-5)


def test_the_loss_is_affinitys_and_a_penalty_whose_factors_grow():
    objective = TinyCLIP(alpha=0.0, scale=None, target=[[0, 0.0], [10, 0.5]])
    own, state = g.own_params(objective, SIZES), objective.init_state(SIZES)
    made = {"image": g.I, "text": g.T, **TEACHER}
    loss, _, same = g.value(objective, made, g.context(sizes=SIZES), own, state)
    assert float(loss) == pytest.approx(0.1081597, rel=1e-5) and same == state
    loss, metrics, after = g.value(objective, made, g.context(sizes=SIZES, step=10), own, state)
    gap = 0.5 - float(metrics["sparsity"])
    assert float(loss) == pytest.approx(0.1081597 + 10 * gap + 10 * gap**2, rel=1e-5)
    assert float(after["l1"]) == float(after["l2"]) == pytest.approx(10 + 0.02 * gap)


def test_masks_of_one_change_nothing_and_zero_takes_a_part_out():
    _, params = setting()
    ones = {name: jnp.ones(shape) for name, shape in part_masks.shapes(SIZES.image).items()}
    jax.tree.map(
        np.testing.assert_array_equal, part_masks.scaled(params["image"], ones), params["image"]
    )
    zero = {**ones, "heads": ones["heads"].at[1, 0].set(0.0)}
    kernel = part_masks.scaled(params["image"], zero)["blocks_1"]["attention"]["out"]["kernel"]
    assert not kernel[:8].any() and (kernel[8:] != 0).all()


def test_towers_run_masked_alike_for_any_part_of_the_batch():
    _, params = setting()
    objective = TinyCLIP(start=0.0)
    own = g.own_params(objective, SIZES)
    ctx = g.context(sizes=SIZES, own=own)
    part = dataclasses.replace(ctx, row=jnp.asarray([1], jnp.int32))
    first, other = jax.jit(lambda: [objective.tower_params(params, c) for c in (ctx, part)])()
    jax.tree.map(np.testing.assert_array_equal, first, other)
    down = first["text"]["blocks_2"]["mlp"]["down"]["kernel"]
    assert not np.array_equal(down, params["text"]["blocks_2"]["mlp"]["down"]["kernel"])
    assert first["logit_scale"] is not None and first["text"]["positions"].shape[0] == 6


def test_the_pruned_model_runs_as_the_masked_one():
    model, params = setting()
    rng = np.random.default_rng(0)
    masks = {
        tower: {
            name: rng.choice([0.0, 0.5, 1.0], shape)
            for name, shape in part_masks.shapes(getattr(SIZES, tower)).items()
        }
        for tower in ("image", "text")
    }
    for tower in masks.values():
        tower["attention"][:], tower["mlp"][:] = (1.0, 0.0, 0.5), (1.0, 0.0, 0.5)
        tower["units"][0, 4:] = 0.0
        tower["units"][2, 3:] = 0.0
    smaller, sizes = remove_soft(params, SIZES, masks)
    assert (sizes.image.depth, sizes.text.depth) == (2, 2)
    assert sizes.image.mlp_dim <= 4 and sizes.text.mlp_dim <= 4
    masked = {
        **params,
        **{t: part_masks.scaled(params[t], jax.tree.map(jnp.asarray, m)) for t, m in masks.items()},
    }
    cut = models.build(sizes)
    for name, inputs in (("image", PIXELS), ("text", TEXTS)):
        ours, theirs = (getattr(m, f"encode_{name}") for m in (cut, model))
        expected = jax.jit(theirs)(masked, inputs)
        np.testing.assert_allclose(jax.jit(ours)(smaller, inputs), expected, atol=1e-5)


def test_pruning_refuses():
    _, params = setting()
    ones = {
        tower: {n: np.ones(s) for n, s in part_masks.shapes(getattr(SIZES, tower)).items()}
        for tower in ("image", "text")
    }
    same, sizes = remove_soft(params, SIZES, ones)
    assert sizes == SIZES
    jax.tree.map(np.testing.assert_array_equal, same, params)
    none = {**ones, "text": {**ones["text"], "attention": np.zeros(3), "mlp": np.zeros(3)}}
    with pytest.raises(ValueError, match="leave no block of the text tower"):
        remove_soft(params, SIZES, none)
    wrong = {**ones, "image": {**ones["image"], "heads": np.ones((3, 4))}}
    with pytest.raises(
        ValueError, match=r"mask image/heads of shape \[3, 4\]; this model has \[3, 2\]"
    ):
        remove_soft(params, SIZES, wrong)


def test_bad_options_are_refused():
    with pytest.raises(ValueError, match=r"tinyclip\.target=1.0 must be at most 0.999"):
        TinyCLIP(target=1.0)
    with pytest.raises(ValueError, match=r"tinyclip\.alpha=2 must be"):  # of affinity
        TinyCLIP(alpha=2)
    with pytest.raises(ValueError, match=r"tinyclip\.start=10 must be a number in"):
        TinyCLIP(start=10)
    experts = dataclasses.replace(SIZES, image=dataclasses.replace(SIZES.image, num_experts=2))
    with pytest.raises(ValueError, match="or of experts"):
        TinyCLIP().check(experts, SIZES)
