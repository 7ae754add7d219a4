"""Commands, options, configuration keys and links of README, docs/ and launch/ lead somewhere."""

import argparse
import pathlib
import re

import pytest

from jaxclip import cli
from jaxclip import config as config_lib
from jaxclip.config_file import flatten
from jaxclip.curate.step import STEPS
from jaxclip.models import sizes

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted(path for path in (ROOT / "launch").rglob("*") if path.suffix in (".sh", ".yaml")),
]
MARKDOWN = [*(page for page in PAGES if page.suffix == ".md"), ROOT / "CHANGELOG.md"]
# In a sentence or a comment, what follows the name is no command.
_COMMAND = re.compile(r"(?:^    |`|^\$ )(?:[A-Z_]+=\S+ )*jaxclip ([a-z][^`#\n]*)", re.MULTILINE)


def text_of(page):
    """The page, lines that go on in the next one joined."""
    return re.sub(r"\\\n\s*", "", page.read_text(encoding="utf-8"))


def parsers(parser, names=()):
    """Every parser by the words of its command."""
    yield names, parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, inner in action.choices.items():
                yield from parsers(inner, (*names, name))


PARSERS = dict(parsers(cli.build_parser()))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_their_options(page):
    for found in _COMMAND.findall(text_of(page)):
        found = found.partition(" -- ")[0]  # what follows is Beam's
        words = found.rstrip("\\").split()
        names = tuple(words[:2]) if tuple(words[:2]) in PARSERS else tuple(words[:1])
        assert names in PARSERS, f"{page.name}: jaxclip {found}"
        known = {option for action in PARSERS[names]._actions for option in action.option_strings}
        for option in re.findall(r"(?<!\S)--[a-z][\w.-]*", found):
            is_override = option.startswith("--config.") and PARSERS[names].get_default(
                "takes_overrides"
            )
            assert option in known or is_override, f"{page.name}: {option} of jaxclip {found}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_options_of_modules_that_are_run(page):
    """Of ``python -m jaxclip.bench NAME`` and the like, by what their files name."""
    text = re.sub(r"\n(--)", r" \1", text_of(page))  # a line may end within a command
    for module, rest in re.findall(r"python -m jaxclip\.([\w.]+)([^`#\n]*)", text):
        file = module.replace(".", "/").rstrip("/")
        if module == "bench" and rest.split():
            file += f"/{rest.split()[0]}"
        options = re.findall(r"(?<!\S)--[a-z][\w-]*", rest)
        source = ROOT / "jaxclip" / f"{file}.py"
        if not options and not source.exists():
            source = ROOT / "jaxclip" / file / "__init__.py"
        assert source.exists(), f"{page.name}: {module}{rest}"
        known = source.read_text(encoding="utf-8")
        for option in options:
            assert f'"{option}"' in known, f"{page.name}: {option} of {module}{rest}"


def test_help_says_what_each_option_is_and_its_default():
    for names, parser in PARSERS.items():
        text = re.sub(r"\s+", " ", parser.format_help())
        for action in parser._actions:
            is_command = isinstance(action, argparse._SubParsersAction)
            assert action.help or is_command, f"jaxclip {' '.join(names)}: {action.dest}"
            if action.option_strings and isinstance(action.default, (int, float, str)):
                is_said = "default" in action.help or f"(default: {action.default})" in text
                assert is_said or action.default in ("", False, argparse.SUPPRESS), action.dest


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_keys_of_the_configuration(page):
    known = {key for key, _ in flatten(config_lib.resolve({}))}
    for kind in sizes.TOWERS.names():
        known |= {f"model.image.{name}" for name in sizes.image_class(kind).__annotations__}
    known |= {key.rpartition(".")[0] for key in known}
    for key in re.findall(r"--config\.([a-z_]+(?:\.[a-z_0-9]+)*)", text_of(page)):
        is_step = page.name == "curation.md" and key.partition(".")[0] in STEPS.names()
        assert key in known or is_step or config_lib._is_open(key), f"{page.name}: config.{key}"


def anchors(page):
    """What may stand behind ``#`` in a link to a page: its headings as GitHub spells them."""
    found = re.findall(r"^#+ (.*)$", re.sub(r"(?s)```.*?```", "", text_of(page)), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


@pytest.mark.parametrize("page", MARKDOWN, ids=lambda page: page.name)
def test_links_lead_to_files_and_headings(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"(?s)```.*?```", "", text_of(page))):
        file, _, anchor = link.partition("#")
        if "://" in link:
            continue
        target = page.parent / file if file else page
        assert target.exists(), f"{page.name}: {link}"
        assert not anchor or anchor in anchors(target), f"{page.name}: {link}"


@pytest.mark.parametrize("page", MARKDOWN, ids=lambda page: page.name)
def test_lines_are_no_longer_than_a_window(page):
    """But rows of tables and pictures, which can't go on in the next line."""
    lines = page.read_text(encoding="utf-8").splitlines()
    long = [line for line in lines if len(line) > 120 and not line.startswith(("|", "!["))]
    assert not long, f"{page.name}: {long[0]}"


def test_all_of_them_are_looked_at():
    """The expressions above find what there is to find."""
    everything = "".join(map(text_of, PAGES))
    assert len(_COMMAND.findall(everything)) > 80 and everything.count("--config.") > 40
    assert everything.count("python -m jaxclip.bench ") > 20
