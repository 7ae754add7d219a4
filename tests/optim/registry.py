"""The transformations that the shared battery (test_battery.py) runs on: one entry each.

A new transformation gets the whole battery by an entry here. Choose hyperparameters with which it
acts often within a few dozen steps of gradients of norm about one (short warm-ups, tight bounds),
so that the battery sees every branch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import optax

from jaxclip import optim


@dataclasses.dataclass(frozen=True)
class Case:
    """One transformation in the battery.

    Attributes:
      name: public name in ``jaxclip.optim``.
      options: keyword arguments used throughout.
      kind: ``"clipper"`` (scales gradients) or ``"optimizer"`` (makes a step, needs parameters).
      per_tensor: whether norm, threshold and clipped are vectors with one entry a tensor.
      inject: float hyperparameters given through ``optax.inject_hyperparams``, by name.
      static_args: arguments that ``inject_hyperparams`` must leave alone.
      state_copies: copies of the parameters that the state holds.
      extra_scalars: other floats in the state beyond the report, at most (a ring buffer, say).
      per_example: whether ``update`` takes gradients with a leading axis of examples.
      zero_when_nonfinite: whether a NaN gradient gives a zero update (an optimizer with momentum or
        weight decay may keep moving by these, if its docstring says so).
    """

    name: str
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    kind: str = "clipper"
    per_tensor: bool = False
    inject: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    static_args: tuple[str, ...] = ()
    state_copies: int = 0
    extra_scalars: int = 16
    per_example: bool = False
    zero_when_nonfinite: bool = True

    @property
    def factory(self) -> Callable[..., optax.GradientTransformation]:
        return getattr(optim, self.name)

    def make(self, **overrides: Any) -> optax.GradientTransformation:
        return self.factory(**{**self.options, **overrides})


CASES: tuple[Case, ...] = (
    Case("zclip", {"warmup_steps": 5}, inject={"alpha": 0.9, "max_norm": 0.8}),
)
