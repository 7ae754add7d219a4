"""CLIP's vocabulary: its layout on a made-up one, known ids and the original on the real one."""

import gzip
import importlib.util
import itertools
import json
import pathlib

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from jaxclip.data import clip_bpe, tokenizers

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
    return clip_bpe.CLIPTokenizer(made_up, 12)


@pytest.fixture(scope="module")
def real_path():
    """The real vocabulary, as the wheel of open_clip_torch has it."""
    found = importlib.util.find_spec("open_clip")
    if found is None or found.origin is None:
        pytest.skip("open_clip_torch, which has CLIP's vocabulary, is not installed")
    return pathlib.Path(found.origin).parent / "bpe_simple_vocab_16e6.txt.gz"


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
        other = tokenizers.load({"kind": "clip", "path": str(path), "context_length": 12})
        np.testing.assert_array_equal(other(texts), toy(texts))


def test_padding_is_zero_and_nothing_else_is(toy):
    assert ids(toy, "!(") == [START, 256, ids(toy, "(")[1], END]
    assert toy.original_ids(["!("])[0, 1] == 0
    rows = toy(["!( the !", "the", ""])
    assert (rows != 0).sum(1).tolist() == [list(row).index(END) + 1 for row in rows]


def test_truncation_keeps_the_end(toy):
    row = toy(["the cat " * 20])[0]
    assert row.tolist() == [START, *[513, 515] * 5, END]


def test_cleaning(toy):
    assert ids(toy, " The\n\tCAT ") == ids(toy, "the cat")
    assert ids(toy, "the &amp;amp; cat") == ids(toy, "the & cat")
    # Spelled-out special tokens are text.
    assert END not in ids(toy, "<|endoftext|>")[:-1]
    assert START not in ids(toy, "<|startoftext|>")[1:]


def test_fix_text_needs_ftfy(made_up):
    if importlib.util.find_spec("ftfy") is None:
        with pytest.raises(ImportError, match="pip install ftfy"):
            clip_bpe.CLIPTokenizer(made_up, 12, fix_text=True)
    else:
        fixed = clip_bpe.CLIPTokenizer(made_up, 12, fix_text=True)
        np.testing.assert_array_equal(fixed(["\u201cthe\u201d"]), fixed(['"the"']))


@hypothesis.given(text=st.text(max_size=40))
def test_any_text_gives_a_proper_row(toy, text):
    row = ids(toy, text)
    assert row[0] == START and row[-1] == END
    assert all(0 < i < START for i in row[1:-1])


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
    config = {"kind": "clip", "path": str(tmp_path / "nowhere.gz")}
    with pytest.raises(FileNotFoundError, match=r"bpe_simple_vocab_16e6.txt.gz.*vocab.json"):
        tokenizers.load(config)
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"merges.txt"):
        tokenizers.load({"kind": "clip", "path": str(tmp_path)})


# --- the real vocabulary ------------------------------------------------------------------------


def test_known_ids(real_path):
    tokenizer = clip_bpe.CLIPTokenizer(real_path, 77)
    assert ids(tokenizer, "a photo of a cat") == [START, 320, 1125, 539, 320, 2368, END]
    assert ids(tokenizer, "Hello World!") == [START, 3306, 1002, 256, END]
    assert tokenizer(["x"]).shape == (1, 77)


TRICKY = [
    "a photo of a cat",
    "It's the dog's, isn't it? I'd say we'll see!",
    "'S 'LL 'Re",
    "3.14159, 1,000,000 & 50%",
    "!( !!! !a ?!",
    "snake_case __init__ #tag @user",
    "&lt;b&gt;bold&amp;amp;&lt;/b&gt;",
    "a\u00a0b\u2003c\n\nd",
    "caf\u00e9 na\u00efve \u00dcber \u0130stanbul \u1e9e",
    "\u4f60\u597d\uff0c\u4e16\u754c",
    "\U0001f431\u200d\U0001f464 emoji",
    "\u0915\u094d\u0937\u093f",
    "\u00bd \u2167 \u00b2",
    "x" * 300,
    "",
    "   ",
]


def test_the_original_gives_the_same_ids(real_path):
    reference = pytest.importorskip("open_clip.tokenizer").SimpleTokenizer(context_length=77)
    ours = clip_bpe.CLIPTokenizer(real_path, 77, fix_text=True)
    expected = np.asarray(reference(TRICKY))
    np.testing.assert_array_equal(ours.original_ids(TRICKY), expected)
