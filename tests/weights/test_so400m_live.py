"""So400m at full depth against transformers: slow, and 4 GB of parameters at a time."""

import gc

import jax
import numpy as np
import pytest

from jaxclip import models
from jaxclip.models import presets
from jaxclip.weights.checkpoint import open_checkpoint

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.slow

SHAPE = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27,
         "num_attention_heads": 16}  # fmt: skip
# Side of an image and of a patch, vocabulary, and length of a text.
PUBLISHED = {
    "siglip_so400m_patch14_224": (224, 14, 32_000, 16),
    "siglip2_so400m_patch16_256": (256, 16, 256_000, 64),
}


def theirs(name, folder, images, tokens):
    """What transformers computes of random weights, which it writes; and in float64."""
    image_size, patch_size, vocab_size, length = PUBLISHED[name]
    config = transformers.SiglipConfig(
        vision_config={**SHAPE, "image_size": image_size, "patch_size": patch_size},
        text_config={**SHAPE, "vocab_size": vocab_size, "max_position_embeddings": length,
                     "projection_size": 1152},
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.SiglipModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1 and parameter.numel() > 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
        model.logit_scale.fill_(np.log(10.0))
        model.logit_bias.fill_(-10.0)
    model.save_pretrained(folder)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2)

    def run(dtype):
        with torch.no_grad():
            out = model(input_ids=torch.from_numpy(tokens).long(), pixel_values=pixels.to(dtype))
        found = {
            "image": out.image_embeds,
            "text": out.text_embeds,
            "logits": out.logits_per_image,
            "image tokens": out.vision_model_output[0],
            "text tokens": out.text_model_output[0],
        }
        return {key: value.double().numpy() for key, value in found.items()}

    single = run(torch.float32)
    model.double()
    double = run(torch.float64)
    return single, double


def largest(one, other):
    return {key: float(np.abs(one[key] - other[key]).max()) for key in one}


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_so400m_at_full_depth(name, tmp_path):
    """Float32 within 1e-5 of transformers; bfloat16 as near as its weights allow."""
    image_size, _, vocab_size, length = PUBLISHED[name]
    rng = np.random.default_rng(0)
    images = rng.standard_normal((2, image_size, image_size, 3)).astype(np.float32)
    tokens = rng.integers(2, vocab_size, (2, length)).astype(np.int32)
    single, double = theirs(name, tmp_path, images, tokens)
    gc.collect()  # torch's 4 GB, or 8 in float64
    opened = open_checkpoint(tmp_path)
    assert opened.family == "hf_siglip"
    params = jax.device_put(opened.read())
    count = sum(leaf.size for leaf in jax.tree.leaves(params))

    def run(**options):
        clip = models.build(opened.sizes, **options)

        @jax.jit
        def compute(params, images, tokens):
            image, text = clip.image_features(params, images), clip.text_features(params, tokens)
            logits = jax.numpy.exp(params["logit_scale"]) * image.embedding @ text.embedding.T
            return {
                "image": image.embedding,
                "text": text.embedding,
                "logits": logits + params["logit_bias"],
                "image tokens": image.tokens,
                "text tokens": text.tokens,
            }

        found = compute(params, images, tokens)
        return {key: np.asarray(value, np.float64) for key, value in found.items()}

    ours = run()
    print(f"\n{name}: {count / 1e6:.0f} million parameters")
    print("ours - theirs", largest(ours, single))
    print("ours - float64", largest(ours, double))
    print("theirs - float64", largest(single, double))
    print("largest token", {key: float(np.abs(double[key]).max()) for key in double})
    half = run(dtype="bfloat16", residual_dtype="float32")
    worst = {
        key: float(1 - np.sum(half[key] * double[key], axis=1).min()) for key in ("image", "text")
    }
    print("bfloat16: 1 - cosine", worst)
    for key, value in largest(ours, single).items():
        assert value <= 1e-5, (key, value)
    assert max(worst.values()) <= 1e-4
    if image_size == 224:
        assert opened.sizes == presets.get("siglip_so400m_14")
