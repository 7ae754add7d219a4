"""The command line: overrides, help, mistakes answered in one line."""

import json

import pytest

from jaxclip import cli


def test_overrides_are_taken_in_both_forms():
    rest, overrides = cli._take_overrides(
        ["train", "--config.seed=3", "--config", "c.py", "--config.optim.name", "lion"]
    )
    assert rest == ["train", "--config", "c.py"]
    assert overrides == ["seed=3", "optim.name=lion"]


def test_help_names_every_command_and_the_overrides(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for command in ("train", "eval", "data", "report"):
        assert command in text
    with pytest.raises(SystemExit):
        cli.main(["train", "--help"])
    assert "--config.optim.learning_rate=3e-4" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["train"], "--config is missing"),
        (["train", "--config", "nowhere.py"], "'nowhere.py' does not exist"),
        (["eval", "--workdir", "nowhere"], "not the workdir of a run"),
    ],
)
def test_mistakes_end_with_status_2_and_one_line(argv, message, capsys):
    assert cli.main(argv) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


def test_unknown_override_names_the_nearest(tmp_path, capsys):
    config = tmp_path / "c.py"
    config.write_text("def get_config(arg=''):\n    return {'seed': 1}\n")
    assert cli.main(["train", "--config", str(config), "--config.optim.learning_rat=1"]) == 2
    assert "optim.learning_rate" in capsys.readouterr().err


def test_print_config_is_the_resolved_configuration(tmp_path, capsys):
    config = tmp_path / "c.py"
    config.write_text("def get_config(arg=''):\n    return {'seed': int(arg or 1)}\n")
    argv = ["train", "--config", f"{config}:5", "--config.total_steps=7", "--print_config"]
    assert cli.main(argv) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["seed"] == 5 and printed["total_steps"] == 7


def test_report_takes_no_overrides(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["report", "--workdir", "x", "--config.seed=1"])
    assert stop.value.code == 2
