"""Image ops: the config string, each op against simple maths, independence of the batch."""

import colorsys
import string

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from PIL import Image

from jaxclip.data import batch_ops, image_ops

SIZE = 12
# Every op with options that make it do something, for the tests that go over all of them.
EXAMPLES = {
    "affine": "affine(degrees=20, translate=0.1, scale_min=0.8, scale_max=1.2, shear=10)",
    "autocontrast": "autocontrast(p=0.5)",
    "background": "background(p=0.5)",
    "blur": "blur(p=0.5)",
    "center_crop": "center_crop",
    "channel_shuffle": "channel_shuffle(p=0.5)",
    "color_jitter": "color_jitter",
    "cutout": "cutout(side=4)",
    "edges": "edges(p=0.5)",
    "flip": "flip",
    "gamma": "gamma",
    "grayscale": "grayscale(p=0.5)",
    "invert": "invert(p=0.5)",
    "pad": "pad",
    "posterize": "posterize(p=0.5)",
    "random_crop": "random_crop",
    "random_erasing": "random_erasing(p=0.5)",
    "random_part": "random_part",
    "random_resized_crop": "random_resized_crop(0.3, 1.0)",
    "resize": "resize",
    "resize_longest": "resize_longest",
    "resize_small": "resize_small",
    "rotate": "rotate(30)",
    "solarize": "solarize(p=0.5)",
}


def noise(count, height=SIZE, width=SIZE, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), np.uint8)


def run(ops, images, *draws, size=None):
    """Run a chain with the same draws for every image."""
    images = np.asarray(images, np.uint8)
    chain = image_ops.build(ops, size or images.shape[1])
    u = np.tile(np.float32(draws), (len(images), 1))
    assert u.shape[1] == chain.num_draws
    return chain(images, u)


def run_float(ops, images, *draws):
    return run(ops, images, *draws).astype(np.float64)


# --- the config string --------------------------------------------------------------------------


def test_string_list_and_mapping_say_the_same():
    text = image_ops.build("random_resized_crop(0.5, 1.0)|flip|color_jitter(hue=0.2)", 8)
    items = image_ops.build(
        [
            {"op": "random_resized_crop", "scale_min": 0.5, "scale_max": 1},
            "flip",
            {"op": "color_jitter", "hue": 0.2},
        ],
        8,
    )
    assert text.specs == items.specs
    assert text.num_draws == 4 + 1 + 5
    assert image_ops.build("", 8).specs == image_ops.build([], 8).specs == ()


def test_spec_prints_as_it_can_be_read_again():
    chain = image_ops.build("affine(degrees=10, p=0.5)|resize(method='box')", 8)
    again = image_ops.build("|".join(map(str, chain.specs)), 8)
    assert again.specs == chain.specs


@pytest.mark.parametrize(
    ("ops", "message"),
    [
        ("flipp", "unknown image op 'flipp'; did you mean 'flip'"),
        ("flip(q=1)", "no option 'q'"),
        ("color_jitter(hues=0.1)", "did you mean 'hue'"),
        ("flip(0.5, 1)", "at most 1 arguments"),
        ("flip(0.5, p=0.5)", "option 'p' twice"),
        ("flip(p='often')", "p='often' must be of type float"),
        ("flip(p=True)", "must be of type float"),
        ("flip(p=2)", "p=2.0 must be between 0 and 1"),
        ("flip(", "do not parse"),
        ("flip|", "do not parse"),
        ("flip + flip", "is not an op"),
        ("flip(p=__import__('os').getcwd())", "must be plain numbers"),
        ("os.getcwd()", "is not an op"),
        ("resize(size=0)", "size=0 must be at least 1"),
        ("resize(method='magic')", "must be one of nearest"),
        ("random_resized_crop(0.9, 0.5)", "scale_min=0.9 <= scale_max=0.5"),
        ("random_resized_crop(0)", "scale_min=0.0 must be above 0"),
        ("random_resized_crop(ratio_min=2, ratio_max=1)", "ratio_min"),
        ("affine(shear=90)", "shear below 90"),
        ("affine(scale_min=0)", "scale_min"),
        ("pad(fill=256)", "fill=256"),
        ("color_jitter(brightness=2)", "brightness=2.0"),
        ("color_jitter(hue=0.6)", "half a turn"),
        ("posterize(levels=1)", "levels=1"),
        ("solarize(threshold=300)", "threshold=300"),
        ("gamma(limit=0.5)", "limit=0.5"),
        ("blur(sigma_max=0)", "sigma_max=0"),
        ("edges(strength=0)", "strength=0"),
        ("random_erasing(area_min=0)", "area_min=0"),
        ("random_erasing(ratio_max=0.5)", "ratio_max=0.5"),
        ("background(white=0)", "white=0"),
        ([3], "neither a string nor a mapping"),
        ([{"p": 0.5}], "neither a string nor a mapping"),
        ([{"op": "flip", "pp": 1}], "no option 'pp'"),
    ],
)
def test_mistakes_are_named_when_the_chain_is_built(ops, message):
    with pytest.raises(ValueError, match=r"image op|must be|need") as caught:
        image_ops.build(ops, 8)
    assert message in str(caught.value)


