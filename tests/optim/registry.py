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


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """One transformation in the battery.

    Attributes:
      name: public name in ``jaxclip.optim``.
      options: keyword arguments used throughout.
      kind: ``"clipper"`` (scales gradients), ``"optimizer"`` (makes a step, needs parameters) or
        ``"wrapper"`` (leaves the step to another transformation).
      per_tensor: whether norm, threshold and clipped are vectors with one entry a tensor.
      inject: float hyperparameters given through ``optax.inject_hyperparams``, by name; other
        values than those in ``options``.
      static_args: arguments that ``inject_hyperparams`` must leave alone.
      state_copies: copies of the parameters that the state may hold.
      scalars_per_tensor: other numbers that it may hold for each tensor beside the report.
      extra_scalars: other numbers that it may hold beside all that (a ring buffer, say).
      per_example: whether ``update`` takes gradients with a leading axis of examples.
      zero_in_zero_out: whether a zero gradient gives a zero update at any time (not so with
        momentum or weight decay).
      skips_nonfinite: whether a step with a NaN leaves no trace but in the report and counts: the
        update is zero and later steps are as if it had not been.
      largest_collective: elements that devices may exchange at once, tensors of 64 x 40 sharded.
      label: distinguishes cases of the same name.
    """

    name: str
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    kind: str = "clipper"
    per_tensor: bool = False
    inject: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    static_args: tuple[str, ...] = ()
    state_copies: int = 0
    scalars_per_tensor: int = 0
    extra_scalars: int = 4
    per_example: bool = False
    zero_in_zero_out: bool = True
    skips_nonfinite: bool = True
    largest_collective: int = 128
    label: str = ""

    @property
    def factory(self) -> Callable[..., optax.GradientTransformation]:
        return getattr(optim, self.name)

    def make(self, **overrides: Any) -> optax.GradientTransformation:
        return self.factory(**{**self.options, **overrides})

    def __str__(self) -> str:
        return f"{self.name}-{self.label}" if self.label else self.name


