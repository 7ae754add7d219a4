"""Layouts in which data sets are published, or left by the programs that make them."""

import gzip
import io
import json
import tarfile
import zipfile

import pyarrow as pa
import pyarrow.parquet
import pytest

from jaxclip.data import sources
from jaxclip.data.importer.items import Cursor, Item, read_image
from jaxclip.data.importer.readers import open_reader
from jaxclip.data.naming import find
from jaxclip.data.record import decode_foreign_texts

A, B = b"first picture" * 40, b"second picture" * 40


def lines(*objects):
    return "\n".join(json.dumps(each) for each in objects)


def tar(members):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def packed(members):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return stream.getvalue()


def table(**columns):
    stream = io.BytesIO()
    pa.parquet.write_table(pa.table(columns), stream)
    return stream.getvalue()


def found(source, **options):
    """(bytes of the picture, captions or label, split) of each record, or the reason."""
    return [
        (read_image(item.image), decode_foreign_texts(item.texts)[0] or item.label, item.split)
        if isinstance(item, Item)
        else item.reason
        for _, item in open_reader(source, **options).items(Cursor())
    ]


PAIR = [(A, ("a cat",), ""), (B, ("a dog",), "")]
SPLITS = [(A, ("a cat",), "train"), (B, ("a dog",), "val")]
CLASSES = [(A, "Abies alba", ""), (B, "Turdus", "")]


def coco(number, text):
    image = {"id": number, "file_name": f"{number:012}.jpg"}
    return json.dumps({"images": [image], "annotations": [{"image_id": number, "caption": text}]})


def karpathy(split, folder, name, text):
    entry = {"filepath": folder, "filename": name, "split": split, "sentences": [{"raw": text}]}
    return {**entry, "sentids": [1], "imgid": 0}


