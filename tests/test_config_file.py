"""Config files that fail: one line each, with the place in the user's code and a way out."""

import pathlib
import sys

import pytest

from jaxclip import config_file
from jaxclip.cli import main

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"

GET = "def get_config(arg=''):\n    "
# Code, and what its line must hold.
BAD = {
    "syntax": (
        "x = (1,\n",
        r"bad\.py, line 1 \(`x = \(1,`\): SyntaxError: '\(' was n.* this line$",
    ),
    "no module": (
        "import os\nimport nowhere\n",
        r"bad\.py, line 2 \(`import nowhere`\): No module named 'nowhere'; install it, or put "
        r"nowhere\.py beside the config$",
    ),
    "no name": (
        "from json import lods\n",
        r"line 1 .*cannot import name 'lods' from 'json'.*; correct the name$",
    ),
    "neighbour's syntax": (
        "from part import x\n",
        r"/part\.py, line 2 \(`x = 1 \+`\): SyntaxError: invalid syntax",
    ),
    "neighbour's exception": (
        "from other import look\n" + GET + "return look({})\n",
        r"/other\.py, line 3 \(`return d\['rate'\]`\): KeyError: 'rate'; correct it "
        r"\(JAXCLIP_TRACEBACK=1 shows the way there\)$",
    ),
    "neighbour imported late": (
        GET + "import other\n    return other.look({})\n",
        r"/other\.py, line 3 .*: KeyError: 'rate'; correct it",
    ),
    "value": (
        GET + "return {'seed': int('ten')}\n",
        r"bad\.py, line 2 .*: ValueError: invalid literal for int\(\) with base 10: 'ten'; correct",
    ),
    "assertion": (
        GET + "assert 0\n",
        r"bad\.py, line 2 \(`assert 0`\): AssertionError; correct it",
    ),
    "exit": ("import sys\nsys.exit('no')\n", r"bad\.py, line 2 .*: SystemExit: no; correct it"),
    "ours": (
        "from jaxclip.models import presets\n" + GET + "presets.get('vit_b61')\n",
        r"line 3 .*: unknown model preset 'vit_b61'; did you mean 'vit_b16'\?$",
    ),
    "its own words": (GET + "raise ValueError('name a rate')\n", r"^name a rate$"),
    "nothing": (GET + "pass\n", r"returned nothing; return an ml_collections\.ConfigDict or a"),
    "no argument": (
        "def get_config():\n    return {}\n",
        r"not take an argument \('a'\); leave out",
    ),
    "no function": ("get_config = {'seed': 1}\n", r"defines no get_config\(arg=''\) function$"),
    "endless": (
        "d = {}\nd['d'] = d\n" + GET + "return d\n",
        r"bad\.py: RecursionError: .*; correct",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_code_that_fails_is_one_line_with_its_place(case, tmp_path):
    code, line = BAD[case]
    (tmp_path / "bad.py").write_text(code)
    (tmp_path / "part.py").write_text("\nx = 1 +\n")
    (tmp_path / "other.py").write_text("def look(d):\n    # a comment\n    return d['rate']\n")
    before = list(sys.path)
    with pytest.raises(ValueError, match=line) as found:
        config_file.load_file(f"{tmp_path / 'bad.py'}:a")
    assert "\n" not in str(found.value)
    assert sys.path == before and not {"part", "other"} & sys.modules.keys()


def test_what_is_no_python_file(tmp_path):
    (tmp_path / "run.yaml").write_text("seed: 1\n")
    with pytest.raises(ValueError, match=r"run\.yaml' is no Python file; write one"):
        config_file.load_file(tmp_path / "run.yaml")
    with pytest.raises(ValueError, match=r"is a folder; name a file in it$"):
        config_file.load_file(tmp_path)
    with pytest.raises(ValueError, match=r"is a folder; .*, such as .*configs/clip_vit_b16\.py$"):
        config_file.load_file(CONFIGS)


def test_an_argument_that_is_wanted(tmp_path):
    (tmp_path / "wants.py").write_text("def get_config(arg):\n    return {}\n")
    with pytest.raises(ValueError, match=r"wants an argument; write .*/wants\.py:ARGUMENT$"):
        config_file.load_file(tmp_path / "wants.py")


def test_a_config_beside_the_library_is_told_from_it(tmp_path, monkeypatch):
    monkeypatch.setattr(config_file, "_OURS", tmp_path / "jaxclip")
    codes = {
        "jaxclip/ours.py": "def f():\n    return {}['ours']\n",
        "site-packages/installed.py": "from ours import f\n",
        "bad.py": "import installed\ninstalled.f()\n",
    }
    for name, code in codes.items():
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(code)
        monkeypatch.syspath_prepend(file.parent)
    line = r"bad\.py, line 2 \(`installed\.f\(\)`\): KeyError: 'ours'"
    with pytest.raises(ValueError, match=line):
        config_file.load_file(tmp_path / "bad.py")


def test_the_line_is_that_of_the_file_as_it_is_now(tmp_path):
    for name in ("one", "other"):
        (tmp_path / "bad.py").write_text(f"{name} = 1 / 0\n")
        with pytest.raises(ValueError, match=rf"\(`{name} = 1 / 0`\): ZeroDivisionError"):
            config_file.load_file(tmp_path / "bad.py")


@pytest.mark.parametrize(
    "command", [["train", "--workdir", "run"], ["plan"], ["lab", "--list"], ["curate"]]
)
def test_every_command_says_it_in_one_line(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("JAXCLIP_TRACEBACK", raising=False)
    (tmp_path / "bad.py").write_text(GET + "return 1 / 0\n")
    assert main([*command, "--config", "bad.py"]) == 2
    line = "config file bad.py, line 2 (`return 1 / 0`): ZeroDivisionError: division by zero; "
    assert capsys.readouterr().err.startswith(f"jaxclip: error: {line}correct it")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("command", "name", "line"),
    [
        ("train", "lab_rules", "a lab's (it has 'rules', 'rates', 'injectors'), not a training "),
        ("plan", "lab_rules", "a lab's (it has"),
        ("train", "curate", "a curation's (it has 'steps')"),
        ("lab", "emoji", "a training run's (it has "),
        ("lab", "curate", "a curation's (it has 'steps'), not a lab's"),
        ("curate", "emoji", "a training run's (it has "),
        ("curate", "lab_rules", "a lab's (it has "),
    ],
)
def test_a_file_of_another_command_is_told_to_be_that(command, name, line, capsys, monkeypatch):
    monkeypatch.delenv("JAXCLIP_TRACEBACK", raising=False)
    file = f"{CONFIGS / name}.py"
    step = ["--step", "captions"] if command == "curate" else []
    assert main([command, "--config", file, *step]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"jaxclip: error: config file {file!r} is {line}")
    other = name.partition("_")[0].replace("emoji", "train")
    assert said.endswith(f"it goes with: jaxclip {other} --config {file}\n")


def test_a_misspelt_key_makes_no_file_another_commands(tmp_path):
    (tmp_path / "odd.py").write_text(GET + "return {'rules': {}, 'optim': {}}\n")
    assert config_file.load_file(tmp_path / "odd.py", "lab").keys() == {"rules", "optim"}
    assert config_file.load_file(tmp_path / "odd.py", "train").keys() == {"rules", "optim"}
    (tmp_path / "odd.py").write_text(GET + "return {'optm': {}, 'seeds': [1]}\n")
    for command in ("train", "lab", "curate"):
        assert config_file.load_file(tmp_path / "odd.py", command)
