"""Feature maps that follow a teacher's."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip import models
from jaxclip.objectives.dc_clip import DCCLIP
from tests.objectives import fixture_g as g

SIZES = models.CLIPConfig(
    models.ImageConfig(width=6, num_heads=2), models.TextConfig(width=4, num_heads=2), embed_dim=2
)
RNG = np.random.default_rng(0)
MADE = {
    "image": g.I,
    "text": g.T,
    "image_tokens": jnp.asarray(RNG.normal(size=(3, 4, 6)), jnp.float32),
    "text_tokens": jnp.asarray(RNG.normal(size=(3, 5, 4)), jnp.float32),
    "teacher/image_tokens": jnp.asarray(2 * RNG.normal(size=(3, 4, 6)), jnp.float32),
    "teacher/text_tokens": jnp.asarray(2 * RNG.normal(size=(3, 5, 4)), jnp.float32),
    "text_mask": jnp.arange(5) < jnp.asarray([2, 5, 3])[:, None],
}
SAME = {
    "image": {"out": {"kernel": jnp.eye(6), "bias": jnp.zeros(6)}},
    "text": {"out": {"kernel": jnp.eye(4), "bias": jnp.zeros(4)}},
}


def test_equal_tokens_cost_nothing():
    made = {**MADE} | {f"teacher/{k}": MADE[k] for k in ("image_tokens", "text_tokens")}
    loss, _, _ = g.value(DCCLIP(), made, g.context(sizes=SIZES), SAME)
    assert float(loss) == 0.0
    loss, _, _ = g.value(DCCLIP(contrastive=1.0), made, g.context(sizes=SIZES), SAME)
    assert float(loss) == pytest.approx(0.1081597, rel=1e-5)


def test_real_tokens_alone_count():
    ctx = g.context(sizes=SIZES)
    loss, metrics, _ = g.value(DCCLIP(image_weight=0.5, text_weight=2.0), MADE, ctx, SAME)
    means = {}
    for tower in ("image", "text"):
        d = np.abs(np.asarray(MADE[f"{tower}_tokens"] - MADE[f"teacher/{tower}_tokens"], float))
        each = np.where(d < 1, d**2 / 2, d - 0.5).mean(-1)
        means[tower] = (
            each[np.asarray(MADE["text_mask"])].mean() if tower == "text" else each.mean()
        )
        assert float(metrics[f"{tower}_distance"]) == pytest.approx(means[tower], rel=1e-5)
    assert float(loss) == pytest.approx(0.5 * means["image"] + 2 * means["text"], rel=1e-5)


def test_an_adapter_maps_to_the_teachers_width():
    objective = DCCLIP(image_width=7, text_width=3)
    params = jax.eval_shape(lambda key: objective.init_params(key, SIZES), jax.random.key(0))
    assert params["image"]["out"]["kernel"].shape == (6, 7)
    assert params["text"]["out"]["kernel"].shape == (4, 3)


def test_what_it_asks_for_and_refuses():
    assert DCCLIP(shares={"zh": 1, "en": 1}).fields["text"].shares == (("en", 1.0), ("zh", 1.0))
    DCCLIP().check(SIZES, SIZES)
    assert DCCLIP().whole_views == {"image"}  # the teacher's patches are all there
    larger = dataclasses.replace(SIZES, image=models.ImageConfig(width=12, num_heads=2))
    with pytest.raises(ValueError, match=r"set dc_clip\.image_width=12 and text_width=4"):
        DCCLIP().check(SIZES, larger)
    DCCLIP(image_width=12).check(SIZES, larger)
    finer = dataclasses.replace(
        SIZES, image=models.ImageConfig(patch_size=32, width=6, num_heads=2)
    )
    with pytest.raises(ValueError, match="the model has 14 patches along a side, the teacher 7"):
        DCCLIP().check(SIZES, finer)
    with pytest.raises(ValueError, match=r"set teacher\.kind='frozen'"):
        DCCLIP().check(SIZES, None)
    with pytest.raises(ValueError, match=r"dc_clip\.text_weight=-1"):
        DCCLIP(text_weight=-1)
    with pytest.raises(ValueError, match=r"dc_clip\.shares\['de'\]=0 must be a positive"):
        DCCLIP(shares={"de": 0})
