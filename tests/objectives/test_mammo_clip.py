"""Mammo-CLIP: two views against two texts."""

import numpy as np
import pytest

from jaxclip.objectives.mammo_clip import MammoCLIP
from tests.objectives import fixture_g as g

ROWS = {"image": g.I, "view1/image": g.U, "text": g.T, "texts1/text": g.N}
SAME = {"image": g.I, "view1/image": g.I, "text": g.T, "texts1/text": g.T}


def test_equal_views_and_texts_without_its_own_parts_are_clip():
    loss, _, _ = g.value(MammoCLIP(images=0.0, texts=0.0), SAME)
    assert float(loss) == pytest.approx(0.1081597, rel=1e-5)


def test_views_may_change_places():
    loss, _, _ = g.value(MammoCLIP(), ROWS)
    turned = {"image": g.U, "view1/image": g.I, "text": g.N, "texts1/text": g.T}
    again, _, _ = g.value(MammoCLIP(), turned)
    assert float(again) == pytest.approx(float(loss), rel=1e-6)


def test_value_and_gradient_are_those_of_the_formula():
    def reference(x, _):
        images, texts = (x["image"], x["view1/image"]), (x["text"], x["texts1/text"])
        four = np.mean([g.clip(a, b, 10.0) for a in images for b in texts])
        return four + g.clip(*images, 10.0) + 0.5 * g.clip(*texts, 10.0)

    g.check_gradient(MammoCLIP(), ROWS, reference)
    g.check_gradient(MammoCLIP(implementation="blockwise"), ROWS, reference)
    loss, metrics, _ = g.value(MammoCLIP(), ROWS)
    assert set(metrics) >= {"clip", "images", "texts"}
    assert float(loss) == pytest.approx(
        float(metrics["clip"] + metrics["images"] + 0.5 * metrics["texts"]), rel=1e-6
    )


def test_bad_options_are_refused():
    with pytest.raises(ValueError, match=r"mammo_clip.texts=-1 must be"):
        MammoCLIP(texts=-1)
