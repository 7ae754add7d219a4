"""Zero-shot counts and prompt averages."""

import io
import math
import tarfile

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from jaxclip.evaluate import zero_shot
from jaxclip.evaluate.stored import StoredData


@hypothesis.settings(max_examples=30, deadline=None)
@hypothesis.given(
    labels=st.lists(st.integers(-1, 6), min_size=1, max_size=30), seed=st.integers(0, 2**16)
)
def test_equals_the_naive_count(labels, seed):
    rng = np.random.default_rng(seed)
    images = rng.integers(-1, 2, (len(labels), 2)).astype(np.float32)
    classes = rng.integers(-1, 2, (7, 2)).astype(np.float32)
    found = zero_shot.classify(images, classes, np.array(labels), ks=(1, 5), gallery_tile=5)
    expected = {1: 0, 5: 0}
    for image, label in zip(images, labels, strict=True):
        order = sorted(range(7), key=lambda c: (-float(image @ classes[c]), c))
        for k in expected:
            expected[k] += label >= 0 and label in order[:k]
    assert found.correct == expected
    assert found.examples == sum(label >= 0 for label in labels)


def test_masked_rows_do_not_count():
    images = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]], np.float32)
    counts = zero_shot.classify(
        images, np.eye(2), np.array([0, 1, 1]), mask=np.array([True, True, False])
    )
    assert counts == zero_shot.Counts({1: 2, 5: 2}, 2)


def test_no_examples_is_nan_not_a_crash():
    metrics = zero_shot.classify(np.zeros((2, 3)), np.eye(3), np.array([-1, -1])).metrics()
    assert math.isnan(metrics["top1"]) and math.isnan(metrics["top5"])


def test_an_impossible_label_is_named():
    with pytest.raises(ValueError, match="label 3 is no class: there are 3 names"):
        zero_shot.classify(np.zeros((1, 3)), np.eye(3), np.array([3]))


def test_class_embeddings_average_prompts_then_normalise():
    prompts = np.array([[1, 0], [0, 1], [0.6, 0.8], [0.6, 0.8]], np.float32)
    expected = np.array([[math.sqrt(0.5), math.sqrt(0.5)], [0.6, 0.8]])
    np.testing.assert_allclose(zero_shot.class_embeddings(prompts, 2), expected, rtol=1e-6)


def test_prompts_that_cancel_out_give_zero_not_nan():
    assert not zero_shot.class_embeddings(np.array([[1.0, 0.0], [-1.0, 0.0]]), 1).any()


def test_classes_may_have_different_numbers_of_prompts():
    prompts = np.array([[1, 0], [1, 0], [0, 1], [0.6, 0.8]], np.float32)
    found = zero_shot.class_embeddings(prompts, [3, 1])
    np.testing.assert_allclose(found, [[2 / math.sqrt(5), 1 / math.sqrt(5)], [0.6, 0.8]], rtol=1e-6)
    for counts in ([3], [2, 1], [4, 0], []):
        with pytest.raises(ValueError, match="4 prompts"):
            zero_shot.class_embeddings(prompts, counts)


def test_prompts_must_divide():
    with pytest.raises(ValueError, match="3 prompts do not divide over 2 classes"):
        zero_shot.class_embeddings(np.zeros((3, 4)), 2)


def test_the_data_sets_own_templates(tmp_path):
    (tmp_path / "test").mkdir()
    with tarfile.open(tmp_path / "test" / "0.tar", "w") as tar:
        for name, data in (("0.webp", b"a picture"), ("0.cls", b"1")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    (tmp_path / "classnames.txt").write_text("cat\ndog\n")
    data = StoredData({"name": f"webdataset:{tmp_path}"}, "test")
    evaluator = zero_shot.ZeroShot(templates="own")
    with pytest.raises(ValueError, match=r"brings no templates; give templates a set \(name, "):
        evaluator.check(data)
    (tmp_path / "zeroshot_classification_templates.txt").write_text("a photo of a {c}.\n{c}!\n\n")
    data = StoredData({"name": f"webdataset:{tmp_path}"}, "test")
    evaluator.check(data)
    assert evaluator.prompts(data) == [["a photo of a cat.", "cat!"], ["a photo of a dog.", "dog!"]]
