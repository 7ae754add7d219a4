"""launch/local.sh, install.sh, test.sh, test_core.sh and .ci/run."""

import pathlib
import shlex
import shutil
import signal
import subprocess

import pytest

from tests.patience import LONG

REPOSITORY = pathlib.Path(__file__).parents[2]
CHECKS = ("ruff check", "ruff format", "mypy", "shellcheck", "pytest")


@pytest.fixture
def local(tools):
    """With a virtual environment that is complete: installing is tested in test_common.py."""
    folder = tools.add_environment("jaxclip", "ruff", "mypy", "shellcheck")
    tools.add_python("python", "3.12.1", into=folder / "bin")
    (folder / "pyvenv.cfg").touch()
    for extra in ("train", "test", "test-core"):
        stamp = f'_environment_hash "$JAXCLIP_VENV" {extra} >"$JAXCLIP_VENV/.jaxclip-{extra}"'
        tools.bash(f"cd '{tools.root}'; {stamp}")
    return tools


def test_the_config_is_trained_in_a_workdir_of_its_name(local):
    local.run("launch/local.sh", "configs/emoji.py")
    (call,) = local.calls
    root = str(local.root)
    assert call["tool"] == "jaxclip" and call["cwd"] == root
    config, workdir = f"{root}/configs/emoji.py", f"{root}/workdir/emoji"
    assert call["argv"] == ["train", "--config", config, "--workdir", workdir]


def test_options_are_handed_on_as_they_are(local, hostile):
    local.run("launch/local.sh", "configs/emoji.py:an arg", *hostile)
    (call,) = local.calls
    assert call["argv"][2].endswith("/configs/emoji.py:an arg")
    assert call["argv"][4].endswith("/workdir/emoji-an_arg")
    assert call["argv"][5:] == list(hostile)


@pytest.mark.parametrize("given", [["--workdir", "w"], ["--workdir=w"]])
def test_a_workdir_in_the_options_is_the_only_one(local, given):
    local.run("launch/local.sh", "configs/emoji.py", *given)
    assert local.calls[0]["argv"][3:] == given


def test_paths_are_taken_from_where_one_stands(local):
    here = local.folder / "elsewhere"
    here.mkdir()
    (here / "mine.py").touch()
    local.run("launch/local.sh", "mine.py", cwd=here, WORKDIR="out")
    assert local.calls[0]["argv"][1:] == ["--config", f"{here}/mine.py", "--workdir", f"{here}/out"]
    local.run("launch/local.sh", "configs/emoji.py", cwd=here, WORKDIR="/abs")
    # The configs of the checkout are found from anywhere.
    config = f"{local.root}/configs/emoji.py"
    assert local.calls[1]["argv"][2:] == [config, "--workdir", "/abs"]
    local.run("launch/local.sh", "configs/emoji.py", "--workdir", "w", cwd=here)
    assert local.calls[2]["cwd"] == str(here), "a relative --workdir is meant from here"
    for place in ("gs://bucket/run", "~/run"):
        local.run("launch/local.sh", "configs/emoji.py", cwd=here, WORKDIR=place)
        assert local.calls[-1]["argv"][-1] == place


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no config given, for example: bash launch/local.sh configs/emoji.py"),
        (["emoji"], "no such config: emoji; there are: configs/"),
        (["--workdir", "w", "configs/emoji.py"], "the config comes first, got '--workdir'"),
    ],
)
def test_mistakes_are_answered_before_anything_is_installed(local, words, message):
    assert message in local.run("launch/local.sh", *words, status=1)[1]
    assert not local.calls


def test_its_status_is_that_of_the_training(local):
    local.answer("^jaxclip train", ("", 2))
    local.run("launch/local.sh", "configs/emoji.py", status=2)


def test_a_signal_reaches_the_training(local):
    program = local.folder / "venv" / "bin" / "jaxclip"
    program.write_text(
        "#!/bin/bash\ntrap 'echo told; exit 7' TERM\necho up\nsleep 300 >/dev/null 2>&1 & wait\n"
    )
    process = local.start("launch/local.sh", "configs/emoji.py")
    assert process.stdout.readline() == "up\n"
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=LONG)[0] == "told\n" and process.returncode == 7


