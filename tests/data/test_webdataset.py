"""WebDataset tars read in place."""

import errno
import io
import json
import os
import string
import tarfile
import urllib.parse

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from jaxclip import fields
from jaxclip.data import patterns, pipeline, sources, tar_headers, tar_index, tfrecord, webdataset
from jaxclip.data import record as record_lib
from jaxclip.data.importer.items import Cursor
from jaxclip.data.importer.readers import open_reader
from jaxclip.data.record import BadRecord, Record


def samples(toys, tar, count=4):
    return [
        (f"{tar}-{i}.{ending}", data)
        for i in range(count)
        for ending, data in (
            ("png", toys.picture(10 * tar + i)),
            ("json", b'{"width": 3}'),
            ("txt", f"thing {10 * tar + i}".encode()),
        )
    ]


@pytest.fixture
def tars(tmp_path, toys):
    for tar in range(3):
        toys.make_tar(tmp_path / f"{tar:02d}.tar", samples(toys, tar))
    return tmp_path


def test_samples_in_order(tars, toys):
    data_set = sources.open(f"webdataset:{tars}/{{00..02}}.tar")
    assert data_set.splits == {"train": 12} and data_set.class_names() is None
    source = data_set.source("train")
    expected = [
        Record(toys.picture(10 * t + i), (f"thing {10 * t + i}",), -1, f"{t}-{i}", '{"width": 3}')
        for t in range(3)
        for i in range(4)
    ]
    assert source.read(range(12)) == expected
    assert source.read([7, 0, 11]) == [expected[i] for i in (7, 0, 11)]


def test_training_from_tars(tars, tokenize):
    pytest.importorskip("tensorflow")
    config = {"name": f"webdataset:{tars}/*.tar", "image_size": 8}
    iterator = pipeline.train_iterator(config, tokenizer=tokenize, global_batch_size=6, seed=0)
    numbers = np.concatenate([next(iterator)["text"][:, 1] for _ in range(4)])
    iterator.close()
    assert (
        sorted(numbers[:12])
        == sorted(numbers[12:])
        == sorted(10 * t + i for t in range(3) for i in range(4))
    )


def test_captions_in_json_and_what_is_wrong(tmp_path, toys):
    toys.make_tar(
        tmp_path / "a.tar",
        [
            ("0.JPG", toys.picture(0, format="JPEG")),
            ("0.json", '{"captions": ["one", "d\u00e9ux"]}'.encode()),
            ("1.png", toys.picture(1)),
            ("1.json", b"[1, 2"),
            ("2.txt", b"no picture"),
            ("3.png", toys.picture(3)),
            ("3.txt", b"caf\xe9"),
            ("4.png", toys.picture(4)),
            ("4.txt", b" \n"),
            ("5.png", toys.picture(5)),
            ("5.mask.png", toys.picture(6)),
            ("5.txt", b"five"),
            ("readme", b""),
            (".hidden.png", b""),
        ],
    )
    found = sources.open(f"webdataset:{tmp_path}/a.tar").source("train").read(range(6))
    assert found[0].texts == ("one", "d\u00e9ux")
    reasons = [record.reason if isinstance(record, BadRecord) else "" for record in found]
    assert reasons == ["", "empty_caption", "missing_image", "bad_utf8", "empty_caption", ""]
    assert found[5].image == toys.picture(5) and found[5].texts == ("five",)


def test_several_files_of_text_are_several_captions(tmp_path, toys):
    files = [
        ("0.caption", b"second"), ("0.png", toys.picture(0)), ("0.txt", b"first"),
        ("1.png", toys.picture(1)), ("1.txt", b" "), ("1.caption", b"one"), ("1.text", b"caf\xe9"),
    ]  # fmt: skip
    toys.make_tar(tmp_path / "a.tar", files)
    assert [record.texts for record in opened(tmp_path)] == [("first", "second"), ("one",)]


# Parts of names as tars have them: those that all readers agree on, and those for a closer look.
stems = st.sampled_from(
    ["0", "1", "a.b/7", "x y", "./z", "d/" * 60 + "n", "\u00e9", ".hidden", "f/"]
)
endings = st.sampled_from(
    [
        ".jpg",
        ".PNG",
        ".txt",
        ".caption",
        ".json",
        ".cls",
        ".mask.png",
        ".npy",
        ".",
        ".longending",
        ".apngs",
        "",
    ]
)
kinds = st.sampled_from([tarfile.REGTYPE] * 9 + [tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE])


