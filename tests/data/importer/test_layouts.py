"""Imports of folders as COCO, Flickr, LLaVA, CLIP_benchmark and spreadsheets lay them out."""

import base64
import gzip
import io
import json
import re
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jaxclip.data import naming, sources
from jaxclip.data.importer import Options, annotations, import_records
from jaxclip.data.importer.pictures import Pictures

pytest.importorskip("tensorflow_datasets")

NAMES = [f"p{n}.png" for n in range(3)]
CAPTIONS = ["a red cat", "two dogs, brown", "ein Café"]


@pytest.fixture
def run(tmp_path):
    """Imports; returns captions by split and key, and the number of skipped records."""

    def run(source, **options):
        summary = import_records(source, tmp_path / "out", Options(**options), overwrite=True)
        data_set = sources.open(tmp_path / "out")
        found = {
            split: {r.key: r.texts for r in data_set.source(split).read(range(n))}
            for split, n in summary.splits.items()
        }
        return found, summary

    return run


@pytest.fixture
def folder(tmp_path, toys):
    """A folder with pictures, in the sub-folder that is asked for."""

    def folder(below="", names=NAMES):
        root = tmp_path / "in"
        for n, name in enumerate(names):
            (root / below / name).parent.mkdir(parents=True, exist_ok=True)
            (root / below / name).write_bytes(toys.picture(n))
        return root

    return folder


def one_each(names=NAMES):
    return {"train": {name: (text,) for name, text in zip(names, CAPTIONS, strict=True)}}


def rows(separator, names=NAMES):
    lines = [f'{name}{separator}"{text}"' for name, text in zip(names, CAPTIONS, strict=True)]
    return "\n".join([separator.join(("filepath", "title")), *lines, ""])


TABLES = {
    "train.csv": rows("\t").encode(),
    "pairs.csv": rows("|").encode(),
    "spreadsheet.csv": rows(";").encode("utf-16"),
    "wide.csv": rows(";").encode("utf-32"),
    "marked.csv": "\ufeff".encode() + rows(",").replace("\n", "\r\n").encode(),
    "pairs.tsv.gz": gzip.compress(rows("\t").encode()),
    "list.json": json.dumps(
        [{"image": n, "caption": t} for n, t in zip(NAMES, CAPTIONS, strict=True)]
    ).encode(),
    "by_name.json": json.dumps(dict(zip(NAMES, CAPTIONS, strict=True))).encode(),
    "data.json": json.dumps(
        {"data": [{"img": n, "text": [t, None]} for n, t in zip(NAMES, CAPTIONS, strict=True)]}
    ).encode(),
    "lines.json": b"".join(
        json.dumps({"file_name": n, "text": t}).encode() + b"\n"
        for n, t in zip(NAMES, CAPTIONS, strict=True)
    ),
    "any.jsonl": b"".join(
        b'{"file_name": "%s", "text": NaN, "caption": "%s"}\n' % (n.encode(), t.encode())
        for n, t in zip(NAMES, CAPTIONS, strict=True)
    ),
    "llava.json": json.dumps(
        [
            {"image": n, "conversations": [{"from": "human", "value": "What is it?"},
                                           {"from": "gpt", "value": t}]}
            for n, t in zip(NAMES, CAPTIONS, strict=True)
        ]
    ).encode(),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("below", ["", "images"])
def test_a_table_of_any_name_is_found(folder, run, name, below):
    source = folder(below)
    (source / name).write_bytes(TABLES[name])
    found, summary = run(source)
    assert found == one_each() and not summary.skipped


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (
            "captions.txt",
            "image,caption\n" + "".join(f"{n},{n} {k}\n" for n in NAMES for k in "ab"),
        ),
        ("results.token", "".join(f"{n}#{k}\t{n} {k}\n" for n in NAMES for k in "01")),
        (
            "results.csv",
            "image_name| comment_number| comment\n"
            + "".join(f"{n}| {k}| {n} {k}\n" for n in NAMES for k in "01"),
        ),
    ],
)
def test_several_captions_of_flickr(folder, run, name, content):
    source = folder("Images")
    (source / name).write_text(content)
    found, summary = run(source)
    ends = "ab" if name == "captions.txt" else "01"
    assert found == {"train": {n: tuple(f"{n} {k}" for k in ends) for n in NAMES}}
    assert not summary.skipped and not summary.classes


