"""A parser of command lines that names what was meant, and shows the defaults of options."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from jaxclip.registry import hint, meant, nearest


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Descriptions as they are written, and each option's default behind its help."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text, default = action.help, action.default
        is_value = default not in (None, "", argparse.SUPPRESS) and not isinstance(default, bool)
        if not text or not action.option_strings or not is_value or default == []:
            return text
        return text if "default" in text else f"{text} (default: %(default)s)"


class Parser(argparse.ArgumentParser):
    """Names what was meant where a command is misspelt; the parsers of commands are of it, too."""

    _given: Sequence[str] = ()

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **{"formatter_class": HelpFormatter, **kwargs})

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> Any:
        """As its base, and note the words, for :meth:`error`."""
        self._given = sys.argv[1:] if args is None else args
        return super().parse_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        choice = re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message)
        stray = re.search(r"unrecognized arguments: -{0,2}(config\.\S+)", message)
        if choice:
            below = _commands_below(self, choice[1])
            message += (
                f"; did you mean {below!r}?"
                if below
                else hint(choice[1], re.findall(r"[\w-]+", choice[2]))
            )
        elif stray:
            message += f"; write --{stray[1]}"
        elif unknown := re.search(r"unrecognized arguments: (--[\w-]+)", message):
            near = _key_option(self, self._given, unknown[1])
            near = near or nearest(unknown[1], _options(self, self._given), cutoff=0.6)
            message += f"; did you mean {near}?" if near else ""
        super().error(message)


def _commands_below(parser: argparse.ArgumentParser, name: str) -> str:
    """The command that has a command of this name in it, and that; empty if none has."""
    for command, inner in _choices(parser).items():
        if name in _choices(inner):
            return f"{command} {name}"
    return ""


def _choices(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The commands of a parser by name."""
    found: dict[str, argparse.ArgumentParser] = {}
    for action in parser._actions:
        found |= action.choices if isinstance(action.choices, dict) else {}
    return found


def _options(parser: argparse.ArgumentParser, given: Sequence[str]) -> set[str]:
    """The long options of a parser and of the commands below it that the command line names."""
    found = {option for option in parser._option_string_actions if option.startswith("--")}
    choices = _choices(parser)
    for name in choices.keys() & set(given):
        found |= _options(choices[name], given)
    return found


def _key_option(parser: argparse.ArgumentParser, given: Sequence[str], option: str) -> str:
    """``--config.optim.learning_rate`` for ``--lr`` of a command that takes a run's keys."""
    command = _choices(parser).get(given[0]) if given else None
    if command is None or command.get_default("takes_overrides") != "train":
        return ""
    from jaxclip.config import flatten, resolve

    keys = [key for key, _ in flatten(resolve({}))]
    word = option.lstrip("-").replace("-", "_")
    named = [key for key in keys if key.rpartition(".")[2] == word]
    near = meant(word, keys) or min(named, key=lambda key: key.count("."), default="")
    return f"--config.{near}" if near else ""