@hypothesis.settings(max_examples=100, deadline=None)
@hypothesis.given(data=st.data())
def test_headers_at_once_say_what_tarfile_says(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("tar") / "a.tar"
    with tarfile.open(path, "w", format=data.draw(st.sampled_from([0, 1, 2]))) as tar:
        for _ in range(data.draw(st.integers(0, 5))):
            info = tarfile.TarInfo(data.draw(stems) + data.draw(endings))
            info.type = data.draw(kinds)
            # A time with a fraction makes a header of its own, as webdataset's writer does.
            info.mtime = data.draw(st.sampled_from([0, 12.5]))
            info.size = data.draw(st.sampled_from([0, 1, 512, 700])) * info.isreg()
            try:
                tar.addfile(info, io.BytesIO(b"1" * info.size))
            except ValueError:  # a name that the format can't hold
                continue
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):  # damage
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] = data.draw(st.integers(0, 255))
        del content[data.draw(st.integers(place, len(content))) :]
        path.write_bytes(content)
    found = []
    for read in (tar_headers.read, lambda data: None):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tar_headers, "read", read)
            try:
                found.append([each.tolist() for each in tar_index._scan(path)])
            except ValueError as error:
                found.append(str(error))
    assert found[0] == found[1]


@pytest.mark.parametrize("mtime", [0, 12.5])
def test_headers_of_plain_tars_are_read_at_once(tmp_path, mtime):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in ("a/0.jpg", "a/0.txt", "a/notes", "b"):
            info = tarfile.TarInfo(name)
            info.mtime, info.size = mtime, 600
            tar.addfile(info, io.BytesIO(bytes(600)))
    content = (tmp_path / "a.tar").read_bytes()
    files = tar_headers.read(content)
    assert [name.tobytes().rstrip(b"\0") for name in files.names] == [
        b"a/0.jpg", b"a/0.txt", b"a/notes", b"b",
    ]  # fmt: skip
    with tarfile.open(tmp_path / "a.tar") as tar:
        assert files.offsets.tolist() == [member.offset_data for member in tar]
    assert files.sizes.tolist() == [600] * 4
    assert tar_headers.read(content[:-20000]) is None and tar_headers.read(b"") is None
    # A header that leads back, of the file and of the one before a file.
    for kind in (b"0", b"x"):
        back = content[:124] + b"-0000002000\0" + content[136:156] + kind + content[157:]
        assert tar_headers.read(back) is None


def test_index_is_kept_and_renewed(tars, toys, monkeypatch):
    sources.open(f"webdataset:{tars}/*.tar")
    assert len(list(tars.glob(".*.tar.index.npz"))) == 3
    scan = tar_index._scan
    monkeypatch.setattr(tar_index, "_scan", None)  # not called if the index is used
    assert sources.open(f"webdataset:{tars}/*.tar").splits == {"train": 12}
    monkeypatch.setattr(tar_index, "_scan", scan)
    toys.make_tar(tars / "01.tar", samples(toys, 1, 2))
    assert sources.open(f"webdataset:{tars}/*.tar").splits == {"train": 10}


def test_a_folder_that_cannot_be_written_to(tars, monkeypatch):
    def refuse(*args, **options):
        raise OSError(errno.EROFS, "Read-only file system")

    def read_only(path, mode="r", *args, **options):
        return (open if mode.startswith("r") else refuse)(path, mode, *args, **options)

    # A read-only mount refuses to remove even what is not there.
    monkeypatch.setattr(tfrecord, "open", read_only, raising=False)
    monkeypatch.setattr(tfrecord.pathlib.Path, "unlink", refuse)
    data_set = sources.open(f"webdataset:{tars}/*.tar")
    assert data_set.splits == {"train": 12} and isinstance(data_set.source("train")[11], Record)
    assert not list(tars.glob(".*"))


