"""Evaluation chains against the preprocessing of the published models."""

import io
import pathlib

import numpy as np
import pytest
from PIL import Image

from jaxclip.data import image_ops
from tests.data import pictures

GOLDEN = pathlib.Path(__file__).parent / "golden" / "preprocessing.npz"
CHAINS = {
    "shortest": "resize_small|center_crop",
    "longest": "resize_longest|pad(fill=0)",
    "squash": "resize",
}
HF_CLIP = "resize_small|center_crop(rounding='down')"
GOLDEN_SIZES = ((57, 31), (31, 58), (20, 20), (23, 40), (9, 64))


def run(ops, image, size):
    """uint8[size, size, 3]."""
    chain = image_ops.build(ops, size)
    return chain([np.asarray(image)], np.zeros((1, 0), np.float32))[0]


@pytest.mark.parametrize("mode", CHAINS)
def test_pixels_of_open_clip(mode):
    """tests/data/make_golden.py asked open_clip 3.3.0."""
    expected = np.load(GOLDEN)[mode]
    for row, (width, height) in zip(expected, GOLDEN_SIZES, strict=True):
        found = run(CHAINS[mode], pictures.photo(width, height), row.shape[0])
        # Other versions of Pillow may round another way.
        np.testing.assert_allclose(found.astype(int), row.astype(int), atol=1)


def test_pixels_of_transformers():
    expected = np.load(GOLDEN)["transformers"]
    other = 0
    for row, (width, height) in zip(expected, GOLDEN_SIZES, strict=True):
        image = pictures.photo(width, height)
        found = run(HF_CLIP, image, row.shape[0]).astype(int)
        np.testing.assert_allclose(found, row.astype(int), atol=1)
        other += np.abs(found - run(CHAINS["shortest"], image, row.shape[0])).max() > 1
    assert other  # sizes at which the two families cut elsewhere


@pytest.fixture(scope="module")
def photos():
    from jaxclip.data import sources

    source = sources.open("emoji").source("train")
    emoji = [Image.open(io.BytesIO(source[i].image)).convert("RGB") for i in range(0, 400, 20)]
    return [*(pictures.photo(*size) for size in pictures.SIZES), *emoji]


@pytest.mark.slow
@pytest.mark.parametrize("size", [224, 225])
@pytest.mark.parametrize("mode", CHAINS)
def test_many_pictures_are_those_of_open_clip(photos, mode, size):
    transform = pytest.importorskip("open_clip.transform").image_transform
    theirs = transform(size, False, mean=(0, 0, 0), std=(1, 1, 1), resize_mode=mode)
    for image in photos:
        expected = theirs(image).numpy().transpose(1, 2, 0) * 255
        found = run(CHAINS[mode], image, size)
        np.testing.assert_array_equal(found, np.rint(expected).astype(np.uint8), str(image.size))


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["", "Pil"])
@pytest.mark.parametrize(("family", "ops"), [("CLIP", HF_CLIP), ("Siglip", "resize")])
def test_many_pictures_are_those_of_transformers(photos, family, ops, backend):
    transformers = pytest.importorskip("transformers")
    processor = getattr(transformers, f"{family}ImageProcessor{backend}")()
    mean, std = np.array(processor.image_mean), np.array(processor.image_std)
    for image in photos:
        theirs = processor(image, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
        found = run(ops, image, 224) / 255
        differ = np.abs((found - mean) / std - theirs) * std * 255
        if backend:
            assert differ.max() < 0.01, image.size
        else:  # torchvision rounds another way than Pillow
            assert differ.max() < 2.01 and (differ > 1.01).mean() < 1e-4, image.size
