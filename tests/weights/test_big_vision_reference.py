"""big_vision's SigLIP, written down slowly after its modules' rules, against an imported file.

float64 NumPy, an example at a time. The rules (Zhai et al. 2023, arXiv:2303.15343; modules ``vit``
and ``two_towers``): patches by a strided convolution, learned positions, pre-norm blocks of Flax's
multi-head attention and an MLP with GELU's approximation, norms with epsilon 1e-6, a MAP head for
images, the last token and a linear head for texts; unit vectors, their products times exp(t) plus
b.
"""

import math

import jax
import numpy as np
import pytest

from jaxclip import models
from jaxclip.models import presets
from jaxclip.train import state_io
from jaxclip.weights import mapping
from jaxclip.weights.checkpoint import open_checkpoint
from jaxclip.weights.families import FAMILIES


class Reference:
    """A model of flat names such as ``params/img/pos_embedding``."""

    def __init__(self, arrays):
        self.arrays = {name: np.asarray(x, np.float64) for name, x in arrays.items()}

    def get(self, *path):
        return self.arrays["/".join(("params", *path))]

    def norm(self, x, *at):
        mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
        return (x - mean) / np.sqrt(variance + 1e-6) * self.get(*at, "scale") + self.get(
            *at, "bias"
        )

    def dense(self, x, *at):
        return x @ self.get(*at, "kernel") + self.get(*at, "bias")

    def mlp(self, x, *at):
        x = self.dense(x, *at, "Dense_0")
        gelu = 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
        return self.dense(gelu, *at, "Dense_1")

    def attention(self, queries, keys, *at):
        """Every head and every query by itself."""
        weights = {k: self.get(*at, k, "kernel") for k in ("query", "key", "value", "out")}
        biases = {k: self.get(*at, k, "bias") for k in ("query", "key", "value", "out")}
        result = np.zeros((len(queries), weights["out"].shape[-1]))
        for head in range(weights["query"].shape[1]):
            q, k, v = (
                x @ weights[name][:, head] + biases[name][head]
                for name, x in (("query", queries), ("key", keys), ("value", keys))
            )
            for place, query in enumerate(q):
                scores = np.array([query @ key for key in k]) / math.sqrt(len(query))
                share = np.exp(scores - scores.max())
                result[place] += (share / share.sum()) @ v @ weights["out"][head]
        return result + biases["out"]

    def encoder(self, x, depth, *at):
        for index in range(depth):
            block = (*at, f"encoderblock_{index}")
            y = self.norm(x, *block, "LayerNorm_0")
            x = x + self.attention(y, y, *block, "MultiHeadDotProductAttention_0")
            x = x + self.mlp(self.norm(x, *block, "LayerNorm_1"), *block, "MlpBlock_0")
        return self.norm(x, *at, "encoder_norm")

    def image(self, pixels, depth):
        kernel = self.get("img", "embedding", "kernel")
        size = kernel.shape[0]
        patches = [
            np.einsum("hwc,hwcd->d", pixels[top : top + size, left : left + size], kernel)
            for top in range(0, pixels.shape[0], size)
            for left in range(0, pixels.shape[1], size)
        ]
        x = np.array(patches) + self.get("img", "embedding", "bias")
        x = self.encoder(x + self.get("img", "pos_embedding")[0], depth, "img", "Transformer")
        head = ("img", "MAPHead_0")
        probe = self.get(*head, "probe")[0]
        x = self.attention(probe, x, *head, "MultiHeadDotProductAttention_0")
        return (x + self.mlp(self.norm(x, *head, "LayerNorm_0"), *head, "MlpBlock_0"))[0]

    def text(self, tokens, depth):
        x = self.get("txt", "Embed_0", "embedding")[tokens] + self.get("txt", "pos_embedding")[0]
        x = self.encoder(x, depth, "txt", "Encoder_0")
        return self.dense(x[-1], "txt", "head")


def unit(x):
    return x / np.linalg.norm(x)


@pytest.mark.parametrize("scanned", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_file_computes_what_the_modules_say(tmp_path, scanned):
    small = {"width": 16, "depth": 3, "num_heads": 2, "mlp_dim": 24}
    base = presets.get("siglip_b16").to_dict()
    base["image"] |= {"image_size": 12, "patch_size": 4, **small}
    base["text"] |= {"vocab_size": 32, "context_length": 6, **small}
    sizes = presets.CLIPConfig.from_dict({**base, "embed_dim": 16})
    shapes = state_io.named_leaves(jax.eval_shape(models.build(sizes).init, jax.random.key(0)))
    rng = np.random.default_rng(0)
    ours = {k: 0.4 * rng.standard_normal(s.shape).astype(np.float32) for k, s in shapes.items()}
    theirs = dict(mapping.to_theirs(FAMILIES.get("big_vision").entries(sizes), ours))
    kept = dict(theirs)
    if scanned:
        names = [n for n in theirs if "/Transformer/encoderblock_0/" in n]
        kept = {n: a for n, a in theirs.items() if "/Transformer/encoderblock_" not in n}
        for name in names:
            parts = [theirs[name.replace("block_0", f"block_{i}")] for i in range(3)]
            kept[name.replace("block_0", "block")] = np.stack(parts)
    np.savez(tmp_path / "model.npz", **kept)
    opened = open_checkpoint(tmp_path / "model.npz")
    params, model = opened.read(), models.build(opened.sizes)
    images = rng.standard_normal((2, 12, 12, 3)).astype(np.float32)
    tokens = rng.integers(2, 32, (2, 6)).astype(np.int32)
    tokens[0, 3:] = 1  # padding, which the last place is read of all the same
    reference = Reference(theirs)
    image = np.array([unit(reference.image(x.astype(np.float64), 3)) for x in images])
    text = np.array([unit(reference.text(x, 3)) for x in tokens])
    found = (
        jax.jit(model.encode_image)(params, images),
        jax.jit(model.encode_text)(params, tokens),
    )
    np.testing.assert_allclose(found[0], image, atol=5e-6)
    np.testing.assert_allclose(found[1], text, atol=5e-6)
    t, b = reference.get("t"), reference.get("b")
    logits = np.exp(params["logit_scale"]) * found[0] @ found[1].T + params["logit_bias"]
    np.testing.assert_allclose(logits, np.exp(t) * image @ text.T + b, atol=5e-5)


@pytest.mark.parametrize(("vocabulary", "kind"), [(32_000, "siglip"), (256_000, "gemma")])
def test_the_vocabulary_tells_the_tokenizer(vocabulary, kind):
    from jaxclip.weights.families import Checkpoint

    base = presets.get("siglip_b16").to_dict()
    base["text"]["vocab_size"] = vocabulary
    sizes = presets.CLIPConfig.from_dict(base)
    found = FAMILIES.get("big_vision").preprocess(Checkpoint("x", {}), sizes)
    assert found.tokenizer == {"kind": kind, "context_length": 64}
