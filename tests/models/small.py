"""Encoders small enough for a test, with parameters that leave nothing at its neutral value."""

import dataclasses

import jax
import numpy as np

from jaxclip.models import presets

CLIP = presets.CLIPConfig(
    image=presets.ImageConfig(
        image_size=8, patch_size=4, width=16, depth=2, num_heads=2, mlp_dim=24
    ),
    text=presets.TextConfig(
        vocab_size=40, context_length=6, width=12, depth=2, num_heads=3, mlp_dim=20
    ),
    embed_dim=8,
)

SIGLIP = presets.CLIPConfig(
    image=dataclasses.replace(
        CLIP.image,
        pool="map",
        pre_norm=False,
        patch_bias=True,
        activation="gelu_tanh",
        norm_eps=1e-6,
        projection="none",
    ),
    text=dataclasses.replace(
        CLIP.text,
        causal=False,
        pool="final",
        mask_padding=False,
        activation="gelu_tanh",
        norm_eps=1e-6,
        projection="linear_bias",
    ),
    embed_dim=16,
    logit_bias_init=-10.0,
)


def change(config, *, image=None, text=None):
    """The configuration with some fields of its towers changed."""
    return dataclasses.replace(
        config,
        image=dataclasses.replace(config.image, **(image or {})),
        text=dataclasses.replace(config.text, **(text or {})),
    )


def params_for(model, seed=0):
    """Random parameters of a model, in place of initial ones.

    Biases and norms start at 0 and 1, where they hide mistakes; and drawing with NumPy costs no
    compilation.
    """
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        noise = rng.standard_normal(leaf.shape).astype(np.float32)
        return (1.0 if name.endswith("/scale") else 0.0) + 0.3 * noise

    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return jax.tree_util.tree_map_with_path(draw, shapes)


def batch(config, size=4, seed=0):
    """Normalised images, and tokens of lengths from 2 up to the whole context."""
    rng = np.random.default_rng(seed)
    side, text = config.image.image_size, config.text
    images = rng.standard_normal((size, side, side, 3)).astype(np.float32)
    tokens = rng.integers(1, text.vocab_size, (size, text.context_length))
    lengths = np.linspace(2, text.context_length, size).astype(int)
    padding = np.arange(text.context_length) >= lengths[:, None]
    return images, np.where(padding, 0, tokens).astype(np.int32)
