"""Cues: what oracles of one cue score, what is drawn, and the training set."""

import tarfile

import numpy as np
import pytest

from jaxclip import parallel
from jaxclip.evaluate import base, cues


class Oracle(base.Model):
    """Goes by one cue, which it reads off a table of the pictures."""

    def __init__(self, place, size):
        rng = np.random.default_rng(0)
        self.known = {
            cues.draw(values, size, rng).tobytes(): values[place]
            for values in cues.all_combinations()
        }
        self.place = place
        super().__init__(None, None, None, None, mesh=parallel.make_mesh(), batch_size=64)

    def texts(self, texts):
        names = list(cues.NAMES.values())[self.place]
        return np.eye(5)[[next((i for i, n in enumerate(names) if n in t), 4) for t in texts]]


@pytest.mark.parametrize("place", range(4))
def test_an_oracle_of_one_cue(place, monkeypatch):
    oracle, data = Oracle(place, 16), base.ArrayData({"test": base.arrays(np.zeros((1, 2)))})
    monkeypatch.setattr(
        cues, "encode_images",
        lambda model, images: np.eye(5)[[model.known[image.tobytes()] for image in images]],
    )  # fmt: skip
    evaluator = cues.Cues(image_size=16)
    evaluator.check(data)
    found = evaluator.evaluate(oracle, data)
    assert set(found) == set(evaluator.metric_names())
    for i, cue in enumerate(cues.NAMES):
        assert found[f"bias_{cue}"] == (i == place)
        assert found[f"agree_{cue}"] == (1 if i == place else 0.25)
    assert found[f"names_{list(cues.NAMES)[place]}"] == 1


def test_biases_add_up_to_at_most_one():
    combinations = cues.all_combinations()
    guesses = np.random.default_rng(0).integers(0, 4, len(combinations))
    found = cues.biases(guesses, combinations)
    assert sum(v for k, v in found.items() if k.startswith("bias_")) <= 1


def test_what_is_drawn():
    rng = np.random.default_rng(0)
    pictures = [cues.draw([0, scale, 0, 0], 48, rng) for scale in range(4)]
    red = [(p[..., 0].astype(int) - p[..., 2] > 60).sum() for p in pictures]
    assert red == sorted(red) and red[3] > 8 * red[0] > 0
    # A triangle that points to a side has its tip there: fewer pixels in that half.
    for orientation, (axis, tip) in enumerate(((0, 0), (1, 1), (0, 1), (1, 0))):
        inked = cues.draw([1, 3, orientation, 0], 48, rng)[..., 2] < 90
        rows = np.flatnonzero(inked.any(axis=1 - axis))
        halves = np.array_split(inked.sum(axis=1 - axis)[rows[0] : rows[-1] + 1], 2)
        assert halves[tip].sum() < halves[1 - tip].sum()
    assert cues.caption([2, 0, 3, 1]) == "a tiny green letter T pointing left"


def test_pictures_are_encoded_in_order():
    images = np.random.default_rng(0).integers(0, 256, (11, 4, 4, 3), np.uint8)
    encode = lambda params, x: x.reshape(x.shape[0], -1)[:, :3].astype(np.float32)  # noqa: E731
    model = base.Model(encode, None, None, None, mesh=parallel.make_mesh(), batch_size=8)
    expected = images.reshape(11, -1)[:, :3]
    np.testing.assert_array_equal(cues.encode_images(model, images), expected)


def test_the_training_set(tmp_path, capsys):
    cues.main(["--to", str(tmp_path / "set"), "--count", "6", "--image_size", "16"])
    assert capsys.readouterr().out.strip() == str(tmp_path / "set" / "train.tar")
    with tarfile.open(tmp_path / "set" / "train.tar") as tar:
        names = tar.getnames()
        texts = [tar.extractfile(n).read().decode() for n in names if n.endswith("txt")]
        labels = [tar.extractfile(n).read().decode() for n in names if n.endswith("cls")]
    assert len(names) == 18 and labels == list("012301")
    assert texts[1] == "a small green triangle pointing right" == texts[5]


def test_a_size_in_which_nothing_is_seen():
    with pytest.raises(ValueError, match="image_size=8 must be at least 16"):
        cues.Cues(image_size=8).check(None)
