"""CLIP's vocabulary: its layout on a made-up one, and the original's ids on the real one."""

import gzip
import hashlib
import importlib.util
import itertools
import json
import pathlib
import warnings

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from jaxclip.data import clip_bpe, tokenizers
from tests.data import strange_texts

pytest.importorskip("tokenizers")

START, END = 49406, 49407


@pytest.fixture(scope="module")
def made_up(tmp_path_factory):
    """A vocabulary of the right size whose merges are pairs of characters, "th" and "he" first."""
    characters = list(clip_bpe.byte_characters().values())
    pairs = [("t", "h"), ("th", "e</w>"), ("c", "a"), ("ca", "t</w>")]
    known = {a + b for a, b in pairs}
    rare = reversed(list(itertools.product(characters, characters)))
    pairs += [pair for pair in rare if "".join(pair) not in known]
    path = tmp_path_factory.mktemp("clip") / "bpe_simple_vocab_16e6.txt.gz"
    text = "\n".join(["a title", *(f"{a} {b}" for a, b in pairs[: 49408 - 514 + 100])]) + "\n"
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.write(text)
    return path


@pytest.fixture(scope="module")
def toy(made_up):
    return clip_bpe.CLIPTokenizer(made_up, 12, fix_text=False)


@pytest.fixture(scope="module")
def real():
    """The tokenizer without a path."""
    return tokenizers.load({"kind": "clip", "fix_text": False})


def ids(tokenizer, text):
    row = tokenizer([text])[0]
    return row[: np.flatnonzero(row == tokenizer.end_id)[0] + 1].tolist()


def test_layout_of_ids(made_up, toy):
    vocab, merges = clip_bpe.read_vocabulary(made_up)
    assert len(vocab) == toy.vocab_size == 49408 and len(merges) == 49408 - 514
    assert (vocab["!"], vocab['"'], vocab["!</w>"]) == (0, 1, 256)
    assert (vocab["th"], vocab["the</w>"], vocab["cat</w>"]) == (512, 513, 515)
    assert (toy.start_id, toy.end_id, toy.pad_id) == (START, END, 0)
    assert ids(toy, "The  CAT") == [START, 513, 515, END]


def test_byte_characters_are_printable_and_distinct():
    table = clip_bpe.byte_characters()
    assert sorted(table) == list(range(256)) and len(set(table.values())) == 256
    assert all(char.isprintable() and not char.isspace() for char in table.values())
    assert list(table.items())[:2] == [(0x21, "!"), (0x22, '"')]
    assert table[0] == chr(256) and table[ord(" ")] == "\u0120"


def test_all_published_forms_agree(made_up, toy, tmp_path):
    plain = tmp_path / "vocab.txt"
    plain.write_bytes(gzip.decompress(made_up.read_bytes()))
    vocab, merges = clip_bpe.read_vocabulary(made_up)
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps(vocab))
    (folder / "merges.txt").write_text(
        "\n".join(["#version: 0.2", *(f"{a} {b}" for a, b in merges)])
    )
    texts = ["the cat", "don't !( 42", "\u4f60"]
    for path in (plain, folder, folder / "vocab.json"):
        config = {"kind": "clip", "path": str(path), "context_length": 12, "fix_text": False}
        other = tokenizers.load(config)
        np.testing.assert_array_equal(other(texts), toy(texts))


def test_token_0_is_an_exclamation_mark_inside_a_word(toy):
    assert ids(toy, "!(") == [START, 0, ids(toy, "(")[1], END]
    rows = toy(["!( the !", "!!", ""])
    # The text tower's rule: a text ends at its last token that is not 0.
    assert [row[np.flatnonzero(row)[-1]] for row in rows] == [END] * 3
    assert toy.decode(toy(["!( the !!"])[0]) == "!( the !!"


def test_truncation_keeps_the_end(toy):
    row = toy(["the cat " * 20])[0]
    assert row.tolist() == [START, *[513, 515] * 5, END]


def test_cleaning(toy):
    assert ids(toy, " The\n\tCAT ") == ids(toy, "the cat")
    assert ids(toy, "the &amp;amp; cat") == ids(toy, "the & cat")
    # Spelled-out special tokens are text.
    assert END not in ids(toy, "<|endoftext|>")[:-1]
    assert START not in ids(toy, "<|startoftext|>")[1:]


def test_fix_text(made_up):
    if importlib.util.find_spec("ftfy") is None:
        with pytest.raises(ImportError, match="pip install ftfy"):
            clip_bpe.CLIPTokenizer(made_up, 12, fix_text=True)
    else:
        fixed = clip_bpe.CLIPTokenizer(made_up, 12)
        np.testing.assert_array_equal(fixed(["\u201cthe\u201d"]), fixed(['"the"']))


