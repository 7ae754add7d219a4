"""What goes wrong in a run, on purpose: one injector a file, found by its name.

An injector is a frozen dataclass whose ``apply(plan, place)`` changes a :class:`Plan`: arrays over
the steps that the run follows. It is a pure function of its options and the seed. A plan that
nothing changed makes the run that has no injector.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jaxclip.lab.injectors._plan import Place as Place
from jaxclip.lab.injectors._plan import Plan as Plan
from jaxclip.lab.injectors._plan import empty_plan as empty_plan
from jaxclip.lab.injectors._plan import extend as extend
from jaxclip.registry import Registry, check_numbers

INJECTORS = Registry("injector", __name__)


def build(section: Mapping[str, Any] | str | Sequence[Any] | None) -> tuple[Any, ...]:
    """The injectors of a section of the configuration.

    Args:
      section: a name, ``{"name": …, **options}``, a list of these, or None or ``"none"`` for none.

    Raises:
      ValueError: an unknown name or option, or an option that is no number where one is wanted.
    """
    if section is None or section == "none" or section == {"name": "none"}:
        return ()
    if isinstance(section, Sequence) and not isinstance(section, str):
        return tuple(one for part in section for one in build(part))
    injector = INJECTORS.build(section)
    name = section if isinstance(section, str) else section["name"]
    check_numbers(injector, f"injector {name!r}")
    return (injector,)


def make_plan(injectors: Sequence[Any], place: Place) -> Plan:
    """The plan of a run: its batches, and what the injectors do.

    Raises:
      ValueError: a step behind the end of the run, or a path that matches no parameter.
    """
    plan = empty_plan(place)
    for injector in injectors:
        plan = injector.apply(plan, place)
    return plan
