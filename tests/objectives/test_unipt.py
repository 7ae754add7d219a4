"""A small net beside frozen towers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip import models
from jaxclip.objectives.unipt import UniPT, shares
from tests.objectives import battery
from tests.objectives import fixture_g as g

SIZES = models.CLIPConfig(
    models.ImageConfig(width=6, num_heads=2, depth=2),
    models.TextConfig(width=4, num_heads=2, depth=2),
    embed_dim=2,
)
RNG = np.random.default_rng(0)
LAYERS = {"image_layers": (0, 2), "text_layers": (1,)}
MADE = {
    "image_raw": 2.0 * g.I,
    "text_raw": 3.0 * g.T,
    "image_hidden_0": jnp.asarray(RNG.normal(size=(3, 5, 6)), jnp.float32),
    "image_hidden_2": jnp.asarray(RNG.normal(size=(3, 5, 6)), jnp.float32),
    "text_hidden_1": jnp.asarray(RNG.normal(size=(3, 4, 4)), jnp.float32),
    "text_mask": jnp.arange(4) < jnp.asarray([2, 4, 3])[:, None],
}


@functools.cache
def setting(**options):
    objective = UniPT(**LAYERS, reduction=1, **options)
    params = g.own_params(objective, SIZES)
    if objective.zero_start:
        for own in params.values():
            own["up"] *= 0.0
    return objective, params


def test_shares():
    real = jnp.asarray([[True, True, True], [True, True, False], [True, True, True]])
    scores = jnp.asarray([[3.0, -1.0, 1.0], [3.0, 1.0, 5.0], [-1.0, -2.0, 0.0]])
    expected = [[0.75, 0, 0.25], [0.75, 0.25, 0], [0, 0, 0]]
    np.testing.assert_allclose(shares(scores, real), expected, rtol=1e-6)


def test_it_starts_as_clip():
    objective, params = setting()
    start = jax.jit(lambda key: objective.init_params(key, SIZES)["text"]["up"])(jax.random.key(0))
    assert not start.any()
    loss, _, _ = g.value(objective, MADE, g.context(sizes=SIZES), params)
    assert float(loss) == pytest.approx(0.1081597, rel=1e-5)


def reference(params, tower, raw, hidden, place, real):
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params[tower])
    a = np.maximum(raw, 0) @ p["query"]
    mixed, gates = [], []
    for states, kernel in zip(hidden, p["layers"], strict=True):
        h = np.maximum(states, 0) @ kernel
        score = np.maximum((h @ a), 0) * real
        weights = score / max(score.sum(), 1e-6)
        mixed.append(weights @ h + h[place])
        gates.append((p["gate"] * a * h[real].mean(0)).sum())
    c = g.softmax_rows(np.asarray(gates))
    out = raw + np.maximum(sum(w * m for w, m in zip(c, mixed, strict=True)), 0) @ p["up"]
    return out / np.linalg.norm(out)


def test_both_towers_in_float64():
    objective, params = setting(zero_start=False)
    run = jax.jit(lambda made: objective.rows(params, made, g.context(sizes=SIZES)))
    result = run(MADE)
    made = {key: np.asarray(x, np.float64) for key, x in MADE.items()}
    for row in range(3):
        hidden = [made[f"image_hidden_{n}"][row] for n in (0, 2)]
        every = np.ones(5, bool)
        expected = reference(params, "image", made["image_raw"][row], hidden, 0, every)
        np.testing.assert_allclose(result["adapted_image"][row], expected, atol=1e-5)
        real = np.asarray(MADE["text_mask"])[row]
        hidden = [made["text_hidden_1"][row]]
        expected = reference(params, "text", made["text_raw"][row], hidden, real.sum() - 1, real)
        np.testing.assert_allclose(result["adapted_text"][row], expected, atol=1e-5)
    ids = run({**MADE, "text_hidden_1": MADE["text_hidden_1"].at[0, 2:].set(9.0)})  # padding
    np.testing.assert_array_equal(ids["adapted_text"], result["adapted_text"])


def test_what_it_refuses():
    UniPT(**LAYERS).check(SIZES, None)
    staged = models.CLIPConfig.from_dict({"image": {"kind": "convnext"}})
    with pytest.raises(ValueError, match=r"unipt reads hidden states of one width, .* 'convnext'"):
        UniPT(**LAYERS).check(staged, None)
    with pytest.raises(ValueError, match=r"the image tower has 2 blocks; use 0 to 2"):
        UniPT(text_layers=(0,)).check(SIZES, None)
    with pytest.raises(ValueError, match=r"unipt\.reduction=0"):
        UniPT(reduction=0)
    with pytest.raises(ValueError, match=r"unipt\.text_layers=\(1, 1\) must be some different"):
        UniPT(text_layers=(1, 1))


@pytest.mark.slow
def test_frozen_towers_keep_nothing_for_a_backward_pass():
    def compiled(groups):
        tower = {"width": 64, "depth": 6, "num_heads": 2, "mlp_dim": 256}
        model = {
            "image": {"patch_size": 4, **tower},
            "text": {"vocab_size": 64, **tower},
            "embed_dim": 16,
        }
        own = {**battery.BASE["optim"], "groups": groups}
        experiment = battery.experiment_of(["unipt"], model=model, optim=own, global_batch_size=64)
        args = experiment.abstract_state, experiment.abstract_batch()
        program = experiment.train_step.lower(*args).compile()
        return program.memory_analysis().temp_size_in_bytes, program.cost_analysis()["flops"]

    memory, flops = compiled([])
    frozen_memory, frozen_flops = compiled([{"pattern": "^(?!objective/)", "frozen": True}])
    assert frozen_memory < memory / 3 and frozen_flops < flops / 2
