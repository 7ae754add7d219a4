"""muP keeps what a step does to activations the same at all widths; the usual way does not."""

import numpy as np
import pytest

from jaxclip.bench import mup


def test_pairs_are_drawn_alike_and_tell_both_attributes():
    one, other = (next(mup.batches(6, seed=3)) for _ in range(2))
    np.testing.assert_array_equal(one[0], other[0])
    images, texts = one
    assert images.shape == (6, 16, 16, 3) and texts.shape == (6, mup.LENGTH)
    assert (texts[:, 0] >= 1).all() and (texts[:, 0] <= mup.ATTRIBUTES).all()
    assert (texts[:, 1] > mup.ATTRIBUTES).all() and (texts[:, 1] <= 2 * mup.ATTRIBUTES).all()


@pytest.mark.slow
def test_the_coordinate_check():
    found = mup.coordinate_check([16, 256], batch_size=16)
    for tower in ("image", "text"):
        growth = {way: wide[f"{tower} blocks"] / narrow[f"{tower} blocks"]
                  for way, (narrow, wide) in found.items()}  # fmt: skip
        assert growth["usual"] > 3, growth
        assert 0.5 < growth["muP"] < 2, growth
    assert found["usual"][0] == found["muP"][0]  # the base


def test_widths_that_can_not_be_are_refused(capsys):
    for widths in ("64,32", "30"):
        with pytest.raises(SystemExit):
            mup.main(["--widths", widths])
        assert "ascending, multiples of 4" in capsys.readouterr().err
