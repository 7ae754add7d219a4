"""Fewer patches in the deeper blocks of an image tower, at evaluation and inference.

A method is a file of this package, found by its name; :class:`Reduction` says what it is.
Parameters do not change, so any trained tower can be run with any of them.
"""

from jaxclip.models.reductions._base import Prune, Reduction
from jaxclip.models.reductions._registry import REDUCTIONS, from_config

__all__ = ["REDUCTIONS", "Prune", "Reduction", "from_config"]