@pytest.mark.parametrize("noted", ["sizes", "stats"])
def test_noted_sizes_save_the_scan(tars, monkeypatch, noted):
    if noted == "sizes":
        (tars / "sizes.json").write_text(
            json.dumps({f"{i:02d}.tar": 4 + (i == 2) for i in range(3)})
        )
    else:
        for i in range(3):
            (tars / f"{i:02d}_stats.json").write_text(json.dumps({"successes": 4 + (i == 2)}))
    scan = tar_index._scan
    monkeypatch.setattr(tar_index, "_scan", None)
    data_set = sources.open(f"webdataset:{tars}/*.tar")
    assert data_set.splits == {"train": 13}
    monkeypatch.setattr(tar_index, "_scan", scan)
    source = data_set.source("train")
    assert isinstance(source[11], Record)
    # One more was promised than there is.
    assert source[12].reason == "corrupted" and "4 samples only" in source[12].detail


def test_a_cut_tar_loses_its_end(tars):
    path = tars / "02.tar"
    path.write_bytes(path.read_bytes()[:5000])
    data_set = sources.open(f"webdataset:{tars}/*.tar")
    assert 8 < data_set.splits["train"] < 12
    source = data_set.source("train")
    assert all(isinstance(source[i], Record) for i in range(9))


def test_folders_and_their_splits(tars, toys, tmp_path):
    assert sources.open(f"webdataset:{tars}").splits == {"train": 12}
    for split in ("train", "val"):
        (tmp_path / "sub" / split).mkdir(parents=True)
        toys.make_tar(tmp_path / "sub" / split / "0.tar", samples(toys, 0, len(split)))
    data_set = sources.open(f"webdataset:{tmp_path}/sub")
    assert data_set.splits == {"train": 5, "val": 3}
    assert data_set.source("val")[2].key == "0-2"


def test_mistakes_are_named(tmp_path, toys):
    with pytest.raises(FileNotFoundError, match=r"0.tar': no such file \(of '.*{0..2}"):
        sources.open(f"webdataset:{tmp_path}/{{0..2}}.tar")
    with pytest.raises(FileNotFoundError, match=r"no .tar in this folder"):
        sources.open(f"webdataset:{tmp_path}")
    toys.make_tar(tmp_path / "a.tar.gz", samples(toys, 0))
    with pytest.raises(ValueError, match=r"is compressed, .* data import"):
        sources.open(f"webdataset:{tmp_path}/a.tar.gz")


