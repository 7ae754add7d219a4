"""The command line: overrides, help, and every mistake answered in one line that helps."""

import json
import pathlib
import re
import shutil
import subprocess
import sys

import jax
import pytest

from jaxclip import cli, cli_parser, errors
from jaxclip.parallel import distributed
from jaxclip.train import loop

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture
def refused(tiny_config_file, tmp_path, capsys, monkeypatch):
    """``refused(*arguments) -> message`` of a `jaxclip train` that must not begin."""

    def begin(*_, **__):
        raise AssertionError("the training began")

    monkeypatch.setattr(loop, "first_state", begin)

    def run(*arguments, workdir=tmp_path / "run"):
        argv = ["train", "--config", str(tiny_config_file), "--workdir", str(workdir), *arguments]
        assert cli.main(argv) == 2
        error = capsys.readouterr().err
        assert error.startswith("jaxclip: error: ") and "Traceback" not in error
        assert not (tmp_path / "run").exists(), "a refused run leaves no trace"
        return error

    return run


def test_overrides_are_taken_in_both_forms():
    rest, overrides = cli_parser.take_overrides(
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
    text = capsys.readouterr().out
    for part in ("--config.optim.learning_rate=3e-4", "--workdir", "--dry_run", "again"):
        assert part in text


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["train"], "--config is missing"),
        (["train", "--config", "nowhere.py"], "'nowhere.py' does not exist"),
        (["train", "--config", "total_steps=10"], "a key is set by --config.total_steps=10"),
        (["eval", "--workdir", "nowhere"], "not the workdir of a run"),
        (["report", "--workdir", "nowhere"], "not the workdir of a run"),
        (["data", "info", "nowhere"], "nowhere"),
    ],
)
def test_mistakes_end_with_status_2_and_one_line(argv, message, capsys):
    assert cli.main(argv) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error and error.count("\n") == 1


# Each of these must be found before anything is compiled.
MISTAKES = {
    "optim.learning_rat=1": "optim.learning_rat: 'adamw' has no such option; did you mean 'learn",
    "optm.learning_rate=1": "unknown config key 'optm.learning_rate'; did you mean 'optim.learn",
    "total_steps=many": "'total_steps' wants int (as 20), got str 'many'",
    "data.flip=True": "unknown config key 'data.flip'",
    "model.image.patch_size=5": "patch_size=5 does not divide data.image_size=16; use 4, 8, 16",
    "model.text.num_heads=3": "num_heads=3",
    "model.preset=vit_b61": "vit_b16",
    "global_batch_size=12": "global_batch_size=12 does not divide over data x fsdp=8 devices",
    "num_micro_batches=4": "use a multiple of 32, for instance 32",
    "mesh.fsdp=3": "does not divide 8 devices",
    "mesh.pipeline=3": "unknown config key 'mesh.pipeline'",
    "sharding=fdsp": "fsdp",
    "loss.name=softmx": "unknown loss 'softmx'; did you mean 'softmax'?",
    "optim.name=adamm": "did you mean 'adam",
    "optim.clip=zlcip": "did you mean 'zclip'?",
    "optim.clip.alpa=0.9": "optim.clip.alpa: 'zclip' has no such option; did you mean 'alpha'?",
    "optim.freeze=['^imagination/']": "pattern '^imagination/' matches no parameter",
    "optim.schedule.warmup_steps=21": "warmup_steps = 21 is more than total_steps=20",
    "precision.compute_dtype=bf16": "use 'float32', 'bfloat16' or 'float16'",
    "remat=everything": "everything",
    "tokenizer.kind=bpe": "bpe",
    "tokenizer.kind=sentencepiece": "tokenizer.path",
    "model.text.vocab_size=99": "4096 tokens, model.text.vocab_size=99; set model.text.vocab_size",
    "data.name=/no/such/place": "/no/such/place",
    "data.train_split=empty": "split 'empty' of data set",
    "data.train_split=trian": "no split 'trian'; did you mean 'train'?",
    "data.image_ops=resize|flop": "did you mean 'flip'?",
    "data.languages=['de']": "no captions in language 'de'",
    "evaluate.zero_shot=['tset']": "no split 'tset'; did you mean 'test'?",
    "evaluate.retrieval=['empty']": "split 'empty' of data set",
    "evaluate.templates=['a photo']": "put exactly one {} where the name goes",
    "checkpoint.best_metric=test/top1": "did you mean 'test/zero_shot/top1'?",
    "checkpoint.keep_last=0": "checkpoint.keep_last=0 must be at least 1",
    "data.image_std=[0,0.5,0.5]": "data.image_std=[0, 0.5, 0.5]: pixels are divided by it",
    "data.image_std=0": "'data.image_std' wants list",
    "data.image_mean=[0.5]": "'data.image_mean' wants a list of 3 float",
    "model.image.depth=0": "model.image.depth=0 must be at least 1",
    "model.text.depth=100000": "model.text.depth=100000 must be at most 1000",
    "model.text.width=-8": "model.text.width=-8 must be at least 1",
    "total_steps=None": "'total_steps' wants int",
    "seed=-1": "seed=-1 must be at least 0",
    "logit_scale_max=None": "'logit_scale_max' wants float",
    "evaluate.zero_shot=tset|test": "no split 'tset'; did you mean 'test'?",
    "precision.compute_dtype=float8": "precision.compute_dtype='float8'; use 'float32', 'bfloat16'",
    "attention_implementation=flash": "attention_implementation='flash'; use None, 'xla', 'cudnn'",
    "attention_implementation=cudnn": "'cudnn' needs an NVIDIA GPU, this is a cpu; use None",
    "mesh.data=16": "wants 16 devices, there are 8",
    "global_batch_size=1600000000": "global_batch_size=1600000000: this process's share of the",
    "evaluate.batch_size=100000000": "evaluate.batch_size=100000000 must be at most",
    "optim.b1=high": "optim.b1='high' must be a number",
    "optim.b2=1.0": "optim.b2=1.0 must be less than 1",
    "optim.eps=-1": "optim.eps=-1 must be a finite number >= 0",
    "optim.freeze=['.*']": "freeze all parameters; leave some to train",
    "optim.learning_rate=-1": "optim.learning_rate=-1.0 must be at least 0",
    "optim.learning_rate=nan": "optim.learning_rate",
    "profile.num_steps=-1": "profile.num_steps=-1 must be at least 0",
}


