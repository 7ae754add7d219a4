"""Unit vectors in the plane on which published losses have known values, and a context."""

import dataclasses

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


def with_negatives(image, text, negatives, valid=None):
    """Outputs of a batch with hard negatives [B, M, D]; all are valid unless said otherwise."""
    ids = jnp.ones((*negatives.shape[:2], 4), jnp.int32)
    ids = ids if valid is None else ids * jnp.asarray(valid, jnp.int32)[:, :, None]
    return {"image": image, "text": text, "negatives/text": negatives, "negatives/text_input": ids}


def with_teacher(image, text, teacher_image, teacher_text):
    """Outputs of a batch with a teacher's."""
    theirs = {"teacher/image": teacher_image, "teacher/text": teacher_text}
    return {"image": image, "text": text, **theirs}


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
    """``(loss, metrics, state)`` of a term on outputs given by hand, its rows included.

    It runs as one program, kept for the next call: to compile many small ones takes ten times as
    long.
    """
    ctx = context() if ctx is None else ctx
    arrays = {f.name: getattr(ctx, f.name) for f in dataclasses.fields(ctx) if f.name not in STATIC}
    static = tuple(getattr(ctx, name) for name in STATIC)
    return _program(objective, *static)(outputs, arrays, params or {}, state or {})


STATIC = ("mesh", "sizes")  # what no program can take as an argument
_PROGRAMS = {}


def _program(objective, *static):
    key = (type(objective), repr(objective), *static)  # options may be lists, which have no hash
    if key not in _PROGRAMS:
        _PROGRAMS[key] = _compiled(objective, static)
    return _PROGRAMS[key]


def _compiled(objective, static):
    @jax.jit
    def run(outputs, arrays, params, state):
        ctx = objectives.Context(**arrays, **dict(zip(STATIC, static, strict=True)))
        by_row = objective.rows(params, {k: outputs[k] for k in objective.row_needs}, ctx)
        seen = {k: outputs[k] for k in objective.needs} | by_row
        return objective.loss(params, state, seen, ctx)

    return run


def drawn(make, seed=0, scale=0.3):
    """Parameters of the shapes that ``make(key)`` has, normal: to compile how they are drawn takes
    longer than most tests."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jnp.asarray(scale * rng.standard_normal(leaf.shape), leaf.dtype),
        jax.eval_shape(make, jax.random.key(0)),
    )


def own_params(objective, sizes, seed=0):
    """:func:`drawn` parameters of a term."""
    return drawn(lambda key: objective.init_params(key, sizes), seed)


def random_rows(*names, size=6, dim=5, seed=0):
    """float32 arrays by name: unit rows [size, dim], of length about 3 where the name says raw."""
    rng = np.random.default_rng(seed)
    arrays = {}
    for name in names:
        rows = rng.standard_normal((size, dim))
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        arrays[name] = jnp.asarray(rows * (3 if name.endswith("raw") else 1), jnp.float32)
    return arrays


def check_gradient(
    objective, outputs, reference, ctx=None, *, wrt=None, params=None, state=None, rtol=2e-4
):
    """Compare a term's value and gradient with a reference in float64.

    ``reference(arrays, base)`` is the loss in NumPy of arrays near ``base``; what the term puts
    under stop-gradient it computes of ``base``. Derivatives are central differences, along
    the sphere for outputs of unit length.
    """
    ctx = context(size=len(next(iter(outputs.values())))) if ctx is None else ctx
    smooth = [k for k, v in outputs.items() if jnp.issubdtype(v.dtype, jnp.floating)]
    smooth = [k for k in smooth if not k.startswith("teacher/")] if wrt is None else list(wrt)

    def loss(varied):
        return value(objective, {**outputs, **varied}, ctx, params, state)[0]

    # One program each: to compile many small ones takes ten times as long.
    result, gradient = jax.jit(jax.value_and_grad(loss))({k: outputs[k] for k in smooth})
    base = {k: np.asarray(v, np.float64) for k, v in outputs.items()}
    np.testing.assert_allclose(result, reference(base, base), rtol=1e-5, atol=1e-6)
    rng, step = np.random.default_rng(1), 1e-5
    for name in smooth:
        direction = rng.standard_normal(base[name].shape)
        if not name.endswith("raw"):
            direction -= np.sum(direction * base[name], -1, keepdims=True) * base[name]
        ahead, behind = (
            reference({**base, name: base[name] + sign * step * direction}, base)
            for sign in (1, -1)
        )
        expected = (ahead - behind) / (2 * step)
        found = np.sum(np.asarray(gradient[name], np.float64) * direction)
        np.testing.assert_allclose(found, expected, rtol=rtol, atol=1e-5, err_msg=name)
    held = [k for k in outputs if k.startswith("teacher/")]
    if held:  # the forward pass stops them; a term must not depend on that for its finiteness
        gradient = jax.jit(jax.grad(loss))({k: outputs[k] for k in held})
        assert all(bool(jnp.all(jnp.isfinite(g))) for g in gradient.values())


def softmax_rows(logits):
    """Softmax of each row, in NumPy."""
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)


def lse(logits, axis=-1):
    """Log-sum-exp in NumPy; -inf entries are left out."""
    peak = logits.max(axis, keepdims=True)
    return np.log(np.exp(logits - peak).sum(axis)) + peak.squeeze(axis)


def clip(images, texts, scale):
    """CLIP's loss in NumPy."""
    logits = scale * images @ texts.T
    return (lse(logits) + lse(logits.T) - 2 * np.diagonal(logits)).mean() / 2


def off_diagonal(logits):
    """The logits with -inf on the diagonal."""
    return np.where(np.eye(len(logits), dtype=bool), -np.inf, logits)
