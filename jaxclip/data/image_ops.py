"""Image ops by name: the config string, its parser, and the registry.

A chain of ops is written ``"random_resized_crop(0.6, 1.0)|flip|color_jitter(hue=0.1)"``, or as a list
of such strings or of mappings ``{"op": "flip", "p": 0.5}``. Arguments are Python literals, by position
or by name. Everything that can be wrong with it is reported when the chain is built.

There are two kinds of op. *Example ops* (crops and resizes) take one Pillow image of any size; they
come first. *Batch ops* (flips, colours, rotations) take a batch whose images all have the same size.
Neither draws random numbers: each op says how many it needs, and is given that many uniform ones for
every example, so an augmented image is a pure function of the image and those numbers.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

ExampleFn = Callable[[Any, np.ndarray], Any]
BatchFn = Callable[[Any, Any], Any]


@dataclasses.dataclass(frozen=True)
class Spec:
    """One op of a chain as written: its name and options."""

    name: str
    options: Mapping[str, Any]

    def __str__(self) -> str:
        options = ", ".join(f"{key}={value!r}" for key, value in self.options.items())
        return f"{self.name}({options})" if options else self.name


@dataclasses.dataclass(frozen=True)
class Registered:
    """An op of the registry.

    Attributes:
      factory: options -> function; raises ValueError for bad ones.
      level: "example" or "batch".
      draws: uniform numbers it takes for each example.
    """

    factory: Callable[..., Any]
    level: str
    draws: int


_REGISTRY: dict[str, Registered] = {}


def register(
    name: str, *, level: str, draws: int = 0
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add an op to the registry; decorates its factory.

    The factory's parameters are the op's options; each needs a default and a type annotation of
    ``float``, ``int``, ``bool`` or ``str``. One named ``size`` gets the configured image size where
    it is None. The factory returns

    - level "example": ``fn(image: PIL.Image, u: float32[draws]) -> PIL.Image``;
    - level "batch": ``fn(images: tf.float32[n, H, W, 3], u: tf.float32[n, draws])`` -> the same
      shape; values are in [0, 255] on entry and are clipped to it afterwards.

    Args:
      name: how the op is called in a config.
      level: "example" or "batch".
      draws: uniform random numbers in [0, 1) that it takes for each example.
    """
    if level not in ("example", "batch"):
        raise ValueError(f"level={level!r} of op {name!r} must be 'example' or 'batch'")

    def add(factory: Callable[..., Any]) -> Callable[..., Any]:
        _REGISTRY[name] = Registered(factory, level, draws)
        return factory

    return add


def names() -> list[str]:
    """Names of all registered ops, sorted."""
    _load_all()
    return sorted(_REGISTRY)


@dataclasses.dataclass(frozen=True)
class Chain:
    """A built chain of ops.

    Attributes:
      specs: the ops as written, with their complete options.
      example_ops: (function, first uniform, number of uniforms) of each example op.
      batch_ops: likewise of each batch op.
      num_draws: uniform numbers needed for each example.
    """

    specs: tuple[Spec, ...]
    example_ops: tuple[tuple[ExampleFn, int, int], ...]
    batch_ops: tuple[tuple[BatchFn, int, int], ...]
    num_draws: int

    def apply_example(self, image: Any, u: np.ndarray) -> Any:
        """Run the example ops on a Pillow image; ``u`` is float32[num_draws]."""
        for function, first, count in self.example_ops:
            image = function(image, u[first : first + count])
        return image

    def apply_batch(self, images: Any, u: Any) -> Any:
        """Run the batch ops.

        Args:
          images: tf.uint8[n, H, W, 3].
          u: tf.float32[n, num_draws].

        Returns:
          tf.uint8[n, H, W, 3].
        """
        if not self.batch_ops:
            return images
        import tensorflow as tf

        images = tf.cast(images, tf.float32)
        for function, first, count in self.batch_ops:
            images = tf.clip_by_value(function(images, u[:, first : first + count]), 0.0, 255.0)
        return tf.cast(tf.round(images), tf.uint8)


def build(ops: str | Sequence[Any], image_size: int) -> Chain:
    """Parse and check a chain of ops.

    A final resize to ``image_size`` is added after the example ops, which does nothing where images
    already have that size.

    Args:
      ops: the chain as string or list; see the module docstring.
      image_size: side of the images that come out.

    Returns:
      The chain.

    Raises:
      ValueError: bad syntax, an unknown op or option (naming the nearest), an option of the wrong
        type or out of range, or an example op after a batch op.
    """
    _load_all()
    if image_size < 1:
        raise ValueError(f"image_size={image_size} must be at least 1")
    specs = [_complete(spec, image_size) for spec in parse(ops)]
    example_ops: list[tuple[ExampleFn, int, int]] = []
    batch_ops: list[tuple[BatchFn, int, int]] = []
    draws = 0
    for spec in specs:
        entry = _REGISTRY[spec.name]
        if entry.level == "example" and batch_ops:
            raise ValueError(
                f"image op {spec.name!r} changes the size of single images and must come before "
                f"those that work on batches, as {specs[0].name!r}; move it to the front"
            )
        try:
            function = entry.factory(**spec.options)
        except ValueError as error:
            raise ValueError(f"image op {spec}: {error}") from error
        target: list[Any] = example_ops if entry.level == "example" else batch_ops
        target.append((function, draws, entry.draws))
        draws += entry.draws
    resize = _REGISTRY["resize"].factory(size=image_size)
    example_ops.append((resize, draws, 0))
    return Chain(tuple(specs), tuple(example_ops), tuple(batch_ops), draws)


