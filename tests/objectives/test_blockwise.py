"""Every objective that has a blockwise form: the same as its plain one, on eight devices."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip import objectives, parallel
from tests.objectives import fixture_g as g

# Outputs are random rows under the names that an objective needs. Those that need more, such as
# tokens, views or labels, are left out: their kernels are tested in tests/losses.
PLAIN_ROWS = ("image", "text", "image_raw", "text_raw", "short/text", "texts1/text")
NEEDS = (*PLAIN_ROWS, "negatives/text", "negatives/text_input")
ROWS = 16

# The others hand all their work to kernels that tests/losses compares.
FAST = ("affinity", "ce_clip", "clip_refine", "cloob", "euclip", "m2_mix", "m3_mix", "mod_x")
FAST += ("mobileclip", "ohd_caps", "symile")


def blockwise_names():
    """Objectives with the option whose outputs are rows of vectors alone."""
    for name in objectives.REGISTRY.names():
        kind = objectives.REGISTRY.get(name)
        if "implementation" not in {field.name for field in dataclasses.fields(kind)}:
            continue
        made = objectives.REGISTRY.build({"name": name, **kind.small})
        of_rows = all(each.removeprefix("teacher/") in NEEDS for each in made.needs)
        if of_rows and not made.row_needs:
            yield name if name in FAST else pytest.param(name, marks=pytest.mark.slow)


def rows_of(key, objective, rng):
    if key == "negatives/text_input":  # of the first row there is none
        return jnp.ones((ROWS, objective.count, 4), jnp.int32).at[0].set(0)
    x = rng.standard_normal((ROWS, objective.count, 16) if "negatives" in key else (ROWS, 16))
    if not key.endswith("raw"):
        x /= np.linalg.norm(x, axis=-1, keepdims=True)
    return jnp.asarray(x, jnp.float32)


@pytest.mark.parametrize(
    "name",
    [
        # By itself a third of the time of all; m2_mix has the same tiles.
        pytest.param(name, marks=pytest.mark.slow) if name == "m3_mix" else name
        for name in blockwise_names()
    ],
)
def test_blockwise_is_plain(name):
    kind = objectives.REGISTRY.get(name)
    mesh = parallel.make_mesh({"data": 8, "fsdp": 1, "tensor": 1})
    plain = objectives.REGISTRY.build({"name": name, **kind.small})
    tiles = dataclasses.replace(plain, implementation="blockwise")
    ctx = dataclasses.replace(g.context(10.0, size=ROWS), teacher_logit_scale=jnp.log(5.0))
    rng = np.random.default_rng(0)
    outputs = {key: rows_of(key, plain, rng) for key in sorted(plain.needs)}
    ids = {key: outputs.pop(key) for key in list(outputs) if key.endswith("_input")}
    sizes = dataclasses.replace(ctx.sizes, embed_dim=16)
    params, state = g.own_params(plain, sizes), plain.init_state(sizes)

    def run(objective, mesh):
        def value(outputs, log_scale):
            there = dataclasses.replace(ctx, logit_scale=log_scale, mesh=mesh)
            return g.value(objective, outputs | ids, there, params, state)[0]

        return jax.jit(jax.value_and_grad(value, argnums=(0, 1)))(outputs, ctx.logit_scale)

    (expected, gradients), (found, others) = run(plain, None), run(tiles, mesh)
    np.testing.assert_allclose(found, expected, rtol=2e-5)
    for key, gradient in gradients[0].items():
        if not key.startswith("teacher/"):
            size = float(np.abs(gradient).max())
            np.testing.assert_allclose(others[0][key], gradient, atol=2e-5 * size + 1e-8)
    np.testing.assert_allclose(others[1], gradients[1], rtol=1e-3, atol=1e-5)


def test_all_triples_have_no_blockwise_form():
    with pytest.raises(ValueError, match=r"is for B² logits, not the B³ of symile.negatives='all'"):
        objectives.REGISTRY.build(
            {"name": "symile", "negatives": "all", "implementation": "blockwise"}
        )


def test_distances_that_are_no_products_have_no_blockwise_form():
    message = "implementation='blockwise' needs logits that are products; geometry='elliptic'"
    with pytest.raises(ValueError, match=message):
        objectives.REGISTRY.build(
            {"name": "euclip", "geometry": "elliptic", "implementation": "blockwise"}
        )
