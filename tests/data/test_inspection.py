"""`jaxclip data inspect`: counts that are right on records made for it."""

import dataclasses
import re
import struct
import zlib

import numpy as np
import pytest

from jaxclip import cli
from jaxclip.data import inspection, pipeline
from jaxclip.data.record import Record


class Tokenizer:
    """A token for each word, one for the end, zeros behind."""

    pad_id = 0

    def __init__(self, context_length=5):
        self.context_length = context_length

    def with_length(self, length):
        return Tokenizer(length)

    def __call__(self, texts):
        ids = np.zeros((len(texts), self.context_length), np.int32)
        for row, text in zip(ids, texts, strict=True):
            found = [*(7 for _ in text.split()), 9][: self.context_length]
            row[: len(found)] = found
        return ids


@pytest.fixture
def folder(tmp_path, toys):
    records = toys.records(12)
    texts = ["one two", "one two three four", "one two three four five", "слово слово"]
    for number, record in enumerate(records):
        records[number] = dataclasses.replace(record, texts=(texts[number % 4],))
    records[3] = Record(records[7].image, ("one two",), key="same picture")
    records[5] = Record(b"no picture", ("text",), key="broken")
    return str(toys.write_data_set(tmp_path / "set", {"train": records}))


def test_what_is_told_is_what_is_there(folder):
    found = inspection.inspect(folder, "train", Tokenizer(), 0)
    assert (found.looked_at, found.total) == (12, 12)
    assert found.bad == {"undecodable": 1} and "broken" in found.examples["undecodable"]
    assert sum(found.formats.values()) == len(found.widths) == 11
    # Four words and an end fit into five places, five words do not.
    assert found.cut == 3 and sorted(set(found.tokens)) == [3, 5, 6]
    assert found.equal_pictures == 2
    assert found.equal_captions == 11 and found.scripts == {"Latin": 9, "Cyrillic": 2}
    text = "\n".join(inspection.lines("set", "train", found, Tokenizer()))
    assert "unusable       1 (8.3%)" in text and "27.3% are cut at 5" in text


def test_a_picture_that_pillow_alone_refuses(tmp_path, toys):
    text = b"zTXta\0\0" + zlib.compress(bytes(2**21))
    chunk = struct.pack(">I", len(text) - 4) + text + struct.pack(">I", zlib.crc32(text))
    data = toys.picture(0)[:33] + chunk + toys.picture(0)[33:]  # behind the header
    records = [dataclasses.replace(toys.records(1)[0], image=data)]
    folder = toys.write_data_set(tmp_path / "set", {"train": records})
    found = inspection.inspect(str(folder), "train", Tokenizer(), 0)
    assert not found.bad and found.formats == {"PNG": 1}


def test_a_part_is_spread_over_the_split(folder):
    found = inspection.inspect(folder, "train", Tokenizer(), 3)
    assert found.looked_at == 3 and found.total == 12
    assert [key for key, _, _ in found.sheet] != []


def test_the_sheet_escapes_what_captions_say(folder):
    found = inspection.inspect(folder, "train", Tokenizer(), 0)
    found.sheet[0] = ("<key>", ("<script>alert(1)</script>",), b"jpeg")
    page = inspection.contact_sheet("a < b", ["text & more"], found)
    assert "<script>" not in page and "&lt;script&gt;" in page and "a &lt; b" in page
    assert page.count("<figure>") == len(found.sheet)


def test_the_sheet_shows_the_end_of_long_names_and_each_direction(folder):
    found = inspection.inspect(folder, "train", Tokenizer(), 1)
    found.sheet[0] = (f"{'folder/' * 20}1.jpg", ("\u05e9\u05dc\u05d5\u05dd",), b"jpeg")
    page = inspection.contact_sheet("a", [], found)
    shown = re.search(r'<b title="(.*?)">(.*?)</b>', page)
    assert shown[1] == found.sheet[0][0] and shown[2].endswith("folder/1.jpg")
    assert len(shown[2]) <= 41 and '<span dir="auto">\u05e9' in page


def test_stages_name_the_slowest(folder):
    config = pipeline.complete({"name": folder, "image_size": 8})
    spent = inspection.stages(config, Tokenizer(), 12)
    assert [stage for stage, _ in spent] == ["read", "decode", "image ops", "tokenize"]
    assert all(seconds > 0 for _, seconds in spent)
    text = inspection.stage_lines([("read", 0.001), ("decode", 0.003)], 4)
    assert text[-1] == "most of it is spent in: decode" and "1,000 on the 4" in text[-2]


def test_the_command(folder, tmp_path, capsys):
    sheet = tmp_path / "sheet.html"
    arguments = ["data", "inspect", folder, "--tokenizer_kind", "emoji_bpe", "--stages"]
    assert cli.main([*arguments, "--to", str(sheet), "--image_size", "8"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"12 of 12 records looked at", out) and "most of it is spent in" in out
    assert sheet.read_text().startswith("<!doctype html>")
    assert cli.main([*arguments, "--split", "tran"]) == 2
    assert "did you mean 'train'" in capsys.readouterr().err
    assert cli.main([*arguments, "--records", "-1"]) == 2


def test_a_folder_is_no_file_for_the_sheet(folder, tmp_path, capsys):
    assert cli.main(["data", "inspect", str(folder), "--to", str(tmp_path)]) == 2
    assert "is a folder; name a file in it" in capsys.readouterr().err
