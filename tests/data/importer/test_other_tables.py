"""Tables and folders as other programs and systems leave them, read as their authors meant them."""

import bz2
import gzip
import json
import lzma
import os
import unicodedata

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jaxclip.data.importer.items import Cursor, Item
from jaxclip.data.importer.readers import open_reader
from jaxclip.data.record import decode_foreign_texts

TWO = {"a.jpg": ("a cat, big",), "b.jpg": ("a dog",)}


def read(source, **options):
    """Captions by key and split; the reason of what can't be used."""
    found = {}
    for _, item in open_reader(source, **options).items(Cursor()):
        if isinstance(item, Item):
            assert os.path.isfile(item.image), item.image
            key = f"{item.split}:{item.key}" if item.split else item.key
            found[key] = decode_foreign_texts(item.texts)[0] or item.label
        else:
            found[item.key] = item.reason
    return found


@pytest.fixture
def fill(tmp_path):
    """Makes files out of names and contents; pictures need no content that can be decoded."""

    def fill(*names, **contents):
        for name in names:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(b"picture")
        for name, content in contents.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            data = content if isinstance(content, bytes) else content.encode()
            (tmp_path / name).write_bytes(data)
        return tmp_path

    return fill


PLAIN = 'file,caption\na.jpg,"a cat, big"\nb.jpg,a dog\n'
TABLES = {
    "bzip2": ("t.csv.bz2", bz2.compress(PLAIN.encode())),
    "xz": ("t.csv.xz", lzma.compress(PLAIN.encode())),
    "Zstandard": ("t.csv.zst", pa.Codec("zstd").compress(PLAIN.encode(), asbytes=True)),
    "gzip by another name": ("t.csv", gzip.compress(PLAIN.encode())),
    "no names": ("t.csv", 'a.jpg,"a cat, big"\nb.jpg,a dog\n'),
    "no names, caption first": ("t.tsv", "a cat, big\ta.jpg\na dog\tb.jpg\n"),
    "the separator above": ("t.csv", "sep=;\nfile;caption\na.jpg;a cat, big\nb.jpg;a dog\n"),
    "blank lines above": ("t.csv", f"\n\r\n{PLAIN}"),
    "blanks after commas": ("t.csv", 'file, caption\na.jpg, "a cat, big"\nb.jpg, "a dog"\n'),
    "commas not quoted": ("t.csv", "file,caption\na.jpg,a cat, big\nb.jpg,a dog\n"),
    "a quote not closed": ("t.tsv", 'file\tcaption\na.jpg\t"a cat, big\nb.jpg\ta dog\n'),
    "a quote closed too late": ("t.csv", 'file,caption\na.jpg,"a cat, big\nb.jpg,"a dog"\n'),
    "pandas": ("t.csv", 'Unnamed: 0,file,caption\n0,a.jpg,"a cat, big"\n1,b.jpg,a dog\n'),
    "a list in .jsonl": (
        "t.jsonl",
        '[\n{"image": "a.jpg", "text": "a cat, big"},\n{"image": "b.jpg", "text": "a dog"}\n]\n',
    ),
    "lines of a list": (
        "t.jsonl",
        '{"image": "a.jpg", "text": "a cat, big"},\n{"image": "b.jpg", "text": "a dog"}\n',
    ),
    "UTF-16 lines": (
        "t.jsonl",
        '{"image": "a.jpg", "text": "a cat, big"}\n{"image": "b.jpg", "text": "a dog"}'.encode(
            "utf-16"
        ),
    ),
    "columns": ("t.json", '{"image": ["a.jpg", "b.jpg"], "text": ["a cat, big", "a dog"]}'),
    "columns of pandas": (
        "t.json",
        '{"image": {"0": "a.jpg", "1": "b.jpg"}, "text": {"0": "a cat, big", "1": "a dog"}}',
    ),
    "pairs": ("t.json", '[["a.jpg", "a cat, big"], ["b.jpg", "a dog"]]'),
    "chats": (
        "t.jsonl",
        '{"images": ["a.jpg"], "messages": [{"role": "user", "content": "?"}, {"role": "assistant",'
        ' "content": [{"type": "text", "text": "a cat, big"}]}]}\n'
        '{"image": ["b.jpg"], "conversations": [{"from": "gpt", "value": "a dog"}]}\n',
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", TABLES)
def test_tables(fill, kind):
    name, content = TABLES[kind]
    assert read(fill("a.jpg", "b.jpg", **{name: content})) == TWO


def test_several_columns_of_captions_and_long_ones(fill):
    long = "word " * 50_000
    folder = fill("a.jpg", **{"t.csv": f"file,caption,caption\na.jpg,{long},short\n"})
    assert read(folder) == {"a.jpg": (long.strip(), "short")}
    # Numbers beside files are labels.
    assert read(fill(**{"t.csv": "a.jpg,3\n"})) == {"a.jpg": 3}


NAMES = {
    "Windows": ("x/1.jpg", "x\\1.jpg"),
    "another Windows": ("x/1.jpg", "C:\\Users\\me\\x\\1.jpg"),
    "another machine": ("x/1.jpg", "/home/me/data/x/1.jpg"),
    "from the folder above": ("x/1.jpg", "photos/x/1.jpg"),
    "a link to a file": ("x y/1.jpg", "file:x%20y/1.jpg"),
    "percent signs": ("é 1.jpg", "%C3%A9%201.jpg"),
    "letters in one piece": (unicodedata.normalize("NFD", "é.jpg"), "é.jpg"),
    "letters in two pieces": ("é.jpg", unicodedata.normalize("NFD", "é.jpg")),
    "small letters": ("IMG_1.JPG", "img_1.jpg"),
    "another ending": ("1.png", "1.jpg"),
    "a percent sign": ("100%25.jpg", "100%25.jpg"),
}


@pytest.mark.parametrize("kind", NAMES)
def test_names_of_files(fill, kind):
    name, written = NAMES[kind]
    folder = fill(name, **{"t.csv": f"file,caption\n{written},a cat\n"})
    assert list(read(folder / "t.csv").values()) == [("a cat",)]


def test_a_name_is_not_taken_for_another_ones(fill):
    folder = fill("x/1.jpg", **{"t.csv": "file,caption\nx/1.jpg,one\ny/1.jpg,two\nx/2.jpg,three\n"})
    texts = {
        item.texts: os.path.isfile(item.image)
        for _, item in open_reader(folder).items(Cursor())
    }  # fmt: skip
    assert texts == {(b"one",): True, (b"two",): False, (b"three",): False}


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", r"t\.csv is empty"),
        (b"PK\x03\x04\x14\x00rest", r"t\.csv is a spreadsheet or a ZIP archive; save it as CSV"),
        (b"url,caption\nhttp://x/1.jpg,cat\n", r"has links \('url'\) .* download .* img2dataset"),
        (b"a cat\thttp://x/1.jpg\n", r"has links \('http://x/1.jpg'\) in place of files"),
        (b"what,caption\na.jpg,cat\n", r"no column with the image file; .*--image-column"),
    ],
)
def test_what_is_no_table_says_so_in_one_line(fill, content, problem):
    with pytest.raises(ValueError, match=problem) as caught:
        read(fill("a.jpg", **{"t.csv": content}) / "t.csv")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("photos.rar", r"unpack photos\.rar first"),
        ("captions.xlsx", r"captions\.xlsx is a spreadsheet: save it as CSV"),
    ],
)
def test_folders_of_something_else(fill, name, problem):
    folder = fill(name)
    with pytest.raises((ValueError, FileNotFoundError), match=problem):
        open_reader(folder)
    with pytest.raises(ValueError, match=problem):
        open_reader(folder / name)


