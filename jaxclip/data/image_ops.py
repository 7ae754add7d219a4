"""Image ops by name: the config string, its parser, and the registry.

A chain of ops is written ``"random_resized_crop(0.6, 1.0)|flip|color_jitter(hue=0.1)"``, or as a
list of such strings or of mappings ``{"op": "flip", "p": 0.5}``. Arguments are Python literals, by
position or by name. Everything that can be wrong with it is reported when the chain is built.

There are two kinds of op. *Example ops* (crops, resizes, rotations) take one Pillow image of any
size, *batch ops* (flips, colours) a stack of images of one size. Neither draws random numbers: each
op says how many it needs, and is given that many uniform ones for every example. An augmented image
is a pure function of the image and those numbers, whatever batch it is in.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

ExampleFn = Callable[[Any, np.ndarray], Any]
BatchFn = Callable[[np.ndarray, np.ndarray], np.ndarray]


class Either(NamedTuple):
    """An op in both forms; that one is used in whose form the images are at the time.

    At 224 pixels, changing the form takes longer than many an op.
    """

    example: ExampleFn
    batch: BatchFn


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
      level: "example", "batch" or "either".
      draws: uniform numbers it takes for each example.
      keeps_square: whether it leaves an image alone that is already ``size`` x ``size``.
    """

    factory: Callable[..., Any]
    level: str
    draws: int
    keeps_square: bool = False


_REGISTRY: dict[str, Registered] = {}


