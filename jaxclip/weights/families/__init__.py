"""Families of published checkpoints, one a file; found by :data:`FAMILIES`.

A family is a module's class of the interface :class:`Family`.
"""

from jaxclip.weights.families._base import FAMILIES, Checkpoint, Family, detect, renamed

__all__ = ["FAMILIES", "Checkpoint", "Family", "detect", "renamed"]
