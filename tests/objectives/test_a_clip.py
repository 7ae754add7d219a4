"""Views of which only the patches run that a moving average attends to."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip import losses, models
from jaxclip.data import image_ops
from jaxclip.objectives.a_clip import ACLIP
from jaxclip.train import setup
from tests.objectives import fixture_g as g
from tests.objectives.battery import configuration

SIZES = models.CLIPConfig(
    models.ImageConfig(image_size=8, patch_size=2, width=6, num_heads=2), embed_dim=2
)
SMALL = {"width": 5, "features": 4}


def setting(**options):
    objective = ACLIP(**SMALL, **options)
    own, teacher = (g.own_params(objective, SIZES, k) for k in (0, 1))
    rng = np.random.default_rng(0)
    made = {
        name: jnp.asarray(rng.normal(size=(3, 6)), jnp.float32) for name in sorted(objective.needs)
    }
    made |= {"view1/image": g.I, "view2/image": g.U, "text": g.T}
    attention = rng.random((3, 17, 17))
    made |= {name: jnp.asarray(attention, jnp.float32) for name in sorted(objective.row_needs)}
    return objective, own, made, g.context(sizes=SIZES, teacher_own=teacher)


def test_the_class_token_chooses_the_patches():
    objective, _, made, ctx = setting()
    options = objective.tower_options("view1/image", made, ctx)
    scores = np.asarray(made["teacher/view1/image_attention"])[:, 0, 1:]
    blocks = scores.reshape(3, 2, 2, 2, 2).mean((2, 4)).reshape(3, 4)
    assert options["keep"].shape == (3, 12)  # 3 of 4 blocks
    left_out = {int(b) for b in blocks[0].argsort()[:1]}
    block_of = {(p // 8) * 2 + (p % 4) // 2 for p in np.asarray(options["keep"][0]).tolist()}
    assert block_of == {0, 1, 2, 3} - left_out
    assert objective.tower_options("text", made, ctx) == {}
    assert ACLIP(keep_share=1.0).tower_options("view1/image", made, ctx) == {}


def test_without_its_own_parts_it_is_clip_on_two_views():
    objective, own, made, ctx = setting(simclr=0.0, byol=0.0)
    loss, metrics, _ = g.value(objective, made, ctx, own)
    each = [losses.softmax(x, g.T, logit_scale=jnp.log(10.0))[0] for x in (g.I, g.U)]
    assert float(loss) == pytest.approx(float(sum(each)) / 2, rel=1e-6)
    whole, _, _ = g.value(ACLIP(**SMALL), made, ctx, own)
    expected = metrics["clip"] + metrics["simclr"] + 2 * metrics["byol"]
    assert float(whole) == pytest.approx(float(expected), rel=1e-6)


def test_a_tower_runs_on_fewer_patches():
    def flops(share):
        term = {"name": "a_clip", **SMALL, "keep_share": share}
        built = setup.build(configuration(["a_clip"], objective=[term]))
        lowered = built.train_step.lower(built.abstract_state, built.abstract_batch())
        return lowered.cost_analysis()["flops"]

    assert flops(0.25) < flops(1.0)


def test_the_views_ops_parse():
    assert image_ops.build(ACLIP().image_ops, 32).num_draws > 0


def test_what_can_not_work_is_refused():
    with pytest.raises(ValueError, match=r"a_clip needs .* set teacher\.kind='ema'"):
        ACLIP().check_run(8, "frozen")
    with pytest.raises(ValueError, match=r"a_clip\.block=3 does not divide the 4 patches"):
        ACLIP(block=3).check(SIZES, None)
    with pytest.raises(ValueError, match=r"a_clip\.keep_share=2 must be a number in \[0, 1\]"):
        ACLIP(keep_share=2)
