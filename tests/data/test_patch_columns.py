"""Batches of pictures in their own aspect ratio (NaFlex)."""

import numpy as np
import pytest

from jaxclip import fields
from jaxclip.data import image_ops, patch_sequence, pipeline

COUNTS = (4, 9, 16)
SPEC = fields.as_patches({**fields.PAIR, "index": fields.Index()}, 4, COUNTS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from tests.data import conftest as toys

    made = [
        toys.records(1, height=8 + 3 * i, width=40 - 3 * i)[0].__class__(
            toys.picture(i, 8 + 3 * i, 40 - 3 * i), (f"thing {i}",), key=f"key{i}"
        )
        for i in range(11)
    ]
    return toys.write_data_set(tmp_path_factory.mktemp("d") / "set", {"train": made})


def batches(folder, tokenize, steps, start=0, spec=SPEC, **options):
    pytest.importorskip("tensorflow")
    share = {key: options.pop(key) for key in tuple(options) if key.startswith("process")}
    iterator = pipeline.train_iterator(
        {"name": str(folder), "image_size": 16, "image_ops": [], **options},
        tokenizer=tokenize,
        global_batch_size=12,
        seed=5,
        start_step=start,
        spec=spec,
        **share,
    )
    try:
        return [next(iterator) for _ in range(steps)]
    finally:
        iterator.close()


def test_pictures_keep_their_aspect_ratio_and_batches_their_count(folder, tokenize):
    made = batches(folder, tokenize, 12)
    lengths = [batch["image"].shape[1] for batch in made]
    assert set(lengths) == set(COUNTS)
    for batch, length in zip(made, lengths, strict=True):
        assert batch["image"].dtype == np.uint8 and batch["image"].shape == (12, length, 48)
        for index, grid, patches in zip(
            batch["index"], batch["image_grid"], batch["image"], strict=True
        ):
            expected = patch_sequence.grid_of(8 + 3 * index, 40 - 3 * index, 4, length)
            assert tuple(grid) == expected
            assert patches[: grid.prod()].any(axis=1).all() and not patches[grid.prod() :].any()


def test_a_batch_is_a_function_of_the_step_on_any_number_of_hosts(folder, tokenize):
    whole = batches(folder, tokenize, 4)
    (again,) = batches(folder, tokenize, 1, start=3, num_parallel_calls=1)
    halves = [
        batches(folder, tokenize, 1, start=3, process_index=i, process_count=2)[0] for i in (0, 1)
    ]
    for key in SPEC:
        np.testing.assert_array_equal(whole[3][key], again[key])
        np.testing.assert_array_equal(whole[3][key], np.concatenate([h[key] for h in halves]))


def test_ops_come_before_the_patches(folder, tokenize):
    spec = fields.as_patches({"image": fields.View(ops="flip(1.0)")}, 4, (16,))
    (flipped,) = batches(folder, tokenize, 1, spec=spec)
    (plain,) = batches(folder, tokenize, 1, spec=fields.as_patches(fields.PAIR, 4, (16,)))
    rows, columns = plain["image_grid"][0]
    before = plain["image"][0, : rows * columns].reshape(rows, columns, 4, 4, 3)
    after = flipped["image"][0, : rows * columns].reshape(rows, columns, 4, 4, 3)
    # Resizing is symmetric up to the rounding of its weights.
    np.testing.assert_allclose(after[:, ::-1, :, ::-1].astype(int), before.astype(int), atol=1)


def test_a_random_part_has_the_share_and_ratio_it_draws():
    chain = image_ops.build("random_part(0.25, 0.25, 4.0, 4.0)", 16)
    u = np.array([[0.5, 0.5, 0.0, 0.999]], np.float32)
    picture = np.arange(32 * 16 * 3, dtype=np.uint8).reshape(32, 16, 3)
    (part,) = chain.apply([picture], u)
    assert part.shape == (8, 16, 3)  # half the side, twice as wide, half as high
    np.testing.assert_array_equal(part, picture[24:])
    # A box of the part's own corners becomes the whole picture.
    moved = chain.boxes((16, 32), np.array([[0.0, 0.75, 1.0, 1.0]]), u[0])
    np.testing.assert_allclose(moved, [[0, 0, 1, 1]])


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"image": fields.Patches("", 4, ())}, r"patch_counts=\[\] must be 1 or more"),
        ({"image": fields.Patches("", 4, (4, 0))}, r"patch_counts=\[4, 0\] must be 1 or more"),
        ({"image_grid": fields.Grid("image"), "image": fields.View()}, "whose grid it is"),
    ],
)
def test_what_can_not_be_is_refused(folder, spec, message):
    with pytest.raises(ValueError, match=message):
        pipeline.check_spec({"name": str(folder)}, spec)


def test_square_views_of_a_size_of_their_own_are_refused():
    with pytest.raises(ValueError, match="which is square"):
        fields.as_patches({"image": fields.View(size=32)}, 4, COUNTS)
