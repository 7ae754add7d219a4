"""What the ``sam`` section of a configuration names: SAM, or ASAM."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import optax

from jaxclip.optim import _sections
from jaxclip.optim.asam import asam
from jaxclip.registry import hint


def sharpness_aware(tx: optax.GradientTransformation, section: Any) -> optax.GradientTransformation:
    """SAM or ASAM around a transformation, as ``optim.sam`` says.

    Raises:
      ValueError: no mapping with ``rho``, an unknown key, or a value out of its range.
    """
    if not isinstance(section, Mapping) or "rho" not in section:
        raise ValueError(f"optim.sam={section!r} must be {{'rho': number}}")
    for key in section:
        if key not in ("rho", "adaptive", "eta"):
            near = hint(key, ("rho", "adaptive", "eta"))
            raise ValueError(f"optim.sam={section!r} must be {{'rho': number}}: no {key!r}{near}")
    rho, adaptive = (
        _sections.number("optim.sam.rho", section["rho"]),
        section.get("adaptive", False),
    )
    if not isinstance(adaptive, bool):
        raise ValueError(f"optim.sam.adaptive={adaptive!r} must be True or False")
    if adaptive:
        return asam(tx, rho, _sections.number("optim.sam.eta", section.get("eta", 0.01)))
    if "eta" in section:
        raise ValueError("optim.sam.eta: it is for adaptive=True; leave it out")
    # The gradient's direction is NaN if the gradient is zero; then there is nowhere to climb.
    ascent = optax.chain(optax.contrib.normalize(), optax.zero_nans(), optax.sgd(rho))
    return optax.contrib.sam(tx, ascent, opaque_mode=True)
