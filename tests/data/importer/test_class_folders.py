"""Folders that are classes, those that only look so, and lists of splits beside them."""

import pytest

from jaxclip.data.importer import class_folders
from jaxclip.data.importer.items import Cursor, Item
from jaxclip.data.importer.readers import open_reader


def places(*names):
    return {tuple(name.split("/")) for name in names}


@pytest.mark.parametrize(
    "names",
    [
        ("cars_train", "cars_test"),
        ("GTSRB/Final_Training/Images/00000", "GTSRB/Final_Test/Images"),
        ("VG_100K", "VG_100K_2"),
        ("HAM10000_images_part_1", "HAM10000_images_part_2"),
        ("images_001/images", "images_002/images"),
        ("images/part-000001", "images/part-000002"),
        ("train/patient00001/study1", "valid/patient00002/study1"),
        ("images", "annotations/trimaps"),
        ("images/training", "annotations/training"),
        ("JPEGImages", "SegmentationClass", "SegmentationObject"),
        ("leftImg8bit/train/aachen", "gtFine/train/aachen"),
        ("images", "cats"),
        ("train/train", "test/test"),
        ("train", "cats"),
        ("train", "cats", "dogs", "test"),
        ("train", "labels", "images", "cats"),
        ("images", "mask", "mask_colour"),
    ],
)
def test_folders_that_are_no_classes(names):
    assert class_folders.of_places(places(*names)) is None


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("c0", "c1"), [("c0", ""), ("c1", "")]),
        (("class_1", "class_2"), [("class_1", ""), ("class_2", "")]),
        (("bullet_train", "steam_train", "bus"),
         [("bullet_train", ""), ("steam_train", ""), ("bus", "")]),
        # ImageNetV2 and GTSRB: in the order of letters 10 would come before 2.
        (("set/0", "set/10", "set/2"), [(0, ""), (10, ""), (2, "")]),
        (("train/00000", "test/00012"), [(0, "train"), (12, "test")]),
        (("1", "one"), [("1", ""), ("one", "")]),
        # SUN397 and Places365; an alphabet of signs has its pictures in the folders of letters.
        (("a/abbey", "a/apartment_building/outdoor", "b/bar"),
         [("/a/abbey", ""), ("/a/apartment_building/outdoor", ""), ("/b/bar", "")]),
        (("val/a/abbey", "val/b/bar", "train/a/abbey"),
         [("/a/abbey", "val"), ("/b/bar", "val"), ("/a/abbey", "train")]),
        (("a", "b"), [("a", ""), ("b", "")]),
        (("train/car", "train/train", "test/car", "test/train"),
         [("car", "train"), ("train", "train"), ("car", "test"), ("train", "test")]),
        (("vehicles/car", "vehicles/bus", "vehicles/train"),
         [("car", ""), ("bus", ""), ("train", "")]),
        (("mask", "no_mask", "mask_worn_badly"),
         [("mask", ""), ("no_mask", ""), ("mask_worn_badly", "")]),
        (("train/train/car", "train/train/bus", "test/test/car"),
         [("car", "train"), ("bus", "train"), ("car", "test")]),
        (("train/n01/images", "train/n02/images", "val/images"),
         [("n01", "train"), ("n02", "train"), (None, "val")]),
    ],
)  # fmt: skip
def test_the_class_of_a_picture(names, expected):
    found = class_folders.of_places(places(*names))
    assert [found.label(name.split("/")) for name in names] == expected


SPLITS = {
    "Food-101": {"meta/train.txt": "x/1\n", "meta/test.txt": "y/1\n", "meta/classes.txt": "x\ny\n"},
    "DTD": {
        "labels/train1.txt": "x/1.jpg\n", "labels/test1.txt": "y/1.jpg\n",
        "labels/train2.txt": "y/1.jpg\n", "labels/test2.txt": "x/1.jpg\n",
    },
    "SUN397": {"Training_01.txt": "/x/1.jpg\n", "Testing_01.txt": "/x/2.jpg\n/y/1.jpg\n"},
    "Birdsnap": {"test_images.txt": "path\ny/1.jpg\n"},
    "CUB": {"images.txt": "1 x/1.jpg\n2 y/1.jpg\n", "train_test_split.txt": "1 1\n2 0\n3 1\n"},
}  # fmt: skip


@pytest.mark.parametrize("around", ["", "set/"])
@pytest.mark.parametrize("kind", SPLITS)
def test_lists_of_splits(fill, kind, around):
    files = {"images/x/1.jpg": "a", "images/y/1.jpg": "b", **SPLITS[kind]}
    folder = fill({f"{around}{name}": content for name, content in files.items()})
    items = [item for _, item in open_reader(folder).items(Cursor())]
    found = {item.key.removeprefix(around): (item.label, item.split or "train") for item in items}
    assert found == {"images/x/1.jpg": ("x", "train"), "images/y/1.jpg": ("y", "test")}


def test_folders_of_splits_go_before_lists(fill):
    folder = fill({"train/x/1.jpg": "a", "train/y/1.jpg": "b", "test.txt": "x/1.jpg\n"})
    items = [item for _, item in open_reader(folder).items(Cursor())]
    assert all(isinstance(item, Item) and item.split == "train" for item in items)
