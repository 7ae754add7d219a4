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
    Case(
        "autoclip",
        {"percentile": 50.0, "history_size": 12},
        inject={"percentile": 40.0},
        static_args=("history_size",),
    ),
    Case("adagc", {"warmup_steps": 5}, per_tensor=True, inject={"lambda_rel": 1.1, "beta": 0.9}),
    Case("clip_by_coordinate", {"fraction": 0.2}, per_tensor=True, inject={"fraction": 0.4}),
    Case(
        "median_clip",
        {"tau": 0.05},
        per_tensor=True,
        inject={"tau": 0.1},
        state_copies=1,
    ),
    Case("median_clip", {"tau": 0.3, "kind": "vector"}, inject={"tau": 0.1}, state_copies=1),
    Case("adaclip", {"theta": 0.9}, per_tensor=True, inject={"theta": 0.8}),
    Case("adagn", {}, per_tensor=True, inject={"gamma1": 0.6, "gamma2": 0.8}),
)
