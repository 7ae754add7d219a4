"""RoBERTa text towers: open_clip's numbers, and what stages and users ask of them."""

import dataclasses
import json
import logging
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxclip
from jaxclip import models
from jaxclip.weights.checkpoint import open_checkpoint
from tests.data import test_roberta_tokens

GOLDEN = pathlib.Path(__file__).parent / "golden" / "open_clip_roberta"


@pytest.fixture(scope="module")
def setting():
    opened = open_checkpoint(GOLDEN)
    model, params = models.build(opened.sizes), opened.read()
    run = jax.jit(
        lambda tokens: model.text_features(params, tokens, hidden=(0, 1, 2), attention=(0, 1))
    )
    return opened, model, params, run


def test_tokens_are_those_of_open_clip(setting):
    opened, _, _, run = setting
    expected = np.load(GOLDEN / "expected.npz")
    out = run(expected["tokens"])
    assert opened.sizes.text.num_positions == 12 and opened.sizes.text.kind == "roberta"
    np.testing.assert_allclose(out.embedding, expected["text"], atol=2e-6)
    np.testing.assert_allclose(out.tokens, expected["text_tokens"], atol=5e-6)
    np.testing.assert_array_equal(out.valid, expected["tokens"] != 1)
    np.testing.assert_array_equal(out.hidden[2], out.tokens)


def test_padding_changes_nothing_wherever_it_stands(setting):
    _, _, _, run = setting
    short = np.array([[0, 9, 8, 2, 1, 1, 1, 1], [0, 9, 1, 1, 8, 1, 2, 1]], np.int32)
    out = run(short)
    np.testing.assert_allclose(out.embedding[1], out.embedding[0], atol=1e-6)
    assert not (out.attention[0][0, :, :, 4:] > 1e-9).any()


def test_parts_of_a_block_are_those_of_the_tower(setting):
    """Attention weights that qkv explains; what a block adds, by hand."""
    _, model, params, run = setting
    tokens = np.load(GOLDEN / "expected.npz")["tokens"][1:]  # without padding
    out = run(tokens)
    query, key, value = model.text.qkv(params["text"], out.hidden[1], 1)
    weights = models.softmax_weights(query, key)
    np.testing.assert_allclose(weights, out.attention[1], atol=1e-6)
    block = params["text"]["blocks_1"]
    y = out.hidden[1] + model.text.attention_out(params["text"], weights, value, 1)

    def norm(x, name):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return x * block[name]["scale"] + block[name]["bias"]

    y = norm(np.asarray(y), "attention_norm")
    up = y @ block["mlp"]["up"]["kernel"] + block["mlp"]["up"]["bias"]
    down = np.asarray(jax.nn.gelu(up, approximate=False)) @ block["mlp"]["down"]["kernel"]
    expected = norm(y + down + block["mlp"]["down"]["bias"], "mlp_norm")
    np.testing.assert_allclose(out.hidden[2], expected, atol=2e-5)


def test_kept_places_and_initial_parameters(setting):
    _, model, params, run = setting
    tokens = np.load(GOLDEN / "expected.npz")["tokens"]
    keep = jnp.broadcast_to(jnp.arange(5), (2, 5))
    kept = jax.jit(lambda t: model.text_features(params, t, keep=keep))(tokens)
    np.testing.assert_allclose(kept.embedding[0], run(tokens).embedding[0], atol=1e-6)
    shapes = jax.eval_shape(model.init, jax.random.key(0))["text"]
    assert jax.tree.map(np.shape, params["text"]) == jax.tree.map(np.shape, shapes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"causal": True}, r"kind='roberta' needs causal=False"),
        ({"num_positions": 9}, r"num_positions=9 is too few for context_length=8"),
    ],
)
def test_configurations_that_dont_fit_are_refused(setting, change, message):
    sizes = setting[0].sizes
    with pytest.raises(ValueError, match=message):
        models.build(dataclasses.replace(sizes, text=dataclasses.replace(sizes.text, **change)))


def test_an_unknown_kind_names_the_nearest():
    with pytest.raises(ValueError, match=r"unknown model\.text\.kind 'robert'.*'roberta'"):
        models.TextConfig(kind="robert")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hf_model_name": "bert-base-uncased"}, r"'bert-base-uncased' with 48 tokens is neither"),
        ({"hf_pooler_type": "cls_pooler"}, r"hf_pooler_type='cls_pooler' is not supported"),
    ],
)
def test_towers_that_we_lack_are_named(tmp_path, change, message):
    shutil.copytree(GOLDEN, tmp_path / "m")
    path = tmp_path / "m" / "open_clip_config.json"
    config = json.loads(path.read_text())
    config["model_cfg"]["text_cfg"] |= change
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        open_checkpoint(tmp_path / "m")


def test_the_wrong_tokenizer_is_noticed(tmp_path, caplog):
    shutil.copytree(GOLDEN, tmp_path / "m")
    folder = test_roberta_tokens.train(tmp_path / "m", "roberta")
    with pytest.raises(ValueError, match=r"'roberta' has \d+ tokens, the text tower embeds 48"):
        jaxclip.load(folder).tokenize("a cat")
    large = GOLDEN.parent / "hf_siglip"  # 48 tokens, padding 1
    with caplog.at_level(logging.WARNING, "jaxclip"):
        model = jaxclip.load(large, tokenizer={"kind": "clip"})
    assert "trained with tokenizer.kind='siglip', not 'clip'" in caplog.text

    class Small:
        vocab_size, pad_id = 40, 1

    model._check_tokenizer(Small())
    assert "has 40 tokens, but the weights of" in caplog.text and "embed 48" in caplog.text
    Small.pad_id = 0
    with pytest.raises(ValueError, match=r"pads with 0, the weights were trained with padding 1"):
        model._check_tokenizer(Small())
