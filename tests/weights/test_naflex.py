"""SigLIP 2 NaFlex: pictures of any aspect ratio, equal to transformers' numbers."""

import logging
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import jaxclip
from jaxclip import config as config_lib
from jaxclip import models
from jaxclip.inference import embed, pictures, programs
from jaxclip.models.patch_sequence import PatchSequence, sequence_positions
from jaxclip.train import checks
from jaxclip.weights.checkpoint import open_checkpoint
from tests.models import small

GOLDEN = pathlib.Path(__file__).parent / "golden" / "hf_siglip2"


@pytest.fixture(scope="module")
def opened():
    return open_checkpoint(GOLDEN)


@pytest.fixture(scope="module")
def setting(opened):
    params, model = opened.read(), models.build(opened.sizes)
    return model, params, jax.jit(lambda sequence: model.image_features(params, sequence))


@pytest.fixture(scope="module")
def expected():
    return np.load(GOLDEN / "expected.npz")


def sequence_of(expected):
    return PatchSequence(*(jnp.asarray(expected[key]) for key in PatchSequence._fields))


def test_outputs_are_those_of_transformers(setting, expected, opened):
    model, params, features = setting
    assert opened.family == "hf_siglip2" and opened.sizes.image.max_patches == 7
    out = features(sequence_of(expected))
    text = jax.jit(model.encode_text)(params, expected["tokens"])
    np.testing.assert_allclose(out.embedding, expected["image"], atol=2e-6)
    np.testing.assert_allclose(text, expected["text"], atol=2e-6)
    valid = expected["valid"]
    np.testing.assert_allclose(out.tokens[valid], expected["image_tokens"][valid], atol=1e-5)
    logits = jnp.exp(params["logit_scale"]) * out.embedding @ text.T + params["logit_bias"]
    np.testing.assert_allclose(logits, expected["logits"], atol=1e-5)


def test_what_padding_holds_and_how_much_there_is_changes_nothing(setting, expected):
    _, _, features = setting
    first = sequence_of(expected)
    padded = jax.tree.map(lambda x: jnp.pad(x, ((0, 0), (0, 4), (0, 0))[: x.ndim]), first)
    padded = padded._replace(grid=first.grid)
    other = jnp.where(padded.valid[..., None], padded.patches, 1e4)
    before = features(first).embedding
    after = features(padded._replace(patches=other)).embedding
    np.testing.assert_allclose(after, before, atol=1e-6)


@pytest.mark.parametrize("grid", [(2, 7), (9, 3)])
def test_positions_are_those_of_a_bilinear_resize(grid):
    table = jax.random.normal(jax.random.key(0), (16, 3))
    found = sequence_positions(table, 4, jnp.array([grid]), 30)[0, : grid[0] * grid[1]]
    shape = (*grid, 3)
    wanted = jax.image.resize(table.reshape(4, 4, 3), shape, "bilinear", antialias=True)
    np.testing.assert_allclose(found, wanted.reshape(-1, 3), atol=1e-6)


def test_a_square_picture_of_the_tables_size_is_as_in_a_fixed_tower():
    shallow = small.change(small.SIGLIP, image={"depth": 1}, text={"depth": 1})
    plain = models.build(shallow)
    native = models.build(small.change(shallow, image={"max_patches": 9}))
    params = small.params_for(plain)
    pixels = np.random.default_rng(0).standard_normal((2, 8, 8, 3)).astype(np.float32)
    expected = jax.jit(plain.encode_image)(params, pixels)
    np.testing.assert_allclose(jax.jit(native.encode_image)(params, pixels), expected, atol=1e-6)
    pieces = pixels.reshape(2, 2, 4, 2, 4, 3).transpose(0, 1, 3, 2, 4, 5).reshape(2, 4, 48)
    grid = np.full((2, 2), 2, np.int32)
    sequence = PatchSequence(pieces, np.ones((2, 4), bool), grid)
    np.testing.assert_allclose(jax.jit(native.encode_image)(params, sequence), expected, atol=1e-6)


