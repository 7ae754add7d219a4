"""Sparse weights in training: one way to make them a file, found by its name.

Each is a map from a dense weight to the one that the forward pass sees, with whatever gradient it
has. Checkpoints hold the dense weights; evaluation, ``jaxclip.load`` and exports see the sparse
ones of the end. ``config.sparsity`` names them with patterns of tensors
(:mod:`jaxclip.models.sparsity.rules`).
"""

from jaxclip.registry import Registry

# Files of this package that are no such map.
SPARSITIES = Registry("sparsity", __name__, exclude=("rules",))
