"""The examples of docs/optim.md and of every docstring of the public names run."""

from __future__ import annotations

import doctest
import inspect
import pathlib
import re
import sys

import jax.numpy as jnp
import pytest

from jaxclip import optim
from tests.optim import registry

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "optim.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_examples_of_the_page(number: int) -> None:
    exec(compile(BLOCKS[number], f"docs/optim.md, example {number}", "exec"), {})


def test_the_page_has_its_examples() -> None:
    assert "optax.chain(" in BLOCKS[0] and any("from_config" in block for block in BLOCKS)


FUNCTIONS = [name for name in optim.__all__ if not name.endswith("State")]


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if name != "tensor_names"])
def test_every_public_name_is_on_the_page_and_documented(name: str) -> None:
    assert name in PAGE.read_text(encoding="utf-8")
    text = inspect.getdoc(getattr(optim, name))
    assert text is not None and "Args:" in text and "Returns:" in text


@pytest.mark.parametrize("name", ["from_config", "read_metrics"])
def test_examples_of_what_is_no_transformation(name: str) -> None:
    """Those of the transformations run in test_battery.py."""
    function = getattr(optim, name)
    module = sys.modules[function.__module__]
    runner = doctest.DocTestRunner()
    for test in doctest.DocTestFinder().find(function, name, module=module):
        runner.run(test)
    assert runner.tries > 1 and runner.summarize(verbose=False).failed == 0


def test_every_state_is_exported_and_says_what_it_holds() -> None:
    states = [getattr(optim, name) for name in optim.__all__ if name.endswith("State")]
    params = {"kernel": jnp.ones((2, 2))}
    for state in states:
        text = inspect.getdoc(state)
        for field in state._fields:
            assert f"{field}: " in text, f"{state.__name__}: {field} not explained"
    made = {type(case.make().init(params)) for case in registry.CASES if case.kind == "clipper"}
    assert made <= set(states)
