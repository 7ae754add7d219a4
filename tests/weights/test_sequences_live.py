"""Sequence models of published shapes with random weights, against the code that publishes them.

Two blocks a tower and few tokens; all other sizes are the published ones. ``open_clip_models.py``
compares both towers of open_clip's models; here are what it leaves out: SigLIP 2 NaFlex, and CoCa's
decoder and captions.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip import models, objectives
from jaxclip.inference import generate
from jaxclip.inference.caption import captioner
from jaxclip.models import PatchSequence
from jaxclip.train import towers
from jaxclip.weights.checkpoint import open_checkpoint

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
coca_model = pytest.importorskip("open_clip.coca_model")
sweep = pytest.importorskip("tests.weights.open_clip_models")
pytestmark = pytest.mark.slow

START, END = 398, 399


@pytest.mark.parametrize(("width", "heads", "mlp_dim"), [(768, 12, 3072), (1152, 16, 4304)])
def test_naflex(tmp_path, width, heads, mlp_dim):
    """The shapes of google/siglip2-base-patch16-naflex and siglip2-so400m-patch16-naflex."""
    shape = {"hidden_size": width, "num_attention_heads": heads, "intermediate_size": mlp_dim}
    shape |= {"num_hidden_layers": 2}
    ids = {"bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0}
    config = transformers.Siglip2Config(
        text_config={**shape, **ids, "vocab_size": 1000}, vision_config=shape
    )
    torch.manual_seed(0)
    model = transformers.Siglip2Model(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path)
    opened = open_checkpoint(tmp_path)
    assert opened.family == "hf_siglip2" and opened.sizes.image.max_patches == 256
    rng = np.random.default_rng(0)
    grid = np.array([[16, 16], [9, 28], [40, 2], [1, 1]], np.int32)
    valid = np.arange(256) < grid.prod(1)[:, None]
    patches = np.where(valid[..., None], rng.standard_normal((4, 256, 768)), 0).astype(np.float32)
    tokens = rng.integers(2, 1000, (4, 64)).astype(np.int32)
    with torch.no_grad():
        theirs = model(
            input_ids=torch.from_numpy(tokens).long(),
            pixel_values=torch.from_numpy(patches),
            pixel_attention_mask=torch.from_numpy(valid).int(),
            spatial_shapes=torch.from_numpy(grid).long(),
        )
    clip, params = models.build(opened.sizes), opened.read()
    image = jax.jit(clip.image_features)(params, PatchSequence(patches, valid, grid))
    text = jax.jit(clip.text_features)(params, tokens)
    logits = jnp.exp(params["logit_scale"]) * image.embedding @ text.embedding.T
    found = {
        "image": (image.embedding, theirs.image_embeds),
        "text": (text.embedding, theirs.text_embeds),
        "logits": (logits + params["logit_bias"], theirs.logits_per_image),
        "image tokens": (image.tokens[valid], theirs.vision_model_output[0][valid]),
        "text tokens": (text.tokens, theirs.text_model_output[0]),
    }
    differ = {key: float(np.abs(a - b.numpy()).max()) for key, (a, b) in found.items()}
    print(differ)
    assert all(value <= (2e-5 if "tokens" in key else 1e-5) for key, value in differ.items())


@pytest.fixture(scope="module", params=["coca_ViT-B-32", "coca_ViT-L-14", "coca_base"])
def coca(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    model, config = sweep.build(request.param)
    with torch.no_grad():  # so that logits differ enough to choose by
        model.text_decoder.text_projection.normal_(std=0.1)
    sweep.write(model, config, folder)
    opened = open_checkpoint(folder)
    assert opened.family == "open_clip_coca"
    images, tokens = sweep.inputs(model, config)
    count = min(len(images), len(tokens))
    return model, opened, images[:count], tokens[:count]


def test_logits_of_the_decoder(coca):
    model, opened, images, tokens = coca
    with torch.no_grad():
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
        expected = model(pixels, torch.from_numpy(tokens).long(), output_labels=False)["logits"]
    clip, params = models.build(opened.sizes), opened.read()
    term = objectives.REGISTRY.build(opened.terms[0])

    @jax.jit
    def run(params, images, tokens):
        made = {
            "image_tokens": clip.image_features(params, images).tokens,
            "text_tokens": clip.text_features(params, tokens).tokens,
        }
        return term.logits(params["objective"]["coca"], made, opened.sizes)

    differ = float(np.abs(run(params, images, tokens) - expected.numpy()).max())
    print(differ, "of", float(expected.abs().max()))
    assert differ <= 1e-5 * max(1.0, float(expected.abs().max()))


def write_captions(opened, images, method, frame, **options):
    term = objectives.REGISTRY.build(opened.terms[0])
    made = towers.ModelTowers(models.build(opened.sizes), (0, 0, 0), (1 / 255,) * 3, "float32")
    write = jax.jit(captioner(made, term, frame, method, options))
    return np.asarray(write(opened.read(), images, jax.random.key(0)))


def test_greedy_captions_are_those_of_open_clips_generate(coca, monkeypatch):
    """Its own loop; transformers 5 lacks the beam search that its import asks for, too."""
    model, opened, images, _ = coca
    for name in (
        "LogitsProcessorList", "TopKLogitsWarper", "TopPLogitsWarper", "MaxLengthCriteria",
        "MinLengthLogitsProcessor", "RepetitionPenaltyLogitsProcessor", "StoppingCriteriaList",
    ):  # fmt: skip
        monkeypatch.setattr(coca_model, name, getattr(transformers, name), raising=False)
    monkeypatch.setattr(coca_model, "_has_transformers", True)
    monkeypatch.setitem(coca_model.GENERATION_TYPES, "top_k", transformers.TopKLogitsWarper)
    with torch.no_grad():
        expected = model.generate(
            torch.from_numpy(images).permute(0, 3, 1, 2), generation_type="top_k", top_k=1,
            seq_len=12, min_seq_len=5, sot_token_id=START, eos_token_id=END, pad_token_id=400,
            fixed_output_length=True,
        ).numpy()  # fmt: skip
    frame = generate.Frame(12, START, END, 0, min_length=5)
    expected = np.where(expected == 400, 0, expected)  # there padding is what ends a text, too
    np.testing.assert_array_equal(write_captions(opened, images, "greedy", frame), expected)


def test_beams_are_those_of_a_slow_search_over_open_clip(coca):
    model, opened, images, _ = coca
    beams, length, least = 3, 9, 4
    frame = generate.Frame(length, START, END, 0, min_length=least)
    found = write_captions(opened, images, "beam", frame, num_beams=beams)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
    with torch.no_grad():
        latent, seen = model._encode_image(pixels)
    for row in range(len(images)):
        search = functools.partial(following, model, pixels, latent, seen, row)
        text = slow_beam(search, beams, length, least)
        assert found[row].tolist() == [*text, *[0] * (length - len(text))]


def following(model, pixels, latent, seen, row, text):
    """Log-probabilities of the next token."""
    one = slice(row, row + 1)
    with torch.no_grad():
        out = model(
            pixels[one], torch.tensor([text]), image_latent=latent[one], image_embs=seen[one],
            output_labels=False,
        )  # fmt: skip
    return torch.log_softmax(out["logits"][0, -1].double(), 0).numpy()


def slow_beam(log_probabilities, beams, length, least):
    running, ended = [(0.0, [START])], []
    for place in range(1, length):
        candidates = []
        for total, text in running:
            scores = log_probabilities(text).copy()
            if place < least:
                scores[END] = -math.inf
            allowed = [END] if place == length - 1 else range(len(scores))
            candidates += [(total + scores[token], [*text, token]) for token in allowed]
        candidates.sort(key=lambda each: -each[0])
        ended += [(s / (len(t) - 1), t) for s, t in candidates[:beams] if t[-1] == END]
        going = [each for each in candidates[: 2 * beams] if each[1][-1] != END]
        running = going[:beams]
    return max(ended, key=lambda each: each[0])[1]