def test_image_size_below_one_is_refused():
    with pytest.raises(ValueError, match="image_size=0"):
        image_ops.build("flip", 0)


@hypothesis.given(st.text(alphabet=string.ascii_lowercase + string.digits + "_(),.|='\"*-[] \\\n"))
def test_no_string_does_anything_but_parse_or_raise_value_error(text):
    try:
        chain = image_ops.build(text, 8)
    except ValueError:
        return
    assert all(spec.name in image_ops.names() for spec in chain.specs)


numbers = st.one_of(st.integers(-3, 300), st.floats(-3, 300, allow_nan=False))


@hypothesis.given(
    st.lists(
        st.tuples(
            st.sampled_from(sorted(EXAMPLES)),
            st.dictionaries(st.sampled_from(["p", "size", "degrees", "hue", "fill"]), numbers),
        ),
        max_size=4,
    )
)
def test_written_and_mapped_chains_agree_or_fail_alike(chain):
    def attempt(ops):
        try:
            return image_ops.build(ops, 8).specs
        except ValueError:
            return None

    written = "|".join(
        f"{name}({', '.join(f'{k}={v!r}' for k, v in options.items())})" for name, options in chain
    )
    assert attempt(written) == attempt([{"op": name, **options} for name, options in chain])


def test_examples_cover_every_op():
    assert sorted(EXAMPLES) == image_ops.names()


# --- properties of every op ---------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_an_image_does_not_depend_on_its_batch(name):
    chain = image_ops.build(EXAMPLES[name], SIZE)
    images = noise(17)
    u = np.random.default_rng(1).random((17, chain.num_draws), np.float32)
    together = chain(images, u)
    assert together.shape == (17, SIZE, SIZE, 3) and together.dtype == np.uint8
    np.testing.assert_array_equal(together, chain(images, u))  # nor on what was run before
    for split in (1, 4, 16):
        parts = [chain(images[i : i + split], u[i : i + split]) for i in range(0, 17, split)]
        np.testing.assert_array_equal(np.concatenate(parts), together)
    np.testing.assert_array_equal(images, noise(17))  # the input is left alone


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_images_of_any_size_come_out_at_the_final_one(name):
    chain = image_ops.build(EXAMPLES[name], SIZE)
    shapes = [(5, 30), (30, 5), (1, 1), (SIZE, SIZE), (40, 40), (5, 30)]
    images = [noise(1, *shape, seed=i)[0] for i, shape in enumerate(shapes)]
    u = np.random.default_rng(2).random((len(images), chain.num_draws), np.float32)
    together = chain(images, u)
    assert together.shape == (len(images), SIZE, SIZE, 3)
    for i, image in enumerate(images):
        np.testing.assert_array_equal(chain([image], u[i : i + 1])[0], together[i])


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_p_zero_does_nothing_and_keeps_square_is_true(name):
    if "p" in image_ops.build(name, SIZE).specs[0].options:
        chain = image_ops.build([{"op": name, "p": 0.0}], SIZE)
        u = np.random.default_rng(3).random((4, chain.num_draws), np.float32)
        np.testing.assert_array_equal(chain(noise(4), u), noise(4))
    chain = image_ops.build(name, SIZE)
    if chain.keeps_square:
        u = np.random.default_rng(3).random((4, chain.num_draws), np.float32)
        np.testing.assert_array_equal(chain(noise(4), u), noise(4))


