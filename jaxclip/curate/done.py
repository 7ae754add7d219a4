"""A step that was carried out: what the reports and the tables of a curation are made from."""

from __future__ import annotations

import dataclasses
from typing import Any

from jaxclip.curate.step import Step
from jaxclip.curate.store import View


@dataclasses.dataclass(frozen=True)
class Done:
    """A step that was carried out.

    Attributes:
      label: number and name.
      folder: of its passes.
      step: the step.
      before: the records that it was given.
      after: those that it left.
      notes: what it says of itself.
    """

    label: str
    folder: str
    step: Step
    before: View
    after: View
    notes: dict[str, Any]
