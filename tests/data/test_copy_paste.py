"""Copy-Paste, the scenes that are made by it, their boxes and texts, and Cutout."""

import json

import numpy as np
import pytest

from jaxclip import fields
from jaxclip.data import copy_paste, decode, image_ops, pipeline, sources
from jaxclip.data.copy_paste import Annotated
from jaxclip.data.record import Record

RNG = np.random.default_rng(0)


def picture(*masks, texts=None):
    masks = np.array(masks, bool).reshape(-1, 6, 8)
    texts = texts or tuple(f"thing {i}" for i in range(len(masks)))
    return Annotated(RNG.integers(0, 256, (6, 8, 3), np.uint8), masks, texts)


def box(x0, y0, x1, y1):
    mask = np.zeros((6, 8), bool)
    mask[y0:y1, x0:x1] = True
    return mask


def test_nothing_or_all_is_pasted():
    below, above = picture(box(0, 0, 2, 2)), picture(box(0, 0, 8, 6), texts=("all",))
    nothing = copy_paste.copy_paste(below, above, [])
    np.testing.assert_array_equal(nothing.pixels, below.pixels)
    assert nothing.texts == below.texts
    everything = copy_paste.copy_paste(below, above, [0])
    np.testing.assert_array_equal(everything.pixels, above.pixels)
    assert everything.texts == ("all",) and everything.masks.sum() == 48


def test_covered_objects_lose_pixels_and_hidden_ones_go():
    below = picture(box(0, 0, 4, 4), box(5, 0, 6, 1), texts=("big", "small"))
    above = picture(box(2, 0, 8, 2), box(0, 5, 1, 6), texts=("bar", "not chosen"))
    made = copy_paste.copy_paste(below, above, [0])
    assert made.texts == ("big", "bar")  # the small one is under the bar
    assert made.masks.sum((1, 2)).tolist() == [12, 12]
    assert not (made.masks[0] & made.masks[1]).any()
    np.testing.assert_array_equal(made.pixels[made.masks[1]], above.pixels[made.masks[1]])
    np.testing.assert_array_equal(made.pixels[~made.masks[1]], below.pixels[~made.masks[1]])
    np.testing.assert_allclose(
        copy_paste.boxes_of(made.masks), [[0, 0, 0.5, 4 / 6], [0.25, 0, 1, 2 / 6]]
    )
    # Three quarters of the big one are left.
    least = copy_paste.copy_paste(below, above, [0], min_visible=0.8)
    assert least.texts == ("bar",)
    with pytest.raises(ValueError, match="can't be pasted"):
        copy_paste.copy_paste(below, above._replace(pixels=above.pixels[:4]), [0])


def test_white_ground_is_not_the_object_but_white_within_is():
    pixels = np.full((7, 7, 3), 255, np.uint8)
    pixels[1:6, 1:6] = 0
    pixels[3, 3] = 255
    mask = copy_paste.object_mask(pixels)
    assert mask.sum() == 25 and mask[3, 3]


@pytest.fixture(scope="module")
def scenes():
    return sources.open("scenes:emoji").source("train")


def test_scenes_are_the_same_each_time_and_name_what_is_seen(scenes):
    assert len(scenes) == 3488
    emoji = sources.open("emoji").source("train")
    counts = []
    for index in range(0, 60, 3):
        record = scenes[index]
        assert record == sources.open("scenes:emoji").source("train")[index]
        meta = json.loads(record.meta)
        counts.append(len(meta["boxes"]))
        assert len(meta["region_texts"]) == counts[-1]
        assert all(text in record.texts[0] for text in meta["region_texts"])
        pixels = np.asarray(decode.decode(record.image))
        ground = (
            pixels[0, 0]
            if len(set(map(tuple, pixels[[0, 0, -1, -1], [0, -1, 0, -1]]))) == 1
            else None
        )
        for x0, y0, x1, y1 in (np.array(meta["boxes"]) * 96).round().astype(int):
            assert 0 <= x0 < x1 <= 96 and 0 <= y0 < y1 <= 96
            if ground is not None:
                assert (pixels[y0:y1, x0:x1] != ground).any()
    assert emoji[0].texts[0] in json.loads(scenes[0].meta)["region_texts"] or counts[0] < 4
    assert set(counts) <= {1, 2, 3, 4} and len(set(counts)) > 1


