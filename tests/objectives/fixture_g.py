"""Unit vectors in the plane on which published losses have known values, and a context."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxclip import objectives


def unit_vectors(*degrees):
    """float32[n, 2] at angles in degrees."""
    angles = np.deg2rad(np.array(degrees, np.float64))
    return jnp.asarray(np.stack([np.cos(angles), np.sin(angles)], 1), jnp.float32)


# Images, texts, second texts, negatives.
I, T = unit_vectors(0, 60, 150), unit_vectors(20, 40, 170)  # noqa: E741
U, N = unit_vectors(10, 50, 160), unit_vectors(90, 120, 60)


def context(scale=10.0, *, size=3, step=0, **options):
    """A context of one device whose logit scale is ``ln scale``."""
    return objectives.Context(
        step=jnp.int32(step),
        key=jax.random.key(0),
        row=jnp.arange(size, dtype=jnp.int32),
        logit_scale=jnp.log(jnp.float32(scale)),
        **options,
    )


def value(objective, outputs, ctx=None, params=None, state=None):
    """``(loss, metrics, state)`` of a term on outputs given by hand, its rows included."""
    ctx = context() if ctx is None else ctx
    params, state = params or {}, state or {}
    by_row = objective.rows(params, {k: outputs[k] for k in objective.row_needs}, ctx)
    seen = {k: outputs[k] for k in objective.needs} | by_row
    return objective.loss(params, state, seen, ctx)
