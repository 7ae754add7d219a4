"""What is trained: one method a file, each a term that names the outputs it needs.

A configuration lists terms: ``config.objective = [{"name": "contrastive", "kind": "sigmoid"},
{"name": "slip", "contrastive": 0.0, "weight": 1.0}]``. A new method is a new file here
(:class:`Objective` says what is in it) and its test file; nothing else changes. See
docs/methods.md.
"""

from __future__ import annotations

from jaxclip.objectives._base import (
    Context,
    Metrics,
    Objective,
    Outputs,
    Params,
    State,
    view_keys,
)
from jaxclip.objectives._schedules import as_weight
from jaxclip.objectives._total import REGISTRY, Term, Total, from_config, listed

__all__ = [
    "REGISTRY",
    "Context",
    "Metrics",
    "Objective",
    "Outputs",
    "Params",
    "State",
    "Term",
    "Total",
    "as_weight",
    "from_config",
    "listed",
    "view_keys",
]
