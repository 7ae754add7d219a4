"""Chains of named ops as a config writes them: ``"random_crop(24)|flip|color_jitter(hue=0.1)"``.

The same syntax serves image ops and text ops. Arguments are Python literals, by position or by
name; everything that can be wrong with them is reported when a chain is parsed.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from jaxclip.registry import Registry, hint, option_defaults


class Op(Protocol):
    """What a registry of ops holds."""

    @property
    def factory(self) -> Callable[..., Any]:
        """Options -> function; each option has a default and a type annotation."""


@dataclasses.dataclass(frozen=True)
class Spec:
    """One op of a chain as written: its name and options."""

    name: str
    options: Mapping[str, Any]

    def __str__(self) -> str:
        options = ", ".join(f"{key}={value!r}" for key, value in self.options.items())
        return f"{self.name}({options})" if options else self.name


def parse(ops: str | Sequence[Any], registry: Registry, example: str) -> list[Spec]:
    """Parse a chain of ops, with positional arguments resolved to option names.

    Args:
      ops: the chain: one string, or a list of such strings and of mappings ``{"op": "flip"}``.
      registry: what the names mean.
      example: a chain that is well written, for errors.

    Raises:
      ValueError: bad syntax, or an unknown op or option, naming the nearest.
    """
    if isinstance(ops, str):
        return _parse_text(ops, registry, example)
    specs: list[Spec] = []
    for item in ops:
        if isinstance(item, str):
            specs.extend(_parse_text(item, registry, example))
        elif isinstance(item, Mapping) and isinstance(item.get("op"), str):
            options = {str(key): value for key, value in item.items() if key != "op"}
            specs.append(_checked(registry, item["op"], (), options))
        else:
            raise ValueError(
                f"{registry.kind} {item!r} is neither a string nor a mapping like "
                f"{{'op': {example.rpartition('|')[2]!r}}}"
            )
    return specs


def complete(spec: Spec, registry: Registry, defaults: Mapping[str, Any]) -> Spec:
    """The op with all of its options; those that are None are taken from ``defaults``."""
    known = option_defaults(registry.get(spec.name).factory)
    options = {key: spec.options.get(key, default) for key, default in known.items()}
    for key, value in defaults.items():
        if key in options and options[key] is None:
            options[key] = value
    return Spec(spec.name, options)


def make(spec: Spec, registry: Registry) -> Any:
    """The function of an op with complete options.

    Raises:
      ValueError: an option out of range; the message names the op.
    """
    try:
        return registry.get(spec.name).factory(**spec.options)
    except ValueError as error:
        raise ValueError(f"{registry.kind} {spec}: {error}") from error


def _parse_text(text: str, registry: Registry, example: str) -> list[Spec]:
    if not text.strip():
        return []
    try:
        node = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise ValueError(
            f"{registry.kind}s {text!r} do not parse ({getattr(error, 'msg', error)}); write them "
            f"like {example!r}"
        ) from error
    nodes: list[ast.expr] = []
    while isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        nodes.append(node.right)
        node = node.left
    return [_parse_node(each, text, registry, example) for each in [node, *reversed(nodes)]]


def _parse_node(node: ast.expr, text: str, registry: Registry, example: str) -> Spec:
    if isinstance(node, ast.Name):
        return _checked(registry, node.id, (), {})
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
        raise ValueError(
            f"{registry.kind}s {text!r}: {ast.unparse(node)!r} is not an op; write them like "
            f"{example!r}"
        )
    try:
        args = tuple(ast.literal_eval(argument) for argument in node.args)
        options = {str(item.arg): ast.literal_eval(item.value) for item in node.keywords}
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError) as error:
        raise ValueError(
            f"{registry.kind} {ast.unparse(node)!r}: arguments must be plain numbers, strings or "
            "booleans"
        ) from error
    return _checked(registry, node.func.id, args, options)


def _checked(
    registry: Registry, name: str, args: tuple[Any, ...], options: Mapping[str, Any]
) -> Spec:
    """Resolve positional arguments and check names and types against the factory's signature."""
    what = f"{registry.kind} {name!r}"
    op = registry.get(name)
    if not hasattr(op, "factory"):
        raise ValueError(f"{what} is no op: decorate its function with `register`")
    parameters = inspect.signature(op.factory).parameters
    if len(args) > len(parameters):
        raise ValueError(
            f"{what} takes at most {len(parameters)} arguments "
            f"({', '.join(parameters)}), got {len(args)}"
        )
    given = dict(zip(parameters, args, strict=False))
    for key, value in options.items():
        if key not in parameters:
            raise ValueError(f"{what} has no option {key!r}{hint(key, parameters)}")
        if key in given:
            raise ValueError(f"{what} got option {key!r} twice")
        given[key] = value
    return Spec(name, {k: _typed(what, parameters[k], given[k]) for k in parameters if k in given})


def _typed(what: str, parameter: inspect.Parameter, value: Any) -> Any:
    kind = inspect.formatannotation(parameter.annotation).strip("'")
    if value is None and "None" in kind:
        return None
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind.startswith("float") and is_number and math.isfinite(value):
        return float(value)
    if kind.startswith("int") and is_number and float(value).is_integer():
        return int(value)
    if kind.startswith("bool") and isinstance(value, bool):
        return value
    if kind.startswith("str") and isinstance(value, str):
        return value
    raise ValueError(f"{what}: option {parameter.name}={value!r} must be of type {kind}")
