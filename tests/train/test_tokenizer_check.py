"""A tokenizer that is not that of the weights is said, wherever weights meet texts."""

import logging
import types

import pytest

from jaxclip.train import init_from, tokenizer_check

CLIP = {"kind": "clip", "path": "", "context_length": 77}


def source(kind="clip", pad_id=0, parts=("image", "text")):
    config = {"tokenizer": {**CLIP, "kind": kind}, "model": {"text": {"pad_id": pad_id}}}
    return init_from.Source("w", config, read=None, parts=parts)


def run(kind="clip", pad_id=0, exclude=()):
    config = source(kind, pad_id).config
    return {**config, "init_from_exclude": list(exclude)}


@pytest.mark.parametrize(
    ("start", "config", "said"),
    [
        (source(), run(), ""),
        (source("clip"), run("bpe"), "the weights of w were trained with tokenizer.kind='clip'"),
        (source("clip"), run("bpe", exclude=["^text/token_embedding"]), ""),
        (source("clip", parts=("image",)), run("siglip", 1), ""),
    ],
)
def test_a_start_with_another_kind_of_tokenizer_is_said(start, config, said, caplog):
    with caplog.at_level(logging.WARNING, "jaxclip"):
        tokenizer_check.check_start(start, config)
    assert (said in caplog.text) if said else not caplog.text


def test_a_start_with_another_padding_is_refused():
    with pytest.raises(ValueError, match=r"padding 1 \(tokenizer.kind='siglip'\), but .*'clip' pad"
                                         r"s with 0; .*init_from_exclude"):  # fmt: skip
        tokenizer_check.check_start(source("siglip", 1), run())
    tokenizer_check.check_start(source("siglip", 1), run(exclude=["^text/"]))


def test_vocabularies_are_told_apart_by_their_content(tmp_path):
    for name, content in (("a", "1"), ("same", "1"), ("b", "2")):
        (tmp_path / name).write_text(content)
    sections = {n: {"kind": "bpe", "path": str(tmp_path / n)} for n in ("a", "same", "b", "gone")}
    trained = sections["a"]
    assert tokenizer_check.difference(trained, sections["same"]) == ""
    assert tokenizer_check.difference(trained, sections["gone"]) == ""  # load says what is wrong
    assert "not " + sections["b"]["path"] in tokenizer_check.difference(trained, sections["b"])
    other = {**trained, "lowercase": True}
    assert "tokenizer.lowercase=None, not True" in tokenizer_check.difference(trained, other)


def test_what_can_not_be_the_tokenizer_is_refused(caplog):
    text = types.SimpleNamespace(vocab_size=50, pad_id=1)

    def fit(size, pad, published=True):
        made = types.SimpleNamespace(vocab_size=size, pad_id=pad)
        tokenizer_check.fit(made, "bpe", text, "w", published=published)

    with pytest.raises(ValueError, match="'bpe' has 51 tokens, the text tower embeds 50"):
        fit(51, 1)
    with pytest.raises(ValueError, match="pads with 0, the weights were trained with padding 1"):
        fit(50, 0)
    with caplog.at_level(logging.WARNING, "jaxclip"):
        fit(50, 1)
        fit(40, 1, published=False)
        assert not caplog.text
        fit(40, 1)
    assert "has 40 tokens, but the weights of w embed 50" in caplog.text
