"""docs/methods.md: its examples run, and its table names what there is."""

import pathlib
import re

import jax
import pytest

from jaxclip import config as config_lib
from jaxclip import objectives, parallel
from jaxclip.config import defaults
from jaxclip.train import dry_run, setup
from tests.objectives.battery import BASE

PAGE = (pathlib.Path(__file__).parents[2] / "docs" / "methods.md").read_text()
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


def test_the_table_names_every_method():
    rows = re.findall(r"^\| `(\w+)` \|.*\| [\d., ]+ \|.*\|$", PAGE, re.MULTILINE)
    assert sorted(rows) == objectives.REGISTRY.names()