def test_boxes_and_texts_of_scenes_reach_the_batch():
    pytest.importorskip("tensorflow")

    def tokenize(texts):
        return np.array([[len(text), 1 + len(text) % 7, 0] for text in texts], np.int32)

    spec = {
        **fields.PAIR,
        "boxes": fields.Boxes(3, min_visible=0.5),
        "regions/text": fields.RegionTexts(3),
    }
    iterator = pipeline.train_iterator(
        {"name": "scenes:emoji", "image_size": 32, "image_ops": "random_resized_crop(0.1, 0.3)"},
        tokenizer=tokenize,
        global_batch_size=16,
        seed=0,
        spec=spec,
    )
    batch, stats = next(iterator), iterator.stats()["boxes"]
    iterator.close()
    assert batch["regions/text"].shape == (16, 3, 3) and batch["boxes"].shape == (16, 3, 4)
    seen = batch["boxes"].any(-1)
    assert stats["boxes"] >= (batch["regions/text"] != 0).any(-1).sum() > seen.sum() > 0
    assert 0 < stats["outside"] < stats["boxes"]
    assert not seen[~(batch["regions/text"] != 0).any(-1)].any()


@pytest.mark.parametrize(
    ("meta", "detail"),
    [
        ({"region_texts": ["a"], "boxes": [[0, 0, 1, 1]] * 2}, "1 region_texts of 2 boxes"),
        ({"region_texts": "a"}, "region_texts is no list of texts"),
        ({"region_texts": ["a"], "boxes": [[0.5, 0, 0.2, 1]]}, "must be x0 <= x1"),
    ],
)
def test_regions_that_are_not_as_they_should_be_are_bad_records(meta, detail, toys, tmp_path):
    from jaxclip.data import column, columns

    good = {"region_texts": ["b"], "boxes": [[0, 0, 1, 1]]}
    records = [
        Record(toys.picture(i), ("thing",), meta=json.dumps(each), key=str(i))
        for i, each in enumerate((meta, good, {}))
    ]
    folder = toys.write_data_set(tmp_path / "d", {"train": records})
    spec = {"image": fields.View(), "boxes": fields.Boxes(2), "regions/text": fields.RegionTexts(2)}
    config = pipeline.complete({"name": str(folder)})
    context = column.Context(config, pipeline.training_data(config), spec)
    examine = columns.examiner(columns.build(context))
    found = examine(0, records[0])
    assert found.reason == "bad_meta" and detail in found.detail
    kept = examine(1, records[1])
    assert kept["regions/text"] == ("b",) and kept["boxes"].shape == (1, 4)
    assert examine(2, records[2]) == {}  # no regions are no fault


def test_a_box_of_which_too_little_is_left_is_out():
    chain = image_ops.build("center_crop(size=8)", 8)
    boxes = np.array([[0, 0, 0.5, 1.0], [0.25, 0.25, 0.75, 0.75]])  # of 16 x 16 pixels
    left = chain.boxes((16, 16), boxes, np.zeros(0))
    assert left.any(axis=1).all()
    left = chain.boxes((16, 16), boxes, np.zeros(0), min_visible=0.5)
    assert left.any(axis=1).tolist() == [False, True]  # a quarter of the first is seen


def test_cutout_covers_what_it_should_on_average():
    chain = image_ops.build("cutout(16)", 32)
    values = (np.arange(32) + 0.5) / 32
    # All centres of one axis; the other one is alike and independent.
    shares = [np.mean((np.clip(c + 8, 0, 32) - np.clip(c - 8, 0, 32)) / 32) for c in range(32)]
    assert np.mean(shares) ** 2 == pytest.approx(0.191406, abs=1e-6)
    u = RNG.random((400, 2)).astype(np.float32)
    covered = (chain(np.zeros((400, 32, 32, 3), np.uint8), u) == 128).all(-1).mean()
    assert covered == pytest.approx(0.191406, abs=0.02) and len(values) == 32
    nothing = image_ops.build("cutout(0)", 32)
    pixels = RNG.integers(0, 255, (2, 32, 32, 3), np.uint8)
    np.testing.assert_array_equal(nothing(pixels.copy(), u[:2]), pixels)
    with pytest.raises(ValueError, match="side=3 must be an even number"):
        image_ops.build("cutout(3)", 32)


def test_a_relative_path_behind_scenes_counts_from_the_current_folder(tmp_path, monkeypatch):
    from jaxclip import config_paths

    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)
    assert config_paths.absolute_data_name("scenes:emoji") == "scenes:emoji"
    assert config_paths.absolute_data_name("scenes:mine") == f"scenes:{tmp_path}/mine"
    tars = config_paths.absolute_data_name("scenes:webdataset:mine/*.tar")
    assert tars == f"scenes:webdataset:{tmp_path}/mine/*.tar"
