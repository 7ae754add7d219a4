"""``jaxclip methods``: what a configuration can name, and the options of each."""

from __future__ import annotations

import argparse
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from jaxclip.config_file import flatten
from jaxclip.registry import REQUIRED, hint, option_defaults

_METHODS = """\
What can be trained with: objectives, clippers, optimizers, products of few bits, sparse weights,
and the published sizes of models, by the name in a configuration.

  jaxclip methods                 # all, a line each
  jaxclip methods slip zclip      # what they do, where they come from, their options
  jaxclip methods vit_b16         # its towers
"""

# Options that the configuration sets itself.
_SET_ELSEWHERE = ("learning_rate", "exempt_fn")
# Keys that take a list of them.
_LISTS = ("objective", "precision.products", "sparsity")
_PRESET = "model.preset"


class Method(NamedTuple):
    """One thing that a configuration can name.

    Attributes:
      key: where its name stands in the configuration.
      name: that name.
      thing: the dataclass or function; the sizes of a model preset.
    """

    key: str
    name: str
    thing: Any

    def about(self) -> str:
        """The summary line of its docstring: that of its file if it is an objective."""
        if self.key == _PRESET:
            return str(self.thing.image.summary)
        described = inspect.getmodule(self.thing) if inspect.isclass(self.thing) else self.thing
        paragraph = (inspect.getdoc(described) or "").split("\n\n")[0]
        sentence = re.split(r"(?<=[a-z0-9`)\]])\.\s", " ".join(paragraph.split()))[0]
        return sentence.rstrip(".")

    def options(self) -> list[tuple[str, str]]:
        """Names of its options with their defaults, as Python writes them."""
        if self.key == _PRESET:
            sizes = flatten(self.thing.to_dict())
            return [(f"model.{name}", repr(value)) for name, value in sizes]
        hidden = () if inspect.isclass(self.thing) else _SET_ELSEWHERE
        return [
            (name, "(required)" if default is REQUIRED else repr(default))
            for name, default in option_defaults(self.thing).items()
            if name not in hidden
        ]


def add_methods(commands: Any, add: Callable[..., argparse.ArgumentParser]) -> None:
    """Add ``jaxclip methods [NAME …]``."""
    parser = add(commands, "methods", _run, "list methods and their options", description=_METHODS)
    parser.add_argument("names", nargs="*", metavar="NAME", help="methods to tell more of")


def methods() -> Iterator[Method]:
    """All methods: objectives, clippers, optimizers, products of linear layers, sparse weights,
    sizes of models."""
    from jaxclip import objectives
    from jaxclip.models import presets
    from jaxclip.models.products import PRODUCTS
    from jaxclip.models.sparsity import SPARSITIES
    from jaxclip.optim import config as optim_config

    for name in objectives.REGISTRY.names():
        yield Method("objective", name, objectives.REGISTRY.get(name))
    tables: Mapping[str, Mapping[str, Any]] = {
        "optim.clip": optim_config.CLIPPERS,
        "optim": optim_config.OPTIMIZERS,
    }
    for key, table in tables.items():
        for name, thing in sorted(table.items()):
            yield Method(key, name, thing)
    for key, registry in (("precision.products", PRODUCTS), ("sparsity", SPARSITIES)):
        for name in registry.names():
            yield Method(key, name, registry.get(name))
    for name in presets.names():
        yield Method(_PRESET, name, presets.get(name))


def _run(args: argparse.Namespace) -> int:
    found = list(methods())
    names = {method.name for method in found}
    for name in args.names:
        if name not in names:
            raise ValueError(f"no method {name!r}{hint(name, names)}")
    print(_described(found, args.names) if args.names else _listed(found))
    return 0


def _listed(found: list[Method]) -> str:
    width = max(len(method.name) for method in found)
    lines = []
    for key in dict.fromkeys(method.key for method in found):
        lines += [
            "",
            f"config.{key} = [{{'name': …}}]" if key in _LISTS else f"config.{key}",
        ]
        lines += [f"  {m.name:<{width}}  {m.about()}" for m in found if m.key == key]
    return "\n".join(lines[1:])


def _described(found: list[Method], names: list[str]) -> str:
    pages = []
    for method in (each for name in names for each in found if each.name == name):
        options = method.options()
        width = max((len(name) for name, _ in options), default=0)
        is_preset = method.key == _PRESET
        about = method.about() if is_preset else inspect.getdoc(method.thing) or ""
        lines = [f"config.{method.key}: {method.name}", "", about, ""]
        lines += ["Options and their defaults:" if options else "It has no options."]
        lines += [f"  {name:<{width}}  {default}" for name, default in options]
        pages.append("\n".join(lines))
    return ("\n\n" + "-" * 80 + "\n\n").join(pages)