LABEL_STUDIO = [
    {"id": i, "data": {"image": name}, "annotations": [{"result": [{"value": {"text": [text]}}]}]}
    for i, (name, text) in enumerate((
        ("/data/local-files/?d=images/a.jpg", "a cat"),
        ("/data/upload/1/3c5f1a2b-b.jpg", "a dog"),
    ))
]  # fmt: skip
INATURALIST = {
    "images": [{"id": 1, "file_name": "set/P/12/a.jpg"}, {"id": 2, "file_name": "set/B/13/b.jpg"}],
    "annotations": [{"image_id": 1, "category_id": 12}, {"image_id": 2, "category_id": 13}],
    "categories": [{"id": 12, "name": "Abies alba"}, {"id": 13, "name": "Turdus"}],
}
SETS = {
    "COCO, its folders in one": (
        {
            "images/train2017/000000000001.jpg": A, "images/val2017/000000000002.jpg": B,
            "annotations/captions_train2017.json": coco(1, "a cat"),
            "annotations/captions_val2017.json": coco(2, "a dog"),
        },
        SPLITS,
    ),
    "Karpathy's COCO, all pictures in one folder": (
        {
            "all/a.jpg": A, "all/b.jpg": B,
            "dataset_coco.json": json.dumps({"images": [
                karpathy("restval", "val2014", "a.jpg", "a cat"),
                karpathy("val", "train2014", "b.jpg", "a dog"),
            ]}),
        },
        SPLITS,
    ),
    "YFCC": (
        {
            "images/00/a.jpg": A, "images/01/b.jpg": B,
            "yfcc15m.tsv": "imgid\timgtitle\timgpath\n1\ta cat\tdata/images/00/a.jpg\n"
            "2\ta dog\tdata/images/01/b.jpg\n",
        },
        PAIR,
    ),
    "WIT": (
        {
            "a.jpg": A, "b.jpg": B,
            "wit.tsv": "image\tcaption_reference_description\tcaption_alt_text_description\n"
            "a.jpg\ta cat\t\nb.jpg\t\ta dog\n",
        },
        PAIR,
    ),
    "DOCCI": (
        {
            "images/a.jpg": A, "images/b.jpg": B,
            "docci.jsonlines": lines(
                {"image_file": "a.jpg", "description": "a cat"},
                {"image_file": "b.jpg", "description": "a dog"},
            ),
        },
        PAIR,
    ),
    "ROCO": ({"images/R_1.jpg": A, "images/R_2.jpg": B, "captions.txt": "R_1\ta cat\nR_2\ta dog\n"},
             PAIR),
    "ROCOv2": (
        {
            "train_images/train/R_1.jpg": A, "val_images/val/R_2.jpg": B,
            "train_captions.csv": "ID,Caption\nR_1,a cat\n",
            "train_concepts.csv": "ID,CUIs\nR_1,C0\n",
            "val_captions.csv": "ID,Caption\nR_2,a dog\n",
        },
        SPLITS,
    ),
    "a shop's": (
        {
            "images/11.jpg": A, "images/12.jpg": B,
            "styles.csv": "id,gender,productDisplayName\n11,Men,a cat\n12,Men,a dog\n",
            "images.csv": "filename,link\n11.jpg,http://x/11.jpg\n",
        },
        PAIR,
    ),
    "names as spreadsheets have them": (
        {"a.jpg": A, "b.jpg": B, "x.csv": "Image Path,Alt-Text\na.jpg,a cat\nb.jpg,a dog\n"}, PAIR,
    ),
    "Label Studio": (
        {"images/a.jpg": A, "b.jpg": B, "project-1.json": json.dumps(LABEL_STUDIO)}, PAIR,
    ),
    "a list": ({"val/a.jpg": A, "val/b.jpg": B, "val.txt": "a.jpg a cat\nb.jpg a dog\n"}, PAIR),
    "a list of classes": (
        {"val/a.JPEG": A, "val/b.JPEG": B, "val.txt": "a.JPEG 65\nb.JPEG 970\n"},
        [(A, 65, ""), (B, 970, "")],
    ),
    "ImageNet of Kaggle": (
        {
            "v_1.JPEG": A, "v_2.JPEG": B,
            "LOC_val_solution.csv": "ImageId,PredictionString\nv_1,n01 1 2 3 4\nv_2,n02 1 2 3 4 "
            "n02 5 6 7 8\n",
            "LOC_synset_mapping.txt": "n01 tench, Tinca tinca\nn02 goldfish\n",
        },
        [(A, "n01", ""), (B, "n02", "")],
    ),
    "iNaturalist": (
        {"set/P/12/a.jpg": A, "set/B/13/b.jpg": B, "train.json": json.dumps(INATURALIST)}, CLASSES,
    ),
    "captions in a folder of their own": (
        {"image/1.jpg": A, "image/2.jpg": B, "caption/1.txt": "a cat", "caption/2.txt": "a dog"},
        PAIR,
    ),
    "birds": (
        {
            "images/1.X/1.jpg": A, "images/2.Y/2.jpg": B, "text_c10/1.X/1.txt": "a cat\n",
            "text_c10/2.Y/2.txt": "a dog\n",
        },
        PAIR,
    ),
    "captions in numbered columns": (
        {"a.jpg": A, "b.jpg": B,
         "x.csv": "image,caption_0,caption_1\na.jpg,a cat,\nb.jpg,a dog,\n"},
        PAIR,
    ),
    "names that are the same in all splits": (
        {
            "train_images/1.jpg": A, "val_images/1.jpg": B,
            "train.csv": "file,caption\n1.jpg,a cat\n", "val.csv": "file,caption\n1.jpg,a dog\n",
        },
        SPLITS,
    ),
    "Karpathy's splits in a table": (
        {"a.jpg": A, "b.jpg": B,
         "x.csv": "file,caption,split\na.jpg,a cat,restval\nb.jpg,a dog,Val\n"},
        SPLITS,
    ),
    "ids of pandas": (
        {"images/12.jpg": A, "images/13.jpg": B,
         "x.csv": "image_id,text\n12.0,a cat\n13.0,a dog\n"},
        PAIR,
    ),
    "splits in a tar's JSON": (
        {"0.tar": tar({
            "a.jpg": A, "a.json": b'{"text": "a cat", "split": "restval"}',
            "b.jpg": B, "b.json": b'{"text": "a dog", "split": "VAL"}',
        })},
        SPLITS,
    ),
    "conversations in a tar's JSON": (
        {"0.tar": tar({
            f"{i}.{ending}": data
            for i, (image, text) in enumerate([(A, "a cat"), (B, "a dog")])
            for ending, data in (("jpg", image), ("json", lines({"conversations": [
                {"from": "human", "value": "?"}, {"from": "gpt", "value": text},
            ]}).encode()))
        })},
        PAIR,
    ),
    "Parquet with splits in a column": (
        {"a.parquet": table(image=[A, B], caption=["a cat", "a dog"], split=["train", "val"])},
        SPLITS,
    ),
    "Parquet made of a tar": (
        {"a.parquet": table(jpg=[A, B], json=[{"prompt": "a cat"}, {"prompt": "a dog"}])}, PAIR,
    ),
    "Parquet made of a tar, JSON as text": (
        {"a.parquet": table(jpg=[A, B], json=['{"prompt": "a cat"}'] * 2)},
        [(A, ("a cat",), ""), (B, ("a cat",), "")],
    ),
    "a part of the hub's": (
        {"partial-train/0.parquet": table(image=[A], text=["a cat"]),
         "val/0.parquet": table(image=[B], text=["a dog"])},
        SPLITS,
    ),
    "Flickr8k": (
        {
            "Flicker8k_Dataset/a.jpg": A, "Flicker8k_Dataset/b.jpg": B,
            "Flickr8k.token.txt": "a.jpg#0\ta cat\nb.jpg#0\ta dog\n",
            "Flickr8k.lemma.token.txt": "a.jpg#0\ta cat be\n",
            "Flickr_8k.trainImages.txt": "a.jpg\n",
            "ExpertAnnotations.txt": "a.jpg\tb.jpg#2\t1\t1\t1\n", "readme.txt": "hello\n",
        },
        PAIR,
    ),
    "JSON by split": (
        {"a.jpg": A, "b.jpg": B, "x.json": json.dumps({
            "train": [{"image": "a.jpg", "report": "a cat"}],
            "val": [{"image": {"file_name": "b.jpg"}, "report": "a dog"}],
        })},
        SPLITS,
    ),
    "JSON beside other lists": (
        {"a.jpg": A, "b.jpg": B, "x.json": json.dumps({
            "licenses": [{"name": "CC"}],
            "data": [{"img": "a.jpg", "text": "a cat"}, {"img": "b.jpg", "text": "a dog"}],
        })},
        PAIR,
    ),
    "tags": ({"1.jpg": A, "1.tags": "a cat", "2.jpg": B, "2.jpg.json": '{"tag_string": "a dog"}'},
             PAIR),
    "UTF-16 without a mark": (
        {"1.jpg": A, "1.txt": "a cat".encode("utf-16-le"), "2.jpg": B,
         "2.txt": "a dog".encode("utf-16-be")},
        PAIR,
    ),
    "tars in folders within `data`": (
        {
            "data/train/0.tar": tar({"0.jpg": A, "0.json": b'{"text": "a cat"}'}),
            "data/val/0.tar": tar({"0.jpg": B, "0.json": b'{"text": "a dog"}'}),
        },
        SPLITS,
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", SETS)
def test_sets(fill, kind):
    files, expected = SETS[kind]
    assert sorted(found(fill(files))) == sorted(expected)


def test_lists_of_one_split_are_all_kept(fill):
    parts = {"train": [{"image": "a.jpg", "text": "a cat"}],
             "restval": [{"image": "b.jpg", "text": "a dog"}]}  # fmt: skip
    folder = fill({"a.jpg": A, "b.jpg": B, "x.json": json.dumps(parts)})
    assert found(folder) == [(A, ("a cat",), "train"), (B, ("a dog",), "train")]


def test_a_category_that_is_no_number_stops_nothing(fill):
    notes = [{"image_id": 1, "category_id": [12]}, INATURALIST["annotations"][1]]
    odd = {**INATURALIST, "annotations": notes}
    folder = fill({"set/P/12/a.jpg": A, "set/B/13/b.jpg": B, "train.json": json.dumps(odd)})
    assert [label for _, label, _ in found(folder)] == [None, "Turdus"]


def test_a_picture_of_several_categories_is_of_no_class(fill):
    more = [*INATURALIST["annotations"], {"image_id": 1, "category_id": 13}]
    odd = {**INATURALIST, "annotations": more}
    folder = fill({"set/P/12/a.jpg": A, "set/B/13/b.jpg": B, "train.json": json.dumps(odd)})
    assert [label for _, label, _ in found(folder)] == [None, "Turdus"]


def test_what_is_written_in_label_studio_goes_before_what_a_task_came_with(fill):
    results = [{"value": {"text": ["a cat"]}}, {"value": {"text": "a kitten"}}]
    task = {"data": {"image": "a.jpg", "captions": "draft"}, "annotations": [{"result": results}]}
    folder = fill({"a.jpg": A, "project-1.json": json.dumps([task])})
    assert found(folder) == [(A, ("a cat", "a kitten"), "")]


def test_zeros_behind_a_caption_do_not_make_it_utf_16(fill):
    ((_, (text,), _),) = found(fill({"a.jpg": A, "a.txt": b"a cat\0"}))
    assert text.rstrip("\0") == "a cat"


@pytest.mark.parametrize("names", [("train/0.tar", "val/0.tar"), ("train-0.tar", "val-0.tar")])
def test_tars_of_the_hub_in_place(fill, names):
    folder = fill({f"data/{name}": tar({"0.jpg": A, "0.txt": b"x"}) for name in names})
    assert sources.open(f"webdataset:{folder}").splits == {"train": 1, "val": 1}


def test_in_place_a_column_of_splits_is_said_to_be_of_no_use(fill, caplog):
    folder = fill({"a.parquet": table(image=[A, B], text=["x", "y"], split=["train", "val"])})
    assert sources.open(f"parquet:{folder}").splits == {"train": 2}
    assert "write ?split=split behind the name" in caplog.text
    assert sources.open(f"parquet:{folder}?split=split").splits == {"train": 1, "val": 1}


def test_folders_of_parts_are_no_classes(fill, caplog):
    folder = fill({"train2017/a.jpg": A, "val2017/b.jpg": B})
    assert found(folder) == ["empty_caption"] * 2
    classes = fill({"x/cats/a.jpg": A, "x/dogs/b.jpg": B, "x/t.csv": "a,b\n1,2\n"}) / "x"
    assert found(classes) == [(A, "cats", ""), (B, "dogs", "")]
    assert "are taken for classes; " in caplog.text and "t.csv has no column" in caplog.text


TABLE = "image,caption\na.jpg,x\n"
NOT_UNPACKED = {
    "a table and other pictures in a ZIP archive": (
        {"x.csv": TABLE, "images.zip": packed({"b.txt": A})}, "none of the first pictures that",
    ),
    "by another name": ({"t.csv": TABLE, "images.7z": b"7z\xbc\xaf"}, "unpack images.7z first"),
    "all in one": ({"all.rar": b"Rar!"}, "unpack all.rar first"),
    "a table and a tar": (
        {"metadata.csv": TABLE, "images.tar.gz": gzip.compress(tar({"a.jpg": A}))},
        "unpack images.tar.gz first, or say --format webdataset",
    ),
    "a table and a tar of others": (
        {"metadata.csv": TABLE, "a.zip": packed({"b.jpg": A}), "images.tar": tar({"c.jpg": A})},
        "unpack images.tar first, or say --format webdataset",
    ),
    "a list and a tar": (
        {"results.token": "a.jpg#0\tx\n", "images.tgz": gzip.compress(tar({"a.jpg": A}))},
        "images.tgz holds pictures without captions; unpack it and import the folder with results",
    ),
    "a tar of classes": (
        {"images.tgz": gzip.compress(tar({"cats/a.jpg": A, "dogs/b.jpg": A}))},
        "images.tgz holds pictures without captions; unpack it and import the folder, or say",
    ),
    "tars in a tar": (
        {"all.tar": tar({"0.tar": tar({"a.jpg": A, "a.txt": b"x"})})},
        "it holds other tars; unpack",
    ),
    "gzip": ({"a.jpg.gz": b"\x1f\x8b\x08", "a.txt": "x"}, "unpack it first, say with gunzip"),
}  # fmt: skip


@pytest.mark.parametrize("kind", NOT_UNPACKED)
def test_what_is_not_unpacked(fill, kind):
    files, said = NOT_UNPACKED[kind]
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        found(fill(files))


OTHERS = {
    "data.mdb": (bytes(16) + b"\xde\xc0\xef\xbe", "an LMDB database"),
    "train.pkl": (b"\x80\x04\x95", "a pickle, which may run any program"),
    "x.mat": (b"MATLAB 5.0 MAT-file", "a file of MATLAB"),
    "shard.00000.mds": (b"\1\0\0\0", "a shard of MosaicML's streaming"),
    "train.rec": (b"\n#\xd7\xce", "MXNet's RecordIO"),
    "x.sqlite": (b"SQLite format 3\0", "an SQLite database"),
    "emnist-images-idx3-ubyte": (b"\0\0\x08\x03\0", "an array of pictures"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_other_programs_keep_sets_in(fill, name):
    content, said = OTHERS[name]
    with pytest.raises(FileNotFoundError, match=f"{name} is {said}.* write .* Parquet"):
        open_reader(fill({name: content}))


def test_boxes_are_no_captions(fill):
    boxes = "0 0.5 0.5 0.1 0.1\n1 0.25 0.25 0.1 0.2\n"
    assert found(fill({"a.jpg": A, "a.txt": boxes})) == ["empty_caption"]
    assert found(fill({"a.txt": "3 4 5 6"})) == [(A, ("3 4 5 6",), "")]


@pytest.mark.parametrize(
    "name", ["someone/flowers", "https://huggingface.co/datasets/someone/flowers"]
)
def test_a_data_set_of_the_hub(name):
    for opened in (open_reader, sources.open):
        with pytest.raises(
            (ValueError, FileNotFoundError), match="parquet:hf://datasets/someone/f"
        ):
            opened(name)


CLASSES = {
    "named like splits, each in itself": (
        {"training_set/training_set/cats/1.jpg": A, "test_set/test_set/dogs/1.jpg": B},
        [(B, "dogs", "test"), (A, "cats", "training")],
    ),
    "and some that are no split": (
        {"seg_pred/2.jpg": A, "seg_train/cats/1.jpg": A, "seg_test/dogs/1.jpg": B},
        ["empty_caption", (B, "dogs", "test"), (A, "cats", "train")],
    ),
    "in themselves": (
        {"set/set/train/cats/1.jpg": A, "set/test/dogs/1.jpg": B},
        [(A, "cats", "train"), (B, "dogs", "test")],
    ),
    "of things that are called like splits": (
        {"bullet train/1.jpg": A, "test tube/1.jpg": B},
        [(A, "bullet train", ""), (B, "test tube", "")],
    ),
    "that are parts": (
        {"images_001/a.jpg": A, "images_002/b.jpg": B}, ["empty_caption"] * 2,
    ),
    "of which one is of masks": (
        {"images/train/a.jpg": A, "masks/train/a.png": B}, ["empty_caption"] * 2,
    ),
    "that are called parts": (
        {"HAM_part_1/a.jpg": A, "HAM_part_2/b.jpg": B}, ["empty_caption"] * 2,
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", CLASSES)
def test_folders_of_classes(fill, kind):
    files, expected = CLASSES[kind]
    assert found(fill(files)) == expected


def test_a_table_of_pictures_in_parts(fill):
    """NIH's chest X-rays and HAM10000: the pictures go on in the next folder."""
    nih = "Image Index,Finding Labels\n1.png,Mass\n2.png,No Finding\n9.png,Mass\n"
    ham = "lesion_id,image_id,dx\nH1,I1,nv\nH2,I2,mel\n"
    folder = fill(
        {
            "nih/Data_Entry.csv": nih, "nih/images_001/images/1.png": A,
            "nih/images_012/images/2.png": B, "nih/masks/images/9.png": A,
            "ham/HAM_metadata.csv": ham, "ham/HAM_part_1/I1.jpg": A, "ham/HAM_part_2/I2.jpg": B,
        }
    )  # fmt: skip
    *read, missing = found(folder / "nih")
    assert read == [(A, ("Mass",), ""), (B, ("No Finding",), "")]
    # Another folder is no part, whatever is in it.
    assert missing[0].reason == "missing_image"
    assert found(folder / "ham") == [(A, "nv", ""), (B, "mel", "")]


def test_names_that_are_labels_where_nothing_else_says_anything(fill):
    folder = fill(
        {
            "a.jpg": A, "1/t.csv": "file,category,label\n../a.jpg,1,cats\n",
            "2/t.csv": "file,category,caption\n../a.jpg,1,a cat\n",
            "3/t.csv": "file,category\n../a.jpg,dogs\n",
            "4/t.parquet": table(image=[A], category=["dogs"]),
            "5/t.parquet": table(image=[A], category=["dogs"], text=["a cat"]),
            "6/t.jsonl": '{"file": "../a.jpg", "category": "dogs"}',
        }
    )  # fmt: skip
    read = {n: found(next((folder / str(n)).iterdir())) for n in range(1, 7)}
    assert read == {
        1: [(A, "cats", "")], 2: [(A, ("a cat",), "")], 3: [(A, "dogs", "")], 4: [(A, "dogs", "")],
        5: [(A, ("a cat",), "")], 6: [(A, "dogs", "")],
    }  # fmt: skip


def test_a_folder_of_pictures_beside_classes_is_none(fill):
    files = {"train/n1/images/1.jpg": A, "train/n2/images/2.jpg": B, "val/images/3.jpg": A}
    assert found(fill(files))[2:] == ["empty_caption"]


@pytest.mark.parametrize("depth", [40, 900])
def test_captions_nested_without_end(fill, depth):
    text = '{"caption": ' + "[" * depth + '"x"' + "]" * depth + "}"
    folder = fill({"0.tar": tar({"0.jpg": A, "0.json": text.encode()})})
    records = sources.open(f"webdataset:{folder}").source("train").read([0])
    if depth == 40:
        assert found(folder) == [(A, ("x",), "")] and records[0].texts == ("x",)
    else:
        assert found(folder) == ["bad_row"] and records[0].reason == "empty_caption"


def test_a_table_of_any_name_in_each_folder(fill):
    """DiffusionDB's parts; in a folder without one its pictures would be lost."""
    parts = {"1": ("a.png", A, "a cat"), "2": ("b.png", B, "a dog")}
    files = {}
    for number, (name, data, prompt) in parts.items():
        files[f"part-{number}/{name}"] = data
        files[f"part-{number}/part-{number}.json"] = json.dumps({name: {"p": prompt, "se": 7}})
    assert found(fill(files)) == PAIR
    folder = fill({"other/c.png": A})
    assert [each[1] for each in found(folder)] == ["other", "part-1", "part-2"]
    (folder / "other/c.png").rename(folder / "other/c.txt")
    assert found(folder) == PAIR


def test_parquet_of_names_of_pictures_in_another_folder(fill):
    rows = table(file_name=["1.jpg", "2.jpg", "3.jpg"], text=["x", "y", "z"])
    folder = fill(
        {"metadata.parquet": rows, "images_1.zip": packed({"1.jpg": A}), "images_2/2.jpg": B}
    )
    *read, missing = found(folder)
    assert read == [(A, ("x",), ""), (B, ("y",), "")]
    assert missing[0].reason == "missing_image"


def test_a_row_without_a_file(fill):
    folder = fill({"a.jpg": A, "x.csv": "image,caption\na.jpg,a cat\n,a dog\n"})
    _, (_, bad) = list(open_reader(folder).items(Cursor()))
    assert bad.detail == "row 3 names no file"


def test_an_archive_by_its_name(fill):
    archive = fill({"all.7z": b"7z\xbc\xaf"}) / "all.7z"
    for format in ("auto", "folder"):
        with pytest.raises(ValueError, match=r"is an archive; unpack all\.7z first"):
            found(archive, format=format)
    with pytest.raises(ValueError, match="it is an archive: unpack it, and import"):
        sources.open(archive)


def test_pictures_without_captions_beside_a_table_say_what_is_wrong_with_it(fill):
    links = {"image_urls": ["http://x/a.jpg"], "captions": ["x"]}
    folder = fill({"a.jpg": A, "sbu.json": json.dumps(links)})
    ((_, item),) = open_reader(folder).items(Cursor())
    assert "sbu.json has links ('image_urls') in place of files" in item.detail


def test_names_are_compared_without_what_stands_between_words():
    names = ["Alt Text", "image-path", "FileName", "other"]
    assert find(names, ("alt_text", "alttext")) == ["Alt Text"]
    assert find(names, ("file_name", "image_path")) == ["FileName", "image-path"]
