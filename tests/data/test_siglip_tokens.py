"""SigLIP's and SigLIP 2's tokenizers on small vocabularies with the real ones' special ids."""

import numpy as np
import pytest

from jaxclip.data import siglip_tokens, text_cleaning, tokenizers
from jaxclip.evaluate import class_names
from tests.data import strange_texts

sentencepiece = pytest.importorskip("sentencepiece")
hf = pytest.importorskip("tokenizers")

PAD_1 = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
GEMMA = {
    "model_type": "bpe", "pad_piece": "<pad>", "eos_piece": "<eos>", "bos_piece": "<bos>",
    "user_defined_symbols": "<mask>", "pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3,
    "byte_fallback": True, "add_dummy_prefix": False, "remove_extra_whitespaces": False,
    "split_digits": True, "normalization_rule_name": "identity",
    "allow_whitespace_only_pieces": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders with the vocabulary of a ``siglip`` and of a ``gemma``."""
    root = tmp_path_factory.mktemp("vocabularies")
    names = list(class_names.imagenet().values())[:300]
    corpus = [f"a photo of a {name}, 12 of 345; the {name.upper()}" for name in names]
    corpus += ["\u65e5\u672c\u8a9e \ud55c\uad6d\uc5b4 caf\u00e9 na\u00efve"] * 3
    for kind, name, size, options in (
        ("siglip", "spiece", 400, PAD_1),
        ("gemma", "tokenizer", 600, GEMMA),
    ):
        (root / kind).mkdir()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(corpus), model_prefix=str(root / kind / name), vocab_size=size,
            hard_vocab_limit=False, minloglevel=2, **options,
        )  # fmt: skip
    return root


def load(folders, kind, length=16):
    return tokenizers.load({"kind": kind, "path": str(folders / kind), "context_length": length})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A Photo, of (a) CAT!", "a photo of a cat"),
        ("snake_case it's", "snake case its"),
        ("  a\t\nb  ", "a b"),
        (
            "\u00abcaf\u00e9\u00bb \u2014 \u201cno\u201d",
            "\u00abcaf\u00e9\u00bb \u2014 \u201cno\u201d",
        ),
        ("!?_", ""),
    ],
)
def test_canonical_text(text, expected):
    assert text_cleaning.canonical(text) == expected


def test_siglip_rows(folders):
    tokenizer = load(folders, "siglip")
    model = sentencepiece.SentencePieceProcessor(str(folders / "siglip" / "spiece.model"))
    pieces = model.encode("a photo of a cat")
    rows = tokenizer(["A photo of a (cat)!", "", "!!", "cat " * 40])
    assert rows[0].tolist() == [*pieces, 1] + [1] * (15 - len(pieces))
    assert (rows[1] == 1).all() and (rows[2] == 1).all()
    assert rows[3, -1] == 1 and (rows[3, :-1] != 1).all()  # the end stays where a text is cut
    assert (tokenizer.pad_id, tokenizer.end_id, tokenizer.start_id) == (1, 1, None)
    assert tokenizer.decode(rows[0]) == "a photo of a cat"
    assert tokenizer.with_length(8)([""]).tolist() == [[1] * 8]
    assert tokenizer.vocab_size == model.get_piece_size()


def test_gemma_rows(folders):
    tokenizer = load(folders, "gemma")
    model = sentencepiece.SentencePieceProcessor(str(folders / "gemma" / "tokenizer.model"))
    pieces = model.encode("a photo, of (a) cat!")
    rows = tokenizer(["A photo, of (a) CAT!", "", "cat " * 40])
    assert rows[0, : len(pieces) + 1].tolist() == [*pieces, 1] and len(pieces) < 15
    assert not rows[0, len(pieces) + 1 :].any()
    assert rows[1].tolist() == [1] + [0] * 15
    assert rows[2, -1] == 1 and rows[2].all()
    assert tokenizer.decode(rows[0]) == "a photo, of (a) cat!"
    # A text that spells a special token is text.
    assert (tokenizer(["<eos> <pad>"])[0] == 1).sum() == 1


def test_lengths_unless_they_are_set(folders):
    for kind in ("siglip", "gemma"):
        assert tokenizers.load({"kind": kind, "path": str(folders / kind)})([""]).shape == (1, 64)


def test_a_json_file_gives_the_same_rows(folders, tmp_path):
    """A Unigram model of the `tokenizers` library, as a T5-like vocabulary is converted to."""
    model = sentencepiece.SentencePieceProcessor(str(folders / "siglip" / "spiece.model"))
    vocab = [(model.id_to_piece(i), model.get_score(i)) for i in range(model.get_piece_size())]
    other = hf.Tokenizer(hf.models.Unigram(vocab, unk_id=2))
    other.pre_tokenizer = hf.pre_tokenizers.Metaspace()
    other.decoder = hf.decoders.Metaspace()
    other.add_special_tokens(["<pad>", "</s>", "<unk>"])
    other.enable_truncation(3)
    other.enable_padding(pad_id=0, length=3)
    other.save(str(tmp_path / "tokenizer.json"))
    ours = siglip_tokens.SigLIPTokenizer(tmp_path, 16)
    texts = ["a photo of a goldfish", "12 tench 345", "", "</s>", "cat " * 30]
    np.testing.assert_array_equal(ours(texts), load(folders, "siglip")(texts))
    assert ours.decode(ours(["12 Tench!"])[0]) == "12 tench"


@pytest.mark.parametrize(
    ("kind", "other", "message"),
    [
        ("siglip", {"eos_id": 2, "unk_id": 1}, "end of text as id 2, the vocabulary of"),
        ("gemma", {"pad_id": 3, "unk_id": 0}, "padding as id 3, the vocabulary of"),
    ],
)
def test_the_vocabulary_of_something_else(tmp_path, kind, other, message):
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the cat sat on the mat"] * 4), vocab_size=30, minloglevel=2,
        model_prefix=str(tmp_path / "tokenizer"), hard_vocab_limit=False, bos_id=-1,
        **{"pad_id": 0, "eos_id": 1, "unk_id": 2, **other},
    )  # fmt: skip
    with pytest.raises(ValueError, match=message):
        tokenizers.load({"kind": kind, "path": str(tmp_path)})


def test_missing_and_broken_vocabularies(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"folder without a vocabulary.*spiece\.model"):
        siglip_tokens.SigLIPTokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="is not a tokenizer of the `tokenizers` library"):
        siglip_tokens.SigLIPTokenizer(tmp_path)
    (tmp_path / "spiece.model").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="is not a SentencePiece model"):
        siglip_tokens.GemmaTokenizer(tmp_path)
    with pytest.raises(FileNotFoundError, match="beside the weights"):
        siglip_tokens.GemmaTokenizer(tmp_path / "nowhere.model")


@pytest.mark.slow
def test_many_texts_have_the_ids_of_transformers_siglip(folders):
    """Its tokenizer drops an underscore, where big_vision's canonical text has a blank."""
    transformers = pytest.importorskip("transformers")
    reference = transformers.SiglipTokenizer(str(folders / "siglip" / "spiece.model"))
    texts = strange_texts.make(6000, seed=3)
    blanks = [text.replace("_", " ") for text in texts]
    options = {"padding": "max_length", "max_length": 64, "truncation": True}
    expected = np.asarray(reference(blanks, **options)["input_ids"])
    np.testing.assert_array_equal(load(folders, "siglip", 64)(texts), expected)


@pytest.mark.slow
def test_many_texts_have_the_canonical_form_of_big_vision():
    """As open_clip has copied it."""
    canonicalize = pytest.importorskip("open_clip.tokenizer").canonicalize_text
    for text in strange_texts.make(6000, seed=4):
        assert text_cleaning.canonical(text) == canonicalize(text)


def merges(model, vocab):
    """The pairs that make the pieces of a BPE model, best piece first."""
    found = []
    for piece, i in vocab.items():
        pairs = [(piece[:at], piece[at:]) for at in range(1, len(piece))]
        known = [(vocab[a], vocab[b], a, b) for a, b in pairs if a in vocab and b in vocab]
        found += [(-model.get_score(i), *pair) for pair in sorted(known)]
    return [(a, b) for _, _, _, a, b in sorted(found, key=lambda each: each[0])]


@pytest.mark.slow
def test_many_texts_have_the_ids_of_transformers_siglip2(folders, tmp_path):
    """Texts are in lower case, which the two write differently for a sigma at the end of a word."""
    transformers = pytest.importorskip("transformers")
    model = sentencepiece.SentencePieceProcessor(str(folders / "gemma" / "tokenizer.model"))
    vocab = {model.id_to_piece(i): i for i in range(model.get_piece_size())}
    reference = transformers.Siglip2Tokenizer(vocab=vocab, merges=merges(model, vocab))
    texts = [text.lower() for text in strange_texts.make(6000, seed=5)]
    texts = [text for text in texts if "\t" not in text and len(text) < 1000]
    assert len(texts) > 5000
    ids = reference(texts, add_special_tokens=False)["input_ids"]
    expected = np.zeros((len(texts), 64), np.int32)
    for row, each in zip(expected, ids, strict=True):
        row[: min(len(each), 63) + 1] = [*each[:63], 1]
    np.testing.assert_array_equal(load(folders, "gemma", 64)(texts), expected)
    reference.backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    ours = siglip_tokens.GemmaTokenizer(tmp_path)
    np.testing.assert_array_equal(ours(texts), expected)