def test_a_dry_run_prints_what_a_run_calls(local, hostile):
    output, _ = local.run("launch/local.sh", "--dry_run", "configs/emoji.py", *hostile)
    assert not local.calls
    local.run("launch/local.sh", "configs/emoji.py", *hostile)
    (line,) = local.lines
    printed = shlex.split(output)
    assert printed[0].endswith("/bin/jaxclip") and printed[1:] == line[1:]


def test_install(local):
    local.run("launch/install.sh")
    assert not local.calls  # train is there
    output, _ = local.run("launch/install.sh", "--dry_run", "train,cuda")
    assert shlex.split(output)[-1] == ".[train,cuda]" and not local.calls
    local.run("launch/install.sh", "train,cuda")
    assert local.lines[0][-2:] == ["--editable", ".[train,cuda]"]
    assert "unknown option --extra" in local.run("launch/install.sh", "--extra", status=1)[1]
    number = len(local.calls)
    for words in (["train", "cuda"], ["train", "--dry_run"], ["trian"]):
        local.run("launch/install.sh", *words, status=1)
    assert len(local.calls) == number


def test_all_checks_run_and_the_failed_ones_are_named(local):
    local.answer("^ruff format", ("", 1))
    local.answer("^mypy", ("", 2))
    _, errors = local.run("launch/test.sh", status=1)
    assert errors.splitlines()[-1] == "[test.sh] error: failed: ruff format mypy"
    assert [line[0] for line in local.lines] == ["ruff", "ruff", "mypy", "shellcheck", "python"]
    checked = local.lines[3]
    assert "launch/common.sh" in checked and "launch/gke/submit.sh" in checked
    assert local.lines[4][1:3] == ["-m", "pytest"]


def test_all_is_well(local):
    _, errors = local.run("launch/test.sh", JAXCLIP_WORKERS="3")
    assert "error" not in errors
    assert local.lines[4][3:7] == ["--numprocesses", "3", "--dist", "loadfile"]


def test_failing_tests_fail(local):
    (local.folder / "fail").touch()
    _, errors = local.run("launch/test.sh", status=1)
    assert errors.splitlines()[-1] == "[test.sh] error: failed: pytest"
    local.run("launch/test.sh", "tests/optim", status=3)


def test_arguments_go_to_pytest_alone(local, hostile):
    local.run("launch/test.sh", "-k", *hostile)
    assert local.lines == [["python", "-m", "pytest", "-k", *hostile]]


def test_the_dry_run_of_the_tests(local):
    output, _ = local.run("launch/test.sh", "--dry_run")
    assert not local.calls
    local.run("launch/test.sh")
    printed = [shlex.split(line)[1:] for line in output.splitlines()]
    assert printed == [line[1:] for line in local.lines]


def test_the_core_is_skipped_without_a_new_python(local):
    old = local.add_python("old", "3.11.9")
    _, errors = local.run("launch/test_core.sh", status=77, PYTHON=str(old))
    assert "no Python 3.12 or newer found" in errors and not local.calls


def test_the_core_is_tested_in_an_environment_of_its_own(local):
    environment = {
        "PYTHON": str(local.folder / "venv" / "bin" / "python"),
        "JAXCLIP_CORE_VENV": str(local.folder / "venv"),
        "JAXCLIP_WORKERS": "1",
    }
    local.run("launch/test_core.sh", **environment)
    _, pytest_, *words = local.lines[-1][1:]
    left_out = [word for word in words if word.startswith(("--ignore=", "--deselect="))]
    core = ["tests/optim", "tests/losses", "tests/models"]
    assert [pytest_, *words] == ["pytest", "--durations=20", *left_out, *core]
    # None has moved, and what asks every rule, and losses on eight devices, is not among them.
    paths = {word.partition("=")[2] for word in left_out if "--ig" in word}
    for deselected in (word.partition("=")[2] for word in left_out if "--ig" not in word):
        file, _, test = deselected.partition("::")
        assert f"def {test}(" in (REPOSITORY / file).read_text()
    assert paths and all((REPOSITORY / path).exists() for path in paths)
    assert not paths & {"tests/optim/test_battery.py", "tests/losses/test_blockwise.py"}
    local.run("launch/test_core.sh", "--install", **environment)
    assert local.lines[-1] == ["python", "-m", "pytest", *words]  # as before
    local.run("launch/test_core.sh", "tests/optim", "-x", **environment)
    assert local.lines[-1] == ["python", "-m", "pytest", "tests/optim", "-x"]
    (local.folder / "fail").touch()
    local.run("launch/test_core.sh", "tests/optim", status=3, **environment)


