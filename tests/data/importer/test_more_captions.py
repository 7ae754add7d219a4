"""Captions, pictures inside tables, and layouts that people's tables, JSON and folders have."""

import base64
import json
import os

import pytest

from jaxclip.data import sources
from jaxclip.data.importer import Options, import_records
from jaxclip.data.importer.items import Cursor, Item, read_image
from jaxclip.data.importer.readers import open_reader
from jaxclip.data.record import decode_foreign_texts
from jaxclip.inference.pictures import open_pictures

PICTURES = {"a.jpg": b"first picture" * 40, "b.jpg": b"second picture" * 40}
A, B = PICTURES.values()


def plain(data):
    return base64.b64encode(data).decode()


def for_addresses(data):
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def lines(*objects):
    return "\n".join(json.dumps(each) for each in objects)


def found(source, **options):
    """(bytes of the picture, captions or label) of each record, or the reason."""
    return [
        (read_image(item.image), decode_foreign_texts(item.texts)[0] or item.label)
        if isinstance(item, Item)
        else item.reason
        for _, item in open_reader(source, **options).items(Cursor())
    ]


TURNS = [
    {"role": "user", "content": [
        {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{plain(A)}"}},
        {"type": "text", "text": "?"},
    ]},
    {"role": "assistant", "content": "a cat"},
]  # fmt: skip
INLINE = {
    "base64 in CSV": ("captions.csv", f"image,caption\n{plain(A)},a cat\n"),
    "base64 for addresses": ("captions.csv", f"image,caption\n{for_addresses(A)},a cat\n"),
    "data: in CSV": ("captions.csv", f'image,caption\n"data:image/jpeg;base64,{plain(A)}",a cat\n'),
    "data: without quotes": (
        "captions.csv", f"caption,image\na cat,data:image/jpeg;base64,{plain(A)}\n",
    ),
    "OFA": ("captions.tsv", f"1\t12\ta cat\t\t{for_addresses(A)}\n"),
    "OFA, ids with letters": ("captions.tsv", f"1\tCOCO_12\ta cat\t\t{for_addresses(A)}\n"),
    "JSON lines": ("metadata.jsonl", lines({"image_base64": plain(A), "text": "a cat"})),
    "an object": ("metadata.jsonl", lines({"image": {"bytes": plain(A)}, "text": "a cat"})),
    "a chat": ("metadata.jsonl", lines({"messages": TURNS})),
    "a JSON document": ("captions.json", json.dumps([{"image": plain(A), "text": "a cat"}])),
}  # fmt: skip


@pytest.mark.parametrize("kind", INLINE)
def test_pictures_inside_tables(fill, kind):
    name, content = INLINE[kind]
    folder = fill({name: content})
    assert found(folder) == [(A, ("a cat",))]
    ((_, item),) = open_reader(folder).items(Cursor())
    assert item.key == f"{name.split('.')[0]}/0"  # no key of thousands of letters


def test_what_is_no_picture_inside_a_table(fill):
    folder = fill({"captions.csv": f"image,caption\ndata:image/png;base64,!!,x\n{'?' * 300},y\n"})
    assert found(folder) == ["undecodable", "undecodable"]
    # A number beside a picture is more likely its id than its class.
    with pytest.raises(ValueError, match="no column with the image file"):
        found(fill({"imgs.tsv": f"1\t{plain(A)}\n"}) / "imgs.tsv")


def test_a_long_caption_is_no_picture(fill):
    caption = "a cat that sleeps on the mat " * 20
    folder = fill({**PICTURES, "captions.csv": f"a.jpg,{caption}\nb.jpg,{caption}\n"})
    assert found(folder) == [(A, (caption.strip(),)), (B, (caption.strip(),))]
    (folder / "captions.csv").write_text(f"1,a.jpg,{caption}\n2,b.jpg,{caption}\n")
    assert found(folder) == [(A, (caption.strip(),)), (B, (caption.strip(),))]


CAPTIONS = {
    "by language": {"en": "a cat", "de": "eine Katze"},
    "lists by language": {"en": ["a cat"], "de": ["eine Katze"], "fr": []},
    "objects": [{"lang": "en", "text": "a cat"}, {"language": "de", "caption": "eine Katze"}],
}


@pytest.mark.parametrize("kind", CAPTIONS)
def test_captions_by_language(fill, toys, kind, tmp_path):
    pytest.importorskip("tensorflow_datasets")
    rows = [
        {"file_name": "a.png", "captions": CAPTIONS[kind]},
        {"file_name": "b.png", "captions": {"de": "ein Hund"}},
        {"file_name": "c.png", "captions": "a bird"},
    ]
    pictures = {f"{n}.png": toys.picture(i) for i, n in enumerate("abc")}
    folder = fill({**pictures, "metadata.jsonl": lines(*rows)})
    import_records(folder, tmp_path / "all")
    first, second, _ = sources.open(tmp_path / "all").source("train").read(range(3))
    assert first.texts == ("a cat", "eine Katze") and second.texts == ("ein Hund",)
    assert json.loads(first.meta)["caption_tags"] == ["en", "de"]
    summary = import_records(folder, tmp_path / "en", Options(languages="en"))
    records = sources.open(tmp_path / "en").source("train").read(range(2))
    assert [record.texts for record in records] == [("a cat",), ("a bird",)]
    assert summary.skipped == {"empty_caption": 1}
    skipped = json.loads((tmp_path / "en" / "skipped.jsonl").read_text())
    assert skipped["detail"] == "no caption in en, but in de"


def test_a_language_that_can_not_be():
    with pytest.raises(ValueError, match=r"languages='en;de' must be codes with commas"):
        Options(languages="en;de")


TABLES = {
    "lists of Python": ("captions.csv", "file,captions\na.jpg,\"['x', 'y']\"\nb.jpg,[z]\n",
                        [("x", "y"), ("[z]",)]),
    "Flickr30k of the hub": ("flickr.csv", 'raw,split,filename\n"[""x"", ""y""]",test,a.jpg\n',
                             [("x", "y")]),
    "a picture's name by Hugging Face": ("metadata.csv", "image_file_name,text\na.jpg,x\n",
                                         [("x",)]),
    "several pictures": ("metadata.jsonl", lines({"file_names": ["a.jpg", "b.jpg"], "text": "x"},
                                                 {"file_names": ["a.jpg"], "text": "y"}),
                         ["bad_row", ("y",)]),
    "TextCaps": ("TextCaps.json", json.dumps({"data": [
        {"image_path": "a.jpg", "reference_strs": ["x", "y"], "set_name": "train"}]}),
                 [("x", "y")]),
    "ids beside names": ("captions.json", json.dumps({"a.jpg": {"image_id": 7, "caption": "x"}}),
                         [("x",)]),
    "labels of pandas": ("captions.csv", "file,label\na.jpg,0.0\nb.jpg,1.0\n", [0, 1]),
    "labels of JSON": ("metadata.jsonl", lines({"file": "a.jpg", "label": 1.0}), [1]),
}  # fmt: skip


@pytest.mark.parametrize("kind", TABLES)
def test_tables(fill, kind):
    name, content, expected = TABLES[kind]
    pictures = iter([A, B])
    rows = found(fill({**PICTURES, name: content}))
    said = [row if isinstance(row, str) else row[1] for row in rows]
    assert said == expected
    assert all(row[0] in (A, B) for row in rows if not isinstance(row, str)) and next(pictures)


def test_pictures_by_their_id(fill):
    """RedCaps has folders of names without endings, COCO's results numbers without zeros."""
    notes = [{"image_id": "abc", "caption": "x", "subreddit": "cats", "url": "https://i.redd.it/a"}]
    folder = fill({
        "images/cats/abc.jpg": A,
        "annotations/cats_2020.json": json.dumps({"info": {}, "annotations": notes}),
    })  # fmt: skip
    assert found(folder) == [(A, ("x",))]
    notes = json.dumps([{"image_id": 7, "caption": "y"}])
    assert found(fill({"c/000000000007.jpg": B, "c/captions.json": notes}) / "c") == [(B, ("y",))]


def test_annotations_of_boxes_are_no_captions(fill):
    images = [{"id": 1, "file_name": "a.jpg"}]
    boxes = {"images": images, "annotations": [{"image_id": 1, "bbox": [0, 0, 1, 1]}]}
    captions = {"images": images, "annotations": [{"image_id": 1, "caption": "x"}]}
    folder = fill({**PICTURES, "instances_val.json": json.dumps(boxes)})
    with pytest.raises(ValueError, match=r"no captions: its annotations hold bbox, image_id"):
        found(folder / "instances_val.json")
    fill({"captions_val.json": json.dumps(captions)})
    assert found(folder) == [(A, ("x",))]  # the other one does not get in the way


@pytest.mark.parametrize("around", ["images", "ILSVRC/Data/CLS-LOC/train"])
def test_classes_in_folders_around_them(fill, around):
    folder = fill({f"{around}/cat/1.jpg": A, f"{around}/dog/2.jpg": B})
    items = [item for _, item in open_reader(folder).items(Cursor())]
    assert [item.label for item in items] == ["cat", "dog"]
    assert {item.split for item in items} == {"train" if "train" in around else ""}
    assert found(fill({f"{around}/0.jpg": A})) == ["empty_caption"] * 3


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("cc.tsv", "http://a/x.jpg\ta cat\n", r"cc.tsv has links .*download the pictures"),
        ("sbu.json", '{"image_urls": ["http://a"], "captions": ["x"]}', r"has links .'image_urls'"),
        ("train.csv", "file,caption\nx.jpg,a\n", r"none of the first pictures that train.csv"),
    ],
)
def test_a_folder_with_nothing_but_a_table_says_what_is_wrong_with_it(fill, name, content, said):
    with pytest.raises(FileNotFoundError, match=f"holds no images, .*{said}"):
        found(fill({name: content}))


