"""The byte-pair encoding of the original CLIP (Radford et al. 2021, https://arxiv.org/abs/2103.00020).

The vocabulary comes with this package (``jaxclip/data/clip_vocabulary``, MIT licence). Another copy
of it may be named by ``path``, one of

- ``bpe_simple_vocab_16e6.txt.gz`` (or unpacked), the list of merges published with CLIP,
- a directory with ``vocab.json`` and ``merges.txt``, or the path of that ``vocab.json``.

**Ids** are those of the original. Rows are padded with 0, which is also a token: an exclamation
mark that another character follows directly, as in ``"!("``. A text always ends with 49407, so its
end is the last token that is not 0.

**Cleaning.** As in the original, ``ftfy`` repairs wrongly decoded text and straightens curly
quotes, HTML entities are resolved twice, white space is collapsed, and the text is put in lower
case. Where ``ftfy`` is not installed, texts are brought to NFC in its place, and a warning says so:
plain text is the same with and without. A text that spells ``<|endoftext|>`` gets the ordinary
tokens of these characters.

What a letter is, is the ``tokenizers`` library's view of Unicode here, and the ``regex`` package's
in the original: letters of the newest versions of Unicode may be cut differently.
"""

from __future__ import annotations

import gzip
import json
import os
import pathlib
from collections.abc import Iterable, Sequence

from jaxclip.data import text_cleaning
from jaxclip.data.tokenizer import Tokenizer, library

VOCAB_SIZE = 49408
START_ID, END_ID = 49406, 49407

_WORD_END = "</w>"
_START, _END = "<|startoftext|>", "<|endoftext|>"
# Contractions, runs of letters, single digits, runs of anything else. The original ignores case,
# which matters in lower case, too: it takes a long s for an s, and it drops U+0345, which is no
# letter, but whose other case is one.
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}\x{345}]+"


class CLIPTokenizer(Tokenizer):
    """The tokenizer of the original CLIP models.

    Args:
      path: the vocabulary, see the module docstring; empty for the one of this package.
      context_length: tokens in a row, 77 in the published models.
      fix_text: repair texts with ``ftfy``, as the original does; None: where it is installed.

    Raises:
      FileNotFoundError: there is no vocabulary at ``path``.
      ValueError: what is there is not CLIP's vocabulary.
      ImportError: ``fix_text=True`` without ``ftfy``.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] = "",
        context_length: int = 77,
        *,
        fix_text: bool | None = None,
    ):
        path = os.fspath(path) or vocabulary_file()
        vocab, merges = read_vocabulary(path)
        if len(vocab) != VOCAB_SIZE or (vocab.get(_START), vocab.get(_END)) != (START_ID, END_ID):
            raise ValueError(
                f"tokenizer.path={os.fspath(path)!r} has {len(vocab)} tokens, {_START} is "
                f"{vocab.get(_START)} and {_END} is {vocab.get(_END)}; CLIP's vocabulary has "
                f"{VOCAB_SIZE}, {START_ID} and {END_ID}"
            )
        self._fix = text_cleaning.fixer(fix_text)
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

    def _encode(self, texts: list[str]) -> Iterable[Sequence[int]]:
        cleaned = [self._clean(text) for text in texts]
        return (each.ids for each in self._bpe.encode_batch(cleaned, add_special_tokens=False))

    def _clean(self, text: str) -> str:
        return " ".join(text_cleaning.unescape(text, self._fix).split()).lower()

    def _decode(self, ids: list[int]) -> str:
        joined = "".join(self._tokens[i] for i in ids).replace(_WORD_END, " ")
        raw = bytes(byte for char in joined for byte in self._to_bytes(char))
        return raw.decode("utf-8", errors="replace").strip()

    def _to_bytes(self, char: str) -> bytes:
        return b" " if char == " " else bytes([self._bytes[char]])


def vocabulary_file() -> pathlib.Path:
    """CLIP's list of merges as it comes with this package."""
    return pathlib.Path(__file__).parent / "clip_vocabulary" / "bpe_simple_vocab_16e6.txt.gz"


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