def test_long_and_strange_names(tmp_path, toys):
    names = ["d/" * 60 + "x" * 120, "\u4f60\u597d", "a b"]
    for format in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        path = tmp_path / f"{format}.tar"
        with tarfile.open(path, "w", format=format) as tar:
            for name in names:
                for ending, data in (("png", toys.picture(1)), ("txt", b"thing")):
                    info = tarfile.TarInfo(f"{name}.{ending}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
        source = sources.open(f"webdataset:{path}").source("train")
        assert [source[i].key for i in range(len(source))] == names


# --- what people's tars are like ----------------------------------------------------------------


def opened(tmp_path):
    return sources.open(f"webdataset:{tmp_path}").source("train")


def test_samples_that_are_torn_apart(tmp_path, toys):
    names = [(f"{i}.png", toys.picture(i)) for i in range(4)]
    texts = [(f"{i}.txt", b"thing") for i in range(4)]
    toys.make_tar(tmp_path / "a.tar", [*names, *texts])
    message = r"a.tar: the files of a sample are not side by side .*'0'.* `tar --sort=name`"
    with pytest.raises(ValueError, match=message):
        sources.open(f"webdataset:{tmp_path}")
    # Not scanned when it is opened: no traceback from deep within a run either.
    (tmp_path / "sizes.json").write_text('{"a.tar": 4}')
    assert opened(tmp_path)[0].reason == "corrupted"
    with pytest.raises(ValueError, match=message):
        pipeline.check_spec({"name": f"webdataset:{tmp_path}"}, fields.PAIR)
    # A sample that is there twice is not torn apart.
    (tmp_path / "sizes.json").unlink()
    toys.make_tar(tmp_path / "a.tar", [names[0], texts[0], names[1], texts[1], names[0], texts[0]])
    assert len(opened(tmp_path)) == 3


def test_dots_in_names(tmp_path, toys, caplog):
    dotted = [(f"img_{i}.5.{end}", toys.picture(i)) for i in range(3) for end in ("png", "txt")]
    toys.make_tar(tmp_path / "a.tar", dotted)
    message = r"3 pictures are left out.* first dot.*img_0.5.png is .* has no partner"
    with pytest.raises(ValueError, match=message):
        sources.open(f"webdataset:{tmp_path}")
    toys.make_tar(tmp_path / "a.tar", [*dotted, *samples(toys, 0, 1), ("0-0.mask.png", b"")])
    caplog.clear()
    assert len(opened(tmp_path)) == 1 and "3 pictures are left out" in caplog.text
    toys.make_tar(tmp_path / "a.tar", [("x.mask.png", b"")])
    with pytest.raises(ValueError, match=r"x.mask.png is file 'mask.png' of sample 'x'"):
        sources.open(f"webdataset:{tmp_path}")
    toys.make_tar(tmp_path / "a.tar", [("readme", b"")])
    with pytest.raises(ValueError, match=r"a.tar holds no samples$"):
        sources.open(f"webdataset:{tmp_path}")


def test_classes_without_captions(tmp_path, toys):
    files = [
        (f"{i}.{e}", d) for i in range(4) for e, d in (("png", toys.picture(i)), ("cls", b"2"))
    ]
    toys.make_tar(tmp_path / "a.tar", [*files, ("4.png", toys.picture(4)), ("4.cls", b"cat")])
    source = opened(tmp_path)
    assert source[1] == Record(toys.picture(1), (), 2, "1")
    assert source[4].texts == ("cat",) and source[4].label == -1
    toys.make_tar(tmp_path / "a.tar", files)
    config = {"name": f"webdataset:{tmp_path}"}
    pipeline.check_spec(config, {"image": fields.View(), "label": fields.Label()})
    with pytest.raises(ValueError, match=r"has no captions: none of 4 records looked at has$"):
        pipeline.check_spec(config, fields.PAIR)


def test_a_shard_that_is_missing(tars):
    sizes = {f"{i:02d}.tar": 4 for i in range(5)}
    (tars / "sizes.json").write_text(json.dumps(sizes))
    with pytest.raises(FileNotFoundError, match=r"03.tar and 1 more is not there.*/\*.tar"):
        sources.open(f"webdataset:{tars}")
    # Named one by one, they are what is wanted.
    assert sources.open(f"webdataset:{tars}/*.tar").splits == {"train": 12}


def test_captions_where_there_are_some(tmp_path, toys):
    values = [
        {"text": None, "caption": "a cat"},
        {"title": "a cat"},
        {"texts": [], "caption": "a cat"},
        {"TEXT": " ", "Caption": ["", "a cat"]},
        {"text": 5, "prompt": "a cat"},
    ]
    files = [
        (f"{i}.{end}", data)
        for i, value in enumerate(values)
        for end, data in (("png", toys.picture(i)), ("json", json.dumps(value).encode()))
    ]
    empty = [("5.png", toys.picture(5)), ("5.txt", b" "), ("5.json", b'{"caption": "a cat"}')]
    toys.make_tar(tmp_path / "a.tar", [*files, *empty])
    assert [record.texts for record in opened(tmp_path).read(range(6))] == [("a cat",)] * 6


def test_a_json_file_is_parsed_once(tmp_path, toys, monkeypatch):
    value = {"captions": ["a cat", "two"], "caption_tags": ["x", "y"], "boxes": [[0, 0, 1, 1]]}
    files = [
        (f"{i}.{end}", data)
        for i in range(6)
        for end, data in (
            ("png", toys.picture(i)), ("json", json.dumps({**value, "n": i}).encode()),
        )
    ]  # fmt: skip
    toys.make_tar(tmp_path / "a.tar", files)
    spec = {
        "text": fields.Captions(source="y"),
        "image": fields.View(),
        "boxes": fields.Boxes(2),
    }
    config = {"mixture": [{"name": f"webdataset:{tmp_path}"}], "image_size": 8}
    maker = pipeline.batch_maker(config, lambda texts: np.zeros((len(texts), 1)), 6, 0, spec=spec)
    parsed = []
    loads = json.loads
    monkeypatch.setattr(json, "loads", lambda text: parsed.append(text) or loads(text))
    record_lib.meta_object.cache_clear()
    maker(0)
    maker.reader.close()
    assert len(parsed) == len(set(parsed)) == 6


def test_a_cut_tar_is_named_each_time(tars, caplog):
    path = tars / "02.tar"
    path.write_bytes(path.read_bytes()[:5000])
    for _ in range(2):
        caplog.clear()
        sources.open(f"webdataset:{tars}/*.tar")
        assert "02.tar: it is damaged after" in caplog.text


# --- names --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("0001.jpg", ("0001", "jpg")),
        ("a.b/0001.seg.PNG", ("a.b/0001", "seg.png")),
        ("./x.txt", ("./x", "txt")),
        ("readme", None),
        (".hidden.jpg", None),
        ("a/.hidden", None),
        ("trailing.", None),
        ("", None),
    ],
)
def test_sample_names(name, expected):
    assert tar_index.sample_name(name) == expected


