"""A parser of command lines that names what was meant, and shows the defaults of options."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from jaxclip.registry import hint, meant, nearest


def at_least(least: int) -> Callable[[str], int]:
    """The type of an option that is a whole number, and not below another."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number") from None
        if value < least:
            raise argparse.ArgumentTypeError(f"{value} must be at least {least}")
        return value

    return read


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
        self._note(sys.argv[1:] if args is None else args)
        return super().parse_args(args, namespace)

    def _note(self, words: Sequence[str]) -> None:
        self._given = words
        for command in _choices(self).values():
            if isinstance(command, Parser):
                command._note(words)

    def error(self, message: str) -> NoReturn:
        choice = re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message)
        stray = re.search(r"unrecognized arguments: (.*)", message)
        if choice:
            below = _commands_below(self, choice[1])
            message = message[: choice.start()] + f"there is no {choice[1]!r}"
            message += (
                f"; did you mean {below!r}?"
                if below
                else hint(choice[1], re.findall(r"[\w-]+", choice[2]))
            )
        elif missing := re.search(r"arguments are required: (--.*)", message):
            message += _as_options(self._given, self.prog, missing[1].split(", "))
        elif stray and (way := _way_of_stray(_named(self, self._given), stray[1])):
            message += f"; {way}"
        elif unknown := re.search(r"unrecognized arguments: (--[\w-]+)", message):
            near = _key_option(self, self._given, unknown[1])
            # Without their dashes, which make short words alike.
            names = {option.lstrip("-"): option for option in _options(self, self._given)}
            near = near or names.get(nearest(unknown[1].lstrip("-"), names, cutoff=0.6), "")
            message += f"; did you mean {near}?" if near else ""
        super().error(message)


def take_overrides(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Separate ``--config.key=value`` and ``--config.key value`` from the other arguments."""
    rest, overrides = [], []
    waiting: str | None = None
    for argument in arguments:
        if waiting is not None and not argument.startswith("--"):
            overrides.append(f"{waiting}={argument}")
            waiting = None
        elif waiting is not None:
            break
        elif argument.startswith("--config."):
            key, equals, _ = argument.removeprefix("--config.").partition("=")
            if equals:
                overrides.append(argument.removeprefix("--config."))
            else:
                waiting = key
        else:
            rest.append(argument)
    if waiting is not None:
        print(f"jaxclip: error: --config.{waiting} has no value", file=sys.stderr)
        raise SystemExit(2)
    return rest, overrides


def _named(parser: argparse.ArgumentParser, given: Sequence[str]) -> argparse.ArgumentParser:
    """The parser of the command that a command line names first; else the parser itself."""
    return _choices(parser).get(given[0], parser) if given else parser


def _way_of_stray(command: argparse.ArgumentParser, words: str) -> str:
    """How words that no option takes are to be written, if that is plain; else nothing."""
    word = words.split()[0]
    options = command._option_string_actions
    if found := re.match(r"-{0,2}(config\.\S+)", word):
        return f"write --{found[1]}"
    if re.search(r"\.py(:|$)", word) and "--config" in options:
        return f"write --config {word}"
    if re.match("--config(=|$)", word) and "--workdir" in options:
        return "leave it out, the workdir has its own"
    if re.match(r"[a-z_]+(\.\w+)*=", word) and command.get_default("takes_overrides"):
        return f"write --config.{word}"
    if not word.startswith("-") and "text" in {action.dest for action in command._actions}:
        return "put a text of several words in quotes"
    return ""


def _as_options(given: Sequence[str], prog: str, missing: list[str]) -> str:
    """``"; write --from A --to B"`` where a command line has A and B without the options."""
    words = given[len(prog.split()) - 1 :]
    if not words or any(word.startswith("-") for word in words) or len(words) > len(missing):
        return ""
    pairs = zip(missing, words, strict=False)
    return "; write " + " ".join(f"{option} {word}" for option, word in pairs)


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
    if _named(parser, given).get_default("takes_overrides") != "train":
        return ""
    from jaxclip.config import flatten, resolve

    keys = [key for key, _ in flatten(resolve({}))]
    word = option.lstrip("-").replace("-", "_")
    named = [key for key in keys if key.rpartition(".")[2] == word]
    near = meant(word, keys) or min(named, key=lambda key: key.count("."), default="")
    return f"--config.{near}" if near else ""