def test_probability_is_the_share_of_images_that_change():
    chain = image_ops.build("invert(p=0.3)", 2)
    images = np.zeros((4000, 2, 2, 3), np.uint8)
    u = np.random.default_rng(4).random((4000, 1), np.float32)
    assert abs((chain(images, u) == 255).all((1, 2, 3)).mean() - 0.3) < 0.04


# --- crops and resizes --------------------------------------------------------------------------


def ramp(height, width):
    """Red is the column, green the row: a picture that says where each pixel came from."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([columns, rows, np.zeros_like(rows)], -1).astype(np.uint8)[None]


def test_resize_of_blocks_takes_one_pixel_of_each():
    blocks = np.repeat(np.repeat(ramp(4, 6), 3, axis=1), 2, axis=2)
    resized = run("resize(method='box')", blocks, size=4)
    assert resized.shape == (1, 4, 4, 3)
    np.testing.assert_array_equal(resized[0, :, 0, 1], [0, 1, 2, 3])
    np.testing.assert_array_equal(
        run("resize(method='nearest')", np.repeat(ramp(4, 4), 2, axis=1), size=4), ramp(4, 4)
    )


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    # torchvision: the longer side is int(size * long / short).
    [(10, 20, (8, 16)), (20, 10, (16, 8)), (10, 13, (8, 10)), (7, 7, (8, 8)), (3, 10, (8, 26))],
)
def test_resize_small_keeps_the_aspect_ratio(height, width, expected):
    chain = image_ops.build("resize_small(8)", 8)
    function = chain.steps[0][1]
    resized = function(Image.fromarray(noise(1, height, width)[0]), np.empty(0))
    assert (resized.height, resized.width) == expected


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    # open_clip: both sides are round(side / ratio).
    [(10, 20, (4, 8)), (20, 10, (8, 4)), (10, 13, (6, 8)), (7, 7, (8, 8)), (500, 3, (8, 1))],
)
def test_resize_longest_keeps_the_aspect_ratio(height, width, expected):
    chain = image_ops.build("resize_longest(8)|pad(fill=0)", 8)
    images = noise(1, height, width) | 1
    resized = chain.steps[0][1](Image.fromarray(images[0]), np.empty(0))
    assert (resized.height, resized.width) == expected
    padded = chain(images, np.zeros((1, 0), np.float32))[0]
    top, left = ((8 - side) // 2 for side in expected)
    inside = padded[top : top + expected[0], left : left + expected[1]]
    np.testing.assert_array_equal(inside, np.asarray(resized))
    assert padded.astype(int).sum() == inside.astype(int).sum()


@pytest.mark.parametrize(("side", "first"), [(4, 0), (5, 0), (6, 1), (7, 1), (8, 2), (11, 3)])
def test_center_crop_rounded_down(side, first):
    cut = run("center_crop(rounding='down')", ramp(side, side), size=4)
    np.testing.assert_array_equal(cut[0, 0, :, 0], np.arange(first, first + 4))
    with pytest.raises(ValueError, match="rounding='up' must be even or down"):
        image_ops.build("center_crop(rounding='up')", 4)


@pytest.mark.parametrize(
    ("side", "first"),
    # torchvision: int(round((side - 4) / 2)), halves to even.
    [(4, 0), (5, 0), (6, 1), (7, 2), (8, 2), (9, 2), (11, 4)],
)
def test_center_crop_takes_the_middle(side, first):
    cut = run("center_crop", ramp(side, side), size=4)
    np.testing.assert_array_equal(cut[0, 0, :, 0], np.arange(first, first + 4))
    np.testing.assert_array_equal(cut[0, :, 0, 1], np.arange(first, first + 4))


def test_random_crop_reaches_every_corner_and_no_further():
    almost_one = 1 - 2**-24
    for u, first in ((0.0, 0), (almost_one, 6), (0.5, 3)):
        cut = run("random_crop", ramp(10, 10), u, u, size=4)
        np.testing.assert_array_equal(cut[0, 0, :, 0], np.arange(first, first + 4))


def test_pad_centres_on_a_square():
    padded = run("pad(fill=7)", np.full((1, 2, 6, 3), 200), size=6)
    np.testing.assert_array_equal(padded[0, :, 0, 0], [7, 7, 200, 200, 7, 7])


def test_random_resized_crop_by_hand():
    # A quarter of the area, square, moved all the way to the right and half way down.
    image = ramp(16, 16)
    cut = run(
        "random_resized_crop(0.25, 0.25, 1, 1, method='nearest')",
        image, 0.3, 0.5, 1 - 2**-24, 0.5, size=8,
    )  # fmt: skip
    np.testing.assert_array_equal(cut[0, 0, :, 0], np.arange(8, 16))
    np.testing.assert_array_equal(cut[0, :, 0, 1], np.arange(4, 12))


@hypothesis.given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    u=st.lists(st.integers(0, 2**24 - 1), min_size=4, max_size=4),
)
def test_random_resized_crop_stays_inside(height, width, u):
    seen = {}

    class Probe:
        size = (width, height)

        def resize(self, size, resample, box, reducing_gap):
            seen["box"] = box

    function = image_ops.build("random_resized_crop(0.2, 0.9)", 8).steps[0][1]
    function(Probe(), np.float32(u) / np.float32(2**24))
    left, top, right, bottom = seen["box"]
    assert 0 <= left < right <= width and 0 <= top < bottom <= height
    area = (right - left) * (bottom - top) / (width * height)
    assert area <= 0.9 + 1e-6
    ratio = (right - left) / (bottom - top)
    assert 3 / 4 - 1e-6 <= ratio <= 4 / 3 + 1e-6


def test_quarter_turn_and_shift_of_affine():
    image = ramp(8, 8)
    # u = 1 turns by the full angle, clockwise. Pillow's interpolation cuts off fractions, so what
    # is 4.9999 in exact arithmetic may come out as 4.
    turned = run_float("rotate(90)", image, 0, 1, 0.5, 0, 0.5, 0.5)
    expected = np.rot90(image[0], -1)[1:-1, 1:-1]
    np.testing.assert_allclose(turned[0, 1:-1, 1:-1], expected, atol=1)
    shifted = run("affine(translate=0.25, fill=9)", image, 0, 0.5, 0.5, 0, 1, 0.5)
    np.testing.assert_array_equal(shifted[0, :, 2:, 0], image[0, :, :-2, 0])
    assert (shifted[0, :, :2] == 9).all()


def test_affine_zooms_about_the_centre():
    image = np.zeros((1, 16, 16, 3))
    image[0, 4:12, 4:12] = 255
    halved = run_float(
        "affine(scale_min=0.5, scale_max=0.5, fill=0)", image, 0, 0.5, 0.5, 0, 0.5, 0.5
    )
    # Half the size is a quarter of the area, and still in the middle.
    assert abs(halved.sum() / image.sum() - 0.25) < 0.02
    np.testing.assert_array_equal(halved, halved[:, ::-1, ::-1])


# --- colours ------------------------------------------------------------------------------------


def test_flip():
    np.testing.assert_array_equal(run("flip(p=1)", noise(3), 0.9), noise(3)[:, :, ::-1])
    np.testing.assert_array_equal(run("flip(p=0.5)", noise(3), 0.5), noise(3))
    np.testing.assert_array_equal(run("flip(p=0.5)", noise(3), 0.49), noise(3)[:, :, ::-1])


def test_flip_in_both_forms_is_the_same():
    images = noise(9)
    u = np.random.default_rng(5).random((9, 2), np.float32)
    # After a batch op the images are planes, before one they are pictures.
    after = image_ops.build("invert(p=0)|flip", SIZE)(images, u)
    before = image_ops.build("flip|invert(p=0)", SIZE)(images, u[:, ::-1])
    np.testing.assert_array_equal(after, before)


def luma(images):
    return images.astype(np.float64) @ [0.299, 0.587, 0.114]


def test_brightness_multiplies():
    images = noise(3) // 2
    bright = run_float("color_jitter(0.5, 0, 0, 0)", images, 0, 1.0, 0.5, 0.5, 0.5)
    np.testing.assert_allclose(bright, np.rint(images * 1.5), atol=0.51)


def test_contrast_pulls_away_from_the_mean_grey():
    images = 100 + noise(2) // 8
    factor = 1 + 0.5 * (2 * 0.75 - 1)
    mean = luma(images).mean((1, 2))[:, None, None, None]
    out = run_float("color_jitter(0, 0.5, 0, 0)", images, 0, 0.5, 0.75, 0.5, 0.5)
    np.testing.assert_allclose(out, mean + factor * (images - mean), atol=0.51)


def test_saturation_scales_the_distance_from_grey():
    images = 64 + noise(2) // 2
    gray = luma(images)[..., None]
    none = run_float("color_jitter(0, 0, 1.0, 0)", images, 0, 0.5, 0.5, 0.0, 0.5)
    np.testing.assert_allclose(none, np.broadcast_to(gray, none.shape), atol=0.51)
    images = 110 + noise(2) // 16
    more = run_float("color_jitter(0, 0, 1.0, 0)", images, 0, 0.5, 0.5, 1.0, 0.5)
    gray = luma(images)[..., None]
    np.testing.assert_allclose(more, gray + 2 * (images - gray), atol=0.51)


def test_hue_turns_colours_and_keeps_luma():
    images = 96 + noise(2) // 4
    turned = run_float("color_jitter(0, 0, 0, 0.5)", images, 0, 0.5, 0.5, 0.5, 2 / 3)
    np.testing.assert_allclose(luma(turned), luma(images), atol=0.9)  # rounding of three channels
    # A sixth of a turn takes red to yellow or magenta, as in any colour circle.
    red = np.full((1, 2, 2, 3), [180, 90, 90])
    hues = []
    for u in (0.5 - 1 / 6, 0.5 + 1 / 6):
        out = run("color_jitter(0, 0, 0, 0.5)", red, 0, 0.5, 0.5, 0.5, u)[0, 0, 0] / 255
        hues.append(colorsys.rgb_to_hsv(*out)[0])
    assert sorted(round(6 * hue) % 6 for hue in hues) == [1, 5]


def test_chroma_matrix_composes():
    one = batch_ops.chroma_matrix(np.array([1.0]), np.array([0.0]))
    np.testing.assert_allclose(one[0], np.eye(3), atol=1e-12)
    turn = batch_ops.chroma_matrix(np.array([1.0]), np.array([0.7]))[0]
    back = batch_ops.chroma_matrix(np.array([0.5]), np.array([-0.7]))[0]
    half = batch_ops.chroma_matrix(np.array([0.5]), np.array([0.0]))[0]
    np.testing.assert_allclose(back @ turn, half, atol=1e-12)
    np.testing.assert_allclose(turn.sum(1), 1, atol=1e-12)  # grey stays grey


def test_grayscale_is_luma():
    gray = run_float("grayscale(p=1)", noise(3), 0)
    np.testing.assert_allclose(gray, np.repeat(luma(noise(3))[..., None], 3, -1), atol=0.51)


def test_invert_and_solarize():
    np.testing.assert_array_equal(run("invert(p=1)", noise(3), 0), 255 - noise(3))
    images = noise(3)
    out = run("solarize(threshold=128, p=1)", images, 0, 0)
    np.testing.assert_array_equal(out, np.where(images > 128, 255 - images, images))
    np.testing.assert_array_equal(run("solarize(255, p=1)", images, 0, 0.5), images)


def test_channel_shuffle_permutes():
    seen = set()
    for i in range(5):
        out = run("channel_shuffle(p=1)", noise(1), 0, (i + 0.5) / 5)
        orders = [o for o in np.ndindex(3, 3, 3) if np.array_equal(out, noise(1)[..., list(o)])]
        assert len(orders) == 1 and sorted(orders[0]) == [0, 1, 2] and orders[0] != (0, 1, 2)
        seen.add(orders[0])
    assert len(seen) == 5


def test_posterize_leaves_evenly_spaced_levels():
    gradient = np.arange(256).repeat(3).reshape(1, 16, 16, 3)
    out = run("posterize(levels=4, p=1)", gradient, 0, 0)
    np.testing.assert_array_equal(np.unique(out), [0, 85, 170, 255])
    assert np.abs(out - gradient.astype(int)).max() <= 43


def test_gamma_is_a_power():
    gradient = np.arange(256).repeat(3).reshape(1, 16, 16, 3)
    for u, power in ((0.0, 0.5), (0.5, 1.0), (1.0, 2.0)):
        out = run_float("gamma(limit=2, p=1)", gradient, 0, u)
        np.testing.assert_allclose(out, 255 * (gradient / 255) ** power, atol=0.51)


def test_autocontrast_stretches_each_channel():
    image = np.zeros((1, 2, 2, 3))
    image[0, ..., 0] = [[50, 100], [150, 100]]  # to the full range
    image[0, ..., 1] = 77  # flat: stays
    out = run("autocontrast(p=1)", image, 0)
    np.testing.assert_array_equal(out[0, ..., 0], [[0, 128], [255, 128]])
    assert (out[0, ..., 1] == 77).all()


def test_blur_of_a_point_is_a_gaussian_and_of_a_plane_nothing():
    point = np.zeros((1, 15, 15, 3))
    point[0, 7, 7] = 255
    sigma = 0.1 + 0.8 * (1.5 - 0.1)
    offsets = np.arange(-3, 4)
    kernel = np.exp(-0.5 * (offsets / sigma) ** 2)
    kernel /= kernel.sum()
    out = run_float("blur(sigma_max=1.5, p=1)", point, 0, 0.8)
    expected = 255 * np.outer(kernel, kernel)
    np.testing.assert_allclose(out[0, 4:11, 4:11, 0], expected, atol=0.51)
    plane = np.full((1, 9, 9, 3), 130)
    np.testing.assert_array_equal(run("blur(p=1)", plane, 0, 0.7), plane)


def test_edges_draws_steps_dark_on_white():
    step = np.zeros((1, 6, 6, 3))
    step[..., 3:, :] = 60
    out = run("edges(strength=1, p=1)", step, 0, 0)
    np.testing.assert_array_equal(out[0, 0, :, 0], [255, 255, 195, 255, 255, 255])


def test_random_erasing_covers_the_asked_area():
    image = np.full((1, 20, 20, 3), 9)
    out = run(
        "random_erasing(0.25, 0.25, 1, p=1)", image, 0, 0.5, 0.5, 0, 1 - 2**-24, 0.2, 0.4, 0.6
    )
    covered = (out[0] != 9).any(-1)
    assert covered.sum() == 100 and covered[:10, 10:].all()
    np.testing.assert_array_equal(out[0, 0, -1], [51, 102, 153])


def test_background_colours_the_ground_and_nothing_else():
    image = np.full((1, 16, 16, 3), 255)
    image[0, 4:12, 4:12] = 30  # the thing …
    image[0, 7:9, 7:9] = 255  # … with a white hole, which is no ground
    out = run("background(p=1)", image, 0, 0.5, 1.0, 0.0)
    np.testing.assert_array_equal(out[0, 0, 0], [128, 255, 0])
    np.testing.assert_array_equal(out[0, 7, 7], [255, 255, 255])
    np.testing.assert_array_equal(out[0, 6:10, 6:7], image[0, 6:10, 6:7])


def test_a_chain_runs_its_ops_in_order():
    image = noise(1)
    both = run("invert(p=1)|solarize(128, p=1)", image, 0, 0, 0)
    first = run("invert(p=1)", image, 0)
    np.testing.assert_array_equal(both, run("solarize(128, p=1)", first, 0, 0))
    assert not np.array_equal(both, run("solarize(128, p=1)|invert(p=1)", image, 0, 0, 0))
