"""Evaluation: one evaluator a file, found by its name; pure functions of arrays first.

An evaluator is a frozen dataclass whose fields are its options
(:class:`jaxclip.evaluate.base.Evaluator`). ``config.evaluate.tasks`` names any number of them, each
with its own data set. All are exact on remainders, whatever the batch and the mesh.
"""

from jaxclip.registry import Registry

# Files of this package that hold no evaluator.
_PARTS = (
    "attack",
    "base",
    "class_names",
    "encoding",
    "psp_entropy",
    "ranking",
    "runner",
    "sharpness",
    "stored",
    "tasks",
    "templates",
)

EVALUATORS = Registry("evaluator", __name__, exclude=_PARTS)
