"""The byte-pair encoding of the original CLIP (Radford et al. 2021, https://arxiv.org/abs/2103.00020).

The vocabulary is not part of this package. ``path`` is one of

- ``bpe_simple_vocab_16e6.txt.gz`` (or unpacked), the list of merges published with CLIP,
- a directory with ``vocab.json`` and ``merges.txt``, or the path of that ``vocab.json``.

**Padding.** The original pads with 0, and 0 is also a token: an exclamation mark that another
character follows directly, as in ``"!("``. Here 0 means padding and nothing else (see
:mod:`jaxclip.data.tokenizers`), so inside a text that token is replaced by 256, the exclamation
mark that ends a word. Ids are otherwise those of the original, the embedding table has its 49 408
rows, and published weights fit as they are. :meth:`CLIPTokenizer.original_ids` gives the ids
without the replacement.

**Cleaning.** As in the original, HTML entities are resolved twice, white space is collapsed, and
the text is put in lower case. The original also runs ``ftfy`` over it, which repairs wrongly
decoded text and straightens curly quotes; ``fix_text=True`` does that, too, and needs the package
``ftfy``. A text that spells ``<|endoftext|>`` gets the ordinary tokens of these characters.
"""

from __future__ import annotations

import gzip
import html
import json
import os
import pathlib
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from jaxclip.data.tokenizer import Tokenizer, library

VOCAB_SIZE = 49408
START_ID, END_ID = 49406, 49407
# "!" inside a word and "!" at its end.
_BANG, _FINAL_BANG = 0, 256

_WORD_END = "</w>"
_START, _END = "<|startoftext|>", "<|endoftext|>"
# Contractions, runs of letters, single digits, runs of anything else.
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


