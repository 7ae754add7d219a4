"""The files in which the usual sets for evaluation, and some large ones, are published."""

import pytest

from jaxclip.data.record import BadRecord

A, B, C = b"first picture" * 40, b"second picture" * 40, b"third picture" * 40
PAIR = [(A, ("a cat",), ""), (B, ("a dog",), "")]
SETS = {
    "Oxford-IIIT Pets": (
        {
            "images/Abyssinian_1.jpg": A, "images/yorkshire_terrier_2.jpg": B,
            "annotations/trimaps/Abyssinian_1.png": C,
            "annotations/trimaps/yorkshire_terrier_2.png": C,
            "annotations/list.txt": "#Image CLASS-ID SPECIES BREED\nAbyssinian_1 1 1 1\n",
            "annotations/trainval.txt": "Abyssinian_1 1 1 1\n",
            "annotations/test.txt": "yorkshire_terrier_2 37 2 25\n",
        },
        [(A, "Abyssinian", "trainval"), (B, "yorkshire_terrier", "test")],
    ),
    "FGVC-Aircraft": (
        {
            "data/images/0034309.jpg": A, "data/images/1025794.jpg": B,
            "data/images_variant_test.txt": "0034309 Falcon 2000\n1025794 747-400\n",
            "data/images_box.txt": "0034309 3 144 998 431\n", "data/variants.txt": "747-400\n",
            "": "data/images_variant_test.txt",
        },
        [(A, "Falcon 2000", ""), (B, "747-400", "")],
    ),
    "names without endings": (
        {"images/a.jpg": A, "images/b.jpg": B, "x.txt": "a a cat\nb a dog\n", "box.txt": "a 1 2\n"},
        PAIR,
    ),
    "GTSRB of Kaggle": (
        {
            "Train/20/a.png": A, "Test/b.png": B, "Meta/1.png": C,
            "Train.csv": "Width,ClassId,Path\n27,20,Train/20/a.png\n",
            "Test.csv": "Width,ClassId,Path\n27,16,Test/b.png\n",
            "Meta.csv": "Path,ClassId\nMeta/1.png,1\n",
        },
        [(A, 20, "train"), (B, 16, "test")],
    ),
    "a competition": (
        {"train/a.jpg": A, "test/b.jpg": B, "train.csv": "image_id,label\na,3\n",
         "sample_submission.csv": "image_id,label\nb,0\n"},
        [(A, 3, "")],
    ),
    "pictures in several folders": (
        {"images_001/images/a.png": A, "images_002/images/b.png": B, "images_003/images/c.png": C,
         "x.csv": "Image Index,caption\na.png,a cat\nb.png,a dog\n"},
        PAIR,
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", SETS)
def test_sets(fill, records, kind):
    files, expected = SETS[kind]
    folder = fill({name: content for name, content in files.items() if name})
    assert sorted(records(folder / files.get("", ""))) == sorted(expected)


def test_tables_that_are_no_splits_beside_those_that_are_left_out_and_named(fill, records, caplog):
    records(fill(SETS["GTSRB of Kaggle"][0]))
    assert "taken are Test.csv, Train.csv, not Meta.csv; name a table" in caplog.text


def test_a_picture_of_another_split_is_not_taken_for_one_that_is_missing(fill, records):
    folder = fill({
        "train_images/1.png": A, "val_images/2.png": B,
        "val.csv": "file,caption\n2.png,x\n1.png,y\n",
    })  # fmt: skip
    (found, *_), (missing, *_) = records(folder)
    assert found == B and isinstance(missing, BadRecord)


def test_a_name_that_is_in_several_parts_is_not_guessed_at(fill, records):
    folder = fill({
        "part_1/a.png": A, "part_1/b.png": A, "part_2/c.png": B, "part_3/c.png": C,
        "x.csv": "file,caption\na.png,x\nb.png,y\nc.png,z\n",
    })  # fmt: skip
    assert isinstance(records(folder)[2][0], BadRecord)
