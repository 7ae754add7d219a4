"""RoBERTa's and XLM-RoBERTa's tokenizers: rows as open_clip makes them."""

import numpy as np
import pytest

from jaxclip.data import tokenizers
from jaxclip.data.roberta_tokens import RobertaTokenizer
from tests.data import strange_texts

TEXTS = ["A photo of a cat.", "two  dogs &amp; a bird\n", "", "Ein Bär läuft", "猫 🐈 <s> x"] * 3
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


def train(folder, kind):
    """A small vocabulary of RoBERTa's (bytes) or XLM-RoBERTa's (unigrams) kind."""
    hf = pytest.importorskip("tokenizers")
    texts = [*TEXTS, *strange_texts.make(200, seed=3)]
    if kind == "roberta":
        made = hf.Tokenizer(hf.models.BPE(unk_token="<unk>"))
        made.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = hf.decoders.ByteLevel()
        trainer = hf.trainers.BpeTrainer(
            vocab_size=500,
            special_tokens=SPECIAL,
            initial_alphabet=sorted(hf.pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
    else:
        made = hf.Tokenizer(hf.models.Unigram())
        made.normalizer = hf.normalizers.NFKC()
        made.pre_tokenizer = hf.pre_tokenizers.Metaspace()
        made.decoder = hf.decoders.Metaspace()
        trainer = hf.trainers.UnigramTrainer(
            vocab_size=2000, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False
        )
    made.train_from_iterator(texts, trainer)
    ends = {name: (name, made.token_to_id(name)) for name in ("<s>", "</s>")}
    made.post_processor = hf.processors.RobertaProcessing(ends["</s>"], ends["<s>"])
    made.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module", params=["roberta", "xlm-roberta"])
def folder(request, tmp_path_factory):
    return train(tmp_path_factory.mktemp(request.param), request.param)


def test_rows_begin_end_and_are_padded_with_1(folder):
    tokenizer = tokenizers.load({"kind": "roberta", "path": str(folder), "context_length": 9})
    rows = tokenizer(["A photo of a cat.", "", "cat " * 40])
    assert rows.shape == (3, 9) and rows.dtype == np.int32
    assert (rows[:, 0] == 0).all() and rows[1].tolist() == [0, 2, *[1] * 7]
    assert rows[2, -1] == 2 and not (rows[2] == 1).any()
    assert tokenizer.decode(rows[0][rows[0] != 1]) in "A photo of a cat."
    assert tokenizers.load({"kind": "roberta", "path": str(folder)}).context_length == 77


def test_special_tokens_in_a_text_are_text(folder):
    tokenizer = RobertaTokenizer(folder, 32)
    (row,) = tokenizer(["a <pad> </s> <s> b"])
    last = int(np.flatnonzero(row == 2)[-1])
    assert (
        row[0] == 0 and not set(row[1:last].tolist()) & {0, 1, 2} and (row[last + 1 :] == 1).all()
    )


def test_other_vocabularies_are_refused(tmp_path):
    from jaxclip.data import emoji

    with pytest.raises(ValueError, match=r"must hold <s>, </s> and <pad> \(as id 1\)"):
        RobertaTokenizer(emoji.tokenizer_file())
    (tmp_path / "spiece.model").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"no tokenizer\.json, which tokenizer\.kind='roberta'"):
        RobertaTokenizer(tmp_path)


@pytest.mark.slow
def test_ids_are_those_of_open_clip(folder):
    open_clip = pytest.importorskip("open_clip")
    transformers = pytest.importorskip("transformers")
    theirs = open_clip.tokenizer.HFTokenizer.__new__(open_clip.tokenizer.HFTokenizer)
    theirs.tokenizer_mode, theirs.strip_sep_token = "", False
    theirs.clean_fn = open_clip.tokenizer.get_clean_fn("whitespace")
    theirs.tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"),
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
    )
    texts = [text for text in strange_texts.make(5000, seed=5) if "<" not in text]
    assert len(texts) > 2000
    expected = theirs(texts, context_length=77).numpy()
    np.testing.assert_array_equal(RobertaTokenizer(folder, 77)(texts), expected)