class CLIPTokenizer(Tokenizer):
    """The tokenizer of the original CLIP models.

    Args:
      path: the vocabulary, see the module docstring.
      context_length: tokens in a row, 77 in the published models.
      fix_text: repair texts with ``ftfy``, as the original does.

    Raises:
      FileNotFoundError: there is no vocabulary at ``path``.
      ValueError: what is there is not CLIP's vocabulary.
      ImportError: ``fix_text`` without ``ftfy``.
    """

    def __init__(
        self, path: str | os.PathLike[str], context_length: int, *, fix_text: bool = False
    ):
        vocab, merges = read_vocabulary(path)
        if len(vocab) != VOCAB_SIZE or (vocab.get(_START), vocab.get(_END)) != (START_ID, END_ID):
            raise ValueError(
                f"tokenizer.path={os.fspath(path)!r} has {len(vocab)} tokens, {_START} is "
                f"{vocab.get(_START)} and {_END} is {vocab.get(_END)}; CLIP's vocabulary has "
                f"{VOCAB_SIZE}, {START_ID} and {END_ID}"
            )
        self._fix = _ftfy() if fix_text else None
        hf = library()
        self._bpe = hf.Tokenizer(hf.models.BPE(vocab, merges, end_of_word_suffix=_WORD_END))
        self._bpe.pre_tokenizer = hf.pre_tokenizers.Sequence(
            [
                hf.pre_tokenizers.Split(hf.Regex(_WORDS), behavior="removed", invert=True),
                hf.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        self._tokens = {i: token for token, i in vocab.items()}
        self._bytes = {char: byte for byte, char in byte_characters().items()}
        super().__init__(
            vocab_size=VOCAB_SIZE,
            context_length=context_length,
            start_id=START_ID,
            end_id=END_ID,
        )

    def original_ids(self, texts: Sequence[str]) -> np.ndarray:
        """What the original tokenizer returns (truncating): 0 is padding or an exclamation mark.

        Returns:
          int32[len(texts), context_length].
        """
        rows = self(texts)
        # The replacement does not move anything, so only these positions can differ.
        for row, ids in zip(rows, self._raw(list(texts)), strict=True):
            room = self.context_length - 2
            row[1 : 1 + len(ids[:room])] = ids[:room]
        return rows

    def _encode(self, texts: list[str]) -> Iterable[Sequence[int]]:
        for ids in self._raw(texts):
            yield [_FINAL_BANG if i == _BANG else i for i in ids]

    def _raw(self, texts: list[str]) -> Iterable[list[int]]:
        cleaned = [self._clean(text) for text in texts]
        return (each.ids for each in self._bpe.encode_batch(cleaned, add_special_tokens=False))

    def _clean(self, text: str) -> str:
        if self._fix is not None:
            text = self._fix(text)
        text = unicodedata.normalize("NFC", html.unescape(html.unescape(text)))
        return " ".join(text.split()).lower()

    def _decode(self, ids: list[int]) -> str:
        joined = "".join(self._tokens[i] for i in ids).replace(_WORD_END, " ")
        raw = bytes(byte for char in joined for byte in self._to_bytes(char))
        return raw.decode("utf-8", errors="replace").strip()

    def _to_bytes(self, char: str) -> bytes:
        return b" " if char == " " else bytes([self._bytes[char]])


def read_vocabulary(
    path: str | os.PathLike[str],
) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Read CLIP's vocabulary from any of its published forms.

    Args:
      path: see the module docstring.

    Returns:
      Ids by token, and the merges in order.

    Raises:
      FileNotFoundError: there is nothing at ``path``, or only half of it.
      ValueError: it cannot be read.
    """
    file = pathlib.Path(path)
    if file.is_dir():
        file = file / "vocab.json"
    pair = file.with_name("merges.txt") if file.suffix == ".json" else None
    for needed in (file, pair):
        if needed is not None and not needed.is_file():
            raise FileNotFoundError(
                f"tokenizer.path={os.fspath(path)!r}: there is no {needed}; CLIP's vocabulary is "
                "the file bpe_simple_vocab_16e6.txt.gz of its source code, or vocab.json and "
                "merges.txt of a published checkpoint"
            )
    try:
        if pair is not None:
            return json.loads(file.read_text(encoding="utf-8")), _merges(pair.read_bytes())
        data = file.read_bytes()
        merges = _merges(gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data)
    except (OSError, EOFError, ValueError) as error:
        raise ValueError(f"{file} is not a vocabulary of CLIP: {error}") from error
    # The file lists more merges than CLIP uses: those that fit into its vocabulary.
    merges = merges[: VOCAB_SIZE - 2 * 256 - 2]
    alphabet = list(byte_characters().values())
    tokens = [
        *alphabet,
        *(char + _WORD_END for char in alphabet),
        *(first + second for first, second in merges),
        _START,
        _END,
    ]
    return {token: i for i, token in enumerate(tokens)}, merges


def byte_characters() -> dict[int, str]:
    """Printable stand-ins for all bytes, in the order of CLIP's vocabulary (GPT-2's mapping).

    Bytes that are printable in Latin-1 stand for themselves, the others are counted up from 256.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {byte: chr(byte) for byte in printable}
    hidden = (byte for byte in range(256) if byte not in table)
    return table | {byte: chr(256 + i) for i, byte in enumerate(hidden)}


def _merges(data: bytes) -> list[tuple[str, str]]:
    """Merges out of a text file whose first line is a version or title."""
    merges = []
    for number, line in enumerate(data.decode("utf-8").split("\n")[1:], start=2):
        if not line.strip():
            continue
        parts = line.split()
        if len(parts) != 2:
            raise ValueError(f"line {number} is {line!r}, not two parts to merge")
        merges.append((parts[0], parts[1]))
    return merges


def _ftfy() -> Callable[[str], str]:
    try:
        import ftfy  # type: ignore[import-not-found, unused-ignore]
    except ImportError as error:
        raise ImportError("tokenizer.fix_text=True needs ftfy: pip install ftfy") from error
    fix: Any = ftfy.fix_text
    return fix
