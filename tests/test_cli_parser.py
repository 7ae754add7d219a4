"""What a command line gets wrong is said in one line, with how to write it."""

import os
import subprocess
import sys

import pytest
from PIL import Image

from jaxclip import cli, cli_methods, errors, storage
from jaxclip.data import sources
from jaxclip.inference import command


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["trian"], "argument COMMAND: there is no 'trian'; did you mean 'train'?"),
        (["foo"], "argument COMMAND: there is no 'foo'; known: classify, curate, "),
        (["info"], "there is no 'info'; did you mean 'data info'?"),
        (["train", "configs/emoji.py"], "configs/emoji.py; write --config configs/emoji.py"),
        (["plan", "--config", "a.py", "b.py:x"], "b.py:x; write --config b.py:x"),
        (["train", "total_steps=3"], "total_steps=3; write --config.total_steps=3"),
        (["train", "-config.seed=3"], "write --config.seed=3"),
        (["train", "--config.seed"], "--config.seed has no value"),
        (["train", "--config.seed", "--workdir", "x"], "--config.seed has no value"),
        (["train", "--dry_run_batch_size=0"], "--dry_run_batch_size: 0 must be at least 1"),
        (["eval", "--workdir", "x", "--config", "a.py"], "leave it out, the workdir has its own"),
        (["data", "import", "a", "b"], "are required: --from, --to; write --from a --to b"),
        (["weights", "export", "a"], "are required: --from, --to, --format; write --from a"),
        (["search", "--weights", "w", "a", "car"], "put a text of several words in quotes"),
        (["search", "--weights", "w", "--top", "x", "a"], "--top: 'x' is no whole number"),
        (["classify", "--weights", "w", "--classes", "a,b", "--top", "0"], "must be at least 1"),
    ],
)
def test_a_command_line_that_is_none(argv, line, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(argv)
    assert stop.value.code == 2
    assert line in capsys.readouterr().err.splitlines()[-1]


def test_what_is_missing_is_not_guessed_beside_options(capsys):
    with pytest.raises(SystemExit):
        cli.main(["data", "import", "--to", "a"])
    assert capsys.readouterr().err.endswith("are required: --from\n")


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["data", "import", "--from", "{}", "--to", "{}/o", "--threads=-1"], "threads=-1 must be"),
        (["data", "inspect", "emoji", "--to", "{}/file/x.html"], "file can't be written: a part"),
        (["plan", "--config", "{}/c.py", "--output", "{}/file/x"], "--output: {}/file/x can't be"),
        (
            ["plan", "--config", "{}/c.py", "--sweep_micro_batches", "4,x"],
            "'x' is no number of mic",
        ),
        (["weights", "prune", "--from", "vit_b32", "--to", "{}/o"], "model.preset=vit_b32 are the"),
        (["weights", "wise-ft", "--before", "{}/a", "--after", "b", "--to", "{}/o"], "--before='"),
    ],
)
def test_options_are_called_as_they_are_and_before_any_work(argv, line, tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    (tmp_path / "c.py").write_text("def get_config():\n    return {}\n")
    assert cli.main([word.replace("{}", str(tmp_path)) for word in argv]) == 2
    assert line.replace("{}", str(tmp_path)) in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["embed", "--images", "{}", "--to", "{}/file/x"], "{}/file: not a directory; a part of"),
        (["embed", "--images", "{}", "--to", "{}/x", "--part", "4"], "--part '4' is not"),
        (["embed", "--images", "{}/no", "--to", "{}/x"], "no picture or folder of pictures"),
        (["embed", "--images", "{}/*.png", "--to", "{}/x"], "no such file; name the folder for"),
        (["classify", "--images", "{}", "--classes", "a"], "--classes 'a': name at least two"),
        (["classify", "--classes", "a,b"], "name either --images or --embeddings"),
        (["search", "--embeddings", "{}", "text"], "{} holds no embeddings"),
    ],
)
def test_what_is_wrong_beside_the_weights_is_said_before_they_are_read(
    argv, line, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(command, "load", lambda *_, **__: pytest.fail("they were read"))
    (tmp_path / "file").write_text("x")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    words = [word.replace("{}", str(tmp_path)) for word in argv]
    assert cli.main([*words, "--weights", "w"]) == 2
    assert line.replace("{}", str(tmp_path)) in capsys.readouterr().err


def test_a_place_that_cannot_be_written_is_refused(tmp_path, monkeypatch):
    storage.check_place(tmp_path / "a" / "b")
    assert not (tmp_path / "a").exists()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("link", "link/x"):
        with pytest.raises(NotADirectoryError):
            storage.check_place(tmp_path / name)
    monkeypatch.setattr(storage.os, "access", lambda path, mode: False)
    with pytest.raises(PermissionError) as found:
        storage.check_place(tmp_path / "a" / "b")
    assert found.value.filename == str(tmp_path)


def test_an_error_of_the_system_has_its_file_first():
    explained = errors.explain_file(PermissionError(13, "Permission denied", "/data/x"))
    assert explained == (
        "/data/x: permission denied; change its owner or mode, or name another place"
    )
    assert errors.explain_file(OSError(5, "Input/output error", b"x")) == "x: input/output error"
    assert not errors.explain_file(PermissionError("ours")) and not errors.explain_file(OSError(5))


def test_help_is_shown_in_any_encoding():
    done = subprocess.run(
        [sys.executable, "-m", "jaxclip", "train", "--help"],
        env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and not done.stderr
    assert r"gs://\u2026" in done.stdout


@pytest.mark.parametrize("command", [["methods"], ["data", "info", "emoji"]])
def test_ctrl_c_is_one_line(command, monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli_methods, "methods", interrupt)
    monkeypatch.setattr(sources, "open", interrupt)
    assert cli.main(command) == 130
    assert capsys.readouterr().err == "jaxclip: interrupted\n"
