"""docs/curation.md has every step, recipe and runner, and its example of a step works."""

import pathlib
import re
import sys
import types

from jaxclip import config_file
from jaxclip.curate import curate
from jaxclip.curate.step import STEPS

ROOT = pathlib.Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "curation.md").read_text(encoding="utf-8")


def test_every_step_and_recipe():
    table = TEXT.partition("## Steps")[2].partition("**A step of your own**")[0]
    assert sorted(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == STEPS.names()
    for recipe in vars(_module("configs/curate.py"))["RECIPES"]:
        assert f"`{recipe}`" in TEXT, recipe
        assert config_file.load_file(f"{ROOT}/configs/curate.py:{recipe}")["steps"]


def test_the_step_of_the_example(pools, tmp_path, monkeypatch):
    code = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    module = types.ModuleType("own_step")
    monkeypatch.setitem(sys.modules, "own_step", module)
    heading = "import dataclasses\nimport numpy as np\nfrom jaxclip.curate import Step\n"
    exec(heading + code[0], vars(module))
    rows = pools.rows(12)
    rows[3]["key"] = "a key of many letters"
    source = pools.write(tmp_path / "pool.parquet", rows)
    steps = [{"name": "own_step:ShortKeys", "most": 6}]
    outcome = curate({"source": source, "steps": steps}, tmp_path / "run")
    assert outcome.kept == 11 and outcome.report["steps"][1]["dropped"] == {"long_key": 1}


def _module(path):
    module = types.ModuleType("recipes")
    exec((ROOT / path).read_text(encoding="utf-8"), vars(module))
    return module
