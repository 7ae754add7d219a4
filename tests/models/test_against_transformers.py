"""Forward passes against Hugging Face's models, with their random weights copied over.

pip install 'jaxclip[test-compare]'
pytest -m slow tests/models/test_against_transformers.py
"""

import math

import jax
import numpy as np
import pytest

from jaxclip import models
from tests.models import small

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.slow


def shape_of(config):
    return {
        "hidden_size": config.width,
        "intermediate_size": config.mlp_dim,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.num_heads,
        "layer_norm_eps": config.norm_eps,
        "hidden_act": "gelu_pytorch_tanh"
        if config.activation == "gelu_tanh"
        else config.activation,
    }


def randomized(model):
    """Every parameter random, norms around 1, so that nothing hides at its initial value."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = 0.3 * torch.randn(parameter.shape, generator=generator)
            is_scale = "norm" in name and name.endswith("weight")
            parameter.copy_(noise + (1.0 if is_scale else 0.0))
    return model.eval()


class Weights:
    """Reads a torch state dict into our layout: kernels are [in, out]."""

    def __init__(self, state):
        self.state = {name: value.numpy() for name, value in state.items()}

    def __getitem__(self, name):
        return self.state[name]

    def dense(self, prefix):
        layer = {"kernel": self[f"{prefix}.weight"].T}
        if f"{prefix}.bias" in self.state:
            layer["bias"] = self[f"{prefix}.bias"]
        return layer

    def norm(self, prefix):
        return {"scale": self[f"{prefix}.weight"], "bias": self[f"{prefix}.bias"]}

    def patch_embedding(self, prefix):
        kernel = self[f"{prefix}.weight"]  # [out, 3, size, size]
        layer = {"kernel": kernel.transpose(2, 3, 1, 0).reshape(-1, kernel.shape[0])}
        if f"{prefix}.bias" in self.state:
            layer["bias"] = self[f"{prefix}.bias"]
        return layer

    def blocks(self, prefix, depth):
        names = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "out": "out_proj"}
        result = {}
        for index in range(depth):
            at = f"{prefix}.encoder.layers.{index}"
            result[f"blocks_{index}"] = {
                "attention": {
                    ours: self.dense(f"{at}.self_attn.{theirs}") for ours, theirs in names.items()
                },
                "mlp": {"up": self.dense(f"{at}.mlp.fc1"), "down": self.dense(f"{at}.mlp.fc2")},
                "attention_norm": self.norm(f"{at}.layer_norm1"),
                "mlp_norm": self.norm(f"{at}.layer_norm2"),
            }
        return result


def clip_params(state, config):
    w = Weights(state)
    return {
        "image": {
            "patch_embedding": w.patch_embedding("vision_model.embeddings.patch_embedding"),
            "class_token": w["vision_model.embeddings.class_embedding"],
            "positions": w["vision_model.embeddings.position_embedding.weight"],
            "norm_pre": w.norm("vision_model.pre_layrnorm"),
            "norm_post": w.norm("vision_model.post_layernorm"),
            "projection": w.dense("visual_projection"),
            **w.blocks("vision_model", config.image.depth),
        },
        "text": {
            "token_embedding": {"embedding": w["text_model.embeddings.token_embedding.weight"]},
            "positions": w["text_model.embeddings.position_embedding.weight"],
            "norm_post": w.norm("text_model.final_layer_norm"),
            "projection": w.dense("text_projection"),
            **w.blocks("text_model", config.text.depth),
        },
        "logit_scale": w["logit_scale"],
    }


def siglip_params(state, config):
    w = Weights(state)
    head = "vision_model.head"
    joint, bias = w[f"{head}.attention.in_proj_weight"], w[f"{head}.attention.in_proj_bias"]
    attention = {
        name: {"kernel": kernel.T, "bias": part}
        for name, kernel, part in zip(
            ("query", "key", "value"), np.split(joint, 3), np.split(bias, 3), strict=True
        )
    }
    return {
        "image": {
            "patch_embedding": w.patch_embedding("vision_model.embeddings.patch_embedding"),
            "positions": w["vision_model.embeddings.position_embedding.weight"],
            "norm_post": w.norm("vision_model.post_layernorm"),
            "attention_pool": {
                "probe": w[f"{head}.probe"],
                "attention": {**attention, "out": w.dense(f"{head}.attention.out_proj")},
                "norm": w.norm(f"{head}.layernorm"),
                "mlp": {"up": w.dense(f"{head}.mlp.fc1"), "down": w.dense(f"{head}.mlp.fc2")},
            },
            **w.blocks("vision_model", config.image.depth),
        },
        "text": {
            "token_embedding": {"embedding": w["text_model.embeddings.token_embedding.weight"]},
            "positions": w["text_model.embeddings.position_embedding.weight"],
            "norm_post": w.norm("text_model.final_layer_norm"),
            "projection": w.dense("text_model.head"),
            **w.blocks("text_model", config.text.depth),
        },
        "logit_scale": w["logit_scale"].reshape(()),
        "logit_bias": w["logit_bias"].reshape(()),
    }


def compare(config, theirs, params, images, tokens):
    model = models.build(config)
    drawn = jax.eval_shape(model.init, jax.random.key(0))
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, drawn)
    with torch.no_grad():
        out = theirs(
            input_ids=torch.from_numpy(tokens).long(),
            pixel_values=torch.from_numpy(images.transpose(0, 3, 1, 2).copy()),
        )
    image = jax.jit(model.encode_image)(params, images)
    text = jax.jit(model.encode_text)(params, tokens)
    np.testing.assert_allclose(image, out.image_embeds, atol=2e-6)
    np.testing.assert_allclose(text, out.text_embeds, atol=2e-6)
    logits = np.exp(params["logit_scale"]) * image @ text.T + params.get("logit_bias", 0.0)
    np.testing.assert_allclose(logits, out.logits_per_image, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
def test_clip(activation):
    config = small.change(
        small.CLIP, image={"activation": activation}, text={"activation": activation}
    )
    end = config.text.vocab_size - 1
    theirs = transformers.CLIPModel(
        transformers.CLIPConfig(
            text_config={
                **shape_of(config.text),
                "vocab_size": config.text.vocab_size,
                "max_position_embeddings": config.text.context_length,
                "eos_token_id": end,
                "bos_token_id": end - 1,
                "pad_token_id": 0,
            },
            vision_config={**shape_of(config.image), "image_size": 8, "patch_size": 4},
            projection_dim=config.embed_dim,
        )
    )
    theirs = randomized(theirs)
    images, tokens = small.batch(config)
    tokens = np.where(tokens == end, 1, tokens)
    last = np.array([np.flatnonzero(row)[-1] for row in tokens])
    tokens[np.arange(len(tokens)), last] = end
    compare(config, theirs, clip_params(theirs.state_dict(), config), images, tokens)


def test_siglip():
    config = small.SIGLIP
    # The two towers share their width in Hugging Face's model.
    config = small.change(config, text={"width": 16, "num_heads": 2})
    theirs = transformers.SiglipModel(
        transformers.SiglipConfig(
            text_config={
                **shape_of(config.text),
                "vocab_size": config.text.vocab_size,
                "max_position_embeddings": config.text.context_length,
                "projection_size": config.embed_dim,
                "pad_token_id": 0,
                "bos_token_id": 1,
                "eos_token_id": 2,
            },
            vision_config={**shape_of(config.image), "image_size": 8, "patch_size": 4},
        )
    )
    theirs = randomized(theirs)
    images, tokens = small.batch(config)
    compare(config, theirs, siglip_params(theirs.state_dict(), config), images, tokens)


def test_presets_have_the_published_eps_and_scale():
    """What a configuration of theirs says of the released models and the tables do not."""
    clip, siglip = transformers.CLIPConfig(), transformers.SiglipConfig()
    ours = models.presets.get("vit_b32_quickgelu")
    assert ours.image.norm_eps == clip.vision_config.layer_norm_eps
    assert ours.image.activation == clip.vision_config.hidden_act
    assert math.isclose(ours.logit_scale_init, clip.logit_scale_init_value, abs_tol=1e-4)
    ours = models.presets.get("siglip_b16")
    assert ours.image.norm_eps == ours.text.norm_eps == siglip.vision_config.layer_norm_eps
    assert siglip.vision_config.hidden_act == "gelu_pytorch_tanh"
