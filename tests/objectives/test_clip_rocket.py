"""A weak pair and strong views of both sides."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip import fields, losses, models
from jaxclip.data import image_ops
from jaxclip.objectives.clip_rocket import ClipRocket
from jaxclip.train import outputs as outputs_lib
from tests.objectives import fixture_g as g

TOWER = {"width": 6, "num_heads": 2}
SIZES = models.CLIPConfig(models.ImageConfig(**TOWER), models.TextConfig(**TOWER), embed_dim=2)
SMALL = {"width": 5, "features": 4}


def made(objective, seed=0):
    rng = np.random.default_rng(seed)
    names = sorted(objective.needs - {"image", "text"})
    pooled = {name: jnp.asarray(rng.normal(size=(3, 6)), jnp.float32) for name in names}
    return {"image": g.I, "text": g.T, **pooled}


def test_it_asks_for_two_strong_views_of_each_side():
    objective = ClipRocket(text_ops="", weak_text_ops="drop_words(0.9)")
    spec = objective.fields
    assert spec["view1/image"] == spec["view2/image"] == fields.View(ops=objective.image_ops)
    assert spec["texts1/text"] == spec["texts2/text"] == fields.Captions()
    assert spec["text"] == fields.Captions(ops="drop_words(0.9)")
    for name in objective.needs:
        parsed = outputs_lib.parse(name)
        assert parsed is not None and parsed.view in {*spec, "image"}


def test_the_parts_add_up():
    objective = ClipRocket(label_smoothing=0.1, **SMALL)
    params = objective.init_params(jax.random.key(0), SIZES)
    outputs = made(objective)
    loss, metrics, _ = g.value(objective, outputs, params=params)

    def head(view, tower):
        module = objective._head()
        return module.apply({"params": params["local"][tower]}, outputs[f"{view}_pooled"])

    images = [head(f"view{k}/image", "image") for k in (1, 2)]
    texts = [head(f"texts{k}/text", "text") for k in (1, 2)]
    local = [
        losses.softmax(i, t, logit_scale=math.log(10), label_smoothing=0.1)[0]
        for i, t in itertools.product(images, texts)
    ]
    assert float(metrics["clip"]) == pytest.approx(0.1081597, rel=1e-6)
    assert float(metrics["local"]) == pytest.approx(np.mean(local), rel=1e-5)
    assert float(loss) == pytest.approx((0.1081597 + 2 * np.mean(local)) / 3, rel=1e-5)
    without, _, _ = g.value(ClipRocket(local_weight=0.0, **SMALL), outputs, params=params)
    assert float(without) == pytest.approx(0.1081597, rel=1e-6)


def test_equal_views_without_smoothing_under_a_shared_head_are_the_pair(monkeypatch):
    objective = ClipRocket(label_smoothing=0.0)
    by_view = {"image": g.I, "text": g.T}
    monkeypatch.setattr(
        "jaxclip.objectives._rocket.apply_head",
        lambda head, params, outputs, view: by_view[view.rpartition("/")[2]],
    )
    params = {"local": {}, "logit_scale": jnp.log(10.0)}
    loss, metrics, _ = g.value(objective, made(objective), params=params)
    assert float(metrics["local"]) == pytest.approx(float(metrics["clip"]), rel=1e-6)
    assert float(loss) == pytest.approx(0.1081597, rel=1e-6)


def test_the_default_ops_parse():
    assert image_ops.build(ClipRocket().image_ops, 16).num_draws > 0
    text_op = pytest.importorskip("jaxclip.data.text_ops")
    for ops in (ClipRocket().text_ops, ClipRocket().weak_text_ops):
        assert text_op.build(ops).num_draws > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"label_smoothing": 1},
            r"clip_rocket\.label_smoothing=1 must be a number in \[0, 0\.99\]",
        ),
        ({"local_weight": -1}, r"clip_rocket\.local_weight=-1"),
        ({"implementation": "fast"}, r"clip_rocket\.implementation='fast'; use 'plain' or"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ClipRocket(**options)