@hypothesis.given(st.text())
def test_any_name_is_taken_apart_and_put_together(name):
    found = tar_index.sample_name(name)
    if found is not None:
        assert name.lower() == f"{found.key}.{found.extension}".lower()
        assert "." not in found.key.rpartition("/")[2] and found.key


numbers = st.integers(0, 120)


@hypothesis.given(first=numbers, last=numbers, width=st.integers(1, 4))
def test_ranges(first, last, width):
    begin, step = f"{first:0{width}d}", 1 if first <= last else -1
    names = list(patterns.braces(f"x{{{begin}..{last}}}.tar"))
    # As Bash and WebDataset's braceexpand: all as wide as the widest where one begins with 0.
    padded = max(len(begin), len(str(last))) if len(begin) > 1 and begin[0] == "0" else 0
    assert names == [f"x{i:0{padded}d}.tar" for i in range(first, last + step, step)]


@hypothesis.given(st.text(string.ascii_lowercase + "{},.0*", max_size=20))
def test_braces_of_any_pattern_end(pattern):
    names = list(patterns.braces(pattern))
    assert names or ".." in pattern
    if "{" not in pattern:
        assert names == [pattern]


def test_braces_multiply_with_the_last_fastest():
    assert list(patterns.braces("{a,b}-{0..1}")) == ["a-0", "a-1", "b-0", "b-1"]


def test_braces_within_braces_and_of_letters():
    assert list(patterns.braces("{a/{0..1},b}.tar")) == ["a/0.tar", "a/1.tar", "b.tar"]
    assert list(patterns.braces("{a..c}{2..0..2}")) == [f"{a}{i}" for a in "abc" for i in (2, 0)]
    assert list(patterns.braces("{0..1.tar")) == ["{0..1.tar"]


def test_names_that_are_not_there_and_those_that_are_strange(tmp_path, toys):
    folder = tmp_path / "{x} [y]" / "a b#c%20"
    folder.mkdir(parents=True)
    files = [("a.jpg", b"picture"), ("a.txt", b"a cat")]
    for name in ("00000.tar", "B.TAR"):
        toys.make_tar(folder / name, files)
    tar = str(folder / "00000.tar")
    quoted = urllib.parse.quote(tar)
    for pattern in (tar, folder, f"file://{quoted}", f"file:{quoted}"):
        assert sources.open(f"webdataset:{pattern}").source("train")[0].texts == ("a cat",)
    assert sources.open(f"webdataset:{folder}").splits == {"train": 2}
    assert patterns.expand(f"{tmp_path}/**/*.TAR") == [str(folder / "B.TAR")]
    toys.make_tar(tmp_path / "00000.tar", files)
    folder, tar = tmp_path, tmp_path / "00000.tar"
    for pattern, said in (
        (f"{folder}/0000.tar", "did you mean '.*00000.tar'"),
        (f"{tar},{folder}/B.TAR", "put several into braces"),
        (f"{folder}/{{0..1.tar", "a brace is never closed"),
        (f"{tar}::pipe:cat x", "commands are not run"),
    ):
        with pytest.raises((FileNotFoundError, ValueError), match=said):
            patterns.expand(pattern)