def register(
    name: str, *, level: str, draws: int = 0, keeps_square: bool = False
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add an op to the registry; decorates its factory.

    The factory's parameters are the op's options; each needs a default and a type annotation of
    ``float``, ``int``, ``bool`` or ``str``. One named ``size`` gets the configured image size where
    it is None. The factory returns

    - level "example": ``fn(image: PIL.Image, u: float32[draws]) -> PIL.Image``;
    - level "batch": ``fn(images: float32[n, 3, H, W], u: float32[n, draws])`` -> the same shape;
      values are in [0, 255] before and after, and the argument may be overwritten;
    - level "either": an :class:`Either` of two such functions that do exactly the same.

    Args:
      name: how the op is called in a config.
      level: "example", "batch" or "either".
      draws: uniform random numbers in [0, 1) that it takes for each example.
      keeps_square: whether it leaves an image alone that is already ``size`` x ``size``.
    """
    if level not in ("example", "batch", "either"):
        raise ValueError(f"level={level!r} of op {name!r} must be 'example', 'batch' or 'either'")

    def add(factory: Callable[..., Any]) -> Callable[..., Any]:
        _REGISTRY[name] = Registered(factory, level, draws, keeps_square)
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
      steps: (level, function, first uniform, one past the last) of each op.
      num_draws: uniform numbers needed for each example.
      image_size: side of the images that come out.
      keeps_square: whether the chain does nothing to images of the final size.
      resize: what is done to images that do not have the final size in the end.
    """

    specs: tuple[Spec, ...]
    steps: tuple[tuple[str, Any, int, int], ...]
    num_draws: int
    image_size: int
    keeps_square: bool
    resize: ExampleFn

    def __call__(self, images: Sequence[np.ndarray], u: np.ndarray) -> np.ndarray:
        """Run the ops.

        Args:
          images: n arrays uint8[H, W, 3], or uint8[n, H, W, 3].
          u: float32[n, num_draws], uniform in [0, 1).

        Returns:
          uint8[n, image_size, image_size, 3].
        """
        state = _State(images)
        for level, function, first, last in self.steps:
            if level == "either":
                level = "batch" if state.has_planes else "example"
                function = getattr(function, level)
            if level == "batch":
                state.planes = [
                    (rows, function(planes, u[rows, first:last])) for rows, planes in state.planes
                ]
            else:
                draws = u[:, first:last]
                state.images = [
                    function(image, row) for image, row in zip(state.images, draws, strict=True)
                ]
        final = (self.image_size, self.image_size, 3)
        arrays = state.arrays()
        if isinstance(arrays, np.ndarray) and arrays.shape[1:] == final:
            return arrays
        nothing = np.empty(0, np.float32)
        return np.stack(
            [
                array
                if array.shape == final
                else np.asarray(self.resize(Image.fromarray(array), nothing))
                for array in arrays
            ]
        )


class _State:
    """Images on their way through a chain, in the form that the next op wants them in."""

    def __init__(self, images: Sequence[np.ndarray]):
        self._pixels: Any = images
        self._images: list[Any] | None = None
        self._planes: list[tuple[Any, np.ndarray]] | None = None

    @property
    def has_planes(self) -> bool:
        """Whether the images are planes now."""
        return self._planes is not None

    @property
    def images(self) -> list[Any]:
        """One Pillow image each."""
        if self._images is None:
            self._images = [Image.fromarray(each) for each in self.arrays()]
            self._planes = None
        return self._images

    @images.setter
    def images(self, images: list[Any]) -> None:
        self._images = images

    @property
    def planes(self) -> list[tuple[Any, np.ndarray]]:
        """(rows, float32[len(rows), 3, H, W]) for each size that occurs."""
        if self._planes is None:
            arrays, self._images = self.arrays(), None
            shapes = {array.shape for array in arrays}
            self._planes = []
            for shape in sorted(shapes):
                rows = [row for row, array in enumerate(arrays) if array.shape == shape]
                planes = np.empty((len(rows), 3, *shape[:2]), np.float32)
                for plane, row in zip(planes, rows, strict=True):
                    plane[...] = arrays[row].transpose(2, 0, 1)
                self._planes.append((rows if len(shapes) > 1 else slice(None), planes))
        return self._planes

    @planes.setter
    def planes(self, planes: list[tuple[Any, np.ndarray]]) -> None:
        self._planes = planes

    def arrays(self) -> Sequence[np.ndarray] | np.ndarray:
        """uint8[H, W, 3] each; one array if all have the same size."""
        if self._images is not None:
            return [np.asarray(image) for image in self._images]
        if self._planes is None:
            return self._pixels
        if len(self._planes) == 1:
            return _interleaved(self._planes[0][1])
        arrays: dict[int, np.ndarray] = {}
        for rows, planes in self._planes:
            arrays.update(zip(rows, _interleaved(planes), strict=True))
        return [arrays[row] for row in range(len(arrays))]


def _interleaved(planes: np.ndarray) -> np.ndarray:
    """uint8[n, H, W, 3] out of float32[n, 3, H, W], rounded."""
    count, _, height, width = planes.shape
    rounded = np.rint(planes, out=planes).astype(np.uint8)
    pixels = np.empty((count, height, width, 3), np.uint8)
    for channel in range(3):  # far faster than one transposing copy
        pixels[..., channel] = rounded[:, channel]
    return pixels


def build(ops: str | Sequence[Any], image_size: int) -> Chain:
    """Parse and check a chain of ops.

    A final resize to ``image_size`` is added, which does nothing where images already have it.

    Args:
      ops: the chain as string or list; see the module docstring.
      image_size: side of the images that come out.

    Returns:
      The chain.

    Raises:
      ValueError: bad syntax, an unknown op or option (naming the nearest), or an option of the
        wrong type or out of range.
    """
    _load_all()
    if image_size < 1:
        raise ValueError(f"image_size={image_size} must be at least 1")
    specs = [_complete(spec, image_size) for spec in parse(ops)]
    steps: list[tuple[str, Any, int, int]] = []
    draws = 0
    for spec in specs:
        entry = _REGISTRY[spec.name]
        try:
            function = entry.factory(**spec.options)
        except ValueError as error:
            raise ValueError(f"image op {spec}: {error}") from error
        steps.append((entry.level, function, draws, draws + entry.draws))
        draws += entry.draws
    keeps_square = all(
        _REGISTRY[spec.name].keeps_square and spec.options.get("size", image_size) == image_size
        for spec in specs
    )
    resize = _REGISTRY["resize"].factory(size=image_size)
    return Chain(tuple(specs), tuple(steps), draws, image_size, keeps_square, resize)


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
