"""docs/methods.md: its examples run, and its table names what there is."""

import ast
import pathlib
import re
import sys

import jax
import pytest

from jaxclip import config as config_lib
from jaxclip import objectives, parallel
from jaxclip.config import defaults
from jaxclip.train import dry_run, setup
from tests.objectives.battery import BASE

ROOT = pathlib.Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "methods.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


class Config:
    """Takes what an example assigns to ``config``."""


def block(text):
    return next(code for code in BLOCKS if text in code)


def test_the_configurations_of_the_page_are_accepted():
    config = Config()
    exec(block("config.objective"), {"config": config})
    total = objectives.from_config(config.objective, {})
    assert [term.name for term in total.terms] == ["contrastive", "align_uniform", "nested"]
    assert float(total.terms[1].weight(1000)) == pytest.approx(0.25)
    exec(block("config.teacher"), {"config": config})
    assert config.teacher.keys() <= defaults()["teacher"].keys()


def test_the_method_of_the_page_trains(tmp_path, monkeypatch):
    code = block("class Closer")
    body = code[code.index("@dataclasses") :]
    assert len([line for line in body.splitlines() if line.strip()]) <= 12
    (tmp_path / "a_package_for_closer.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    term = {"name": "a_package_for_closer:Closer", "margin": 0.1, "weight": 0.5}
    config = config_lib.resolve({**BASE, "objective": [{"name": "contrastive"}, term]})
    experiment = setup.build(config, devices=jax.devices()[:1])
    batch = dry_run.made_up_batch(config, experiment.batch_spec)
    batch = parallel.to_global(batch, experiment.mesh)
    _, metrics = experiment.train_step(experiment.init_state(), batch)
    expected = metrics["contrastive/loss"] + 0.5 * metrics["Closer/loss"]
    assert float(metrics["loss"]) == pytest.approx(float(expected), rel=1e-6)
    assert 0 < float(metrics["Closer/loss"]) < float(metrics["Closer/distance"])
    assert "arXiv" in sys.modules["a_package_for_closer"].Closer.__doc__  # as the battery wants it
    monkeypatch.setitem(
        sys.modules, "jaxclip.objectives.closer", sys.modules["a_package_for_closer"]
    )
    test = {}
    exec(block("def test_value_and_gradient"), test)
    test["test_value_and_gradient"]()


def test_the_table_names_every_method():
    rows = re.findall(r"^\| `(\w+)` \|.*\| [\d., ]+ \|.*\|$", PAGE, re.MULTILINE)
    assert sorted(rows) == objectives.REGISTRY.names()


def named(path, names):
    """Which of the names a file's code has as a string, an import or an identifier."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    docs = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node)
    }
    words = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
            words.add(node.value)
        elif isinstance(node, (ast.Name, ast.Attribute)):
            words.add(node.id if isinstance(node, ast.Name) else node.attr)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            module = getattr(node, "module", None) or ""
            words |= {part for a in node.names for part in f"{module}.{a.name}".split(".")}
    return {word for word in words if word.replace("_", "").lower() in names}


def test_training_and_data_name_no_method(tmp_path):
    ops = {op.stem for op in (ROOT / "jaxclip/data").glob("*_ops/*.py")} | {"flip"}
    names = {name.replace("_", "") for name in objectives.REGISTRY.names() if name not in ops}
    files = [path for room in ("train", "data") for path in (ROOT / "jaxclip" / room).rglob("*.py")]
    assert len(files) > 80
    assert {path.name: found for path in files if (found := named(path, names))} == {}
    bad = tmp_path / "bad.py"
    bad.write_text("from jaxclip.objectives.slip import SLIP\nif name == 'z_loss': pass\n")
    assert named(bad, names) == {"slip", "SLIP", "z_loss"}


def test_a_method_is_a_small_file():
    sizes = {
        path.stem: len(path.read_text(encoding="utf-8").splitlines())
        for path in (ROOT / "jaxclip/objectives").glob("*.py")
    }
    assert max(sizes.values()) <= 250
    methods = [sizes[name] for name in objectives.REGISTRY.names()]
    assert sum(size <= 120 for size in methods) > len(methods) / 2