@pytest.mark.parametrize("override", MISTAKES)
def test_a_wrong_configuration_is_refused_before_anything_is_compiled(override, refused):
    assert MISTAKES[override] in refused(f"--config.{override}")


def test_a_workdir_that_cannot_be_made(refused, tmp_path):
    (tmp_path / "file").write_text("")
    message = refused(workdir=tmp_path / "file" / "run")
    assert (
        f"workdir {tmp_path / 'file' / 'run'} can't be written (it is a file, or lies in one)"
        in message
    )
    assert "choose another --workdir" in message


def test_a_workdir_of_another_configuration_names_the_difference(trained, tmp_path, refused):
    workdir = tmp_path / "copy"
    shutil.copytree(trained, workdir)
    before = (workdir / "config.json").read_bytes()
    message = refused("--config.seed=7", "--config.optim.learning_rate=0.5", workdir=workdir)
    assert "seed: 0 -> 7" in message and "optim.learning_rate: 0.001 -> 0.5" in message
    assert "use another --workdir" in message and message.count("->") == 2
    assert (workdir / "config.json").read_bytes() == before


def test_print_config_is_the_resolved_configuration(tmp_path, capsys):
    config = tmp_path / "c.py"
    config.write_text("def get_config(arg=''):\n    return {'seed': int(arg or 1)}\n")
    argv = ["train", "--config", f"{config}:5", "--config.total_steps=7", "--print_config"]
    assert cli.main(argv) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["seed"] == 5 and printed["total_steps"] == 7


