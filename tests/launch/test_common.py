"""launch/common.sh: quoting, dry runs, finding a Python, making the virtual environment."""

import shlex
import shutil
import subprocess
import sysconfig
import tomllib

import pytest


def test_all_scripts_pass_shellcheck(scripts):
    shellcheck = shutil.which("shellcheck", path=sysconfig.get_path("scripts"))
    shellcheck = shellcheck or shutil.which("shellcheck")
    if shellcheck is None:
        pytest.skip("needs shellcheck")
    done = subprocess.run(
        [shellcheck, "--external-sources", *scripts], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


def test_what_is_run_is_executable_and_what_is_sourced_is_not(scripts):
    for script in scripts:
        executable = bool(script.stat().st_mode & 0o111)
        assert executable == (script.name != "common.sh"), script


def test_every_script_explains_itself(scripts, tools):
    for script in scripts:
        if script.name in ("common.sh", "container.sh", "run"):
            continue
        name = script.relative_to(script.parents[2 if script.parent.name == "gke" else 1])
        output, errors = tools.run(name, "--help")
        assert script.name in output and "#" not in output[:2] and not errors


def test_quoted_words_are_read_back(tools, hostile):
    output, _ = tools.bash('quote "$@"', *hostile, "line\nbreak", "--plain=1,2:3")
    assert shlex.split(output) == [*hostile, "line\nbreak", "--plain=1,2:3"]
    echoed, _ = tools.bash(f"printf '%s\\001' {output}")
    assert echoed.split("\1")[:-1] == [*hostile, "line\nbreak", "--plain=1,2:3"]


def test_run_runs_or_prints(tools, hostile):
    tools.add("tool")
    output, errors = tools.bash('run tool "$@"', *hostile)
    assert tools.lines == [["tool", *hostile]] and output == ""
    assert shlex.split(errors.removeprefix("+ ")) == ["tool", *hostile]
    output, _ = tools.bash('DRY_RUN=1; run tool "$@"', *hostile)
    assert shlex.split(output) == ["tool", *hostile] and len(tools.calls) == 1


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "", "2x", "x"])
def test_need_number_refuses(tools, value):
    _, errors = tools.bash('need_number --nodes "$1"', value, status=1)
    assert errors == f"[test.sh] error: --nodes={value} is not a whole number of at least 1\n"


@pytest.mark.parametrize("value", ["0", "65536", "99999999999999999999", "http"])
def test_need_port_refuses(tools, value):
    _, errors = tools.bash('need_port --port "$1"', value, status=1)
    assert f"--port={value} is " in errors


@pytest.mark.parametrize("value", ["-1", "x", "01"])
def test_need_index_refuses(tools, value):
    tools.bash("need_index --host 0")
    assert f"--host={value} is not" in tools.bash('need_index --host "$1"', value, status=1)[1]


@pytest.mark.parametrize("extras", ["trian", "train,", "train cuda", "train,jaxclip", "$(id)"])
def test_extras_that_are_not_there(tools, extras):
    """Of which pip says a word at most, and leaves out what they bring."""
    declared = tomllib.loads((tools.root / "pyproject.toml").read_text())["project"]
    tools.bash(f"need_extras {','.join(declared['optional-dependencies'])}")
    _, errors = tools.bash('need_extras "$1"', extras, status=1)
    assert "there are: models train" in errors and errors.count("\n") == 1


def test_a_relative_workdir_counts_from_a_folder(tools):
    words = [
        "--workdir",
        "a b",
        "--workdir=c",
        "--workdir=gs://b/d",
        "--workdir",
        "~/e",
        "/f",
        "--workdir",
    ]
    output, _ = tools.bash(
        'with_absolute_workdir /home/me "$@"; printf "%s|" "${ARGUMENTS[@]}"', *words
    )
    here = "/home/me"
    assert output.split("|")[:-1] == [
        *("--workdir", f"{here}/a b", f"--workdir={here}/c", "--workdir=gs://b/d"),
        *("--workdir", "~/e", "/f", "--workdir"),
    ]


