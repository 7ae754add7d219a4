"""What a user of `jaxclip curate` gets wrong, and files as editors leave them."""

import json

import numpy as np
import pytest

from jaxclip import cli
from jaxclip.cli_curate import parse_step
from jaxclip.curate import curate, matcher, report, writers
from jaxclip.curate.rows import Rows
from jaxclip.curate.runners.local import Local
from jaxclip.curate.step import build
from jaxclip.curate.steps import fuse, where


@pytest.mark.parametrize(
    ("step", "said"),
    [
        ("where column=a at_least=5 at_most=1", "at_least=5 is more than at_most=1"),
        ("captions min_words=5 max_words=3", "min_words=5 is more than max_words=3"),
        ("captions min_characters=9 max_characters=8", "nothing would be left"),
        ("score_by function=math:pi columns=a", "is no function, but 3.14"),
    ],
)
def test_options_that_leave_nothing_or_are_none(step, said):
    with pytest.raises(ValueError, match=said):
        build(parse_step(step), "steps[0]")


def test_a_step_without_a_name_and_a_list_of_one_number():
    for text in ("", "  ", "''"):
        with pytest.raises(ValueError, match="it names no step"):
            parse_step(text)
    assert build(parse_step("where column=year one_of=2020"), "").one_of == ["2020"]
    assert build(parse_step("captions min_words=5"), "").max_words == 0


def test_an_infinite_score_costs_no_other_record_its_own():
    values = [{"a": 1.0, "b": 3}, {"a": float("inf"), "b": 1}, {"a": 2.0, "b": 1}]
    rows = Rows.of(meta=[json.dumps(each) for each in values])
    step = fuse.Fuse(columns=("a", "b"))
    ranges = step.ranges(rows)
    assert ranges["most"].tolist() == [2.0, 3.0] and np.isfinite(ranges["least"]).all()


def test_a_name_that_no_record_has_is_said(pools, tmp_path):
    source = pools.write(tmp_path / "pool.parquet", pools.rows(3))
    steps = [{"name": "where", "column": "scroe", "at_least": 0}]
    outcome = curate({"source": source, "steps": steps}, tmp_path / "w", runner=Local(1))
    assert any("is its name right?" in line for line in report.lines(outcome.report))
    assert where.Where.reasons[0] == "missing"


def test_a_workdir_within_the_source_is_refused(pools, tmp_path):
    (tmp_path / "pool").mkdir()
    pools.write(tmp_path / "pool" / "a.parquet", pools.rows(2))
    config = {"source": f"parquet:{tmp_path / 'pool'}", "steps": ["captions"]}
    for place in ("pool", "pool/curate"):
        with pytest.raises(ValueError, match="in the folder of the source"):
            curate(config, tmp_path / place, runner=Local(1))
    assert not (tmp_path / "pool" / "kept").exists()
    assert curate(config, tmp_path / "pool2", runner=Local(1)).kept == 2


@pytest.mark.parametrize("name", ["out", "out.writing"])
def test_a_folder_of_something_else_is_refused_before_the_work(pools, tmp_path, capsys, name):
    source = pools.write(tmp_path / "pool.parquet", pools.rows(2))
    (tmp_path / name).mkdir()
    (tmp_path / name / "mine").write_text("precious")
    arguments = ["--source", source, "--step", "captions", "--workdir", str(tmp_path / "w")]
    assert cli.main(["curate", *arguments, "--to", str(tmp_path / "out")])
    assert "holds something else" in capsys.readouterr().err
    assert not (tmp_path / "w").exists()
    assert (tmp_path / name / "mine").read_text() == "precious"


def test_entries_in_other_encodings(tmp_path):
    file = tmp_path / "entries.txt"
    file.write_bytes("cat\ncaf\xe9".encode("utf-8-sig"))
    assert matcher.read_entries(str(file)) == ["cat", "caf\xe9"]
    file.write_bytes("caf\xe9".encode("latin-1"))
    with pytest.raises(ValueError, match="is not UTF-8, so they would match nothing"):
        matcher.read_entries(str(file))


def test_endings_of_pictures_are_those_of_what_they_are():
    begins = {b"\0\0\0\x1cftypavif": "avif", b"\0\0\1\0": "ico", b"\x89PNG": "png"}
    assert [writers.extension(begin) for begin in begins] == list(begins.values())
