"""The classifier that a run trains, on arrays at hand."""

import jax
import numpy as np
import pytest

from jaxclip.evaluate import base
from jaxclip.evaluate.class_head import ClassHead
from jaxclip.models import presets
from jaxclip.objectives import class_head


def model(params):
    return base.Model(None, None, params, None)


def test_it_judges_by_the_logits_of_training():
    rng = np.random.default_rng(0)
    term = class_head.ClassHead(num_classes=5, init_scale=1.0)
    head = term.init_params(jax.random.key(0), presets.get("tiny"))
    features = rng.standard_normal((40, 256)).astype(np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    best = np.array(np.argmax(class_head.class_logits(head, features), axis=1))
    labels = best.copy()
    labels[:10] = (labels[:10] + 1) % 5  # ten are wrong
    labels[-4:] = -1  # four have none
    data = base.ArrayData({"val": base.arrays(features, labels)})
    found = ClassHead().evaluate(model({"objective": {"class_head": head}}), data)
    assert found == {"top1": pytest.approx(26 / 36), "num_examples": 36, "num_classes": 5}


def test_a_run_without_a_head_and_one_on_tokens_are_refused():
    data = base.ArrayData({"val": base.arrays(np.eye(3), [-1, -1, -1])})
    with pytest.raises(ValueError, match="no objective 'class_head'"):
        ClassHead().evaluate(model({}), data)
    term = class_head.ClassHead(features="image_tokens")
    head = term.init_params(jax.random.key(0), presets.get("tiny"))
    with pytest.raises(ValueError, match="reads the tower's tokens"):
        ClassHead().evaluate(model({"objective": {"class_head": head}}), data)
    with pytest.raises(ValueError, match="have no label"):
        ClassHead().check(data)
