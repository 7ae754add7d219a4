"""Tokenizers: one form of rows, truncation, training, mistakes."""

import subprocess
import sys

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from jaxclip.data import tokenizers

pytest.importorskip("tokenizers")

CORPUS = ["the cat sat on the mat", "The Caf\u00e9 at the corner", "a dog, a cat, and the bird"] * 4


@pytest.fixture(scope="module")
def emoji():
    return tokenizers.load({"kind": "emoji_bpe", "context_length": 16})


@pytest.fixture(scope="module")
def wide():
    return tokenizers.load({"kind": "emoji_bpe", "context_length": 200})


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    path = tmp_path_factory.mktemp("bpe") / "sub" / "bpe.json"
    tokenizers.train_bpe(CORPUS, path, vocab_size=300)
    return tokenizers.load({"kind": "bpe", "path": path, "context_length": 40})


@pytest.fixture(scope="module")
def pieces(tmp_path_factory):
    """Tiny SentencePiece models: by default, and with padding as T5 and SigLIP have it."""
    spm = pytest.importorskip("sentencepiece")
    folder = tmp_path_factory.mktemp("spm")
    text = folder / "corpus.txt"
    text.write_text("\n".join(CORPUS), encoding="utf-8")
    options = {
        "default": {},
        "t5": {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1},
        "endless": {"eos_id": -1},
    }
    for name, ids in options.items():
        spm.SentencePieceTrainer.train(
            input=str(text), model_prefix=str(folder / name), vocab_size=60, byte_fallback=False,
            hard_vocab_limit=False, minloglevel=2, **ids,
        )  # fmt: skip
    return folder


def check_rows(tokenizer, texts):
    """What holds for the rows of every tokenizer."""
    rows = tokenizer(texts)
    assert rows.dtype == np.int32 and rows.shape == (len(texts), tokenizer.context_length)
    assert rows.min() >= 0 and rows.max() < tokenizer.vocab_size
    for row in rows:
        length = (row != tokenizer.pad_id).sum()
        assert not row[length:].any() and row[:length].all()  # padding only at the end
        assert row[length - 1] == tokenizer.end_id  # which is where the text ends
        assert (row == tokenizer.end_id).sum() == 1
        assert tokenizer.start_id is None or row[0] == tokenizer.start_id


@hypothesis.given(texts=st.lists(st.text(max_size=30), min_size=1, max_size=4))
def test_any_texts_give_proper_rows(emoji, own, texts):
    check_rows(emoji, texts)
    check_rows(own, texts)


# Any code point at all, half surrogates included: JSON files hold them.
@hypothesis.given(text=st.text(st.characters(), max_size=10))
def test_no_code_point_is_too_strange(emoji, text):
    check_rows(emoji, [text])


@hypothesis.given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=8))
def test_byte_level_vocabularies_lose_nothing(wide, text):
    import unicodedata

    plain = " ".join(unicodedata.normalize("NFC", text).lower().split())
    # Lower case may leave NFC, and the regular expression's white space is not quite Python's.
    hypothesis.assume(unicodedata.normalize("NFC", plain) == plain)
    hypothesis.assume(not any(c in text for c in "\x1c\x1d\x1e\x1f\x85") and "\u0130" not in text)
    assert wide.decode(wide([text])[0]) == plain


def test_case_white_space_and_composition_do_not_matter(emoji):
    same = emoji(["The  CAFE\u0301 \n", "the caf\u00e9"])
    np.testing.assert_array_equal(same[0], same[1])


def test_words_are_the_same_at_the_start_and_inside(emoji):
    first, second = emoji(["cat face", "face cat"])
    assert set(first) == set(second)


def test_truncation_keeps_the_end(emoji):
    rows = emoji(["cat " * 50, "cat"])
    assert rows[0, -1] == emoji.end_id and (rows[0] != 0).all()
    assert rows[1].tolist() == [emoji.start_id, rows[0, 1], emoji.end_id] + [0] * 13


def test_special_tokens_in_a_caption_are_text(emoji):
    for special in ("<|endoftext|>", "<|startoftext|>", "<|pad|>"):
        check_rows(emoji, [f"a {special} b"])


def test_emoji_vocabulary_knows_its_words(emoji):
    assert emoji.vocab_size == 4096
    # Start, one token a word, end.
    assert (emoji(["grinning face with big eyes"])[0] != 0).sum() <= 7


def test_trained_vocabulary_is_saved_and_the_same_again(own, tmp_path):
    again = tokenizers.train_bpe(iter(CORPUS), tmp_path / "b.json", vocab_size=300)
    assert again.vocab_size == own.vocab_size <= 300
    np.testing.assert_array_equal(
        tokenizers.BPETokenizer(tmp_path / "b.json", 40)(CORPUS), own(CORPUS)
    )
    assert own.decode(own(["The Caf\u00e9"])[0]) == "the caf\u00e9"
    kept = tokenizers.train_bpe(CORPUS, tmp_path / "c.json", vocab_size=300, lowercase=False)
    assert kept.decode(kept(["The Caf\u00e9"])[0]) == "The Caf\u00e9"
    with pytest.raises(ValueError, match="vocab_size=258 is less than"):
        tokenizers.train_bpe(CORPUS, tmp_path / "d.json", vocab_size=258)