@pytest.fixture
def ci(tools, scripts):
    """``run(status, status of the core) -> (status, lines)`` of ``.ci/run`` with fake tests."""
    (source,) = (path for path in scripts if path.name == "run")
    target = tools.root / ".ci" / "run"
    target.parent.mkdir()
    shutil.copy(source, target)

    def run(all_tests, core, release=0):
        passed = "===== {} in 61.00s (0:01:01) ====="
        for name, status, summary in (
            ("test.sh", all_tests, "1 failed, 9 passed" if all_tests else "10 passed"),
            ("test_core.sh", core, "2 failed" if core == 1 else "5 passed, 1 skipped"),
        ):
            line = passed.format(summary)
            code = f"echo '== test session starts =='; echo '{line}'\n"
            if name == "test.sh" and all_tests:
                code += "echo '[test.sh] error: failed: pytest' >&2\n"
            if core == 77 and name == "test_core.sh":
                code = ""
            wheel = f"[[ $* != *test_release.py* ]] || exit {release}\n"
            wheel += "[[ $* != --install ]] || { echo installing; exit 1; }\n"
            (tools.root / "launch" / name).write_text(f"{wheel}{code}exit {status}\n")
        done = subprocess.run(
            ["bash", str(target)], cwd="/", env=tools.environment, capture_output=True, text=True,
            timeout=LONG,
        )  # fmt: skip
        return done.returncode, done.stdout.splitlines()

    return run


def test_ci_succeeds_when_both_parts_do(ci):
    status, lines = ci(0, 0)
    assert status == 0
    assert lines[-4:] == [
        "launch/test_core.sh (Python 3.12 or newer, newest JAX): exit status 0",
        "===== 5 passed, 1 skipped in 61.00s (0:01:01) =====",
        "launch/test.sh: exit status 0",
        "===== 10 passed in 61.00s (0:01:01) =====",
    ]


@pytest.mark.parametrize(("all_tests", "core"), [(1, 0), (0, 1), (1, 1), (0, 4)])
def test_ci_fails_when_one_part_does(ci, all_tests, core):
    status, lines = ci(all_tests, core)
    assert status == 1
    assert lines[-1].startswith("===== 1 failed, 9" if all_tests else "===== 10 passed")
    assert ("[test.sh] error: failed: pytest" in lines[-3:]) == bool(all_tests)
    assert f"newest JAX): exit status {core}" in "\n".join(lines)


def test_ci_fails_when_the_release_check_does(ci):
    status, lines = ci(0, 0, release=1)
    assert status == 1
    assert "launch/test.sh -m slow tests/test_release.py: exit status 1" in lines


def test_ci_shows_what_the_installation_beside_the_tests_said(ci):
    status, lines = ci(0, 0)
    assert status == 0  # the core's own turn tries again
    assert lines.index("===== 10 passed in 61.00s (0:01:01) =====") < lines.index("installing")
    assert ci(0, 4)[0] == 1


def test_ci_says_that_the_core_was_skipped(ci):
    status, lines = ci(0, 77)
    assert status == 0 and any(line.startswith("SKIPPED: the core") for line in lines)
    assert ci(1, 77)[0] == 1


def test_ci_waits_for_nothing_but_its_parts(ci, tools):
    """Nor leaves a process behind, which would hold the pipe of its output."""
    tools.add("sleep")
    assert ci(0, 0)[0] == 0
    assert not tools.calls