CASES: tuple[Case, ...] = (
    Case("zclip", {"warmup_steps": 5}, inject={"alpha": 0.9, "max_norm": 0.8}),
    Case(
        "zclip",
        {"warmup_steps": 5, "mode": "percentile", "max_norm": None, "z_threshold": 1.0},
        inject={"z_threshold": 0.5},
        label="percentile",
    ),
    Case(
        "autoclip",
        {"percentile": 50.0, "history_size": 12},
        inject={"percentile": 40.0},
        static_args=("history_size",),
        extra_scalars=13,
    ),
    Case(
        "adagc",
        {"warmup_steps": 5},
        per_tensor=True,
        inject={"lambda_rel": 1.1, "beta": 0.9},
        scalars_per_tensor=1,
    ),
    Case(
        "adagc",
        {"warmup_steps": 5, "scope": "global"},
        inject={"lambda_rel": 1.1, "beta": 0.9},
        static_args=("scope",),
        label="global",
    ),
    Case("clip_by_coordinate", {"fraction": 0.2}, per_tensor=True, inject={"fraction": 0.4}),
    Case(
        "median_clip",
        {"tau": 0.05},
        per_tensor=True,
        inject={"tau": 0.1},
        state_copies=1,
        zero_in_zero_out=False,
    ),
    Case(
        "median_clip",
        {"tau": 0.3, "kind": "vector"},
        inject={"tau": 0.1},
        state_copies=1,
        zero_in_zero_out=False,
        label="vector",
    ),
    Case("adaclip", {"theta": 0.9}, per_tensor=True, inject={"theta": 0.8}, scalars_per_tensor=1),
    Case(
        "adagn",
        {},
        per_tensor=True,
        inject={"gamma1": 0.6, "gamma2": 0.8},
        scalars_per_tensor=2,
    ),
    Case(
        "gradient_stabilizer",
        {"gamma2": 0.9},
        per_tensor=True,
        inject={"gamma1": 0.5, "gamma2": 0.8},
        scalars_per_tensor=3,
    ),
    Case(
        "spectra_clip",
        {"threshold": 0.3},
        per_tensor=True,
        inject={"threshold": 0.5},
        static_args=("steps",),
        largest_collective=64 * 40,
    ),
    Case(
        "aggc",
        {"low": 0.9, "groups": ("kernel",)},
        per_tensor=True,
        inject={"beta": 0.8, "high": 1.1},
        static_args=("groups",),
        scalars_per_tensor=2,
    ),
    Case(
        "spam",
        {
            "learning_rate": 1e-2,
            "weight_decay": 0.1,
            "threshold": 30.0,
            "reset_interval": 10,
            "warmup_steps": 4,
            "grace_steps": 2,
        },
        kind="optimizer",
        per_tensor=True,
        inject={"learning_rate": 2e-2, "b1": 0.8, "threshold": 20.0},
        state_copies=2,
        zero_in_zero_out=False,
    ),
    Case(
        "clip_radagrad_d",
        {"learning_rate": 1e-2, "clip": 0.3, "b1": 0.9, "initial_accumulator": 0.1},
        kind="optimizer",
        per_tensor=True,
        inject={"learning_rate": 2e-2, "clip": 0.2, "b1": 0.8},
        static_args=("delay", "kind"),
        state_copies=2,
        zero_in_zero_out=False,
    ),
    Case(
        "clip_radagrad_d",
        {"learning_rate": 1e-2, "clip": 0.9, "kind": "norm", "initial_accumulator": 0.1},
        kind="optimizer",
        inject={"learning_rate": 2e-2, "eta": 0.5},
        static_args=("delay", "kind"),
        label="norm",
    ),
    Case(
        "clip_radagrad_d",
        {"learning_rate": 1e-2, "clip": 0.3, "kind": "tensor", "initial_accumulator": 0.1},
        kind="optimizer",
        per_tensor=True,
        inject={"learning_rate": 2e-2, "eta": 0.5},
        static_args=("delay", "kind"),
        state_copies=1,
        label="tensor",
    ),
    Case(
        "acclip",
        {"learning_rate": 1e-2, "weight_decay": 0.1, "mu_dtype": "bfloat16"},
        kind="optimizer",
        per_tensor=True,
        inject={"learning_rate": 2e-2, "b1": 0.8, "alpha": 1.5},
        static_args=("mu_dtype",),
        state_copies=2,
        zero_in_zero_out=False,
    ),
    Case(
        "stable_adamw",
        {"learning_rate": 1e-2, "weight_decay": 0.1, "mu_dtype": "bfloat16"},
        kind="optimizer",
        per_tensor=True,
        inject={"learning_rate": 2e-2, "b1": 0.8, "weight_decay": 0.2},
        static_args=("mu_dtype",),
        state_copies=2,
        zero_in_zero_out=False,
    ),
    Case(
        "stable_spam",
        {"learning_rate": 1e-2, "weight_decay": 0.1, "theta": 0.9, "reset_interval": 10},
        kind="optimizer",
        per_tensor=True,
        inject={"learning_rate": 2e-2, "b1": 0.8, "theta": 0.8, "gamma1": 0.6},
        state_copies=2,
        scalars_per_tensor=3,
        zero_in_zero_out=False,
    ),
    Case(
        "skip_on_spike",
        {"inner": optax.adam(1e-2), "sigma_factor": 3.0, "history_size": 24},
        kind="wrapper",
        inject={"sigma_factor": 2.0},
        static_args=("inner", "history_size"),
        state_copies=2,
        extra_scalars=54,
        zero_in_zero_out=False,
    ),
    Case(
        "dicesgd",
        {
            "learning_rate": 0.5,
            "clip_gradient": 0.8,
            "clip_error": 1.0,
            "noise_multiplier": 0.0,
            "seed": 0,
        },
        kind="optimizer",
        inject={"learning_rate": 0.3, "clip_gradient": 0.5, "clip_error": 0.7},
        state_copies=1,
        per_example=True,
        zero_in_zero_out=False,
    ),
    Case(
        "track_clipping_quantile",
        {"initial_norm": 1.0},
        inject={"target": 0.7, "adaptation_rate": 0.3},
        static_args=("initial_norm", "noise_multiplier"),
        per_example=True,
    ),
)

# Documented like the others; tested with the optimizer they are a part of, or by themselves.
PARTS = (
    "asam",
    "skip_nonfinite",
    "cautious",
    "kahan_summation",
    "private_mean_by_group",
    "qk_clip",
    "scale_by_acclip",
    "scale_by_spam",
    "scale_by_stable_adam",
    "scale_by_stable_spam",
    "stochastic_rounding",
)
