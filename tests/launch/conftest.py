"""Fake tools for the launch scripts: they note how they were called and answer as told."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import pytest

from tests.patience import LONG

REPOSITORY = pathlib.Path(__file__).parents[2]

# Words that a shell would do something with.
HOSTILE = (
    "a b",
    "it's",
    '"double"',
    "$HOME `id` $(id)",
    "semi;colon & | > <",
    "*",
    "back\\slash",
    "",
    "[0.5, 'x']",
    "ümläut",
)

# All of the machine that the scripts may use in a test: no real gcloud, kubectl, docker or Python.
_PROGRAMS = (
    *("basename", "bash", "cat", "chmod", "cut", "date", "dirname", "env", "git", "grep", "gzip"),
    *("head", "hostname", "id", "ls", "mkdir", "mkfifo", "mktemp", "nohup", "rm", "sed", "seq"),
    *("setsid", "sha256sum", "sleep", "sort", "tail", "tar", "tee", "tr"),
)

_FAKE = """\
#!{python} -SE
import json, os, pathlib, re, shutil, sys

here = pathlib.Path({folder!r})
name, argv = pathlib.Path(sys.argv[0]).name, sys.argv[1:]
call = {{"tool": name, "argv": argv, "cwd": os.getcwd(), "env": dict(os.environ)}}
if "-" in argv and name == "kubectl":
    call["stdin"] = sys.stdin.read()
for word in argv:
    if word.endswith(".tar.gz") and os.path.exists(word):
        shutil.copy(word, here / "shipped.tar.gz")
with open(here / "calls", "a") as log:
    log.write(json.dumps(call) + "\\n")
line = " ".join([name, *argv])
for number, (pattern, replies) in enumerate(json.loads((here / "answers").read_text())):
    if re.search(pattern, line):
        counter = here / f"count_{{number}}"
        count = int(counter.read_text()) if counter.exists() else 0
        counter.write_text(str(count + 1))
        out, error, status = replies[min(count, len(replies) - 1)]
        sys.stdout.write(out)
        sys.stderr.write(error)
        sys.exit(status)
"""

_FAKE_PYTHON = """\
#!{python} -SE
import json, os, pathlib, shutil, sys, types

here, version, broken = pathlib.Path({folder!r}), {version!r}, {broken!r}
me, argv = pathlib.Path(sys.argv[0]), sys.argv[1:]
if broken == "shim":
    sys.exit("no such version installed")
if argv[:1] in (["-"], ["-c"]):
    if broken == "venv":
        sys.modules["venv"] = None
    code = sys.stdin.read() if argv[0] == "-" else argv[1]
    sys.version_info = tuple(map(int, version.split(".")))
    sys.version, sys.executable = version, str(me)
    sys.modules["jax"] = types.SimpleNamespace(__version__="0.0")
    sys.argv = argv if argv[0] == "-" else ["-c", *argv[2:]]
    exec(code, {{"__name__": "__main__"}})
    sys.exit()
with open(here / "calls", "a") as log:
    call = {{"tool": me.name, "argv": argv, "cwd": os.getcwd(), "env": dict(os.environ)}}
    log.write(json.dumps(call) + "\\n")
if argv[:2] == ["-m", "venv"]:
    target = pathlib.Path(argv[-1])
    shutil.rmtree(target, ignore_errors=True)
    (target / "bin").mkdir(parents=True)
    (target / "pyvenv.cfg").touch()
    shutil.copy(me, target / "bin" / "python")
elif (here / "fail").exists():
    sys.exit(3)