@pytest.mark.slow
def test_training_from_the_command_line(tmp_path):
    path = tmp_path / "bpe.json"
    command = ["--data", "emoji", "--vocab_size", "600", "--to", str(path)]
    done = subprocess.run(
        [sys.executable, "-m", "jaxclip.data.tokenizers", *command], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "600 tokens" in done.stdout
    assert tokenizers.BPETokenizer(path, 8).vocab_size == 600


@pytest.mark.slow
def test_the_packaged_vocabulary_is_what_training_gives(tmp_path):
    from jaxclip.data import emoji

    captions = tokenizers._captions("emoji", "train")
    tokenizers.train_bpe(captions, tmp_path / "bpe.json", vocab_size=4096)
    assert (tmp_path / "bpe.json").read_bytes() == emoji.tokenizer_file().read_bytes()


@pytest.mark.parametrize("name", ["default", "t5", "endless"])
def test_sentencepiece(pieces, name):
    import sentencepiece

    path = pieces / f"{name}.model"
    model = sentencepiece.SentencePieceProcessor(model_file=str(path))
    config = {"kind": "sentencepiece", "path": str(path), "context_length": 12}
    tokenizer = tokenizers.load(config)
    check_rows(tokenizer, [*CORPUS, "", "\u4f60 unknown to it", "the cat " * 20])
    row = tokenizer(["the cat"])[0]
    offset = {"default": 1, "t5": 0, "endless": 1}[name]
    expected = [i + offset for i in model.encode("the cat")]
    assert tokenizer.id_offset == offset and tokenizer.start_id is None
    assert row[: len(expected)].tolist() == expected
    assert tokenizer.decode(row) == "the cat"
    if name == "t5":
        assert tokenizer.end_id == 1 == model.eos_id()
    lower = tokenizers.load({**config, "lowercase": True})
    np.testing.assert_array_equal(lower(["THE CAT"]), tokenizer(["the cat"]))


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        ({"kind": "clop"}, ValueError, "kind='clop' is unknown; did you mean 'clip'"),
        ({"kind": "siglip"}, ValueError, "needs tokenizer.path"),
        ({"kind": "gemma", "path": "nowhere"}, FileNotFoundError, "beside the weights"),
        ({"kind": "bpe"}, ValueError, "needs tokenizer.path"),
        ({"kind": "emoji_bpe", "path": "x"}, ValueError, "has no meaning"),
        ({"context_lenght": 8}, ValueError, "did you mean 'context_length'"),
        ({"fix_text": True}, ValueError, "no option of tokenizer.kind='emoji_bpe'"),
        ({"context_length": 2}, ValueError, "context_length=2 must be an integer, at least 3"),
        ({"context_length": "8"}, ValueError, "context_length='8'"),
        ({"kind": "bpe", "path": "nowhere.json"}, FileNotFoundError, "train_bpe makes one"),
        (
            {"kind": "clip", "path": "nowhere", "fix_text": False},
            FileNotFoundError,
            "bpe_simple_vocab_16e6",
        ),
        (
            {"kind": "sentencepiece", "path": "nowhere"},
            FileNotFoundError,
            "'nowhere': there is no such vocabulary file",
        ),
    ],
)
def test_mistakes_are_named(config, error, message):
    with pytest.raises(error, match=message):
        tokenizers.load(config)


def test_files_that_are_no_vocabulary(tmp_path):
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(ValueError, match="is not a tokenizer"):
        tokenizers.BPETokenizer(tmp_path / "bad.json", 8)
    pytest.importorskip("sentencepiece")
    with pytest.raises(ValueError, match="is not a SentencePiece model"):
        tokenizers.SentencePieceTokenizer(tmp_path / "bad.json", 8)
    import tokenizers as hf

    hf.Tokenizer(hf.models.BPE()).save(str(tmp_path / "foreign.json"))
    with pytest.raises(ValueError, match=r"must hold <\|pad\|>"):
        tokenizers.BPETokenizer(tmp_path / "foreign.json", 8)


def test_a_single_string_is_a_mistake(emoji):
    with pytest.raises(TypeError, match="wrap it in a list"):
        emoji("a cat")
    assert emoji([]).shape == (0, 16)


def test_mistakes_on_the_command_line_are_one_line(tmp_path, capsys):
    for argv, said in (
        (["--data", "emoij"], "did you mean 'emoji'"),
        (["--data", "emoji", "--vocab_size", "10"], "vocab_size=10 is less than"),
        (["--data", "emoji", "--split", "trian"], "did you mean 'train'"),
    ):
        with pytest.raises(SystemExit) as stop:
            tokenizers.main([*argv, "--to", str(tmp_path / "t.json")])
        assert stop.value.code == 2 and said in capsys.readouterr().err