def test_without_ftfy_a_warning_says_what_is_different(made_up, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.warns(UserWarning, match="pip install ftfy, or set tokenizer.fix_text=False"):
        tokenizer = clip_bpe.CLIPTokenizer(made_up, 12)
    assert ids(tokenizer, "e\u0301") == ids(tokenizer, "\u00e9")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        clip_bpe.CLIPTokenizer(made_up, 12, fix_text=False)
    with pytest.raises(ImportError, match="pip install ftfy"):
        clip_bpe.CLIPTokenizer(made_up, 12, fix_text=True)


@hypothesis.given(text=st.text(max_size=40))
def test_any_text_gives_a_proper_row(toy, text):
    row = ids(toy, text)
    assert row[0] == START and row[-1] == END
    assert all(0 <= i < START for i in row[1:-1])


@hypothesis.given(
    words=st.lists(st.sampled_from(["the", "cat", "\u4f60\u597d", "na\u00efve", "x"]), max_size=2)
)
def test_words_come_back(toy, words):
    assert toy.decode(toy([" ".join(words)])[0]) == " ".join(words)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"title\na b c\n", "line 2 is 'a b c', not two parts"),
        (b"title\na b\n", "has 515 tokens"),
        (b"\x1f\x8bnot gzip", "is not a vocabulary of CLIP"),
        (b"\xff\xfe", "is not a vocabulary of CLIP"),
    ],
)
def test_files_that_are_no_vocabulary(tmp_path, content, message):
    (tmp_path / "vocab.txt").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        clip_bpe.CLIPTokenizer(tmp_path / "vocab.txt", 77)


def test_missing_vocabulary_says_where_to_get_it(tmp_path):
    config = {"kind": "clip", "path": str(tmp_path / "nowhere.gz"), "fix_text": False}
    with pytest.raises(FileNotFoundError, match=r"bpe_simple_vocab_16e6.txt.gz.*vocab.json"):
        tokenizers.load(config)
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"merges.txt"):
        tokenizers.load({"kind": "clip", "path": str(tmp_path)})


# --- the real vocabulary ------------------------------------------------------------------------


def test_the_packaged_vocabulary_is_the_published_file():
    file = clip_bpe.vocabulary_file()
    assert hashlib.sha256(file.read_bytes()).hexdigest() == (
        "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a"
    )
    licence = (file.parent / "ATTRIBUTION.md").read_text()
    assert "MIT License" in licence and "Copyright (c) 2021 OpenAI" in licence


def test_known_ids(real):
    assert ids(real, "a photo of a cat") == [START, 320, 1125, 539, 320, 2368, END]
    assert ids(real, "Hello World!") == [START, 3306, 1002, 256, END]
    assert real(["x"]).shape == (1, 77)
    assert tokenizers.load({"kind": "clip", "context_length": 9, "fix_text": False})(
        [""]
    ).shape == (1, 9)


def test_ids_of_the_original():
    """tests/data/make_golden.py asked open_clip 3.3.0."""
    rows = json.loads((pathlib.Path(__file__).parent / "golden" / "clip_ids.json").read_text())
    has_ftfy = importlib.util.find_spec("ftfy") is not None
    rows = [row for row in rows if has_ftfy or not row["needs_ftfy"]]
    tokenizer = tokenizers.load({"kind": "clip", "fix_text": has_ftfy})
    assert len(rows) >= 140 and any(0 in row["ids"] for row in rows)
    for row, found in zip(rows, tokenizer([row["text"] for row in rows]), strict=True):
        assert found[: len(row["ids"])].tolist() == row["ids"], row["text"]
        assert not found[len(row["ids"]) :].any()


def known_letters(texts):
    """Which texts have no letter that Unicode added after the `tokenizers` library was made."""
    regex = pytest.importorskip("regex")
    import tokenizers as hf

    ours = hf.pre_tokenizers.Split(hf.Regex(r"[\p{L}\p{N}]"), behavior="removed", invert=True)
    characters = set("".join(texts))
    late = {
        each
        for each in characters
        if regex.match(r"[\p{L}\p{N}]", each) and not ours.pre_tokenize_str(each)
    }
    assert len(late) < 50  # of the many thousands that occur
    return [not late & set(text) for text in texts]


@pytest.mark.slow
def test_many_texts_have_the_ids_of_open_clip():
    reference = pytest.importorskip("open_clip.tokenizer").SimpleTokenizer()
    ours = tokenizers.load({"kind": "clip"})
    texts = strange_texts.make(8000)
    texts = list(itertools.compress(texts, known_letters([ours._clean(text) for text in texts])))
    assert len(texts) > 7900
    np.testing.assert_array_equal(ours(texts), reference(texts))


@pytest.mark.slow
def test_many_clean_texts_have_the_ids_of_transformers(real):
    """Its tokenizer does not repair or unescape, and heeds the case of contractions."""
    transformers = pytest.importorskip("transformers")
    vocab, merges = clip_bpe.read_vocabulary(clip_bpe.vocabulary_file())
    reference = transformers.CLIPTokenizer(vocab=vocab, merges=merges)
    texts = [real._clean(text) for text in strange_texts.make(6000, seed=2)]
    texts = [text for text in texts if "\u0345" not in text and "'\u017f" not in text]
    texts = [text for text in texts if real._clean(text) == text]  # not "&amp;" out of "&amp;amp;"
    assert len(texts) > 5000
    padding = {"padding": "max_length", "max_length": 77, "truncation": True}
    theirs = reference(texts, **padding, return_tensors="np")
    expected = np.where(theirs["attention_mask"] > 0, theirs["input_ids"], 0)
    np.testing.assert_array_equal(real(texts), expected)
