"""Prediction of what a teacher that follows the run makes of the views."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip import losses, models
from jaxclip.objectives.byolip import BYOLIP
from jaxclip.objectives.clip_rocket import ClipRocket
from tests.objectives import fixture_g as g

TOWER = {"width": 6, "num_heads": 2}
SIZES = models.CLIPConfig(models.ImageConfig(**TOWER), models.TextConfig(**TOWER), embed_dim=2)
SMALL = {"width": 5, "features": 4, "predict_width": 5, "predict_features": 3}


def setting(**options):
    objective = BYOLIP(**SMALL, **options)
    own, teacher = (g.own_params(objective, SIZES, k) for k in (0, 1))
    rng = np.random.default_rng(0)
    names = sorted(objective.needs - {"image", "text"})
    pooled = {name: jnp.asarray(rng.normal(size=(3, 6)), jnp.float32) for name in names}
    return objective, own, teacher, {"image": g.I, "text": g.T, **pooled}


def test_a_distance_of_vectors():
    one, other = jnp.array([[2.0, 0], [0, 1]]), jnp.array([[1.0, 0], [3, 0]])
    assert float(losses.cosine_distance(one, other)) == pytest.approx(1.0)  # 0 and 2


def test_ten_terms_across_the_modalities():
    objective, own, teacher, made = setting()
    ctx = g.context(teacher_own=teacher)
    loss, metrics, _ = g.value(objective, made, ctx, own)
    views = {"image": ["image", "view1/image", "view2/image"]}
    views["text"] = ["text", "texts1/text", "texts2/text"]

    def vector(params, view, tower):
        head = params["projector"][tower]
        return objective.projector.apply({"params": head}, made[f"{view}_pooled"])

    def term(view, tower, other, other_tower):
        predictor = {"params": own["predictor"][tower]}
        p = np.asarray(objective.predictor.apply(predictor, vector(own, view, tower)))
        v = np.asarray(vector(teacher, f"teacher/{other}", other_tower))
        cosine = (p * v).sum(1) / np.linalg.norm(p, axis=1) / np.linalg.norm(v, axis=1)
        return (2 - 2 * cosine).mean()

    pairs = [(0, 0), (1, 1), (1, 2), (2, 1), (2, 2)]
    terms = [
        term(views[a][i if a == "image" else j], a, views[b][j if b == "text" else i], b)
        for i, j in pairs
        for a, b in (("image", "text"), ("text", "image"))
    ]
    assert float(metrics["distance"]) == pytest.approx(np.mean(terms), rel=1e-4)
    rocket, _, _ = g.value(ClipRocket(width=5, features=4), made, ctx, own)
    assert float(loss) == pytest.approx(float(rocket) + np.mean(terms), rel=1e-4)


def test_the_teacher_gets_no_gradient():
    objective, own, teacher, made = setting(local_weight=0.0)

    def value(teacher, made):
        return g.value(objective, made, g.context(teacher_own=teacher), own)[0]

    to_teacher, to_outputs = jax.grad(value, (0, 1))(teacher, made)
    assert all(not x.any() for x in jax.tree.leaves(to_teacher))
    for name, gradient in to_outputs.items():
        assert gradient.any() == (not name.startswith("teacher/") and "pooled" in name) or (
            name in ("image", "text")
        ), name


def test_a_teacher_that_does_not_follow_is_refused():
    with pytest.raises(ValueError, match=r"byolip needs .* set teacher\.kind='ema'"):
        BYOLIP().check_run(8, "none")


def test_bad_options_are_refused():
    with pytest.raises(ValueError, match=r"byolip\.predict_width=0"):
        BYOLIP(predict_width=0)