def coco(names):
    return json.dumps(
        {
            "images": [{"id": n, "file_name": name} for n, name in enumerate(names)],
            "annotations": [  # not in the order of the images
                {"image_id": n, "caption": f"{names[n]} {k}"}
                for k in "ab"
                for n in range(len(names))
            ],
        }
    )


def test_coco_with_its_folders_and_splits(folder, run):
    source = folder("train2017")
    folder("val2017", ["v.png"])
    (source / "annotations").mkdir()
    (source / "annotations" / "instances_train2017.json").write_text("{}")
    (source / "annotations" / "captions_train2017.json").write_text(coco(NAMES))
    (source / "annotations" / "captions_val2017.json").write_text(coco(["v.png"]))
    found, _ = run(source)
    assert {split: sorted(texts.values()) for split, texts in found.items()} == {
        "train": [(f"{n} a", f"{n} b") for n in NAMES],
        "val": [("v.png a", "v.png b")],
    }


def test_karpathys_splits():
    document = {
        "images": [
            {"filepath": "val2014", "filename": "1.jpg", "split": "restval",
             "sentences": [{"raw": "a"}, {"raw": "b"}]},
        ]
    }  # fmt: skip
    ((name, values),) = annotations.rows(document)
    assert (name, values) == ("val2014/1.jpg", {"split": "train", "sentences": ["a", "b"]})


@pytest.mark.parametrize("document", [{}, [], 3, {"a": 1}, ["x"], {"images": [{"id": 3}]}, None])
def test_other_documents_are_no_tables(document):
    found = annotations.rows(document)
    assert not [each for each in found or () if not isinstance(each, str)]


def test_a_column_says_the_split(folder, run):
    source = folder()
    (source / "pairs.csv").write_text(
        "image,caption,split\n" + "".join(f"{n},x,{s}\n" for n, s in zip(NAMES, "abc", strict=True))
        .replace(",a\n", ",train\n").replace(",b\n", ",test\n").replace(",c\n", ",val\n")
    )  # fmt: skip
    found, _ = run(source)
    assert {split: list(texts) for split, texts in found.items()} == {
        "train": ["p0.png"], "test": ["p1.png"], "val": ["p2.png"],
    }  # fmt: skip


def test_tables_that_are_splits_and_tables_that_are_not(folder, run):
    source = folder()
    (source / "train.csv").write_text("image,caption\np0.png,x\n")
    (source / "val.csv").write_text("image,caption\np1.png,y\n")
    found, _ = run(source)
    assert {split: list(texts.values()) for split, texts in found.items()} == {
        "train": [("x",)],
        "val": [("y",)],
    }
    (source / "val.csv").rename(source / "more.csv")
    with pytest.raises(ValueError, match=r"several tables of captions \(more.csv, train.csv\)"):
        run(source)


def test_a_table_of_something_else_is_no_table(folder, run):
    source = folder("cats")
    (source / "prices.csv").write_text("image,caption\nnowhere.png,x\n")
    (source / "readme.txt").write_text("pictures of cats")
    (source / "package.json").write_text('{"name": "cats", "version": "1"}')
    folder("dogs", NAMES[:1])
    _, summary = run(source)
    assert summary.classes == 2 and summary.splits == {"train": 4}


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_quote_that_never_closes_is_said_and_what_it_swallows_counted(folder, run, end):
    source = folder()
    lines = ["file,caption", "p0.png,x", '"p1.png","one', 'two"', 'p2.png,"y', "p2.png,z", ""]
    (source / "captions.csv").write_bytes(end.join(lines).encode())
    found, summary = run(source)
    assert found["train"] == {"p0.png": ("x",), "p1.png": ("one two",), "p2.png": ("y", "z")}
    assert not summary.skipped
    # Names without an ending can't be told from captions.
    lines[4:6] = ['p2,"y', "p2,z"]
    (source / "captions.csv").write_bytes(end.join(lines).encode())
    found, summary = run(source)
    assert found == {"train": {"p0.png": ("x",), "p1.png": ("one two",)}}
    assert summary.skipped == {"bad_row": 2}
    skipped = (source.parent / "out" / "skipped.jsonl").read_text()
    assert "line 5 opens a quote that never closes" in skipped
    # A longer file.
    lines += ["p0,w"] * 20000
    (source / "captions.csv").write_bytes(end.join(lines).encode())
    found, summary = run(source)
    assert found["train"]["p0.png"] and summary.skipped["bad_row"] > 20000


