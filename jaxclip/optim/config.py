"""From a configuration to one optax transformation: what the trainer's ``optim`` section names.

The order in the chain, from the gradient to the update::

    freeze( sam( clip → optimizer (with schedule and masked weight decay) → update_clip
                 → learning-rate multipliers ) )

Whatever is not understood is an error that names the nearest thing that is.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import optax

from jaxclip.optim import _base, _options
from jaxclip.optim._schedule import learning_rate_schedule
from jaxclip.optim.adaclip import adaclip
from jaxclip.optim.adagc import adagc
from jaxclip.optim.adagn import adagn
from jaxclip.optim.autoclip import autoclip
from jaxclip.optim.clip_by_coordinate import clip_by_coordinate
from jaxclip.optim.clip_radagrad_d import clip_radagrad_d
from jaxclip.optim.median_clip import median_clip
from jaxclip.optim.spam import spam
from jaxclip.optim.stable_adamw import stable_adamw
from jaxclip.optim.stable_spam import stable_spam
from jaxclip.optim.zclip import zclip

Factory = Callable[..., optax.GradientTransformation]

# Ours, and optax's own where it has the thing.
CLIPPERS: dict[str, Factory] = {
    "adaclip": adaclip,
    "adagc": adagc,
    "adagn": adagn,
    "agc": optax.adaptive_grad_clip,
    "autoclip": autoclip,
    "block_rms": optax.clip_by_block_rms,
    "clip_by_coordinate": clip_by_coordinate,
    "elementwise": optax.clip,
    "global_norm": optax.clip_by_global_norm,
    "median_clip": median_clip,
    "none": optax.identity,
    "zclip": zclip,
}

# Not all of optax's: only what takes a schedule, masks its weight decay if it has any, and needs no
# more than gradients and parameters.
OPTIMIZERS: dict[str, Factory] = {
    "adabelief": optax.adabelief,
    "adadelta": optax.adadelta,
    "adafactor": optax.adafactor,
    "adagrad": optax.adagrad,
    "adam": optax.adam,
    "adamax": optax.adamax,
    "adamaxw": optax.adamaxw,
    "adamw": optax.adamw,
    "adan": optax.adan,
    "ademamix": optax.contrib.ademamix,
    "amsgrad": optax.amsgrad,
    "clip_radagrad_d": clip_radagrad_d,
    "lamb": optax.lamb,
    "lars": optax.lars,
    "lion": optax.lion,
    "muon": optax.contrib.muon,
    "nadam": optax.nadam,
    "nadamw": optax.nadamw,
    "radam": optax.radam,
    "rmsprop": optax.rmsprop,
    "sgd": optax.sgd,
    "sign_sgd": optax.sign_sgd,
    "spam": spam,
    "stable_adamw": stable_adamw,
    "stable_spam": stable_spam,
    "yogi": optax.yogi,
}

# Rules that measure a tensor against itself make nothing good of a scalar: its gradient passes
# through zero, so its "norm" says little, and a threshold that has shrunk holds it still.
_PER_TENSOR = ("adaclip", "adagc", "adagn", "agc", "block_rms", "clip_by_coordinate")
EXEMPT = (r"(^|/)logit_(scale|bias)$",)

# Gains, biases and the like by name, since layers that are scanned over stack them to matrices.
NO_DECAY = (r"(^|/)(bias|scale|positions|probe|class_token|registers|logit_scale|logit_bias)$",)

_SECTIONS = (
    "name",
    "learning_rate",
    "schedule",
    "clip",
    "update_clip",
    "freeze",
    "no_decay",
    "learning_rate_multipliers",
    "sam",
)
# Arguments of optimizers that this module gives.
_GIVEN = ("learning_rate", "mask", "weight_decay_mask", "muon_weight_dimension_numbers")


def from_config(config: Mapping[str, Any], total_steps: int) -> optax.GradientTransformation:
    r"""Builds the optimizer that a configuration names: clipper, schedule, masks and all.

    Args:
      config: a mapping (or ``ml_collections.ConfigDict``) with these keys, of which only ``name``
        and ``learning_rate`` are required:

        * ``name``: an optimizer of this package or of optax (:data:`OPTIMIZERS`). Its own options
          (``b1``, ``b2``, ``eps``, ``weight_decay``, ``mu_dtype``, ``momentum``, …) stand beside
          it, under the names of its arguments.
        * ``learning_rate``, ``schedule``: see :func:`learning_rate_schedule`.
        * ``clip``: what sits before the optimizer, ``{"name": …, **options}``, a name, or a list of
          these, in order (:data:`CLIPPERS`). One more option of each is ``exempt``, path patterns
          of parameters that it does not see: by default ``logit_scale`` and ``logit_bias`` for
          the rules that look at each tensor, none for the others; ``exempt=[]`` exempts nothing.
        * ``update_clip``: the same after the optimizer, on the update itself.
        * ``no_decay``: patterns of parameters without weight decay, beside all scalars and vectors;
          the default :data:`NO_DECAY` also names position embeddings and the stacked gains of
          scanned layers. (CLIP exempts "gains and biases"; open_clip decays position embeddings:
          for that, leave ``positions`` out of the pattern.)
        * ``freeze``: patterns of parameters that get zero updates and no optimizer state.
        * ``learning_rate_multipliers``: list of ``[pattern, factor]``; the first that matches
          multiplies the parameter's update, its weight decay included.
        * ``sam``: ``{"rho": …}`` for sharpness-aware minimisation (``optax.contrib.sam``), which
          needs ``grad_fn`` in ``update`` (the train step gives it) and two gradients a step.

        Patterns are regular expressions, searched in paths such as
        ``image/blocks_0/mlp/up/kernel``; one that matches no parameter is an error.
      total_steps: updates of the run, for the schedule.

    Returns:
      An ``optax.GradientTransformationExtraArgs``. The moving average of parameters is not part of
      it: the train step keeps it (``ema_decay``), and ``optax.ema`` averages updates, which is
      something else.

    Raises:
      ValueError: an unknown name or option (naming the nearest one), a missing or impossible value;
        from ``init``, a pattern that matches no parameter.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jaxclip import optim
      >>> tx = optim.from_config(
      ...     {
      ...         "name": "adamw", "learning_rate": 1e-3, "b2": 0.98, "weight_decay": 0.2,
      ...         "clip": {"name": "adagc", "warmup_steps": 10},
      ...         "schedule": {"name": "cosine", "warmup_steps": 10},
      ...     },
      ...     total_steps=100,
      ... )
      >>> params = {"image": {"kernel": jnp.ones((2, 3))}, "logit_scale": jnp.asarray(2.7)}
      >>> state = tx.init(params)
      >>> updates, state = tx.update(params, state, params)
      >>> sorted(optim.monitor(state))[1:]
      ['adagc/nonfinite_count', 'adagc/norm', 'adagc/threshold']
    """
    config = _options.plain(config)
    if "name" not in config:
        raise ValueError(f"optim.name is required; known: {', '.join(sorted(OPTIMIZERS))}")
    used: list[tuple[str, str]] = []
    tx = optax.chain(
        *_clippers("optim.clip", config.get("clip"), used),
        _optimizer(config, total_steps, used),
        *_clippers("optim.update_clip", config.get("update_clip"), used),
        *_multipliers(config.get("learning_rate_multipliers"), used),
    )
    tx = _frozen(tx, _patterns("optim.freeze", config.get("freeze"), used))
    if config.get("sam"):
        tx = _sharpness_aware(tx, config["sam"])
    return _checking(tx, used)


def _clippers(
    key: str, sections: Any, used: list[tuple[str, str]]
) -> list[optax.GradientTransformation]:
    """The transformations of ``clip`` or ``update_clip``."""
    if sections is None:
        return []
    if not isinstance(sections, list):
        return _clipper(key, sections, used)
    return [
        tx for i, section in enumerate(sections) for tx in _clipper(f"{key}[{i}]", section, used)
    ]


def _clipper(
    key: str, section: Any, used: list[tuple[str, str]]
) -> list[optax.GradientTransformation]:
    name, options = _options.named(key, section)
    factory = _options.lookup(f"{key}.name", name, CLIPPERS)
    given = options.pop("exempt", None)
    _options.check_known(key, name, options, factory, extra=("exempt",))
    if name == "none":
        return []
    tx = factory(**options)
    if given is not None:
        patterns = _patterns(f"{key}.exempt", given, used)
    else:
        patterns = [re.compile(p) for p in EXEMPT] if name in _PER_TENSOR else []
    if not patterns:
        return [tx]
    return [
        optax.masked(tx, lambda tree: _map_paths(lambda path, _: not _any(patterns, path), tree))
    ]


def _optimizer(
    config: Mapping[str, Any], total_steps: int, used: list[tuple[str, str]]
) -> optax.GradientTransformation:
    name = config["name"]
    factory = _options.lookup("optim.name", name, OPTIMIZERS)
    options = {key: value for key, value in config.items() if key not in _SECTIONS}
    for key in ("ema", "ema_decay"):
        if key in options:
            raise ValueError(
                f"optim.{key}: the moving average of parameters is set by ema_decay at the top "
                "level of the configuration"
            )
    arguments = inspect.signature(factory).parameters
    if "weight_decay" not in arguments and options.pop("weight_decay", 0):
        raise ValueError(
            f"optim.weight_decay={config['weight_decay']}, but {name!r} has no decoupled weight "
            f"decay; set it to 0, or use one that has: {', '.join(_decaying())}"
        )
    _options.check_known("optim", name, options, factory, extra=_SECTIONS, hidden=_GIVEN)

    if config.get("no_decay") is None:
        no_decay = [re.compile(pattern) for pattern in NO_DECAY]
    else:
        no_decay = _patterns("optim.no_decay", config["no_decay"], used)

    def decays(tree: Any) -> Any:
        return _map_paths(lambda path, leaf: leaf.ndim >= 2 and not _any(no_decay, path), tree)

    for mask in ("mask", "weight_decay_mask"):
        if mask in arguments:
            options[mask] = decays
    if name == "muon":
        options["muon_weight_dimension_numbers"] = _muon_dimensions
    return factory(learning_rate=learning_rate_schedule(config, total_steps), **options)


def _decaying() -> list[str]:
    """Names of optimizers with decoupled weight decay."""
    return sorted(
        name for name, f in OPTIMIZERS.items() if "weight_decay" in inspect.signature(f).parameters
    )


def _muon_dimensions(params: Any) -> Any:
    """Muon for the kernels of layers (their last two axes), Adam for embeddings and the rest."""

    def of(path: str, leaf: Any) -> optax.contrib.MuonDimensionNumbers | None:
        if not path.endswith("kernel") or leaf.ndim < 2:
            return None
        return optax.contrib.MuonDimensionNumbers(leaf.ndim - 2, leaf.ndim - 1)

    return _map_paths(of, params)


def _multipliers(pairs: Any, used: list[tuple[str, str]]) -> list[optax.GradientTransformation]:
    key = "optim.learning_rate_multipliers"
    if not pairs:
        return []
    if not isinstance(pairs, list) or not all(isinstance(p, list) and len(p) == 2 for p in pairs):
        raise ValueError(f"{key}={pairs!r} must be a list of [pattern, factor]")
    patterns = _patterns(key, [pattern for pattern, _ in pairs], used)
    factors = {
        str(i): _options.number(f"{key}[{i}]", factor) for i, (_, factor) in enumerate(pairs)
    }
    scales = {label: optax.scale(factor) for label, factor in factors.items()}

    def label(path: str, leaf: Any) -> str:
        del leaf
        return next((str(i) for i, p in enumerate(patterns) if p.search(path)), "others")

    groups = {**scales, "others": optax.identity()}
    return [optax.partition(groups, lambda tree: _map_paths(label, tree))]


def _frozen(
    tx: optax.GradientTransformation, patterns: Sequence[re.Pattern[str]]
) -> optax.GradientTransformation:
    """The transformation for all but the parameters that match; zero updates for these."""
    if not patterns:
        return tx

    def label(path: str, leaf: Any) -> str:
        del leaf
        return "frozen" if _any(patterns, path) else "trained"

    groups = {"trained": tx, "frozen": optax.set_to_zero()}
    return optax.partition(groups, lambda tree: _map_paths(label, tree))


def _sharpness_aware(
    tx: optax.GradientTransformation, section: Any
) -> optax.GradientTransformation:
    if not isinstance(section, Mapping) or list(section) != ["rho"]:
        raise ValueError(f"optim.sam={section!r} must be {{'rho': number}}")
    rho = _options.number("optim.sam.rho", section["rho"])
    # The gradient's direction is NaN if the gradient is zero; then there is nowhere to climb.
    ascent = optax.chain(optax.contrib.normalize(), optax.zero_nans(), optax.sgd(rho))
    return optax.contrib.sam(tx, ascent, opaque_mode=True)


def _checking(
    tx: optax.GradientTransformation, used: Sequence[tuple[str, str]]
) -> optax.GradientTransformationExtraArgs:
    """The transformation, whose ``init`` refuses patterns that match no parameter."""
    tx = optax.with_extra_args_support(tx)

    def init_fn(params: Any) -> Any:
        names = _base.tensor_names(params)
        for key, pattern in used:
            if not any(re.search(pattern, name) for name in names):
                hint = _options.nearest(pattern.strip("^$"), names[:200])
                raise ValueError(f"{key}: pattern {pattern!r} matches no parameter{hint}")
        return tx.init(params)

    return optax.GradientTransformationExtraArgs(init_fn, tx.update)


def _patterns(key: str, given: Any, used: list[tuple[str, str]]) -> list[re.Pattern[str]]:
    """Compiled patterns, noted in ``used`` for the check against the parameters."""
    patterns = []
    for pattern in [given] if isinstance(given, str) else given or []:
        try:
            patterns.append(re.compile(pattern))
        except (re.error, TypeError) as error:
            raise ValueError(f"{key}: {pattern!r} is no regular expression: {error}") from error
        used.append((key, pattern))
    return patterns


def _any(patterns: Iterable[re.Pattern[str]], path: str) -> bool:
    return any(pattern.search(path) for pattern in patterns)


def _map_paths(function: Callable[[str, Any], Any], tree: Any) -> Any:
    """A tree of ``function(path, leaf)``; ``None`` and ``MaskedNode`` are no leaves."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: function(jax.tree_util.keystr(path, simple=True, separator="/"), leaf),
        tree,
    )
