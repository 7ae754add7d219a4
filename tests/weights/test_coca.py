"""CoCa: towers, decoder and captions equal to open_clip's."""

import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxclip
from jaxclip import models, objectives
from jaxclip.inference import convert
from jaxclip.models.attention_logits import largest_attention_logits
from jaxclip.train import init_from
from jaxclip.weights.checkpoint import open_checkpoint
from tests.models import small

GOLDEN = pathlib.Path(__file__).parent / "golden" / "open_clip_coca"
START, END = 46, 47


@pytest.fixture(scope="module")
def opened():
    return open_checkpoint(GOLDEN)


@pytest.fixture(scope="module")
def expected():
    return np.load(GOLDEN / "expected.npz")


@pytest.fixture(scope="module")
def outputs(opened):
    model, term = models.build(opened.sizes), objectives.REGISTRY.build(opened.terms[0])
    params = opened.read()

    @jax.jit
    def run(images, tokens):
        image, text = model.image_features(params, images), model.text_features(params, tokens)
        made = {"image_tokens": image.tokens, "text_tokens": text.tokens}
        return image, text, term.logits(params["objective"]["coca"], made, opened.sizes)

    return run


def test_tokens_and_logits_are_those_of_open_clip(outputs, expected):
    image, text, logits = outputs(expected["images"], expected["tokens"])
    np.testing.assert_allclose(image.tokens, expected["image_tokens"], atol=5e-6)
    np.testing.assert_allclose(logits, expected["logits"], atol=1e-5)
    assert image.tokens.shape == (2, 4, 12) and image.prefix.shape == (2, 1, 12)
    assert text.tokens.shape == (2, 8, 12) and text.prefix.shape == (2, 1, 12)
    np.testing.assert_allclose(text.pooled, text.prefix[:, 0], atol=1e-6)


def test_a_text_sees_neither_the_class_token_nor_what_follows(opened, outputs, expected):
    images, tokens = expected["images"], expected["tokens"]
    _, text, logits = outputs(images, tokens)
    changed = tokens.copy()
    changed[:, 5] = 7
    _, other, after = outputs(images, changed)
    np.testing.assert_array_equal(after[:, :5], logits[:, :5])
    assert np.abs(other.embedding - text.embedding).max() > 1e-3


def test_one_place_of_the_decoder_is_that_of_all(opened, outputs, expected):
    image, text, logits = outputs(expected["images"], expected["tokens"])
    term = objectives.REGISTRY.build(opened.terms[0])
    own = opened.read()["objective"]["coca"]
    at = jax.jit(lambda place: term.decode(own, text.tokens, image.tokens, opened.sizes, at=place))
    np.testing.assert_allclose(at(3)[:, 0], logits[:, 3], atol=1e-6)


class Words:
    """A tokenizer of 48 words."""

    vocab_size, start_id, end_id, pad_id = 48, START, END, 0

    def decode(self, ids):
        ids = [int(i) for i in ids]
        return " ".join(f"w{i}" for i in ids[1 : ids.index(END)])


def loaded(path):
    model = jaxclip.load(path)
    model.__dict__["_tokenizer"] = Words()
    return model


def test_captions_are_those_of_a_loop_over_open_clip(expected):
    """Greedy; the last place alone is forced to be the end."""
    model = loaded(GOLDEN)
    mean, std = (np.array(model.config["data"][key]) for key in ("image_mean", "image_std"))
    pixels = ((expected["images"] * std + mean) * 255).astype(np.float32)
    found = model.caption(pixels, method="greedy", min_length=7)
    for words, row in zip(found, expected["greedy"], strict=True):
        assert words == " ".join(f"w{i}" for i in row[1:7])


@pytest.mark.slow
def test_an_imported_workdir_writes_the_same_captions(tmp_path):
    model = loaded(GOLDEN)
    picture = np.random.default_rng(0).integers(0, 256, (9, 13, 3), np.uint8)
    (caption,) = model.caption(picture, num_beams=2)
    assert 4 <= len(caption.split()) <= 6  # 8 places, 2 of them start and end
    assert model.caption([picture, picture], method="nucleus", seed=1)[0].startswith("w")
    convert.import_weights(GOLDEN, tmp_path / "run")
    again = loaded(tmp_path / "run")
    assert "objective" not in again.params
    assert again.caption(picture, num_beams=2) == [caption]
    np.testing.assert_array_equal(
        again.encode_image(again.preprocess(picture)), model.encode_image(model.preprocess(picture))
    )


def test_a_run_with_the_objective_starts_from_decoder_and_all(opened):
    given = opened.read()
    term = objectives.REGISTRY.build(opened.terms[0])
    initial = jax.eval_shape(models.build(opened.sizes).init, jax.random.key(0))
    own = jax.eval_shape(lambda rng: term.init_params(rng, opened.sizes), jax.random.key(0))
    initial = {**initial, "objective": {"coca": own}}
    initial = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), initial)
    params, report = init_from.merge(initial, given, path="x")
    assert not (report.new or report.left or report.resized)
    decoder = params["objective"]["coca"]["decoder"]
    np.testing.assert_array_equal(
        decoder["logits"]["kernel"], given["objective"]["coca"]["decoder"]["logits"]["kernel"]
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "beams"}, r"unknown method 'beams' of captions; did you mean 'beam'"),
        ({"method": "greedy", "num_beams": 2}, r"unknown option 'num_beams' of method 'greedy'"),
        ({"min_length": 30}, r"length=8 must be .* above min_length=30"),
    ],
)
def test_bad_options_are_refused(options, message):
    model = loaded(GOLDEN)
    with pytest.raises(ValueError, match=message):
        model.caption(np.zeros((8, 8, 3), np.uint8), **options)


def test_a_model_without_a_decoder_says_so():
    model = loaded(GOLDEN.parent / "open_clip")
    with pytest.raises(ValueError, match=r"open_clip has no captioning decoder: .*CoCa"):
        model.caption(np.zeros((8, 8, 3), np.uint8))


def test_what_is_asked_of_towers_works_with_a_class_token_behind():
    config = small.change(small.CLIP, text={"pool": "cls", "depth": 1}, image={"depth": 1})
    model = models.build(config)
    params = small.params_for(model)
    tokens = np.array([[3, 0, 5, 39, 0, 0], [7, 4, 9, 1, 6, 39]], np.int32)
    features = jax.jit(
        lambda tokens, keep: model.text_features(params, tokens, keep=keep, hidden=(0,))
    )
    out = features(tokens, None)
    every = features(tokens, jnp.broadcast_to(jnp.arange(6), (2, 6)))
    np.testing.assert_allclose(every.embedding, out.embedding, atol=1e-6)
    assert out.hidden[0].shape == (2, 7, 12) and out.tokens.shape == (2, 6, 12)
    logits = jax.eval_shape(
        lambda t: largest_attention_logits(model.text, params["text"], t), tokens
    )
    assert logits.shape == (1, 3)


def test_a_bidirectional_text_cant_have_the_class_token():
    with pytest.raises(ValueError, match=r"pool='cls' .*causal=True"):
        models.TextConfig(pool="cls", causal=False)


def test_decoders_of_other_heads_are_refused(tmp_path):
    shutil.copytree(GOLDEN, tmp_path / "m")
    path = tmp_path / "m" / "open_clip_config.json"
    config = json.loads(path.read_text())
    config["model_cfg"]["multimodal_cfg"]["heads"] = 4
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"multimodal_cfg\.heads=4 and text_cfg\.heads=2 differ"):
        open_checkpoint(tmp_path / "m")