OPTIONS = """
spot=0 name="" port=1 words="" DRY_RUN=0
read_options "spot" "name port words+" "$@"
printf '%s|' "$spot" "$name" "$port" "$words" "$DRY_RUN" "$#" ${REST[@]+"${REST[@]}"}
"""


@pytest.mark.parametrize(
    ("words", "printed"),
    [
        ([], "0||1||0|0|"),
        (
            ["--spot", "--name", "a b", "--port=2", "c.py", "--port", "3"],
            "1|a b|2||0|7|c.py|--port|3|",
        ),
        (["--name=x=y", "--name", "--spot", "--dry_run"], "0|--spot|1||1|4|"),
        (["--words", "-a 1", "--words=-b", "--", "--name"], "0||1|-a 1 -b|0|5|--|--name|"),
        (["--name", "", "c"], "0||1||0|3|c|"),
    ],
)
def test_read_options(tools, words, printed):
    assert tools.bash(OPTIONS, *words)[0] == printed


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--nam", "x"], "unknown option --nam "),
        (["-n", "x"], "unknown option -n "),
        (["--name port", "x"], "unknown option --name port "),
        (["--words+", "x"], "unknown option --words+ "),
        (["--", "--nope"], None),
        (["--port"], "--port needs a value"),
        (["--spot=1"], "--spot takes no value"),
    ],
)
def test_read_options_refuses(tools, words, message):
    _, errors = tools.bash(OPTIONS, *words, status=0 if message is None else 1)
    assert message is None or message in errors


def test_find_python_takes_the_first_that_fits(tools):
    tools.add_python("python3", "3.10.2")
    tools.add_python("python3.13", "3.13.1", broken="shim")
    fits = tools.add_python("python3.12", "3.12.9")
    tools.add_python("python3.11", "3.11.0")
    assert tools.bash("find_python 3.11")[0] == f"{fits}\n"


def test_find_python_looks_into_pyenv_newest_first(tools):
    tools.environment["PYENV_ROOT"] = str(tools.folder / "pyenv")
    for name in ("python3", "python3.11", "python3.12", "python3.13", "python3.14", "python"):
        tools.add_python(name, "3.9.0")
    for version in ("3.9.1", "3.12.3", "3.12.11"):
        folder = tools.folder / "pyenv" / "versions" / version / "bin"
        tools.add_python("python3", version, into=folder)
    output, _ = tools.bash("find_python 3.11")
    assert output.endswith("/versions/3.12.11/bin/python3\n")


def test_find_python_says_what_it_looked_at(tools):
    tools.add_python("python3", "3.10.2")
    tools.add_python("python3.13", "3.13.1", broken="shim")
    tools.add_python("python3.12", "3.12.0", broken="venv")
    for name in ("python3.11", "python3.14", "python"):
        tools.add_python(name, "3.8.0")
    output, errors = tools.bash("find_python 3.11", status=1)
    assert output == "" and "no Python 3.11 or newer found" in errors
    assert "python3: version 3.10.2" in errors
    assert "python3.13: does not start" in errors
    assert "python3.12: has no venv module" in errors and "apt install python3-venv" in errors
    assert "PYTHON=/path/to/python3 bash test.sh" in errors


def test_find_python_with_uv_needs_no_venv_module(tools):
    python = tools.add_python("some python", "3.12.0", broken="venv")
    tools.add("uv")
    found = tools.bash("find_python 3.11", PYTHON=str(python), JAXCLIP_NO_UV="0")[0]
    assert found == f"{python}\n"


def test_find_python_looks_at_nothing_but_the_given_one(tools):
    tools.add_python("python3", "3.12.0")
    old = tools.add_python("old", "3.9.0")
    _, errors = tools.bash("find_python 3.11", PYTHON=str(old), status=1)
    assert "version 3.9.0" in errors and "python3:" not in errors
    _, errors = tools.bash("find_python 3.11 3.12", PYTHON="nowhere", status=1)
    assert "nowhere: not found" in errors and "no Python 3.11 to 3.12" in errors


