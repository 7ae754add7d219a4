"""What a text op is, chains of them, and their registry.

A text op changes a caption: ``"drop_words(0.8)|swap_words(p=0.4)"`` (the syntax of image ops, see
:mod:`.op_syntax`). It draws no random numbers: it says how many it needs and is given that many
uniform ones, so what comes out is a function of the caption and those numbers.

A new op is a file of :mod:`jaxclip.data.text_ops` that has its name, and is found by it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxclip.data import op_syntax
from jaxclip.data.op_syntax import Spec
from jaxclip.registry import Registry

TextFn = Callable[[str, np.ndarray], str]

TEXT_OPS = Registry("text op", "jaxclip.data.text_ops")
_EXAMPLE = "drop_words(0.8)|swap_words"


@dataclasses.dataclass(frozen=True)
class TextOp:
    """An op of the registry.

    Attributes:
      factory: options -> function; raises ValueError for bad ones.
      draws: uniform numbers it takes for each caption.
    """

    factory: Callable[..., TextFn]
    draws: int

    def __call__(self, *args: Any, **options: Any) -> TextFn:
        return self.factory(*args, **options)


def register(name: str, *, draws: int = 0) -> Callable[[Callable[..., TextFn]], TextOp]:
    """Make an op of its factory and put it into the registry; a decorator.

    The factory's parameters are the op's options; each needs a default and a type annotation of
    ``float``, ``int``, ``bool`` or ``str``. It returns ``fn(text, u: float32[draws]) -> str``,
    which never makes a text empty that was not.

    Args:
      name: how the op is called in a config.
      draws: uniform random numbers in [0, 1) that it takes for each caption;
        :func:`.order.spread` makes many out of two.
    """
    return lambda factory: TEXT_OPS.register(name, TextOp(factory, draws))


@dataclasses.dataclass(frozen=True)
class TextChain:
    """A built chain of text ops.

    Attributes:
      specs: the ops as written, with their complete options.
      steps: (function, first uniform, one past the last) of each op.
      num_draws: uniform numbers needed for each caption.
    """

    specs: tuple[Spec, ...]
    steps: tuple[tuple[TextFn, int, int], ...]
    num_draws: int

    def __call__(self, text: str, u: np.ndarray) -> str:
        """The caption after the ops; ``u`` is float32[num_draws]."""
        for function, first, last in self.steps:
            text = function(text, u[first:last])
        return text


def build(ops: str | Sequence[Any]) -> TextChain:
    """Parse and check a chain of text ops.

    Raises:
      ValueError: bad syntax, an unknown op or option (naming the nearest), or an option of the
        wrong type or out of range.
    """
    specs = [
        op_syntax.complete(spec, TEXT_OPS, {}) for spec in op_syntax.parse(ops, TEXT_OPS, _EXAMPLE)
    ]
    steps: list[tuple[TextFn, int, int]] = []
    draws = 0
    for spec in specs:
        op = TEXT_OPS.get(spec.name)
        steps.append((op_syntax.make(spec, TEXT_OPS), draws, draws + op.draws))
        draws += op.draws
    return TextChain(tuple(specs), tuple(steps), draws)


def check_probability(p: float) -> None:
    """Raise ValueError unless ``p`` is in [0, 1]."""
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"p={p} must be between 0 and 1")