def test_a_data_set_is_none_to_import(fill):
    names = ("x-train.tfrecord-00000-of-00001", "dataset_info.json")
    folder = fill("README.md", *(f"1.0.0/{name}" for name in names))
    for place in (folder, folder / "1.0.0"):
        with pytest.raises(ValueError, match=r"1\.0\.0' is a data set already: data\.name="):
            open_reader(place)


def test_what_systems_leave_behind_is_not_read(fill):
    folder = fill(
        "cat/a.jpg", "dog/a.jpg", "cat/._a.jpg", "__MACOSX/cat/._a.jpg", ".Trash/b.jpg",
        "dog/.ipynb_checkpoints/a-checkpoint.jpg", "@eaDir/a.jpg/THUMB.jpg", "._captions.csv",
    )  # fmt: skip
    assert read(folder) == {"cat/a.jpg": "cat", "dog/a.jpg": "dog"}


def test_one_folder_is_no_class(fill):
    assert read(fill("images/a.jpg", "images/b.jpg")) == {
        "images/a.jpg": "empty_caption", "images/b.jpg": "empty_caption",
    }  # fmt: skip


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_not_waited_for(fill):
    folder = fill("a.jpg", **{"a.txt": "a cat", "b.txt": "b", "t/t.csv": "file,caption\nc.jpg,x\n"})
    for name in ("b.jpg", "a.caption", "t/c.jpg"):
        os.mkfifo(folder / name)
    assert read(folder) == {"a.jpg": ("a cat",)}
    from jaxclip.data.importer.items import read_image

    ((_, item),) = open_reader(folder / "t" / "t.csv").items(Cursor())
    assert read_image(item.image).reason == "missing_image"


