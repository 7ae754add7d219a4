"""One command for a GPU or TPU: sections by themselves, cut off, failing; tables; what it needs."""

import json
import subprocess
import sys
import types

import pytest

from jaxclip.bench import accelerator
from jaxclip.bench import accelerator_sections as sections
from jaxclip.bench.__main__ import main
from tests.patience import LONG

NEEDED = "jax, flax, optax and numpy"
# Installed by extras; the command shall not touch them.
EXTRAS = (
    "PIL", "google_crc32c", "matplotlib", "ml_collections", "pyarrow", "sentencepiece",
    "tensorboardX", "tensorflow", "tensorflow_datasets", "tokenizers",
)  # fmt: skip

_WITHOUT_EXTRAS = f"""
import importlib.abc, sys

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in {EXTRAS!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
from jaxclip.bench import accelerator, accelerator_sections as s, step
from jaxclip.plan import model_flops
from jaxclip.train import dry_run, setup

config = s._config(s.SMALL, ["global_batch_size=8"])
setup.build(config)
assert dry_run.made_up_batch(config)["image"].shape == (8, 16, 16, 3)
assert model_flops.of_config(config) > 0
assert list(s.device())[0] == "device"
"""


def test_every_section_has_a_share_of_the_time():
    assert list(accelerator.SHARES) == list(sections.SECTIONS)
    assert sum(accelerator.SHARES.values()) == pytest.approx(1.0)


def test_it_and_bench_step_need_no_extra():
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT_EXTRAS], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, f"{done.stderr}\nneeds more than {NEEDED}"


def test_the_losses_are_measured_and_written(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sections, "SMALL", sections.SMALL._replace(pairs=(64,)))
    output = tmp_path / "a"
    options = ["--small", "--one_process", "--sections", "losses", "--output", str(output)]
    assert main(["accelerator", *options]) == 0
    result = json.loads(output.with_suffix(".json").read_text())
    assert result["platform"] == "cpu" and result["jax"] and result["seconds"] > 0
    rows = result["sections"]["losses"]["rows"]
    kinds = [("softmax", "plain"), ("softmax", "blockwise")]
    kinds += [("sigmoid", kind) for _, kind in kinds]
    assert [(row["loss"], row["implementation"]) for row in rows] == kinds
    assert all(row["pairs"] == 64 and row["ms"] > 0 and row["compile_s"] > 0 for row in rows)
    text = output.with_suffix(".md").read_text()
    assert text in capsys.readouterr().out and "| sigmoid | blockwise" in text


@pytest.mark.slow
def test_all_sections_each_in_its_process(tmp_path):
    output = tmp_path / "a"
    assert main(["accelerator", "--small", "--output", str(output)]) == 0
    found = json.loads(output.with_suffix(".json").read_text())["sections"]
    assert list(found) == list(sections.SECTIONS)
    for section in found.values():
        assert section["status"] == "ok"
        assert not any("note" in row for row in section["rows"])
    step = found["step"]["rows"]
    assert all(row["mfu"] > 0 and row["images_per_s"] > 0 for row in step[1:])
    names = [row["transformation"] for row in found["transformations"]["rows"]]
    assert tuple(names) == sections.SMALL.transformations


def test_an_unknown_section_is_one_line(capsys):
    with pytest.raises(SystemExit) as exit_info:
        main(["accelerator", "--sections", "lossses"])
    assert exit_info.value.code == 2
    assert "no section 'lossses'; did you mean 'losses'?" in capsys.readouterr().err


def test_one_section_may_fail_and_another_hang(tmp_path):
    rows = tmp_path / "rows"
    start = f"import time; f = open({str(rows)!r}, 'a'); "
    programs = {
        "good": start + "f.write('{\"ms\": 1.5}\\n')",
        "hangs": "import time; time.sleep(600)",
        "fails": "raise ValueError('no such thing')",
        "dies": "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
    }

    def measure(name, seconds):
        # What the one that hangs has written before it is cut off, be it soon.
        rows.write_text('{"ms": 2}\n{"ms' if name == "hangs" else "")
        limit = 0.5 if name == "hangs" else LONG
        status = accelerator.isolated([sys.executable, "-c", programs[name]], limit)
        return accelerator.read_rows(rows, status)

    result = accelerator.run(list(programs), dict.fromkeys(programs, 0.25), measure, 100.0)
    found = result["sections"]
    assert (found["good"]["status"], found["good"]["rows"]) == ("ok", [{"ms": 1.5}])
    assert (found["hangs"]["status"], found["hangs"]["rows"]) == (
        "cut off after 0 s",
        [{"ms": 2}],
    )
    assert found["fails"]["status"] == "failed (status 1): ValueError: no such thing"
    assert found["dies"]["status"].startswith("failed (signal 11)")
    text = accelerator.as_markdown(result)
    assert "### hangs\n\ncut off after 0 s\n\n| ms |" in text and "### fails" in text


def test_what_a_section_leaves_is_for_those_after_it(monkeypatch):
    given, now = [], [0.0]
    monkeypatch.setattr(accelerator, "time", types.SimpleNamespace(monotonic=lambda: now[0]))

    def measure(name, seconds):
        given.append(seconds)
        now[0] += 5.0
        return [{"ms": 1.0}], ""

    accelerator.run(["a", "b"], {"a": 0.1, "b": 0.3}, measure, 100.0)
    assert given == pytest.approx([25.0, 95.0])


def test_items_are_left_out_when_the_slowest_would_not_fit():
    now = [0.0]
    budget = sections.Budget(10.0, clock=lambda: now[0])
    done = []
    with pytest.raises(TimeoutError, match="left out for want of time: c, d"):
        for name, seconds in sections.each({"a": 1.0, "b": 5.0, "c": 1.0, "d": 1.0}, budget):
            now[0] += seconds
            done.append(name)
    assert done == ["a", "b"]


def test_a_measurement_that_fails_is_a_row():
    def out_of_memory():
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate\nmore")

    def wrong():
        raise ValueError("first line\nsecond")

    assert sections.guarded(out_of_memory, pairs=3) == {
        "pairs": 3, "note": "does not fit into memory"
    }  # fmt: skip
    assert sections.guarded(wrong) == {"note": "failed: first line"}
    assert sections.guarded(lambda: {"ms": 1.0}, pairs=3) == {"pairs": 3, "ms": 1.0}
