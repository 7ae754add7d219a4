"""`jaxclip methods`: everything a configuration can name is listed, with its real options."""

import pytest

from jaxclip import cli, objectives
from jaxclip.models import presets
from jaxclip.models.products import PRODUCTS
from jaxclip.models.sparsity import SPARSITIES
from jaxclip.optim import config as optim_config


def test_every_method_has_a_line_that_says_what_it_does(capsys):
    assert cli.main(["methods"]) == 0
    lines = capsys.readouterr().out.splitlines()
    told = {line.split()[0]: line.split(maxsplit=1)[1] for line in lines if line.startswith("  ")}
    names = {*objectives.REGISTRY.names(), *optim_config.CLIPPERS, *optim_config.OPTIMIZERS}
    names |= {*PRODUCTS.names(), *SPARSITIES.names(), *presets.names()}
    assert set(told) == names
    assert all(4 < len(text) < 160 and not text.endswith(".") for text in told.values())


def test_a_name_shows_its_docstring_and_the_defaults_of_its_options(capsys):
    assert cli.main(["methods", "dcl", "zclip"]) == 0
    text = capsys.readouterr().out
    assert "config.objective: dcl" in text and "2110.06848" in text
    assert "config.optim.clip: zclip" in text and "2504.02507" in text
    assert "  release_after         100\n" in text
    assert "learning_rate " not in text


def test_an_unknown_name_is_one_line(capsys):
    assert cli.main(["methods", "slpi"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "did you mean 'slip'?" in error


@pytest.mark.parametrize("name", ["slip", "adagc", "adamw"])
def test_no_option_is_missing_a_default_that_is_shown(name, capsys):
    assert cli.main(["methods", name]) == 0
    options = capsys.readouterr().out.split("Options and their defaults:\n")[1].splitlines()
    assert len(options) > 3 and all(len(line.split(maxsplit=1)) == 2 for line in options)


def test_a_preset_shows_its_towers(capsys):
    assert cli.main(["methods", "vit_b32"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("config.model.preset: vit_b32\n\n224 px in patches of 32")
    assert "  model.image.patch_size          32\n" in text and "  model.embed_dim  " in text