def test_captions_beside_pictures_in_other_encodings(fill):
    folder = fill("a.jpg", "b.JPG", "c.jpg", "d.jpg", **{
        "a.txt": "\ufeffa cat\r\n\u200b\r\nnan\r\n".encode(), "b.Txt": "ein Café".encode("utf-16"),
        "c.txt": "ein Café".encode("cp1252"), "d.txt": "a\0b",
    })  # fmt: skip
    expected = {"a.jpg": ("a cat",), "b.JPG": ("ein Café",), "c.jpg": None, "d.jpg": ("a b",)}
    assert read(folder) == expected
    assert read(folder, encoding="cp1252")["c.jpg"] == ("ein Café",)


def test_tables_in_folders_below(fill):
    rows = {"metadata.csv": "file_name,text\n0.jpg,{}\n"}
    places = ["data/train", "data/validation", "other"]
    folder = fill(
        *(f"{place}/0.jpg" for place in places),
        **{f"{place}/{n}": text.format(place) for place in places for n, text in rows.items()},
    )
    (folder / "data" / "circle").symlink_to(folder)
    assert read(folder) == {
        "train:data/train/0.jpg": ("data/train",),
        "validation:data/validation/0.jpg": ("data/validation",),
        "other/0.jpg": ("other",),
    }


def test_what_img2dataset_writes_as_files(fill):
    folder = fill("00000/1.jpg", **{
        "00000/1.txt": "a cat", "00000/1.json": json.dumps({"caption": "a cat", "url": "u"}),
        "00000_stats.json": "{}",
    })  # fmt: skip
    pq.write_table(pa.table({"url": ["u"], "caption": ["a cat"]}), folder / "00000.parquet")
    assert read(folder) == {"00000/1.jpg": ("a cat",)}


def test_parquet_beside_the_folder_of_its_split_has_captions_of_its_own(fill):
    folder = fill("train/cats/1.jpg", "train/dogs/2.jpg")
    rows = pa.table({"file_name": ["cats/1.jpg", "dogs/2.jpg"], "caption": ["a cat", "a dog"]})
    pq.write_table(rows, folder / "train.parquet")
    assert read(folder) == {"cats/1.jpg": ("a cat",), "dogs/2.jpg": ("a dog",)}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("README.txt", "1 photo a day\n2 at most\n"),
        ("classes.txt", "1 cat\n2 dog\n"),
        ("scores.csv", "id,target,score\n1,0,0.5\n2,1,0.3\n"),
        ("found.csv", "1.jpg,person,0.9\n2.jpg,person,0.8\n"),
    ],
)
def test_a_doubtful_table_goes_behind_captions_and_classes(fill, name, content, caplog):
    folder = fill("set/1.jpg", "set/2.jpg", **{"set/1.txt": "one", "set/2.txt": "two"}) / "set"
    (folder / name).write_text(content)
    assert read(folder) == {"1.jpg": ("one",), "2.jpg": ("two",)}
    assert f"{name} is left out; name it to import it" in caplog.text
    assert len(read(folder / name)) == 2
    for number, place in enumerate(("cats", "dogs"), start=1):
        (folder / place).mkdir()
        (folder / f"{number}.jpg").rename(folder / place / f"{number}.jpg")
        (folder / f"{number}.txt").unlink()
    assert set(read(folder)) == {"cats/1.jpg", "dogs/2.jpg"}


def test_a_doubtful_table_goes_behind_one_of_captions(fill, caplog):
    kinds = "image,category\n1.jpg,animal\n2.jpg,animal\n"
    folder = fill("1.jpg", "2.jpg", **{"a.csv": kinds})
    assert read(folder) == {"1.jpg": "animal", "2.jpg": "animal"}
    (folder / "b.csv").write_text("image,caption\n1.jpg,one\n2.jpg,two\n")
    assert read(folder) == {"1.jpg": ("one",), "2.jpg": ("two",)}
    assert "a.csv is left out; name it to import it" in caplog.text
