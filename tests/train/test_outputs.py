"""Outputs on demand: names, one run a view, several captions a row, and names that can't be."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip.train import outputs


class FakeTowers:
    """Counts runs; the embedding of an array is its sum over all axes but the first."""

    def __init__(self):
        self.runs = []

    def encode(self, params, tower, array):
        self.runs.append((tower, array.shape))
        total = array.reshape(array.shape[0], -1).sum(1, keepdims=True).astype(jnp.float32)
        return params["factor"] * jnp.concatenate([total, total], axis=1)


def compute(names, batch, towers=None, **options):
    towers = towers or FakeTowers()
    params = {"factor": jnp.float32(2)}
    return outputs.compute(
        names, batch, towers, params, lambda tower, view, of_teacher: {}, **options
    ), towers


def batch():
    return {
        "image": np.ones((3, 2, 2, 3), np.uint8),
        "text": np.ones((3, 4), np.int32),
        "texts1/text": np.arange(24, dtype=np.int32).reshape(3, 2, 4),
        "label": np.arange(3, dtype=np.int32),
    }


def test_only_what_is_asked_for_is_computed():
    made, towers = compute({"image"}, batch())
    assert set(made) == {"image"} and towers.runs == [("image", (3, 2, 2, 3))]
    np.testing.assert_array_equal(made["image"], np.full((3, 2), 24.0))


def test_several_captions_a_row_are_one_run():
    made, towers = compute({"texts1/text", "text"}, batch())
    assert sorted(towers.runs) == [("text", (3, 4)), ("text", (6, 4))]
    assert made["texts1/text"].shape == (3, 2, 2)
    expected = 2 * batch()["texts1/text"].sum(-1)
    np.testing.assert_array_equal(made["texts1/text"][..., 0], expected)


def test_fields_are_passed_as_they_are():
    assert set(outputs.fields({"label", "image"}, batch())) == {"label"}
    made, _ = compute({"label"}, batch())
    assert not made


def test_stored_embeddings_become_unit_rows():
    stored = {**batch(), "teacher/image": np.full((3, 4), 2.0, np.float32)}
    made, towers = compute({"teacher/image"}, stored, teacher=outputs.Teacher(None))
    np.testing.assert_allclose(made["teacher/image"], np.full((3, 4), 0.5))
    assert not towers.runs


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("image", ("image", "image", "", False)),
        ("text_tokens", ("text", "text", "tokens", False)),
        ("view1/image_raw", ("view1/image", "image", "raw", False)),
        ("teacher/view1/image", ("view1/image", "image", "", True)),
        ("image_hidden_3", ("image", "image", "hidden_3", False)),
    ],
)
def test_names(name, expected):
    output = outputs.parse(name)
    assert (output.view, output.tower, output.kind, output.teacher) == expected


@pytest.mark.parametrize("name", ["label", "boxes", "image_sharp", "images", "image_hidden"])
def test_names_of_no_tower(name):
    assert outputs.parse(name) is None


@pytest.mark.parametrize(
    ("name", "teacher", "message"),
    [
        ("lable", None, "needs 'lable', which is neither .* did you mean 'label'"),
        ("view2/image", None, "needs 'view2/image', but the batch has no 'view2/image'"),
        ("teacher/image", None, "the run has no teacher; set config.teacher.kind"),
        ("teacher/image", outputs.Teacher(None), "embeddings are stored and the records give only"),
    ],
)
def test_outputs_that_cannot_be_made(name, teacher, message):
    with pytest.raises(ValueError, match=message):
        outputs.check([("objective 'x'", {name})], batch(), teacher)