def parse(ops: str | Sequence[Any]) -> list[Spec]:
    """Parse a chain of ops, with positional arguments resolved to option names.

    Raises:
      ValueError: bad syntax, or an unknown op or option, naming the nearest.
    """
    _load_all()
    if isinstance(ops, str):
        return _parse_text(ops)
    specs: list[Spec] = []
    for item in ops:
        if isinstance(item, str):
            specs.extend(_parse_text(item))
        elif isinstance(item, Mapping) and isinstance(item.get("op"), str):
            options = {str(key): value for key, value in item.items() if key != "op"}
            specs.append(_checked(item["op"], (), options))
        else:
            raise ValueError(
                f"image op {item!r} is neither a string nor a mapping like {{'op': 'flip'}}"
            )
    return specs


def _parse_text(text: str) -> list[Spec]:
    if not text.strip():
        return []
    try:
        node = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise ValueError(
            f"image ops {text!r} do not parse ({getattr(error, 'msg', error)}); write them like "
            "'random_resized_crop(0.6, 1.0)|flip'"
        ) from error
    nodes: list[ast.expr] = []
    while isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        nodes.append(node.right)
        node = node.left
    return [_parse_node(each, text) for each in [node, *reversed(nodes)]]


def _parse_node(node: ast.expr, text: str) -> Spec:
    if isinstance(node, ast.Name):
        return _checked(node.id, (), {})
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
        raise ValueError(
            f"image ops {text!r}: {ast.unparse(node)!r} is not an op; write them like "
            "'random_resized_crop(0.6, 1.0)|flip'"
        )
    try:
        args = tuple(ast.literal_eval(argument) for argument in node.args)
        options = {str(item.arg): ast.literal_eval(item.value) for item in node.keywords}
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError) as error:
        raise ValueError(
            f"image op {ast.unparse(node)!r}: arguments must be plain numbers, strings or booleans"
        ) from error
    return _checked(node.func.id, args, options)


def _checked(name: str, args: tuple[Any, ...], options: Mapping[str, Any]) -> Spec:
    """Resolve positional arguments and check names and types against the factory's signature."""
    if name not in _REGISTRY:
        raise ValueError(f"unknown image op {name!r}{_nearest(name, list(_REGISTRY))}")
    parameters = inspect.signature(_REGISTRY[name].factory).parameters
    if len(args) > len(parameters):
        raise ValueError(
            f"image op {name!r} takes at most {len(parameters)} arguments "
            f"({', '.join(parameters)}), got {len(args)}"
        )
    given = dict(zip(parameters, args, strict=False))
    for key, value in options.items():
        if key not in parameters:
            raise ValueError(
                f"image op {name!r} has no option {key!r}{_nearest(key, list(parameters))}"
            )
        if key in given:
            raise ValueError(f"image op {name!r} got option {key!r} twice")
        given[key] = value
    return Spec(name, {k: _typed(name, parameters[k], given[k]) for k in parameters if k in given})


def _typed(name: str, parameter: inspect.Parameter, value: Any) -> Any:
    kind = str(parameter.annotation)
    if value is None and "None" in kind:
        return None
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind.startswith("float") and is_number and np.isfinite(value):
        return float(value)
    if kind.startswith("int") and is_number and float(value).is_integer():
        return int(value)
    if kind.startswith("bool") and isinstance(value, bool):
        return value
    if kind.startswith("str") and isinstance(value, str):
        return value
    raise ValueError(f"image op {name!r}: option {parameter.name}={value!r} must be of type {kind}")


def _complete(spec: Spec, image_size: int) -> Spec:
    parameters = inspect.signature(_REGISTRY[spec.name].factory).parameters
    options = {key: spec.options.get(key, value.default) for key, value in parameters.items()}
    if "size" in options and options["size"] is None:
        options["size"] = image_size
    return Spec(spec.name, options)


def _nearest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    listing = ", ".join(sorted(known)) or "none"
    return f"; did you mean {close[0]!r}?" if close else f"; known: {listing}"


def _load_all() -> None:
    """Import the modules that register the ops (they import this one)."""
    from jaxclip.data import batch_ops, example_ops  # noqa: F401