"""


class Tools:
    """A PATH of fakes and a copy of the checkout's scripts to run with it."""

    def __init__(self, folder):
        self.folder = folder
        self.bin = folder / "bin"
        self.bin.mkdir()
        self.system = folder / "system"
        self.system.mkdir()
        for name in _PROGRAMS:
            (self.system / name).symlink_to(shutil.which(name))
        self.answers = []
        self._write_answers()
        self.root = folder / "check out"  # a blank in the path, as some have
        shutil.copytree(REPOSITORY / "launch", self.root / "launch")
        shutil.copytree(
            REPOSITORY / "configs",
            self.root / "configs",
            ignore=shutil.ignore_patterns("__pycache__"),
        )
        shutil.copy(REPOSITORY / "pyproject.toml", self.root)
        self.home = folder / "home"
        self.home.mkdir()
        self.environment = {
            "PATH": f"{self.bin}:{self.system}",
            "HOME": str(self.home),
            "PYENV_ROOT": str(folder / "no pyenv"),
            "JAXCLIP_NO_UV": "1",
            "LC_ALL": "C.UTF-8",
        }

    def add(self, *names, into=None):
        """Put fakes on the PATH, or into a folder."""
        for name in names:
            path = (into or self.bin) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(_FAKE.format(python=sys.executable, folder=str(self.folder)))
            path.chmod(0o755)

    def add_python(self, name, version, *, broken="", into=None):
        """Put a Python that claims to be of a version on the PATH, or into a folder."""
        path = (into or self.bin) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            _FAKE_PYTHON.format(
                python=sys.executable, folder=str(self.folder), version=version, broken=broken
            )
        )
        path.chmod(0o755)
        return path

    def add_environment(self, *tools):
        """A virtual environment with fake tools, as ``JAXCLIP_VENV``."""
        folder = self.folder / "venv"
        self.add(*tools, into=folder / "bin")
        self.environment["JAXCLIP_VENV"] = str(folder)
        return folder

    def answer(self, pattern, *replies):
        """What a fake says to calls that match: each time the next reply, at last always the last.

        A reply is what it prints, or (what it complains, its exit status).
        """
        full = [[reply, "", 0] if isinstance(reply, str) else ["", *reply] for reply in replies]
        self.answers.append([pattern, full])
        self._write_answers()

    def _write_answers(self):
        (self.folder / "answers").write_text(json.dumps(self.answers))

    @property
    def calls(self):
        """The calls so far, each with tool, argv, cwd, env, and stdin of ``kubectl -f -``."""
        log = self.folder / "calls"
        return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []

    @property
    def lines(self):
        """The calls so far as lists of words."""
        return [[call["tool"], *call["argv"]] for call in self.calls]

    def start(self, script, *words, cwd=None, **environment):
        """Start a script of the copy."""
        return subprocess.Popen(
            ["bash", str(self.root / script), *map(str, words)],
            cwd=cwd or self.root,
            env={**self.environment, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # Tests that are started in the background of a shell have SIGINT ignored, and would
            # hand that down: a shell can't trap what was ignored when it started.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def run(self, script, *words, status=0, **options):
        """Run a script of the copy to its end; returns what it printed, (output, errors)."""
        process = self.start(script, *words, **options)
        try:
            output, errors = process.communicate(timeout=LONG)
        finally:
            process.kill()
        assert process.returncode == status, output + errors
        return output, errors

    def bash(self, code, *words, status=0, **environment):
        """Run a line of bash in which ``launch/common.sh`` is sourced."""
        done = subprocess.run(
            [
                "bash",
                "-c",
                f"set -euo pipefail; source launch/common.sh; {code}",
                "test.sh",
                *words,
            ],
            cwd=self.root,
            env={**self.environment, **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=LONG,
        )
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout, done.stderr


@pytest.fixture
def tools(tmp_path):
    return Tools(tmp_path)


@pytest.fixture
def hostile():
    """Words that a shell would do something with."""
    return HOSTILE


@pytest.fixture(scope="session")
def scripts():
    """All scripts of the repository."""
    found = [*REPOSITORY.glob("launch/**/*.sh"), REPOSITORY / ".ci" / "run"]
    assert len(found) > 10
    return sorted(found)


@pytest.fixture(autouse=True)
def no_inherited_settings(monkeypatch):
    for name in list(os.environ):
        if name.startswith(("JAXCLIP_", "SLURM_", "TPU_")):
            monkeypatch.delenv(name)