def test_a_file_of_another_kind_is_called_what_it_is(fill):
    with pytest.raises(ValueError, match=r"subset.npy is an array of NumPy"):
        found(fill({"subset.npy": b"\x93NUMPY\x01\0"}) / "subset.npy")
    with pytest.raises(ValueError, match="it is one picture: name the folder"):
        found(fill({"a.jpg": b"\xff\xd8\xff"}) / "a.jpg")
    folder = fill({"h/a.mp4": b"\0\0\0\x20ftypisom", "h/a.txt": "x"})
    with pytest.raises(FileNotFoundError, match=r"a\.mp4 is a film"):
        found(folder / "h")


def test_pictures_that_are_not_read_are_counted(fill):
    """Unless the same picture is beside them in a format that is read."""
    heic = b"\0\0\0\x18ftypheic"
    folder = fill({"a.heic": heic, "a.txt": "x", "b.jpg": B, "b.svg": "<svg/>", "b.txt": "y"})
    assert found(folder) == [(heic, ("x",)), (B, ("y",))]
    assert open_pictures(folder).total == 2


def test_how_a_source_may_be_named(fill, monkeypatch):
    folder = fill({**PICTURES, "captions.csv": "file,caption\na.jpg,x\n"})
    monkeypatch.setenv("HOME", str(folder.parent))
    for source in ("~/in", f"file://{folder}", f"file:{folder}/captions.csv"):
        assert found(source) == [(A, ("x",))]
    with pytest.raises(ValueError, match="is elsewhere, and imports are of files of this machine"):
        found("https://example.com/captions.csv")
    with pytest.raises(FileNotFoundError, match=r"did you mean '.*captions\.csv'"):
        found(folder / "caption.csv")
    with pytest.raises(FileNotFoundError, match="no such file"):
        found("webdataset:nowhere.tar")


def test_what_is_no_file_and_what_is_left_by_systems(fill):
    folder = fill({
        "a.jpg": A, "a.json": '["x", "y"]', "#recycle/b.jpg": B, "0.tar/b.jpg": B,
        "0.tar/b.json": '"z"',
    })  # fmt: skip
    assert found(folder) == [(A, ("x", "y")), (B, ("z",))]
    with pytest.raises(FileNotFoundError, match=r"no \.tar in this folder"):
        sources.open(f"webdataset:{folder}")
    os.mkfifo(folder / "x.csv")
    with pytest.raises(ValueError, match="is a pipe, socket or device"):
        found(folder / "x.csv")
    name = f"{'n' * 300}.jpg"
    fill({"captions.csv": f"file,caption\n{name},x\n"})
    ((_, item),) = open_reader(folder).items(Cursor())
    assert item.key == name  # long, but no picture
