"""What a configuration may name in ``on_spike.actions``."""

from __future__ import annotations

from collections.abc import Sequence

from jaxclip.registry import hint

# What the step does (jaxclip.train.guard), and what is the loop's work (jaxclip.train.rewind).
IN_STEP = ("skip", "clip", "lower_rate", "reset_moments")
REWIND = "rewind"
ACTIONS = (*IN_STEP, REWIND)


def as_actions(given: str | Sequence[str]) -> tuple[str, ...]:
    """``"skip|lower_rate"`` or a list, checked.

    Raises:
      ValueError: an unknown action (naming the nearest), one given twice, or ``"rewind"`` beside
        another one.
    """
    names = given.split("|") if isinstance(given, str) else list(given)
    if not all(isinstance(name, str) for name in names):
        raise ValueError(f"on_spike.actions={names!r} must be names: {', '.join(ACTIONS)}")
    names = [name.strip() for name in names if name not in ("", "none")]
    for name in names:
        if name not in ACTIONS:
            raise ValueError(f"on_spike.actions: unknown action {name!r}{hint(name, ACTIONS)}")
        if names.count(name) > 1:
            raise ValueError(f"on_spike.actions={names} has {name!r} twice; name each once")
    if REWIND in names and len(names) > 1:
        raise ValueError(
            f"on_spike.actions={names}: 'rewind' undoes the step, so that nothing of "
            f"{[n for n in names if n != REWIND]} would be left; use one or the other"
        )
    return tuple(names)
