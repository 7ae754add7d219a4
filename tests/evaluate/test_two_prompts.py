"""A yes-or-no question by two prompts."""

import numpy as np
import pytest

from jaxclip.evaluate import base
from jaxclip.evaluate.two_prompts import TwoPrompts

WORDS = {"clouds": [1.0, 0.0], "overcast": [0.8, 0.6], "clear": [0.0, 1.0]}
IMAGES = np.array([[1.0, 0.1], [0.9, 0.3], [0.2, 1.0], [0.6, 0.5], [0.1, 1.0]], np.float32)
IMAGES /= np.linalg.norm(IMAGES, axis=1, keepdims=True)
LABELS = np.array([1, 1, 0, 0, -1])


class Texts:
    """A model of which only texts are asked."""

    def texts(self, texts):
        return np.array([WORDS[text] for text in texts], np.float32)


def run(labels=LABELS, **options):
    data = base.ArrayData({"test": base.arrays(IMAGES, labels)})
    evaluator = TwoPrompts(**options)
    evaluator.check(data)
    return evaluator.evaluate(Texts(), data)


def test_rates():
    result = run(yes="clouds", no="clear")
    assert result == {
        **{"accuracy": 0.75, "true_positive_rate": 1.0, "true_negative_rate": 0.5},
        **{"num_examples": 4, "num_positive": 2},
    }
    assert run(yes="clouds", no="clear", threshold=0.3)["true_negative_rate"] == 1.0


def test_swapped_prompts_swap_what_is_found():
    swapped = run(yes="clear", no="clouds", positive=0)
    result = run(yes="clouds", no="clear")
    assert swapped["true_positive_rate"] == result["true_negative_rate"]
    assert swapped["true_negative_rate"] == result["true_positive_rate"]


def test_prompts_of_a_side_are_averaged():
    both = run(yes="clouds; overcast", no="clear")
    mean = np.array([0.9, 0.3]) / np.hypot(0.9, 0.3)
    found = IMAGES[:4] @ (mean - np.array([0.0, 1.0])) > 0
    assert both["accuracy"] == np.mean(found == (LABELS[:4] == 1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"yes": "clouds"}, "no='' must both have a prompt"),
        ({"yes": "clouds", "no": ";"}, "must both have a prompt"),
        ({"yes": "clouds", "no": "clear", "positive": -1}, "positive=-1 must be a label"),
        ({"yes": "a", "no": "b", "labels": np.full(5, -1)}, "have no label"),
    ],
)
def test_what_it_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        run(**options)
