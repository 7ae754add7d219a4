"""Pictures of any aspect ratio in patches, against SigLIP 2's rule and transformers' pixels."""

import pathlib

import numpy as np
import pytest

from jaxclip.data import patch_sequence
from tests.data import pictures

GOLDEN = pathlib.Path(__file__).parent / "golden" / "patch_sequences.npz"
GOLDEN_SIZES = ((57, 31), (20, 20), (3, 70))


@pytest.mark.parametrize(
    ("size", "patches", "grid"),
    [
        ((480, 640), 128, (9, 12)),
        ((480, 640), 256, (14, 18)),
        ((224, 224), 256, (16, 16)),
        ((1000, 100), 128, (32, 4)),
        ((333, 500), 256, (13, 19)),
        ((1, 5000), 256, (1, 256)),
        ((5000, 1), 7, (7, 1)),
        ((1, 1), 1, (1, 1)),
    ],
)
def test_grids_of_siglip_2(size, patches, grid):
    assert patch_sequence.grid_of(*size, 16, patches) == grid


def test_the_grid_is_the_largest_that_fits():
    rng = np.random.default_rng(0)
    for height, width in rng.integers(1, 3000, (40, 2)):
        rows, columns = patch_sequence.grid_of(height, width, 16, 256)
        assert 1 <= rows * columns <= 256
        # The next larger scale at which a row or a column is added has too many patches.
        scale = min(rows * 16 / height, columns * 16 / width) * (1 + 1e-4)
        if scale < 99:
            assert np.ceil(height * scale / 16) * np.ceil(width * scale / 16) > 256


def test_patches_stand_row_by_row_and_padding_behind():
    image = np.arange(8 * 12 * 3, dtype=np.uint8).reshape(8, 12, 3)
    patches, valid, grid = patch_sequence.cut(image, 4, 7)
    assert grid.tolist() == [2, 3] and valid.tolist() == [True] * 6 + [False]
    for place in range(6):
        row, column = divmod(place, 3)
        piece = image[4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
        np.testing.assert_array_equal(patches[place].reshape(4, 4, 3), piece)
    assert not patches[6].any()


@pytest.mark.parametrize("number", range(len(GOLDEN_SIZES)))
def test_pixels_of_transformers(number):
    """tests/data/make_golden.py asked transformers' Siglip2ImageProcessorPil."""
    expected = np.load(GOLDEN)
    image = np.asarray(pictures.photo(*GOLDEN_SIZES[number]))
    patches, valid, grid = patch_sequence.cut(image, 4, 20)
    np.testing.assert_array_equal(grid, expected["grid"][number])
    np.testing.assert_array_equal(valid, expected["valid"][number])
    found, theirs = patches.astype(int), expected["patches"][number].astype(int)
    # Other versions of Pillow may round another way.
    np.testing.assert_allclose(found[valid], theirs[valid], atol=1)


@pytest.mark.parametrize("arguments", [(0, 5, 16, 4), (5, 5, 16, 0)])
def test_nothing_to_cut_is_refused(arguments):
    with pytest.raises(ValueError, match=r"must be at least 1"):
        patch_sequence.grid_of(*arguments)


def test_an_unknown_method_is_refused():
    with pytest.raises(ValueError, match=r"method='cubic'; use 'nearest', 'bilinear'"):
        patch_sequence.cut(np.zeros((4, 4, 3), np.uint8), 4, 4, method="cubic")


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["", "Pil"])
def test_many_pictures_are_those_of_transformers(backend):
    transformers = pytest.importorskip("transformers")
    processor = getattr(transformers, f"Siglip2ImageProcessor{backend}")()
    for size in pictures.SIZES:
        image = pictures.photo(*size)
        theirs = processor(image, return_tensors="np")
        patches, valid, grid = patch_sequence.cut(np.asarray(image), 16, 256)
        np.testing.assert_array_equal(theirs["spatial_shapes"][0], grid)
        np.testing.assert_array_equal(theirs["pixel_attention_mask"][0], valid)
        found = (patches / 255 - 0.5) / 0.5
        differ = np.abs(found - theirs["pixel_values"][0])[valid] * 0.5 * 255
        if backend:
            assert differ.max() < 0.01, size
        else:  # torchvision rounds another way than Pillow
            assert differ.max() < 2.01 and (differ > 1.01).mean() < 1e-4, size