def test_mean_pooling_and_dropped_patches_leave_padding_out():
    config = small.change(small.SIGLIP, image={"max_patches": 6, "pool": "mean", "depth": 1})
    model = models.build(config)
    params = small.params_for(model)
    rng = np.random.default_rng(0)
    patches = rng.standard_normal((1, 6, 48)).astype(np.float32)
    sequence = PatchSequence(patches, np.arange(6)[None] < 4, np.array([[2, 2]], np.int32))
    features = jax.jit(lambda s, keep: model.image_features(params, s, keep=keep))
    out = features(sequence, None)
    np.testing.assert_allclose(out.pooled[0], out.tokens[0, :4].mean(0), atol=1e-6)
    kept = features(sequence, jnp.array([[0, 1, 2, 3, 5]]))
    np.testing.assert_allclose(kept.embedding, out.embedding, atol=1e-6)
    assert kept.valid.tolist() == [[True] * 4 + [False]]


def test_load_takes_pictures_of_any_aspect_ratio(setting, tmp_path):
    towers, params, _ = setting
    model = jaxclip.load(GOLDEN)
    assert "up to 7 patches" in repr(model)
    rng = np.random.default_rng(0)
    arrays = [rng.integers(0, 256, (*size, 3), np.uint8) for size in ((12, 8), (4, 20), (30, 31))]
    batch = model.preprocess(arrays)
    assert batch.grid.tolist() == [[3, 2], [1, 5], [2, 3]] and batch.patches.dtype == np.uint8
    found = model.encode_image(batch)
    # The first needs no resizing; its pixels are normalised with mean and deviation 0.5.
    pixels = jnp.asarray(arrays[0][None] / 127.5 - 1, jnp.float32)
    alone = jax.jit(towers.encode_image)(params, pixels)
    np.testing.assert_allclose(found[0], alone[0], atol=2e-6)
    for number, array in enumerate(arrays):
        Image.fromarray(array).save(tmp_path / f"{number}.png")
    (tmp_path / "3.png").write_bytes(b"no picture")
    to = tmp_path / "embeddings"
    summary = embed.embed_images(model, pictures.open_pictures(tmp_path), to, batch_size=2)
    assert summary.embedded == 3 and sum(summary.bad.values()) == 1
    ids, embeddings = embed.read_embeddings(to)
    assert ids == ["0.png", "1.png", "2.png"]
    np.testing.assert_allclose(embeddings, found, atol=2e-6)


def test_a_tower_of_squares_refuses_patch_sequences(expected):
    model = models.build(small.SIGLIP)
    with pytest.raises(ValueError, match=r"for NaFlex models .*takes \[B, 8, 8, 3\]"):
        jax.eval_shape(model.encode_image, small.params_for(model), sequence_of(expected))


def test_patch_sequences_of_another_patch_size_are_refused(setting, expected):
    model, params, _ = setting
    sequence = sequence_of(expected)
    wrong = sequence._replace(patches=sequence.patches[..., :27])
    with pytest.raises(ValueError, match=r"shapes \(2, 7, 27\).*use \[B, N, 48\]"):
        model.encode_image(params, wrong)


def test_a_configuration_that_cant_take_sequences_is_refused():
    with pytest.raises(ValueError, match=r"max_patches=9 .*pool='map' or 'mean', got .*'cls'"):
        models.ImageConfig(max_patches=9)


def test_a_pipeline_of_squares_says_that_the_aspect_ratio_is_lost(opened, caplog):
    model = {**opened.sizes.to_dict(), "preset": "tiny"}
    model["text"].pop("pad_id")
    config = config_lib.resolve({"model": model, "tokenizer": {"kind": "siglip", "path": "x"}})
    with caplog.at_level(logging.WARNING, "jaxclip"):
        checks.warn_of_squares(config)
    assert "NaFlex" in caplog.text and "squares of 16 x 16 pixels" in caplog.text
    caplog.clear()
    made = programs.towers_of(config, opened.read())
    assert made[0].row == (16, 16, 3) and "squares of 16 x 16 pixels" in caplog.text
    caplog.clear()
    for preset in ("tiny", "rn50"):
        checks.warn_of_squares(config_lib.resolve({"model": {"preset": preset}}))
    assert not caplog.text
