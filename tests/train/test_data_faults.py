"""Bad records: written down once, and a limit on their share that ends the run with reasons."""

import json

import pytest

from jaxclip.data.record import BadRecord
from jaxclip.errors import RunError
from jaxclip.train import data_faults
from jaxclip.train.data_faults import DataFaults


def lines(folder):
    return [json.loads(line) for line in (folder / "skipped.jsonl").read_text().splitlines()]


def test_each_bad_record_is_written_down_once(tmp_path):
    bad = [(7, BadRecord("truncated", "half a picture", "a/b")), (9, BadRecord("zero_bytes"))]
    faults = DataFaults(tmp_path, 0.5)
    faults.note(bad[:1])
    faults.note(bad)
    # A run that goes on knows what it wrote, and so does one whose last line was cut off.
    with open(tmp_path / "skipped.jsonl", "a") as file:
        file.write('{"index": 1')
    DataFaults(tmp_path, 0.5).note(bad[:1])
    first, second = lines_until_damage(tmp_path)
    assert first == {
        "index": 7, "key": "a/b", "reason": "truncated", "detail": "half a picture",
    }  # fmt: skip
    assert second["index"] == 9


def lines_until_damage(folder):
    return [
        json.loads(line)
        for line in (folder / "skipped.jsonl").read_text().splitlines()
        if line.endswith("}")
    ]


def test_the_file_stays_small_and_a_full_disk_is_no_end(tmp_path, monkeypatch):
    monkeypatch.setattr(data_faults, "_MOST", 3)
    faults = DataFaults(tmp_path, 0.5)
    faults.note([(n, BadRecord("zero_bytes")) for n in range(10)])
    assert len(lines(tmp_path)) == 3
    DataFaults(tmp_path / "no such folder", 0.5).note([(1, BadRecord("zero_bytes"))])


@pytest.mark.parametrize(("bad", "good", "ends"), [(999, 1001, False), (1001, 999, True)])
def test_the_share_is_limited(tmp_path, bad, good, ends):
    faults = DataFaults(tmp_path, 0.5)
    if not ends:
        faults.check({"truncated": bad}, good)
        return
    with pytest.raises(
        RunError, match=r"(?s)50.0% of the records.*1,000  truncated.*1  zero_bytes"
    ):
        faults.check({"zero_bytes": 1, "truncated": bad - 1}, good)


def test_a_few_records_say_nothing(tmp_path):
    DataFaults(tmp_path, 0.1).check({"truncated": 900}, 99)


def test_a_run_stops_when_too_many_are_bad(tiny_config, tmp_path, monkeypatch, compilation_cache):
    from jaxclip.data import loader
    from jaxclip.train import loop

    # Two pictures of three are cut off.
    prepare = loader.Pillow.prepare
    cut_off = BadRecord("truncated", "made up")
    monkeypatch.setattr(
        loader.Pillow,
        "prepare",
        lambda self, data, cuts: (lambda: cut_off) if sum(data) % 3 else prepare(self, data, cuts),
    )
    monkeypatch.setattr(data_faults, "_ENOUGH", 50)
    with (
        compilation_cache(),
        pytest.raises(RunError, match=r"(?s)can.t be used.*skipped.jsonl names"),
    ):
        loop.train(tiny_config("data.max_unusable=0.1", "evaluate.every_steps=0"), tmp_path)
    assert {line["reason"] for line in lines(tmp_path)} == {"truncated"}
