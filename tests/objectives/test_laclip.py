"""CLIP on captions of several sources."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip.objectives.contrastive import Contrastive
from jaxclip.objectives.laclip import LaCLIP
from tests.objectives import fixture_g as g


def test_one_caption_is_clip_or_siglip():
    made = {"image": g.I, "text": g.T}
    assert float(g.value(LaCLIP(), made)[0]) == pytest.approx(0.1081597, rel=1e-5)
    loss, _, _ = g.value(LaCLIP(kind="sigmoid"), made, g.context(logit_bias=jnp.float32(0.0)))
    assert float(loss) == pytest.approx(5.1293707, rel=1e-5)


def test_several_captions_are_the_mean():
    made = {"image": g.I, "text": jnp.stack([g.T, g.U], axis=1)}
    both = [float(g.value(Contrastive(), {**made, "text": t})[0]) for t in (g.T, g.U)]
    loss, metrics, _ = g.value(LaCLIP(count=2), made)
    assert float(loss) == pytest.approx(np.mean(both), rel=1e-5)
    assert 0 <= float(metrics["accuracy_image_to_text"]) <= 1


def test_its_gradient():
    def reference(arrays, base):
        texts = np.moveaxis(arrays["text"], 1, 0)
        return np.mean([g.clip(arrays["image"], each, 10.0) for each in texts])

    rows = g.random_rows("image", "a", "b")
    made = {"image": rows["image"], "text": jnp.stack([rows["a"], rows["b"]], axis=1)}
    g.check_gradient(LaCLIP(count=2), made, reference)


def test_what_it_asks_of_the_data():
    field = LaCLIP(shares={"made": 3, "alt": 1.0}, min_words=4, count=2).fields["text"]
    assert field.shares == (("alt", 1.0), ("made", 3.0))
    assert (field.min_words, field.count, field.policy) == (4, 2, "random")
    assert LaCLIP().fields["text"].shares == ()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shares": {"made": -1}}, r"laclip\.shares\['made'\]=-1 must be a positive number"),
        ({"shares": ["made"]}, r"laclip\.shares=\['made'\] must be {tag: share}"),
        ({"count": 0}, r"laclip\.count=0"),
        ({"kind": "softmux"}, "softmux"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        LaCLIP(**options)
