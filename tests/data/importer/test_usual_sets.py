"""The files in which the usual sets for evaluation, and some large ones, are published."""

import io
import json
import re
import tarfile

import pytest

from jaxclip.data.importer.readers import open_reader
from jaxclip.data.record import BadRecord

A, B, C = b"first picture" * 40, b"second picture" * 40, b"third picture" * 40
PAIR = [(A, ("a cat",), ""), (B, ("a dog",), "")]
SPLITS = [(A, ("a cat",), "train"), (B, ("a dog",), "val")]


def beside(document, name="x.json"):
    return {"1.jpg": A, "2.jpg": B, name: json.dumps(document)}


SETS = {
    "Visual Genome": (
        {
            "VG_100K/1.jpg": A, "VG_100K_2/2.jpg": B,
            "region_descriptions.json": json.dumps([
                {"id": 1, "regions": [
                    {"image_id": 1, "phrase": "a cat", "x": 1, "y": 2, "width": 3, "height": 4},
                    {"image_id": 1, "phrase": "its mat", "x": 1, "y": 2, "width": 3, "height": 4},
                ]},
                {"id": 2, "regions": [{"image_id": 2, "phrase": "a dog", "x": 1}]},
            ]),
            "image_data.json": json.dumps([{"image_id": 1, "url": "https://x/VG_100K/1.jpg"}]),
        },
        [(A, ("a cat", "its mat"), ""), (B, ("a dog",), "")],
    ),
    "captions by name by split": (
        beside({"train": {"1.jpg": "a cat"}, "val": {"2.jpg": ["a dog"]}, "test": {}}), SPLITS,
    ),
    "objects by name by split": (
        beside({"train": {"1.jpg": {"text": "a cat"}}, "val": {"2.jpg": {"text": "a dog"}}}),
        SPLITS,
    ),
    "captions by name, in a member": (beside({"data": {"1.jpg": "a cat", "2.jpg": "a dog"}}), PAIR),
    "a name and a caption in each object": (beside([{"1.jpg": "a cat"}, {"2.jpg": "a dog"}]), PAIR),
    "pairs by split": (
        beside({"train": [["1.jpg", "a cat"]], "val": [["2.jpg", "a dog"]]}), SPLITS,
    ),
    "CoOp": (
        {"images/x/1.jpg": A, "images/y/2.jpg": B, "split_zhou_X.json": json.dumps(
            {"train": [["x/1.jpg", 0, "apple pie"]], "val": [], "test": [["y/2.jpg", 1, "ribs"]]}
        )},
        [(A, "apple pie", "train"), (B, "ribs", "test")],
    ),
    "NWPU-Captions": (
        {"NWPU_images/airport/airport_1.jpg": A, "NWPU_images/beach/beach_1.jpg": B,
         "dataset_nwpu.json": json.dumps({
             "airport": [{"filename": "airport_1.jpg", "split": "train", "raw": "a", "raw_1": "b"}],
             "beach": [{"filename": "beach_1.jpg", "split": "val", "raw": "c", "raw_1": "d"}],
         })},
        [(A, ("a", "b"), "train"), (B, ("c", "d"), "val")],
    ),
    "DiffusionDB": (beside({"1.jpg": {"p": "a cat", "se": 1}, "2.jpg": {"p": "a dog", "se": 2}}),
                    PAIR),
    "Crossmodal-3600": (
        {
            "images/1.jpg": A, "images/2.jpg": B,
            "captions.jsonl": "\n".join(json.dumps(each) for each in (
                {"image/key": "1", "en": {"caption": ["a cat"]}, "de": {"caption": ["eine Katze"]}},
                {"image/key": "2", "en": {"caption": ["a dog", "a pup"]}},
            )),
        },
        [(A, ("a cat", "eine Katze"), ""), (B, ("a dog", "a pup"), "")],
    ),
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
    "Flickr30k Entities": (
        {
            "flickr30k-images/1.jpg": A, "flickr30k-images/2.jpg": B,
            "Sentences/1.txt": "[/EN#1/people A man] in [/EN#2/clothing/other a hat] .\nHe .\n",
            "Sentences/2.txt": "[/EN#3/animals A dog] .\n",
        },
        [(A, ("A man in a hat .", "He ."), ""), (B, ("A dog .",), "")],
    ),
    "Tiny ImageNet's val": (
        {
            "val/images/val_0.JPEG": A, "val/images/val_1.JPEG": B,
            "val/val_annotations.txt": "val_0.JPEG\tn01443537\t0\t32\t44\t62\n"
            "val_1.JPEG\tn01629819\t3\t3\t4\t6\n",
            "": "val",
        },
        [(A, "n01443537", ""), (B, "n01629819", "")],
    ),
    "StyleGAN's labels": (
        beside({"labels": [["1.jpg", 3], ["2.jpg", 0]]}), [(A, 3, ""), (B, 0, "")],
    ),
    "a table of three columns without names": (
        {"a.jpg": A, "b.jpg": B, "x.csv": "0,a cat,a.jpg\n1,a dog,b.jpg\n"}, PAIR,
    ),
    "a list of species": (
        {"train/x/1.jpg": A, "valid/y/2.jpg": B, "birds.csv": "filepaths,labels\n"
         "train/x/1.jpg,ALBATROSS\nvalid/y/2.jpg,CROW\n"},
        [(A, "ALBATROSS", "train"), (B, "CROW", "valid")],
    ),
    "ImageNet-Captions": (
        {
            "train/n01440764/n01440764_10.JPEG": A, "train/n01443537/n01443537_2.JPEG": B,
            "x.json": json.dumps([
                {"filename": "n01440764_10.JPEG", "title": "a cat"},
                {"filename": "n01443537_2.JPEG", "title": "a dog"},
            ]),
        },
        PAIR,
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


def test_an_entry_of_several_pictures_is_said_to_be_one(fill, records):
    document = {"train": [{"image_path": ["1.jpg", "2.jpg"], "report": "x"}],
                "val": [{"image_path": ["2.jpg"], "report": "y"}]}  # fmt: skip
    assert records(fill(beside(document))) == [
        ("bad_row", "entry 1 names 2 pictures in 'image_path'; a record has one"),
        (B, ("y",), "val"),
    ]


def test_numbered_captions_do_not_stand_in_for_one_of_another_name(fill, records):
    entry = {"image": "1.jpg", "text": "a cat", "caption_0": "x", "caption_1": "y"}
    assert records(fill(beside([entry]))) == [(A, ("a cat",), "")]


PICKLE = b"\x80\x02}q\x01"
NOT_READ = {
    "cifar-10-batches-py/data_batch_1": (PICKLE, "CIFAR-10, in pickles, .*/wds_vtab-cifar10'"),
    "batches.meta": (PICKLE, "CIFAR-10, in pickles"),
    "cifar-10-binary.tar.gz": (b"", "CIFAR-10, in raw bytes"),
    "fine_label_names.txt": ("apple\n", "CIFAR-100, in raw bytes"),
    "MNIST/raw/train-images-idx3-ubyte": (b"\0\0\x08\x03", "MNIST .*, in arrays .*/wds_mnist'"),
    "t10k-images-idx3-ubyte.gz": (b"\x1f\x8b\x08", "MNIST"),
    "stl10_binary/train_X.bin": (bytes(9), "STL-10, in raw bytes.*/wds_stl10'"),
    "test_32x32.mat": (b"MATLAB", "SVHN, in files of MATLAB"),
    "pcam/camelyonpatch_level_2_split_test_x.h5": (b"\x89HDF", "PatchCamelyon, in HDF5"),
    "fer2013.csv": ("emotion,pixels\n0,1 2 3\n", "FER2013, in a table of pixels"),
    "k700/val/sneezing/x.avi": (b"RIFF1234AVI ", "x.avi is sound or a film"),
}


@pytest.mark.parametrize("name", NOT_READ)
def test_sets_in_files_that_are_not_read_say_which_to_take(fill, records, name):
    content, said = NOT_READ[name]
    with pytest.raises((ValueError, FileNotFoundError), match=said) as raised:
        records(fill({name: content}))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"cars_train/1.jpg": A, "cars_test/1.jpg": B, "devkit/cars_meta.mat": b"MATLAB"},
         "Stanford Cars, in files of MATLAB: take the set as tars, .*/wds_cars'"),
        ({"jpg/1.jpg": A, "imagelabels.mat": b"MATLAB"}, "Flowers-102"),
        ({"JPEGImages/1.jpg": A, "ImageSets/Main/aeroplane_test.txt": "1 -1"}, "Pascal VOC"),
        ({"val/1.JPEG": A, "ILSVRC2012_validation_ground_truth.txt": "490\n"}, "other numbers"),
        ({"files/p10/s5/a.jpg": A, "files/p10/s5.txt": "FINAL REPORT\n",
          "mimic-cxr-2.0.0-split.csv.gz": b"\x1f\x8b\x08"}, "has no reports: make a table"),
        ({"ILSVRC/Data/CLS-LOC/val/v.JPEG": A, "LOC_val_solution.csv":
          "ImageId,PredictionString\nv,n01440764 1 2 3 4\n"}, "into ILSVRC/Data/CLS-LOC/val"),
    ],
)  # fmt: skip
def test_pictures_beside_classes_that_are_not_read(fill, records, files, said):
    (reason, detail), *_ = records(fill(files))
    assert reason == "empty_caption" and re.search(said, detail)


def test_a_folder_in_a_tar(fill, records):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        info = tarfile.TarInfo("food-101/images/ribs/1.jpg")
        info.size = len(A)
        tar.addfile(info, io.BytesIO(A))
    folder = fill({"food-101.tar.gz": stream.getvalue()})
    ((reason, detail),) = records(folder, format="webdataset")
    assert reason == "empty_caption" and detail.endswith("unpack a tar that is a folder, and "
                                                         "import the folder")  # fmt: skip


def test_several_lists_in_the_only_folder_are_named(fill, records):
    line = "1025794 747-400\n"
    folder = fill({"data/images/1025794.jpg": A, "data/images_variant_test.txt": line,
                   "data/images_family_test.txt": line})  # fmt: skip
    with pytest.raises(ValueError, match=r"\(images_family_test.txt, images_variant_test.txt\)"):
        records(folder)


@pytest.mark.parametrize("line", ["a.jpg,1,2,3,4,a cat", "a.jpg,cat,a cat on a mat"])
def test_a_table_without_names_that_may_be_anything_says_so(fill, line):
    table = fill({"a.jpg": A, "x.csv": f"{line}\n"}) / "x.csv"
    with pytest.raises(ValueError, match="if that is no line of names, put one above it"):
        open_reader(table)
