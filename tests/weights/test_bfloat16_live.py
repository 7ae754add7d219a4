"""bfloat16 at full size against transformers' own: slow. `pytest -m slow -s` prints the numbers."""

import jax
import numpy as np
import pytest

from jaxclip import models
from jaxclip.models import presets
from jaxclip.models.products import rules
from jaxclip.weights import export
from jaxclip.weights.checkpoint import open_checkpoint
from tests.weights import adamw_step

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.slow

RESIDUAL = {"dtype": "bfloat16", "residual_dtype": "float32"}  # what jaxclip.load does
SPLIT = {f"bfloat16x{n}": {"name": "split_bfloat16", "terms": n} for n in (2, 3)}


def embeddings(model, images, tokens):
    """float64 unit embeddings by transformers."""
    with torch.no_grad():
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2).to(model.dtype)
        out = model(input_ids=torch.from_numpy(tokens).long(), pixel_values=pixels)
    return unit(out.image_embeds.double().numpy()), unit(out.text_embeds.double().numpy())


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def rounded(params):
    """Parameters that a bfloat16 file would hold."""
    return jax.tree.map(lambda x: np.asarray(x, jax.numpy.bfloat16).astype(np.float32), params)


@pytest.mark.parametrize(
    ("family", "preset"), [("hf_clip", "vit_b32_quickgelu"), ("hf_siglip", "siglip_b16")]
)
def test_one_less_the_cosine_with_float32(family, preset, tmp_path, capsys):
    sizes = presets.get(preset)
    params = adamw_step.random_parameters(sizes)
    preprocess = open_checkpoint(adamw_step.GOLDEN / family).preprocess
    export.export_checkpoint(params, sizes, family, tmp_path / "to", preprocess)
    theirs = transformers.AutoModel.from_pretrained(tmp_path / "to").eval()
    text = sizes.text
    images, tokens = adamw_step.inputs(
        sizes.image.image_size, text.context_length, text.vocab_size, 2, causal=text.causal
    )
    exact = embeddings(theirs, images, tokens)

    def ours(product=None, params=params, **options):
        model = models.build(sizes, **options)
        found = []
        for tower, array in (("image", images), ("text", tokens)):
            with rules.applied(rules.from_config(product), tower):
                encode = model.encode_image if tower == "image" else model.encode_text
                found.append(unit(np.asarray(jax.jit(encode)(params, array), np.float64)))
        return found

    found = {
        "float32": ours(),
        "float32, of weights that were rounded to bfloat16": ours(params=rounded(params)),
        "bfloat16": ours(**RESIDUAL),
        **{key: ours(product) for key, product in SPLIT.items()},
        "all of it in bfloat16": ours(dtype="bfloat16"),
    }
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found["transformers under torch.autocast"] = embeddings(theirs, images, tokens)
    found["transformers in bfloat16"] = embeddings(theirs.bfloat16(), images, tokens)
    worst = {
        key: [float(1 - np.sum(a * b, axis=-1).min()) for a, b in zip(pair, exact, strict=True)]
        for key, pair in found.items()
    }
    with capsys.disabled():
        print(f"\n{preset}: 1 - cosine with float32, image and text")
        for key, (image, other) in worst.items():
            print(f"  {key}: {image:.1e}, {other:.1e}")
    assert max(worst["float32"]) < 1e-11
    for place in (0, 1):
        by = {key: pair[place] for key, pair in worst.items()}
        # As near as rounded weights allow, and never farther than the other library.
        assert by["bfloat16"] < 2 * by["float32, of weights that were rounded to bfloat16"]
        assert by["bfloat16"] < by["all of it in bfloat16"]
        assert by["bfloat16"] < 1.5 * by["transformers under torch.autocast"]
        assert by["bfloat16x2"] < 1e-5 and by["bfloat16x3"] < 2e-7
