"""Taking Adam-like optimizers apart: direction, then weight decay, then learning rate."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import optax

from jaxclip.optim import _sections
from jaxclip.optim.cautious import cautious
from jaxclip.registry import option_defaults

# Those which are a direction, then weight decay, then a learning rate.
SEPARABLE = (
    "acclip",
    "adabelief",
    "adam",
    "adamaxw",
    "adamw",
    "ademamix",
    "adopt",
    "amsgrad",
    "lion",
    "nadamw",
    "radam",
    "rmsprop",
    "spam",
    "stable_spam",
    "yogi",
)

# Optimizers with weight decay, and their argument for which parameters decay.
DECAY_MASKS: dict[str, str] = {
    "acclip": "mask",
    "adadelta": "weight_decay_mask",
    "adafactor": "weight_decay_mask",
    "adamaxw": "mask",
    "adamw": "mask",
    "adan": "mask",
    "ademamix": "mask",
    "lamb": "mask",
    "lars": "weight_decay_mask",
    "lion": "mask",
    "muon": "weight_decay_mask",
    "nadamw": "mask",
    "spam": "mask",
    "stable_adamw": "mask",
    "stable_spam": "mask",
}
# Those whose rate is called ``weight_decay``; adafactor has a ``weight_decay_rate``.
DECAYING = tuple(name for name in DECAY_MASKS if name != "adafactor")


def decay_mask(name: str, factory: Callable[..., Any]) -> str | None:
    """An optimizer's argument for which parameters decay; None if it has none.

    One from outside of this package has it if its function takes optax's ``mask`` or
    ``weight_decay_mask``.
    """
    if not _sections.is_outside(name):
        return DECAY_MASKS.get(name)
    taken = option_defaults(factory)
    return next((each for each in ("mask", "weight_decay_mask") if each in taken), None)


def take_apart(
    name: str,
    factory: Callable[..., optax.GradientTransformation],
    options: Mapping[str, Any],
    schedule: Callable[[Any], Any],
    sections: Any,
    clipper: Callable[[str, Any], Sequence[optax.GradientTransformation]],
) -> optax.GradientTransformation:
    """An optimizer with something between its direction and its weight decay.

    Args:
      name: of the optimizer, one of :data:`SEPARABLE`.
      factory: makes it.
      options: its arguments, weight decay and mask among them, but no learning rate.
      schedule: of the learning rate.
      sections: what ``optim.direction`` says: ``"cautious"``, a clipper's section, or a list.
      clipper: from key and section to transformations.

    Raises:
      ValueError: the optimizer can't be taken apart; an unknown name or option.
    """
    if name not in SEPARABLE:
        raise ValueError(
            f"optim.direction: {name!r} can't be taken apart; use one of {', '.join(SEPARABLE)}"
        )
    options = dict(options)
    decay: list[optax.GradientTransformation] = []
    if name in DECAYING:
        rate = options.pop("weight_decay", option_defaults(factory)["weight_decay"])
        decay = [optax.add_decayed_weights(rate, options.pop(DECAY_MASKS[name]))]
        options["weight_decay"] = 0.0
    # An optimizer's update has the sign turned already.
    tx = optax.chain(factory(learning_rate=1.0, **options), optax.scale(-1.0))
    for i, section in enumerate(sections if isinstance(sections, list) else [sections]):
        key = f"optim.direction[{i}]" if isinstance(sections, list) else "optim.direction"
        part, settings = _sections.named(key, section)
        if part == "cautious":
            _sections.check_known(key, part, settings, cautious, hidden=("inner",))
            tx = cautious(tx, **settings)
        else:
            tx = optax.chain(tx, *clipper(key, section))
    return optax.chain(tx, *decay, optax.scale_by_learning_rate(schedule))
