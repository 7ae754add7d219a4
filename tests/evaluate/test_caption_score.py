"""CLIPScore and its relatives."""

import numpy as np
import pytest

from jaxclip.evaluate import base, caption_score
from jaxclip.evaluate.caption_score import CaptionScore


def at(*degrees):
    angles = np.deg2rad(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], 1)


def test_numbers_of_the_specification():
    caption = np.array([[0.3, np.sqrt(1 - 0.09)]])
    score = caption_score.clip_score(np.array([[1.0, 0.0]]), caption)
    assert score[0] == pytest.approx(0.75)
    reference = [np.array([[0.0, 1.0]]) * 0.5 / caption[0, 1]]  # a cosine of 0.5
    assert caption_score.ref_clip_score(score, caption, reference)[0] == pytest.approx(0.6)
    assert caption_score.clip_score(at(0), at(120))[0] == 0.0
    assert caption_score.ref_clip_score(np.zeros(1), at(0), [at(10)])[0] == 0.0


def test_the_text_that_an_image_points_to():
    cosines = np.array([0.30, 0.28, 0.20])
    corpus = np.stack([cosines, np.sqrt(1 - cosines**2)], 1)
    target = caption_score.aggregate_text(np.array([[1.0, 0.0]]), corpus, 100.0)
    weights = np.array([0.880762, 0.119198, 0.000040])
    np.testing.assert_allclose(target[0], weights @ corpus, atol=1e-6)
    one = caption_score.aggregate_text(at(0), at(20), 1e4)
    np.testing.assert_allclose(one, at(20))
    reward = caption_score.aggregated_reward(at(0), at(20), at(20), 100.0, 2.0)
    assert reward[0] == pytest.approx(2.0)  # the caption is the target
    worse = caption_score.aggregated_reward(at(0), at(60), at(20), 100.0, 2.0)
    expected = np.cos(np.deg2rad(40)) + 1 - np.abs(at(60) - at(20)).mean()
    assert worse[0] == pytest.approx(expected)


class Texts:
    """A model that knows a caption by the angle that is its last word."""

    def texts(self, texts):
        assert all(text.startswith("A photo depicts ") for text in texts)
        return at(*(float(text.split()[-1]) for text in texts))


def test_of_a_split():
    texts = [["10", "30", "50"], [], ["100"]]
    data = base.ArrayData({"test": base.arrays(at(0, 0, 90), texts=texts)})
    evaluator = CaptionScore()
    evaluator.check(data)
    result = evaluator.evaluate(Texts(), data)
    score = 2.5 * np.cos(np.deg2rad(10))
    best = np.cos(np.deg2rad(20))
    assert result["clip_score"] == pytest.approx(score, rel=1e-6)
    assert result["ref_clip_score"] == pytest.approx(2 * score * best / (score + best), rel=1e-6)
    assert (result["num_examples"], result["num_references"]) == (2, 1)


def test_what_it_refuses():
    empty = base.ArrayData({"test": base.arrays(at(0), texts=[[]])})
    with pytest.raises(ValueError, match="have no caption"):
        CaptionScore().check(empty)
    with pytest.raises(ValueError, match="scale=0 must be positive"):
        CaptionScore(scale=0).check(empty)
    with pytest.raises(ValueError, match="images for"):
        caption_score.clip_score(at(0), at(0, 1))
