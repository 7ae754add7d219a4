"""Errors about unknown names: one place says what was probably meant."""

import pathlib

import pytest

import jaxclip
from jaxclip import cli, inference, objectives, registry
from jaxclip import config as config_lib
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


def test_every_key_that_other_programs_call_otherwise_is_there():
    config = config_lib.resolve({})
    keys = [key for key, _ in config_lib.flatten(config)] + ["optim.b1", "optim.b2", "optim.eps"]
    for name, words in registry._CALLED_ELSEWHERE.items():
        for word in words.split():
            assert f".{registry.meant(word, keys)}".endswith(f".{name}"), (name, word)


@pytest.mark.parametrize(
    ("name", "known", "near"),
    [
        ("lr", ["b1", "eps", "learning_rate"], "learning_rate"),
        ("optim.lr", ["optim.learning_rate", "lr"], "optim.learning_rate"),
        ("batch_size", ["evaluate.batch_size", "global_batch_size"], "global_batch_size"),
        ("grad_clip", ["optim.clip.name", "optim.clip.max_norm", "gradients"], "optim.clip"),
        ("steps", ["step"], "step"),  # what is like it, where what it means is not there
        ("epochs", ["rates"], ""),
    ],
)
def test_other_programs_words_for_a_key(name, known, near):
    assert registry.nearest(name, known) == near
    assert registry.meant(known[0], known) == ""


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (["--config.lr=1"], "unknown config key 'lr'; did you mean 'optim.learning_rate'?"),
        (["--config.optim.lr=1"], "has no such option; did you mean 'learning_rate'?"),
        (["--config.optim.warmup=9"], "did you mean 'schedule.warmup_steps'?"),
        (["--lr", "1"], "--lr 1; did you mean --config.optim.learning_rate?"),
        (["--batch-size=64"], "--batch-size=64; did you mean --config.global_batch_size?"),
        (["--image_size=64"], "did you mean --config.data.image_size?"),
        (["--workdr=x"], "did you mean --workdir?"),
    ],
)
def test_a_command_line_in_other_programs_words(given, line, capsys):
    config = str(pathlib.Path(__file__).parents[1] / "configs" / "emoji.py")
    try:
        assert cli.main(["train", "--config", config, "--print_config", *given]) == 2
    except SystemExit as exit:
        assert exit.code == 2
    assert line in capsys.readouterr().err


def test_dashes_make_no_option_near(capsys):
    """``--lr`` is like ``--help`` by them."""
    with pytest.raises(SystemExit):
        cli.main(["curate", "--lr=3"])
    assert "unrecognized arguments: --lr=3\n" in capsys.readouterr().err


def test_a_long_list_is_cut_where_a_command_shows_it():
    with pytest.raises(ValueError) as error:
        presets.get("zzz")
    assert len(str(error.value)) < 160 and "more (`jaxclip methods` lists them)" in str(error.value)
    with pytest.raises(ValueError, match=r"and 5. more .`jaxclip methods` lists them"):
        objectives.from_config(["zzz"], {})
    with pytest.raises(ValueError, match=r"nor a preset; known: .*`jaxclip methods`"):
        inference.load("zz")
    few = [str(number) for number in range(16)]
    assert registry.hint("zz", few, listed_by="it") == registry.hint("zz", few)