def test_another_encoding_wants_its_name(folder, run):
    source = folder()
    (source / "captions.csv").write_bytes(rows(",").encode("cp1252"))
    found, summary = run(source)
    assert summary.skipped == {"bad_utf8": 1} and len(found["train"]) == 2
    skipped = (source.parent / "out" / "skipped.jsonl").read_text()
    assert "--encoding cp1252" in skipped
    found, summary = run(source, encoding="cp1252")
    assert found == one_each() and not summary.skipped
    for unknown in ("cp", "hex", "", "\0"):  # hex is a codec, but not one of texts
        with pytest.raises(ValueError, match=re.escape(f"encoding={unknown!r} is not known")):
            run(source, encoding=unknown)


@pytest.mark.parametrize("encoding", ["utf-8", "utf8", "UTF-8"])
def test_utf8_by_any_of_its_names(folder, run, encoding):
    source = folder()
    (source / "captions.csv").write_bytes(TABLES["marked.csv"])
    assert run(source, encoding=encoding)[0] == one_each()


def test_bytes_that_an_encoding_lacks_cost_one_row(folder, run):
    source = folder()
    (source / "captions.csv").write_bytes(
        b"file,caption\np0.png,caf\xe9\np1.png,odd \x81\np2.png,last\n"
    )
    found, summary = run(source, encoding="cp1252")
    assert found == {"train": {"p0.png": ("café",), "p2.png": ("last",)}}
    assert summary.skipped == {"bad_utf8": 1}
    (source / "captions.csv").unlink()
    (source / "results.token").write_bytes(b"p0.png#0\tcaf\xe9\np1.png#0\todd \x81\n")
    found, summary = run(source, encoding="cp1252")
    assert found == {"train": {"p0.png": ("café",)}} and summary.skipped == {"bad_utf8": 1}


def test_names_without_endings_and_from_windows(folder):
    root = folder("a/b")
    pictures = Pictures(root / "x.csv", ["a/b/p0", "nowhere"])
    assert pictures.has_some and pictures.find("a/b/p0") == root / "a/b/p0.png"
    assert pictures.find("a\\b\\p1.png") == root / "a/b/p1.png"
    assert not Pictures(root / "x.csv", ["nowhere", "\0", "x" * 5000]).has_some


@pytest.mark.parametrize("ending", [".txt", ".caption", ".png.txt", ".TXT", ".json"])
def test_captions_beside_pictures(folder, run, ending):
    source = folder()
    for name, text in zip(NAMES, CAPTIONS, strict=True):
        content = json.dumps({"caption": text, "url": "u"}) if ending == ".json" else text
        (source / f"{name[:-4]}{ending}").write_text(content)
    found, summary = run(source)
    assert found == one_each() and not summary.skipped


def test_a_link_out_of_the_folder_is_not_followed(folder, run):
    source = folder()
    (source.parent / "other.png").write_bytes((source / NAMES[0]).read_bytes())
    (source / "p0.txt").write_text("x")
    (source / "up").symlink_to("..")
    _, summary = run(source)
    assert summary.skipped == {"empty_caption": 2}