ENSURE = "ensure_environment .venv train 3.11"


@pytest.fixture
def python(tools):
    path = tools.add_python("python3", "3.12.0")
    tools.environment["PYTHON"] = str(path)
    return path


def installs(tools):
    return [line[-1] for line in tools.lines if "install" in line]


def _change(path):
    path.write_text(path.read_text() + "# changed\n")


def test_an_environment_is_made_once(tools, python):
    tools.bash(ENSURE)
    assert tools.lines == [
        ["python3", "-m", "venv", "--clear", ".venv"],
        shlex.split(
            "python -m pip install --quiet --disable-pip-version-check --editable '.[train]'"
        ),
    ]
    output, errors = tools.bash(ENSURE)
    assert len(tools.calls) == 2 and output + errors == ""


def test_it_is_installed_again_when_what_it_holds_may_have_changed(tools, python):
    tools.bash(ENSURE)
    tools.bash("ensure_environment .venv train,cuda 3.11")
    assert installs(tools) == [".[train]", ".[train,cuda]"]
    _change(tools.root / "pyproject.toml")
    tools.bash(ENSURE)
    tools.bash(ENSURE)
    assert installs(tools) == [".[train]", ".[train,cuda]", ".[train]"]
    assert sum("venv" in line for line in tools.lines) == 1


def test_a_failed_installation_is_tried_again(tools, python):
    (tools.folder / "fail").touch()
    tools.bash(ENSURE, status=3)
    (tools.folder / "fail").unlink()
    tools.bash(ENSURE)
    tools.bash(ENSURE)
    assert installs(tools) == [".[train]", ".[train]"]


def test_a_failed_upgrade_is_tried_again(tools, python):
    tools.bash(ENSURE)
    before = (tools.root / "pyproject.toml").read_text()
    _change(tools.root / "pyproject.toml")
    (tools.folder / "fail").touch()
    tools.bash(ENSURE, status=3)
    (tools.folder / "fail").unlink()
    (tools.root / "pyproject.toml").write_text(before)
    tools.bash(ENSURE)  # half of the other one may be in it
    assert len(installs(tools)) == 3


@pytest.mark.parametrize("damage", ["gone", "old"])
def test_a_broken_environment_is_made_anew(tools, python, damage):
    tools.bash(ENSURE)
    inside = tools.root / ".venv" / "bin"
    if damage == "gone":
        (inside / "python").unlink()
    else:
        tools.add_python("python", "3.10.0", into=inside)
    tools.bash(ENSURE)
    assert sum("venv" in line for line in tools.lines) == 2 and len(installs(tools)) == 2


def test_a_folder_of_other_things_is_left_alone(tools, python):
    folder = tools.folder / "thesis"
    folder.mkdir()
    (folder / "thesis.tex").touch()
    _, errors = tools.bash(f"ensure_environment '{folder}' train 3.11", status=1)
    assert "thesis is no virtual environment and not empty" in errors and not tools.calls
    assert (folder / "thesis.tex").exists()


def test_a_dry_run_makes_nothing(tools, python):
    output, _ = tools.bash(f"DRY_RUN=1; {ENSURE}")
    assert [shlex.split(line)[1:3] for line in output.splitlines()] == [
        ["-m", "venv"],
        ["-m", "pip"],
    ]
    assert not tools.calls and not (tools.root / ".venv").exists()


def test_uv_is_used_where_it_is(tools, python):
    tools.add("uv")
    output, _ = tools.bash(f"DRY_RUN=1; {ENSURE}", JAXCLIP_NO_UV="0")
    assert [shlex.split(line)[:2] for line in output.splitlines()] == [
        ["uv", "venv"],
        ["uv", "pip"],
    ]


def test_workers(tools):
    assert tools.bash("test_workers python3", JAXCLIP_WORKERS="7")[0] == "7\n"
    tools.answer("^counts ", "3\n")
    tools.add("counts")
    assert tools.bash("test_workers counts")[0] == "3\n"
    assert tools.bash("test_workers /nowhere")[0] == "1\n"
