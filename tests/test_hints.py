"""Errors about unknown names: one place says what was probably meant."""

import pathlib

import pytest

import jaxclip
from jaxclip import registry
from jaxclip.bench import __main__ as bench
from jaxclip.models import presets
from jaxclip.parallel import sharding
from jaxclip.plan import chips

KNOWN = ["softmax", "sigmoid"]


def test_nearest():
    assert registry.nearest("softmx", KNOWN) == "softmax"
    assert registry.nearest("qqq", KNOWN) == "" == registry.nearest("x", [])
    assert registry.nearest("qqq", KNOWN, cutoff=0.0) in KNOWN
    assert registry.hint("softmx", KNOWN) == "; did you mean 'softmax'?"
    assert registry.hint("qqq", KNOWN) == "; known: sigmoid, softmax"


def test_no_other_file_looks_for_near_names_itself():
    root = pathlib.Path(jaxclip.__file__).parent
    users = {
        path.relative_to(root).parts[0]
        for path in root.rglob("*.py")
        if "import difflib" in path.read_text(encoding="utf-8")
    }
    # These rooms still have theirs.
    assert users - {"optim", "data", "losses"} == {"registry.py"}


@pytest.mark.parametrize(
    ("look_up", "near", "far"),
    [
        (chips.get, ("v5ee", "'v5e'"), ("zzzz", "known: ")),
        (presets.get, ("vit_b116", "'vit_b16'"), ("zzzz", "known: ")),
        (lambda name: sharding.sharding_rules(name), ("fdsp", "'fsdp'"), ("qq", "known: ")),
    ],
)
def test_look_ups_name_the_nearest_or_all(look_up, near, far):
    with pytest.raises(ValueError, match=f"did you mean {near[1]}"):
        look_up(near[0])
    with pytest.raises(ValueError, match=far[1]):
        look_up(far[0])


def test_an_unknown_benchmark(capsys):
    assert bench.main(["stepp"]) == 2
    assert capsys.readouterr().err == (
        "jaxclip.bench: error: no benchmark 'stepp'; did you mean 'step'?\n"
    )