def test_a_reader_that_has_had_enough_is_no_error(tiny_config_file):
    command = [sys.executable, "-m", "jaxclip", "train", "--config", tiny_config_file]
    with subprocess.Popen(
        [*command, "--print_config"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_report_takes_no_overrides(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["report", "--workdir", "x", "--config.seed=1"])
    assert stop.value.code == 2


def test_a_finished_run_goes_on_evaluates_and_reports_from_its_workdir_alone(
    trained, tmp_path, capsys, compilation_cache
):
    workdir = tmp_path / "moved"
    shutil.copytree(trained, workdir)
    expected = json.loads((trained / "eval.json").read_text())["ema"]["metrics"]
    with compilation_cache():
        assert cli.main(["train", "--workdir", str(workdir)]) == 0
        assert "going on after step 20 of 20 steps" in capsys.readouterr().out
        (workdir / "eval.json").unlink()
        assert cli.main(["eval", "--workdir", str(workdir)]) == 0
        out = capsys.readouterr().out
        assert "checkpoint of step 20" in out and "test/zero_shot/top1" in out
        assert json.loads((workdir / "eval.json").read_text())["ema"]["metrics"] == expected
        few = "--config.evaluate.retrieval=[]"
        assert cli.main(["eval", "--workdir", str(workdir), "--step", "10", few]) == 0
        out = capsys.readouterr().out
        assert "checkpoint of step 10" in out and "retrieval" not in out
        task = "zero_shot split=train label=seen templates=photo"
        assert cli.main(["eval", "--workdir", str(workdir), "--task", task]) == 0
        out = capsys.readouterr().out
        assert "seen/zero_shot/top1" in out and "test/" not in out
        assert cli.main(["eval", "--workdir", str(workdir), "--task", "zero_sot split=test"]) == 2
        assert "did you mean 'zero_shot'?" in capsys.readouterr().err
        assert cli.main(["eval", "--workdir", str(workdir), "--step", "13"]) == 1
        assert "no usable checkpoint of step 13" in capsys.readouterr().err
    (workdir / "report.html").unlink()
    assert cli.main(["report", "--workdir", str(workdir)]) == 0
    assert capsys.readouterr().out.strip() == str(workdir / "report.html")
    assert (workdir / "report.html").exists()


def test_a_dry_run_says_mistakes_in_one_line(tiny_config_file, capsys):
    argv = ["train", "--config", str(tiny_config_file), "--dry_run", "--config.optim.mu_dtype=high"]
    assert cli.main(argv) == 2
    error = capsys.readouterr().err
    assert "this configuration can't be built" in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("evaluate.tasks=[{'name': 'zero_shott'}]", "did you mean 'zero_shot'"),
        ("evaluate.tasks=[{'name': 'retrieval', 'split': 'tset'}]", "'tset'"),
        ("checkpoint.best_metric=test/zero_shot/top9", "is not what is evaluated"),
        ("writers=['tensorbord']", "did you mean 'tensorboard'"),
    ],
)
def test_a_dry_run_checks_what_comes_long_after_the_first_step(
    option, message, tiny_config_file, capsys
):
    argv = ["train", "--config", str(tiny_config_file), "--dry_run", f"--config.{option}"]
    assert cli.main(argv) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_an_import_that_is_missing_names_the_clone(monkeypatch, capsys):
    """Nothing is published under the name: what helps is an install from a clone."""
    with pytest.raises(ModuleNotFoundError) as missing:
        import no_such_module  # noqa: F401
    assert cli._explain(missing.value, "train", "") == 2
    error = capsys.readouterr().err
    assert "in a clone of jaxclip: pip install '.[train]'" in error
    ours = ImportError("reading pictures needs tensorflow; pip install '.[train]'")
    assert cli._explain(ours, "data", "") == 2
    files = ["README.md", *(p.relative_to(ROOT) for p in (ROOT / "jaxclip").rglob("*.py"))]
    for file in files:
        text = (ROOT / file).read_text()
        assert "pip install jaxclip" not in text and "pip install 'jaxclip" not in text, file


def test_dry_run_needs_no_data_and_no_workdir(tiny_config_file, capsys, compilation_cache):
    argv = ["train", "--config", str(tiny_config_file), "--config.data.name=/no/such/place"]
    with compilation_cache():
        assert cli.main([*argv, "--config.tokenizer.kind=clip", "--dry_run"]) == 0
    out = capsys.readouterr().out
    assert "image/embed" in out or "image/" in out
    for part in ("parameters: ", "uint8[16, 16, 16, 3]", "int32[16, 8]", "compiled in", "memory"):
        assert part in out
    assert jax.device_count() == 8 and "'data': 8" in out
    assert "evaluation is not checked: " in out and "/no/such/place" in out


