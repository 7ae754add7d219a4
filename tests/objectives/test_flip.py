"""Contrast of images of which a part of the patches runs."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip import models
from jaxclip.objectives.flip import FLIP
from jaxclip.train import setup
from tests.objectives import fixture_g as g
from tests.objectives.battery import configuration

SIZES = models.CLIPConfig(models.ImageConfig(image_size=16, patch_size=4, width=16, num_heads=2))


def keep(size=8, step=0, **options):
    ctx = g.context(size=size, step=step, sizes=SIZES)
    return ctx, np.asarray(FLIP(**options).tower_options("image", {}, ctx)["keep"])


@pytest.mark.parametrize(("ratio", "count"), [(0.5, 8), (0.75, 4), (0.3, 11), (0.99, 1)])
def test_a_static_number_of_different_patches_runs(ratio, count):
    _, patches = keep(mask_ratio=ratio)
    assert patches.shape == (8, count)
    assert all(len(set(row)) == count and 0 <= min(row) <= max(row) < 16 for row in patches)
    assert count == 1 or len({tuple(row) for row in patches}) > 1


def test_a_rows_patches_do_not_depend_on_the_rows_beside_it():
    ctx, whole = keep()
    part = dataclasses.replace(ctx, row=jnp.array([5, 2]))
    np.testing.assert_array_equal(
        FLIP().tower_options("image", {}, part)["keep"], whole[np.array([5, 2])]
    )


def test_only_the_pictures_are_masked_and_nothing_at_ratio_0():
    ctx, _ = keep()
    assert FLIP().tower_options("text", {}, ctx) == {}
    assert FLIP(mask_ratio=0.0).tower_options("image", {}, ctx) == {}


def test_the_step_costs_less():
    def flops(ratio):
        config = configuration(["flip"], objective=[{"name": "flip", "mask_ratio": ratio}])
        built = setup.build(config)
        lowered = built.train_step.lower(built.abstract_state, built.abstract_batch())
        return lowered.cost_analysis()["flops"]

    assert flops(0.75) < 0.75 * flops(0.0)


@pytest.mark.parametrize("ratio", [1.0, -0.1, "half"])
def test_a_ratio_that_leaves_nothing_is_refused(ratio):
    with pytest.raises(ValueError, match=r"flip\.mask_ratio=.* must be a number in \[0, 0\.99\]"):
        FLIP(mask_ratio=ratio)