def write_tar(path, toys, names, labels=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for n, name in enumerate(names):
            parts = {"png": toys.picture(n)}
            parts |= {"txt": b"x"} if labels is None else {"cls": b"%d" % labels[n]}
            for ending, data in parts.items():
                info = tarfile.TarInfo(f"{name}.{ending}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def test_clip_benchmarks_layout(tmp_path, toys, run):
    source = tmp_path / "in"
    write_tar(source / "test" / "0.tar", toys, "ab", labels=[1, 0])
    (source / "classnames.txt").write_text("cat\nhot dog\n")
    found, summary = run(source)
    assert list(found) == ["test"] and summary.classes == 2
    data = sources.open(tmp_path / "out")
    assert data.class_names("test") == ["cat", "hot dog"]  # the source's numbers
    assert [record.label for record in data.source("test").read([0, 1])] == [1, 0]
    in_place = sources.open(f"webdataset:{source}")
    assert in_place.class_names("test") == ["cat", "hot dog"]
    assert [r.label for r in in_place.source("test").read(range(2))] == [1, 0]


def test_tars_that_are_called_like_splits(tmp_path, toys, run):
    for split in ("train", "validation"):
        write_tar(tmp_path / "in" / f"set-{split}-0.tar", toys, "ab")
    found, _ = run(tmp_path / "in")
    assert {split: list(texts) for split, texts in found.items()} == {
        "train": ["train/a", "train/b"],
        "validation": ["validation/a", "validation/b"],
    }
    in_place = sources.open(f"webdataset:{tmp_path / 'in'}")
    assert in_place.splits == {"train": 2, "validation": 2}


def test_splits_of_files():
    assert naming.splits_of_files(["train-0.tar", "train-1.tar"]) == ["", ""]
    assert naming.splits_of_files(["a/train_0.tar", "a/test_0.tar"]) == ["train", "test"]
    assert naming.splits_of_files(["train-0.tar", "x.tar"]) == ["", ""]
    assert naming.splits_of_files(["r/val/0.tar"], "r") == ["val"]
    assert naming.splits_of_files(["r/val/0.tar"]) == [""]
    assert naming.splits_of_files(["captions_val2017.json", "captions_train2017.json"]) == [
        "val",
        "train",
    ]


def test_parquet_of_the_hub_keeps_its_splits(tmp_path, toys, run):
    (tmp_path / "in" / "data").mkdir(parents=True)
    for n, split in enumerate(("train", "test")):
        table = pa.table({"image": [{"bytes": toys.picture(n), "path": f"{n}"}], "text": [split]})
        pq.write_table(table, tmp_path / "in" / "data" / f"{split}-00000-of-00001.parquet")
    found, _ = run(tmp_path / "in")
    assert found == {"train": {"0": ("train",)}, "test": {"1": ("test",)}}


@pytest.mark.parametrize("kind", ["base64", "lines", "data", "path", "struct"])
def test_text_in_parquets_image_column(folder, tmp_path, toys, run, kind):
    source = folder()
    cells = {
        "base64": [base64.b64encode(toys.picture(n)).decode() for n in range(3)],
        "lines": [base64.encodebytes(toys.picture(n)).decode() for n in range(3)],
        "data": [
            "data:image/png;base64," + base64.b64encode(toys.picture(n)).decode() for n in range(3)
        ],
        "path": NAMES,
        "struct": [{"bytes": None, "path": name} for name in NAMES],
    }[kind]
    pq.write_table(pa.table({"image": cells, "TEXT": CAPTIONS}), source / "0.parquet")
    found, summary = run(source / "0.parquet")
    assert list(found["train"].values()) == [(text,) for text in CAPTIONS]
    assert not summary.skipped
    in_place = sources.open(f"parquet:{source / '0.parquet'}").source("train").read(range(3))
    assert [r.image for r in in_place] == [toys.picture(n) for n in range(3)]


def test_links_are_said_to_be_links(tmp_path, folder, run):
    source = folder()
    table = pa.table({"URL": ["http://x/1.jpg"], "TEXT": ["x"]})
    pq.write_table(table, source / "0.parquet")
    with pytest.raises(ValueError, match=r"'URL' are links: download the pictures first"):
        run(source / "0.parquet")
    (source / "captions.csv").write_text("image,caption\nhttp://x/1.jpg,x\np0.png,y\n")
    found, summary = run(source, format="folder")
    assert found == {"train": {"p0.png": ("y",)}} and summary.skipped == {"missing_image": 1}


def test_damaged_tables_are_reasons(folder, run):
    source = folder()
    whole = gzip.compress(rows(",").encode() * 200)
    (source / "pairs.csv.gz").write_bytes(whole[: len(whole) // 2])
    _, summary = run(source / "pairs.csv.gz")
    assert summary.skipped["corrupted"] == 1
    (source / "pairs.csv.gz").write_bytes(whole[:10] + b"\xff" * 20)
    with pytest.raises(ValueError, match=r"pairs\.csv\.gz is damaged"):
        run(source / "pairs.csv.gz")
    (source / "pairs.csv.gz").write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match=r"pairs\.csv\.gz has no column with the image file"):
        run(source / "pairs.csv.gz")
    (source / "a.json").write_text('[{"image": "p0.png", ')
    with pytest.raises(ValueError, match=r"a\.json is no JSON"):
        run(source / "a.json")
    (source / "a.json").write_text('{"a": [1, 2]}')
    with pytest.raises(ValueError, match=r"a\.json names no picture files: expected is a list"):
        run(source / "a.json")


def test_a_broken_table_of_captions_is_not_passed_over(folder, run):
    source = folder("cats")
    (source / "captions.json").write_text("")
    with pytest.raises(ValueError, match=r"captions\.json is empty"):
        run(source)


def test_an_icon_and_an_avif_are_pictures(folder, run):
    source = folder()
    Image.new("RGB", (32, 32), "red").save(source / "a.ico")
    Image.new("RGB", (32, 32), "red").save(source / "b.avif")
    (source / "captions.csv").write_text("file,caption\na.ico,x\nb.avif,y\n")
    found, summary = run(source)
    assert found == {"train": {"a.ico": ("x",), "b.avif": ("y",)}} and not summary.skipped


def test_splits_are_the_same_in_any_letter_case(folder, run):
    source = folder()
    table = "file,caption,split\np0.png,x,Train\np1.png,y,train\np2.png,z,TEST\n"
    (source / "captions.csv").write_text(table)
    assert run(source)[1].splits == {"train": 2, "test": 1}


def test_no_source_is_not_this_folder(run):
    with pytest.raises(FileNotFoundError, match="the source is empty"):
        run("")


def test_a_pattern_of_tables(folder, run):
    source = folder()
    for name in ("a.csv", "b.csv"):
        (source / name).write_text("file,caption\np0.png,x\n")
    assert run(f"{source}/*.csv")[0]["train"] == {"p0.png": ("x",), "b/p0.png": ("x",)}


def test_a_file_that_is_named_under_the_second_name_and_ids_of_any_kind():
    assert annotations.row({"file": None, "image": "1.jpg"}) == ("1.jpg", {"file": None})
    images = [{"id": number, "file_name": f"{number}.jpg"} for number in (1, [2])]
    notes = [{"image_id": number, "caption": f"{number}"} for number in ("1", [2])]
    found = annotations.rows({"images": images, "annotations": notes})
    assert [values["captions"] for _, values in found] == [["1"], ["[2]"]]


def test_a_strange_file_of_a_tar_is_named_with_its_own_sample_only(tmp_path, toys, run):
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for name in ("a.txt", "b.heic", "b.txt", "c.png", "c.txt"):
            data = toys.picture(0) if name == "c.png" else b"words"
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    _, summary = run(tmp_path / "0.tar")
    assert summary.skipped == {"missing_image": 2}
    lines = (tmp_path / "out" / "skipped.jsonl").read_text().splitlines()
    assert [json.loads(line)["detail"] for line in lines] == [
        "the sample has only txt",
        "the sample has only txt; b.heic beside it is no picture by its ending",
    ]