def test_each_line_of_clip_benchmarks_texts_is_a_caption(tmp_path, toys):
    """Its tars have nshards.txt beside them; other people's texts may have several lines."""
    files = [("a.jpg", b"picture"), ("a.txt", b"one\ntwo"), ("b.jpg", b"other"), ("b.cls", b"1")]
    for name, texts in (("plain", ("one\ntwo",)), ("test", ("one", "two"))):
        (tmp_path / name).mkdir()
        toys.make_tar(tmp_path / name / "0.tar", files)
        if name == "test":
            (tmp_path / name / "nshards.txt").write_text("1")
            (tmp_path / name / "classnames.txt").write_text("cat\ndog\n")
        first, second = sources.open(f"webdataset:{tmp_path / name}").source("train").read(range(2))
        assert first.texts == texts
        # The name of the class stands in for a caption.
        assert (second.label, second.texts) == (1, ("dog",) if name == "test" else ())
        ((_, item), _) = open_reader(tmp_path / name).items(Cursor())
        assert item.texts == tuple(text.encode() for text in texts)


def test_captions_in_json_are_the_same_in_place_and_imported(tmp_path, toys):
    values = [
        {"caption": {"en": "a cat", "de": "eine Katze"}},
        {"captions": [{"text": "a cat", "lang": "en"}]},
        {"captions": ["a cat", ["a kitten"]]},
        {"caption": {"width": 3}, "title": "a cat"},
        {"caption": 5, "title": "a cat"},
    ]
    files = [
        (f"{i}.{ending}", data)
        for i, value in enumerate(values)
        for ending, data in (("jpg", b"picture"), ("json", json.dumps(value).encode()))
    ]
    toys.make_tar(tmp_path / "0.tar", [*files, ("9.jpg", b"picture"), ("9.cls", b"-1")])
    found = sources.open(f"webdataset:{tmp_path}/0.tar").source("train").read(range(6))
    expected = [("a cat", "eine Katze"), ("a cat",), ("a cat", "a kitten"), ("a cat",), ("a cat",)]
    assert [record.texts for record in found[:5]] == expected
    assert found[5].reason == "empty_caption"  # -1 is no name of a class
    items = [item for _, item in open_reader(tmp_path / "0.tar").items(Cursor())]
    imported = [item.texts for item in items[:5]]
    assert imported == [tuple(text.encode() for text in texts) for texts in expected]


def test_a_sidecar_that_counts_too_few_is_said(tmp_path, toys, caplog):
    toys.make_tar(tmp_path / "0.tar", [(f"{i}.{e}", b"x") for i in "ab" for e in ("jpg", "txt")])
    (tmp_path / "sizes.json").write_text('{"0.tar": 1}')
    source = sources.open(f"webdataset:{tmp_path}").source("train")
    assert len(source) == 1 and source[0].key == "a"
    assert "holds 2 samples, but 1 by what is noted" in caplog.text


def test_a_folder_of_compressed_tars_says_the_way(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "notes.txt").write_text("x")
    with pytest.raises(FileNotFoundError, match=f"^'{tmp_path}': no .tar in this folder"):
        webdataset.open_pattern(str(tmp_path))
    for place in (tmp_path / "data", tmp_path):
        (place / "0.tar.gz").write_bytes(b"\x1f\x8b")
        said = f"{place}/0.tar.gz is compressed.*`jaxclip data import`"
        with pytest.raises(ValueError, match=said):
            webdataset.open_pattern(str(tmp_path))


def test_an_index_that_can_not_stand_beside_its_tar_is_kept_elsewhere(toys, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "set").mkdir()
    path = tmp_path / "set" / "0.tar"
    toys.make_tar(path, [("0.png", toys.picture(0)), ("0.txt", b"thing 0")])
    monkeypatch.setattr(os, "access", lambda folder, mode: str(folder) != str(path.parent))
    index = tar_index.index_tar(path)
    assert sorted(each.name for each in path.parent.iterdir()) == ["0.tar"]
    assert len(list((tmp_path / "cache").rglob("*.npz"))) == 1
    monkeypatch.setattr(tar_index, "_scan", None)
    np.testing.assert_array_equal(tar_index.index_tar(path).offsets, index.offsets)
