"""From a configuration to one optax transformation: what the trainer's ``optim`` section names.

The order in the chain, from the gradient to the update::

    skip( sam( freeze( clip → optimizer (with schedule and masked weight decay) → update_clip
                       → learning-rate multipliers ) ) )

With ``direction`` an optimizer is taken apart: its direction → what that names → weight decay →
learning rate.

Whatever is not understood is an error that names the nearest thing that is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import optax

from jaxclip.optim import _base, _by_path, _direction, _sections, _sharpness
from jaxclip.optim._schedule import learning_rate_schedule
from jaxclip.optim.acclip import acclip
from jaxclip.optim.adaclip import adaclip
from jaxclip.optim.adagc import adagc
from jaxclip.optim.adagn import adagn
from jaxclip.optim.aggc import aggc
from jaxclip.optim.autoclip import autoclip
from jaxclip.optim.cautious import cautious
from jaxclip.optim.clip_by_coordinate import clip_by_coordinate
from jaxclip.optim.clip_radagrad_d import clip_radagrad_d
from jaxclip.optim.gradient_stabilizer import gradient_stabilizer
from jaxclip.optim.groups import Group, group_of, read_groups, scale_updates
from jaxclip.optim.median_clip import median_clip
from jaxclip.optim.skip_nonfinite import skip_nonfinite
from jaxclip.optim.skip_on_spike import skip_on_spike
from jaxclip.optim.spam import spam
from jaxclip.optim.spectra_clip import spectra_clip
from jaxclip.optim.stable_adamw import stable_adamw
from jaxclip.optim.stable_spam import stable_spam
from jaxclip.optim.zclip import zclip
from jaxclip.registry import check_options

Factory = Callable[..., optax.GradientTransformation]

# Ours, and optax's own where it has the thing.
CLIPPERS: dict[str, Factory] = {
    "adaclip": adaclip,
    "adagc": adagc,
    "adagn": adagn,
    "agc": optax.adaptive_grad_clip,
    "aggc": aggc,
    "autoclip": autoclip,
    "block_rms": optax.clip_by_block_rms,
    "clip_by_coordinate": clip_by_coordinate,
    "elementwise": optax.clip,
    "global_norm": optax.clip_by_global_norm,
    "gradient_stabilizer": gradient_stabilizer,
    "median_clip": median_clip,
    "none": optax.identity,
    "spectra_clip": spectra_clip,
    "zclip": zclip,
}

# Not all of optax's: only what takes a schedule, masks its weight decay if it has any, and needs no
# more than gradients and parameters.
OPTIMIZERS: dict[str, Factory] = {
    "acclip": acclip,
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
    "adopt": optax.contrib.adopt,
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

# Wrappers of all the rest, which leave out whole steps.
SKIPS: dict[str, Factory] = {"nonfinite": skip_nonfinite, "spike": skip_on_spike}

# Rules that measure a tensor against itself make nothing good of a scalar: its gradient passes
# through zero, so its "norm" says little, and a threshold that has shrunk holds it still.
_PER_TENSOR = (
    "adaclip",
    "adagc",
    "adagn",
    "agc",
    "aggc",
    "block_rms",
    "clip_by_coordinate",
    "gradient_stabilizer",
    "spectra_clip",
)
EXEMPT = (r"(^|/)logit_(scale|bias)$",)

# Gains, biases and the like by name, since layers that are scanned over stack them to matrices.
NO_DECAY = (r"(^|/)(bias|scale|positions|probe|class_token|registers|logit_scale|logit_bias)$",)

_SECTIONS = (
    "name",
    "learning_rate",
    "schedule",
    "clip",
    "direction",
    "update_clip",
    "freeze",
    "groups",
    "layer_decay",
    "no_decay",
    "learning_rate_multipliers",
    "sam",
    "skip",
    "qk_clip",  # after the update, by the step: it must know the forward pass
)
# Arguments of optimizers that this module gives.
_GIVEN = ("learning_rate", "mask", "weight_decay_mask", "muon_weight_dimension_numbers")


def from_config(config: Mapping[str, Any], total_steps: int) -> optax.GradientTransformation:
    r"""Builds the optimizer that a configuration names: clipper, schedule, masks and all.

    Args:
      config: a mapping (or ``ml_collections.ConfigDict``) with these keys, of which only ``name``
        and ``learning_rate`` are required:

        * ``name``: an optimizer of this package or of optax (:data:`OPTIMIZERS`), or a function of
          your own, ``"package.module:function"``, that takes ``learning_rate`` (a schedule) and, if
          it has weight decay, ``weight_decay`` and ``mask``. Its own options (``b1``, ``b2``,
          ``eps``, ``weight_decay``, ``mu_dtype``, ``momentum``, …) stand beside it, under the names
          of its arguments.
        * ``learning_rate``, ``schedule``: see :func:`learning_rate_schedule`.
        * ``clip``: what sits before the optimizer, ``{"name": …, **options}``, a name, or a list of
          these, in order (:data:`CLIPPERS`, or functions of your own, as above). One more option of
          each is ``exempt``, path patterns
          of parameters that it does not see: by default ``logit_scale`` and ``logit_bias`` for
          the rules that look at each tensor, none for the others; ``exempt=[]`` exempts nothing.
        * ``update_clip``: the same after the optimizer, on the update itself.
        * ``direction``: ``"cautious"`` (:func:`jaxclip.optim.cautious`), a clipper, or a list, for
          the direction of an optimizer before weight decay and learning rate.
        * ``no_decay``: patterns of parameters without weight decay, beside all scalars and vectors;
          the default :data:`NO_DECAY` also names position embeddings and the stacked gains of
          scanned layers. (CLIP exempts "gains and biases"; open_clip decays position embeddings:
          for that, leave ``positions`` out of the pattern.)
        * ``freeze``: patterns of parameters that get zero updates and no optimizer state.
        * ``groups``: list of ``{"pattern": …, "learning_rate_factor": …, "weight_decay": True or
          False, "frozen": True or False}``, of which a parameter follows the first that matches its
          path; what a group does not say stays as it is otherwise.
        * ``layer_decay``: d, multiplies learning rates by :math:`d^{L - i}` in block i of L, lowest
          for embeddings and 1 for the head (:func:`jaxclip.optim.groups.layer_factors`).
        * ``learning_rate_multipliers``: list of ``[pattern, factor]``; the first that matches
          multiplies the parameter's update, its weight decay included.
        * ``sam``: ``{"rho": …}`` for sharpness-aware minimisation (``optax.contrib.sam``), with
          ``"adaptive": True`` and perhaps ``"eta"`` that of :func:`jaxclip.optim.asam`; which
          needs ``grad_fn`` in ``update`` (the train step gives it) and two gradients a step.
        * ``skip``: ``"nonfinite"`` (:func:`jaxclip.optim.skip_nonfinite`), or ``"spike"``, or
          ``{"name": "spike", "sigma_factor": …, "history_size": …}``
          (:func:`jaxclip.optim.skip_on_spike`, which also looks at the loss if ``update`` gets it
          as ``value``; the train step gives it). Outermost: a skipped step leaves everything above
          as it was.
        * ``qk_clip``: ``{"threshold": …}``, :func:`jaxclip.optim.qk_clip` after each update. It is
          no part of the transformation, for it wants attention logits: the train step does it.

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
      >>> sorted(optim.read_metrics(state))[1:]
      ['adagc/nonfinite_count', 'adagc/norm', 'adagc/threshold']
    """
    config = _sections.plain(config)
    if "name" not in config:
        raise ValueError(f"optim.name is required; known: {', '.join(sorted(OPTIMIZERS))}")
    read_qk_clip(config.get("qk_clip"))
    used: list[tuple[str, str]] = []
    groups = read_groups("optim.groups", config.get("groups"))
    used += [(f"optim.groups[{i}].pattern", group.pattern) for i, group in enumerate(groups)]
    tx = optax.chain(
        *_clippers("optim.clip", config.get("clip"), used),
        _optimizer(config, total_steps, groups, used),
        *_clippers("optim.update_clip", config.get("update_clip"), used),
        *_by_path.multipliers(config.get("learning_rate_multipliers"), used),
    )
    tx = _by_path.frozen(tx, _by_path.read("optim.freeze", config.get("freeze"), used), groups)
    if groups or config.get("layer_decay") is not None:
        # Outside of what is frozen: the depth of a tower is that of all its blocks.
        tx = optax.chain(tx, scale_updates(groups, _layer_decay(config.get("layer_decay"))))
    if config.get("sam"):
        tx = _sharpness.sharpness_aware(tx, config["sam"])
    # What SAM takes beside the gradient, and nothing else.
    tx = _skipping(tx, config.get("skip"), ("grad_fn",) if config.get("sam") else None)
    return _by_path.checking(tx, used)


def read_qk_clip(section: Any) -> float | None:
    """The threshold of ``optim.qk_clip``, or None without it.

    Raises:
      ValueError: an unknown option, or a threshold that is no number above 0.
    """
    if section is None:
        return None
    if not isinstance(section, Mapping):
        raise ValueError(f"optim.qk_clip={section!r} must be a mapping, {{'threshold': 100.0}}")
    check_options(section, ["threshold"], "optim.qk_clip")
    threshold = _sections.number("optim.qk_clip.threshold", section.get("threshold", 100.0))
    if not threshold > 0:
        raise ValueError(f"optim.qk_clip.threshold={threshold} must be above 0")
    return threshold


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
    name, options = _sections.named(key, section)
    known = {**CLIPPERS, "cautious": cautious} if "direction" in key else CLIPPERS
    factory = _sections.lookup(f"{key}.name", name, known)
    given = options.pop("exempt", None)
    _sections.check_known(key, name, options, factory, extra=("exempt",))
    if name == "none":
        return []
    tx = factory(**options)
    if given is not None:
        patterns = _by_path.read(f"{key}.exempt", given, used)
    else:
        patterns = [re.compile(p) for p in EXEMPT] if name in _PER_TENSOR else []
    if not patterns:
        return [tx]
    return [
        optax.masked(
            tx,
            lambda tree: _base.map_named(
                lambda path, _: not _by_path.matches(patterns, path), tree
            ),
        )
    ]


def _optimizer(
    config: Mapping[str, Any],
    total_steps: int,
    groups: Sequence[Group],
    used: list[tuple[str, str]],
) -> optax.GradientTransformation:
    name = config["name"]
    factory = _sections.lookup("optim.name", name, OPTIMIZERS)
    options = {key: value for key, value in config.items() if key not in _SECTIONS}
    for key in ("ema", "ema_decay"):
        if key in options:
            raise ValueError(
                f"optim.{key}: the moving average of parameters is set by ema_decay at the top "
                "level of the configuration"
            )
    mask = _direction.decay_mask(name, factory)
    if (mask is None or name == "adafactor") and options.pop("weight_decay", 0):
        way = f"use one that has: {', '.join(_direction.DECAYING)}"
        if _sections.is_outside(name):
            way = "let it take 'mask', which says what decays"
        raise ValueError(
            f"optim.weight_decay={config['weight_decay']}, but {name!r} has no decoupled weight "
            f"decay; set it to 0, or {way}"
        )
    _sections.check_known(
        *("optim", name, options, factory),
        extra=_SECTIONS,
        hidden=_GIVEN,
        elsewhere=("schedule.warmup_steps",),
    )
    if not _sections.is_outside(name):
        _sections.check_moments(options)

    if config.get("no_decay") is None:
        no_decay = [re.compile(pattern) for pattern in NO_DECAY]
    else:
        no_decay = _by_path.read("optim.no_decay", config["no_decay"], used)

    def decays(tree: Any) -> Any:
        def of(path: str, leaf: Any) -> bool:
            group = group_of(groups, path)
            if group is not None and group.weight_decay is not None:
                return group.weight_decay
            return leaf.ndim >= 2 and not _by_path.matches(no_decay, path)

        return _base.map_named(of, tree)

    if mask is not None:
        options[mask] = decays
    if name == "muon":
        options["muon_weight_dimension_numbers"] = _muon_dimensions
    schedule = learning_rate_schedule(config, total_steps)
    if config.get("direction") is not None:
        return _direction.take_apart(
            name,
            factory,
            options,
            schedule,
            config["direction"],
            lambda key, section: _clipper(key, section, used),
        )
    return factory(learning_rate=schedule, **options)


def _muon_dimensions(params: Any) -> Any:
    """Muon for the kernels of layers (their last two axes), Adam for embeddings and the rest."""

    def of(path: str, leaf: Any) -> optax.contrib.MuonDimensionNumbers | None:
        if not path.endswith("kernel") or leaf.ndim < 2:
            return None
        return optax.contrib.MuonDimensionNumbers(leaf.ndim - 2, leaf.ndim - 1)

    return _base.map_named(of, params)


def _layer_decay(value: Any) -> float | None:
    """The option as a number in (0, 1]."""
    if value is None:
        return None
    number = _sections.number("optim.layer_decay", value)
    if not 0 < number <= 1:
        raise ValueError(f"optim.layer_decay={value} must be > 0 and <= 1")
    return number


def _skipping(
    tx: optax.GradientTransformation, section: Any, extra_args: Sequence[str] | None
) -> optax.GradientTransformation:
    """The transformation, which leaves out the steps that ``skip`` says."""
    if section is None:
        return tx
    name, options = _sections.named("optim.skip", section)
    factory = _sections.lookup("optim.skip.name", name, SKIPS)
    _sections.check_known("optim.skip", name, options, factory, hidden=("inner", "extra_args"))
    return factory(tx, extra_args=extra_args, **options)
