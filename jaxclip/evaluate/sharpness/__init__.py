"""How sharp a minimum is: pure functions of a loss and of parameters, one measure a file.

A loss here is any ``params -> float32[]`` on fixed data (:func:`pair_loss` makes CLIP's), and
parameters are any nested dict of arrays. ``jaxclip sharpness`` measures a run with them.
"""

from jaxclip.evaluate.sharpness.adaptive import average_sharpness, scales, worst_sharpness
from jaxclip.evaluate.sharpness.curvature import (
    directional_sharpness,
    hessian_diagonal,
    hvp,
    share_of_coordinates,
    trace_by_group,
)
from jaxclip.evaluate.sharpness.fixed_loss import groups_of, pair_loss
from jaxclip.evaluate.sharpness.interpolation import (
    interpolate,
    layer_barriers,
    losses_between,
    prune_task_vector,
)
from jaxclip.evaluate.sharpness.landscape import grid_losses, random_direction

__all__ = [
    "average_sharpness",
    "directional_sharpness",
    "grid_losses",
    "groups_of",
    "hessian_diagonal",
    "hvp",
    "interpolate",
    "layer_barriers",
    "losses_between",
    "pair_loss",
    "prune_task_vector",
    "random_direction",
    "scales",
    "share_of_coordinates",
    "trace_by_group",
    "worst_sharpness",
]
