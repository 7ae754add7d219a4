"""CLIP_benchmark's folders of tars as people leave them: class names, templates, labels."""

import io
import logging
import tarfile

import numpy as np
import pytest
from PIL import Image

from jaxclip.data import class_values, sources
from jaxclip.data.record import BadRecord
from jaxclip.evaluate import base, zero_shot
from jaxclip.evaluate.stored import StoredData

NAMES, TEMPLATES = "classnames.txt", "zeroshot_classification_templates.txt"


@pytest.fixture
def folder(tmp_path):
    """Makes a folder of one tar of labels, with files beside it."""

    def make(labels, ending="cls", **files):
        stream = io.BytesIO()
        Image.new("RGB", (8, 8)).save(stream, "PNG")
        (tmp_path / "test").mkdir()
        with tarfile.open(tmp_path / "test" / "0.tar", "w") as tar:
            for number, label in enumerate(labels):
                for end, data in (("png", stream.getvalue()), (ending, label)):
                    info = tarfile.TarInfo(f"{number}.{end}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
        for name, data in files.items():
            place = {"names": NAMES, "templates": TEMPLATES, "count": "test/nshards.txt"}[name]
            (tmp_path / place).write_bytes(data)
        return tmp_path

    return make


def opened(folder):
    return sources.open(f"webdataset:{folder}")


@pytest.mark.parametrize(
    "encode",
    [
        lambda text: text.encode("utf-8-sig"),
        lambda text: text.encode("utf-16"),
        lambda text: text.replace("\n", "\r\n").encode(),
        lambda text: text.replace("\n", "\r").encode(),
        lambda text: (text + "\n \n").encode(),
    ],
)
def test_names_and_templates_in_the_encodings_of_editors(folder, encode):
    data = opened(folder([b"1"], names=encode("cat\nöl\x85 \u2028x"), templates=encode("\na {c}")))
    assert data.class_names() == ["cat", "öl\x85 \u2028x"]
    assert data.templates == ["a {c}"]


def test_an_empty_line_between_names_moves_no_labels(folder):
    with pytest.raises(ValueError, match="line 2 is empty, so the lines after it may be of other"):
        opened(folder([b"1"], names=b"cat\n\ndog\n"))


def test_a_number_of_tars_with_a_byte_order_mark(folder):
    data = opened(folder([b"a cat\na dog"], ending="txt", count=b"\xef\xbb\xbf1\n"))
    assert data.source("test")[0].texts == ("a cat", "a dog")


@pytest.mark.parametrize(
    ("written", "found"),
    [
        (b"3", 3), (b" 3\n", 3), (b"3.0", 3), (b"+3", 3), (b"\xef\xbb\xbf3", 3), (b"-1", -1),
        (b"0 2", None), (b"[0, 2]", None), (b"1.5", None), (b"", None), (b"9" * 30, None),
        (b"\x93\xff", None), (b"nan", None), (b"cat", "cat"), ("犬".encode(), "犬"),
        (b"4x4", "4x4"),
    ],
)  # fmt: skip
def test_labels(written, found):
    assert class_values.of_file(written) == found


def test_labels_that_are_names_or_none(folder):
    source = opened(folder([b"dog", b"wolf", b"0 1"], names=b"cat\ndog")).source("test")
    assert (source[0].label, source[0].texts) == (1, ("dog",))
    assert (source[1].label, source[1].texts) == (-1, ("wolf",))
    assert isinstance(source[2], BadRecord) and "its label is b'0 1'" in source[2].detail


def test_of_two_classes_of_a_name_the_first_counts(folder):
    source = opened(folder([b"crane"], names=b"cat\ncrane\ndog\ncrane")).source("test")
    assert source[0].label == 1


def test_labels_without_a_name_are_refused_or_said(folder, caplog):
    place = folder([b"0"] * 20 + [b"2"], names=b"cat\ndog")
    data = StoredData({"name": f"webdataset:{place}", "languages": ["en"]}, "test")
    with pytest.raises(ValueError, match="has label 2, but there are only 2 class names"):
        zero_shot.ZeroShot().check(data)
    zero_shot.ZeroShot(class_names={"0": "cat"}).names(data)
    vectors = np.eye(3, dtype=np.float32)
    arrays = base.ArrayData({"test": base.arrays(vectors, [0, 1, 2])}, class_names=["a", "b"])
    model = base.Model(None, None, {}, None)
    model.texts = lambda texts: vectors[: len(texts)]
    with caplog.at_level(logging.WARNING):
        found = zero_shot.ZeroShot(ks=(1,)).evaluate(model, arrays)
    assert found["num_examples"] == 2
    assert "1 of 3 pictures have a label without a name" in caplog.text
