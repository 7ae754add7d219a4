"""Images against stored text vectors, and the tower that takes them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip import fields, models
from jaxclip.evaluate import ranking
from jaxclip.objectives.llm2clip import LLM2CLIP
from tests.objectives import fixture_g as g

TEXT = models.TextConfig(
    kind="vector", width=6, depth=2, mlp_dim=12, num_heads=1, projection="linear_bias"
)
SIZES = models.CLIPConfig(models.ImageConfig(width=8, num_heads=2, depth=1), TEXT, embed_dim=4)
VECTORS = jnp.asarray(np.random.default_rng(0).normal(size=(3, 6)), jnp.float32)


def test_one_vector_is_clip_two_are_the_mean():
    assert float(g.value(LLM2CLIP(), {"image": g.I, "text": g.T})[0]) == pytest.approx(
        0.1081597, rel=1e-5
    )
    made = {"image": g.I, "text": g.T, "texts1/text": g.U}
    loss, metrics, _ = g.value(LLM2CLIP(keys=["short", "long"], size=6), made)
    both = [g.clip(np.asarray(g.I, float), np.asarray(t, float), 10) for t in (g.T, g.U)]
    assert float(loss) == pytest.approx(np.mean(both), rel=1e-5)
    assert float(metrics["clip_1"]) == pytest.approx(both[1], rel=1e-5)


def test_its_gradient():
    def reference(arrays, base):
        return np.mean([g.clip(arrays["image"], arrays[t], 10.0) for t in ("text", "texts1/text")])

    objective = LLM2CLIP(keys=["a", "b"])
    g.check_gradient(objective, g.random_rows("image", "text", "texts1/text"), reference)


def test_the_adapter_in_float64():
    tower = models.build(SIZES).text
    params = g.drawn(tower.init)
    params["projection"]["bias"] = jnp.asarray([0.1, -0.2, 0.3, 0.0])
    result = jax.jit(tower.encode)(params, VECTORS)

    def norm(p, x):
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * p["scale"] + p["bias"]

    p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    x = np.asarray(VECTORS, np.float64)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    for index in range(2):
        block = p[f"blocks_{index}"]
        y = norm(block["mlp_norm"], x) @ block["mlp"]["up"]["kernel"] + block["mlp"]["up"]["bias"]
        y = np.asarray(jax.nn.gelu(y, approximate=False), np.float64)
        x = x + y @ block["mlp"]["down"]["kernel"] + block["mlp"]["down"]["bias"]
    x = norm(p["norm_post"], x) @ p["projection"]["kernel"] + p["projection"]["bias"]
    np.testing.assert_allclose(result, x, atol=2e-5)
    assert set(params) == {"blocks_0", "blocks_1", "norm_post", "projection"}
    assert set(params["blocks_0"]) == {"mlp_norm", "mlp"}
    flat = models.build(dataclasses.replace(SIZES, text=dataclasses.replace(TEXT, depth=0))).text
    assert set(flat.init(jax.random.key(0))) == {"norm_post", "projection"}


def test_the_length_of_a_vector_does_not_matter():
    tower = models.build(SIZES).text
    params = g.drawn(tower.init)
    run = jax.jit(tower.encode)
    np.testing.assert_allclose(run(params, VECTORS), run(params, 7 * VECTORS), atol=1e-6)


def test_tokens_and_vectors_of_another_length_are_refused():
    tower = models.build(SIZES).text
    for wrong in (jnp.ones((2, 6), jnp.int32), jnp.ones((2, 5))):
        with pytest.raises(ValueError, match=r"takes vectors float\[B, 6\].*make such vectors"):
            tower.embed({}, wrong)


def test_permuted_vectors_permute_what_is_retrieved():
    """Which text an image finds goes by its vector alone, wherever it stands."""
    tower = models.build(SIZES).text
    rng = np.random.default_rng(1)
    vectors = jnp.asarray(rng.normal(size=(12, 6)), jnp.float32)
    images = np.asarray(rng.normal(size=(9, 4)), np.float32)
    run = jax.jit(lambda params, x: models.unit(tower.encode(params, x)))
    params = g.drawn(tower.init)
    order = rng.permutation(12)
    _, plain = ranking.top_k(images, np.asarray(run(params, vectors)), 3)
    _, permuted = ranking.top_k(images, np.asarray(run(params, vectors[order])), 3)
    assert len(set(plain[:, 0].tolist())) > 2
    np.testing.assert_array_equal(order[permuted], plain)


def test_what_it_asks_for():
    spec = LLM2CLIP(keys=["short", "long"], size=6).fields
    assert spec == {"text": fields.Stored("short", 6), "texts1/text": fields.Stored("long", 6)}
    LLM2CLIP(size=6).check(SIZES, None)
    with pytest.raises(ValueError, match=r"set model\.text\.kind='vector' and .*width=4096"):
        LLM2CLIP().check(SIZES, None)
    for keys in ("a", [], 3, [1, 2], ["a", "a"]):
        with pytest.raises(
            ValueError, match=r"llm2clip\.keys=.* must be a list of different names"
        ):
            LLM2CLIP(keys=keys)
    with pytest.raises(ValueError, match=r"llm2clip\.size=0"):
        LLM2CLIP(size=0)