@pytest.mark.parametrize(
    ("argv", "way"),
    [
        (["trian"], "did you mean 'train'?"),
        (["data", "inport"], "did you mean 'import'?"),
        (["report", "--workdir", "w", "-config.seed=1"], "write --config.seed=1"),
        (["report", "--workdir", "w", "config.seed=1"], "write --config.seed=1"),
    ],
)
def test_what_argparse_does_not_know(argv, way, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(argv)
    assert stop.value.code == 2 and capsys.readouterr().err.rstrip().endswith(way)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.lerning_rate=1", "optim.lerning_rate: .* did you mean 'learning_rate'"),
        ("optim.name=adamww", "did you mean 'adamw'"),
        ("optim.clip={'name': 'zclip', 'alfa': 1}", "optim.clip.alfa: .* did you mean 'alpha'"),
        ("optim.schedule.warmup=3", "optim.schedule.warmup: .* did you mean 'warmup_steps'"),
        ("objective=[{'name': 'slp'}]", "unknown objective 'slp'; did you mean 'slip'"),
        ("loss.implementaton=plain", "did you mean 'implementation'"),
        ("tokenizer.kind=clipp", "tokenizer.kind='clipp' is unknown; did you mean 'clip'"),
        ("data.name=emojii", "data set 'emojii': .* did you mean 'emoji'"),
        ("data.name=webdatset:/x/0.tar", "did you mean 'webdataset:/x/0.tar'"),
        ("data.mixture=[{'name': 'scenes:emoij'}]", "did you mean 'emoji'"),
        ("evaluate.tasks=[{'name': 'zero_shot', 'data': 'emojy'}]", "did you mean 'emoji'"),
        ("data.image_backend=fst", "unknown image backend 'fst'; did you mean 'fast'"),
        ("data.image_ops=resiz", "unknown image op 'resiz'; did you mean 'resize'"),
        ("writers=['jsonll']", "did you mean 'jsonl'"),
        ("evaluate.tasks=[{'name': 'zero_shott'}]", "did you mean 'zero_shot'"),
    ],
)
def test_print_config_refuses_what_a_run_would_refuse(tiny_config_file, capsys, override, message):
    argv = ["train", "--config", str(tiny_config_file), "--print_config", f"--config.{override}"]
    assert cli.main(argv) == 2
    said = capsys.readouterr()
    assert re.search(message, said.err) and not said.out


def test_print_config_says_what_has_no_effect(tiny_config_file, capsys, caplog):
    argv = ["train", "--config", str(tiny_config_file), "--print_config"]
    argv += ["--config.objective=['slip']", "--config.loss.name=sigmoid"]
    assert cli.main([*argv, "--config.data.name=/mnt/elsewhere/pairs"]) == 0
    assert "loss.name='sigmoid' has no effect" in caplog.text
    assert json.loads(capsys.readouterr().out)["loss"]["name"] == "sigmoid"


def test_a_misspelt_flag_names_the_right_one(capsys):
    for argv, near in (
        (["train", "--print_cnfig"], "--print_config"),
        (["data", "import", "--from", "x", "--to", "y", "--overwrit3"], "--overwrite"),
    ):
        with pytest.raises(SystemExit):
            cli.main(argv)
        assert f"did you mean {near}?" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["import", "--from", "x", "--to", "y"])
    assert "did you mean 'data import'?" in capsys.readouterr().err


def test_an_interrupted_upload_is_one_line_and_nothing_is_waited_for(monkeypatch, capsys):
    def interrupt(args):
        raise errors.UploadInterrupt("interrupted; all of it is in a folder")

    monkeypatch.setattr(cli, "_report", interrupt)
    monkeypatch.setattr(distributed, "leave", sys.exit)
    with pytest.raises(SystemExit) as left:
        cli.main(["report", "--workdir", "nowhere"])
    assert left.value.code == 130
    assert capsys.readouterr().err == "jaxclip: error: interrupted; all of it is in a folder\n"


_INTERRUPTED = """
import os, signal, sys, types
from jaxclip import interrupts

def _xla_gc_callback():  # what is raised in it is lost
    os.kill(os.getpid(), signal.SIGINT)

with interrupts.interruptible_while_loading():
    if sys.argv[1] == "loading":
        sys.modules["jaxlib"] = types.ModuleType("jaxlib")
        sys.modules["jaxlib"].__spec__ = types.SimpleNamespace(_initializing=True)
        os.kill(os.getpid(), signal.SIGINT)
    try:
        _xla_gc_callback()
    except KeyboardInterrupt:
        sys.exit("lost")
    try:
        signal.pause()
    except KeyboardInterrupt:
        sys.exit(3)
"""


@pytest.mark.parametrize(("when", "status"), [("loading", 130), ("collecting", 3)])
def test_an_interrupt_at_a_bad_moment_is_neither_lost_nor_an_abort(when, status):
    """Native code that is being loaded aborts the process by a KeyboardInterrupt."""
    command = [sys.executable, "-c", _INTERRUPTED, when]
    found = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert found.returncode == status, found.stderr
    assert found.stderr == ("jaxclip: interrupted\n" if when == "loading" else "")
