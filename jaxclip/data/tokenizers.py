"""Captions to integers, one interface for every vocabulary.

:func:`load` returns a :class:`Tokenizer`. Whatever the vocabulary, rows look alike:
``[start,] tokens..., end-of-text, padding, padding, ...``; truncation keeps the end. Padding is
``pad_id``: 0, but for SigLIP, whose end-of-text it is (1), and RoBERTa, where it is 1, too. So the
end of a text is its last token that is not padding, or the one behind where padding is the
end-of-text.

Kinds:

- ``"emoji_bpe"``: the byte-level BPE shipped with the package, trained on the captions of the
  ``train`` split of the built-in data set, in lower case.
- ``"bpe"``: a byte-level BPE of your own from :func:`train_bpe`, ``path`` = its JSON file. Train
  one with ``python -m jaxclip.data.tokenizers --data NAME_OR_DIR --vocab_size 16384 --to FILE``.
- ``"clip"``: the BPE of the original CLIP, shipped with the package, see
  :mod:`jaxclip.data.clip_bpe`.
- ``"siglip"``, ``"gemma"``: those of SigLIP and SigLIP 2, ``path`` = the vocabulary beside the
  weights, or their folder; see :mod:`jaxclip.data.siglip_tokens`.
- ``"roberta"``: those of RoBERTa and XLM-RoBERTa, ``path`` = their ``tokenizer.json``; see
  :mod:`jaxclip.data.roberta_tokens`.
- ``"sentencepiece"``: any SentencePiece model, ``path`` = its ``.model`` file.
"""

from __future__ import annotations

import argparse
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from jaxclip.data import defaults, emoji
from jaxclip.data.clip_bpe import CLIPTokenizer
from jaxclip.data.record import Record
from jaxclip.data.roberta_tokens import RobertaTokenizer
from jaxclip.data.siglip_tokens import GemmaTokenizer, SigLIPTokenizer, sentencepiece_model
from jaxclip.data.tokenizer import PAD_ID, Tokenizer, check_file, library
from jaxclip.registry import hint

_PAD, _START, _END = "<|pad|>", "<|startoftext|>", "<|endoftext|>"


class BPETokenizer(Tokenizer):
    """Byte-level BPE of the Hugging Face ``tokenizers`` library, as :func:`train_bpe` makes it.

    Args:
      path: JSON file of the ``tokenizers`` library.
      context_length: tokens in a row.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is no tokenizer, or one without padding, start and end.
    """

    def __init__(self, path: str | os.PathLike[str], context_length: int):
        check_file(path, "tokenizers.train_bpe makes one")
        try:
            self._bpe = library().Tokenizer.from_file(os.fspath(path))
        except Exception as error:  # the library raises bare Exception for whatever is wrong
            raise ValueError(
                f"{os.fspath(path)!r} is not a tokenizer of the `tokenizers` library: {error}"
            ) from error
        found = {token: self._bpe.token_to_id(token) for token in (_PAD, _START, _END)}
        if None in found.values() or found[_PAD] != PAD_ID:
            raise ValueError(
                f"{os.fspath(path)!r} must hold {_PAD} (as id 0), {_START} and {_END}, but has "
                f"{found}; make it with jaxclip.data.tokenizers.train_bpe"
            )
        # So that a caption that spells a special token is text like any other.
        self._bpe.encode_special_tokens = True
        super().__init__(
            vocab_size=self._bpe.get_vocab_size(),
            context_length=context_length,
            start_id=found[_START],
            end_id=found[_END],
        )

    def _encode(self, texts: list[str]) -> Iterable[Sequence[int]]:
        return (each.ids for each in self._bpe.encode_batch(texts, add_special_tokens=False))

    def _decode(self, ids: list[int]) -> str:
        return self._bpe.decode(ids).removeprefix(" ")


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model.

    If the model's id 0 is padding (as in T5 and SigLIP), ids are the model's own. Otherwise (by
    default SentencePiece trains models whose id 0 is the unknown piece) all ids are shifted up by
    :attr:`id_offset` = 1. A model without an end piece gets one more id for it.

    Args:
      path: ``.model`` file.
      context_length: tokens in a row.
      lowercase: put texts in lower case first.

    Attributes:
      id_offset: what was added to the model's own ids.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is no SentencePiece model.
    """

    def __init__(
        self, path: str | os.PathLike[str], context_length: int, *, lowercase: bool = False
    ):
        self._model = sentencepiece_model(path)
        self._lowercase = lowercase
        self.id_offset = 0 if self._model.pad_id() == PAD_ID else 1
        size = self._model.get_piece_size() + self.id_offset
        end = self._model.eos_id()
        super().__init__(
            vocab_size=size + (end < 0),
            context_length=context_length,
            start_id=None,
            end_id=size if end < 0 else end + self.id_offset,
        )

    def _encode(self, texts: list[str]) -> Iterable[Sequence[int]]:
        if self._lowercase:
            texts = [text.lower() for text in texts]
        for ids in self._model.encode(texts, num_threads=1):
            yield [i + self.id_offset for i in ids]

    def _decode(self, ids: list[int]) -> str:
        return self._model.decode([i - self.id_offset for i in ids])


def train_bpe(
    texts: Iterable[str],
    to: str | os.PathLike[str],
    *,
    vocab_size: int,
    lowercase: bool = True,
    min_frequency: int = 2,
) -> BPETokenizer:
    """Train a byte-level BPE and save it.

    The vocabulary holds padding, start, end, all 256 bytes (so every text can be written), and as
    many merges as fit or occur.

    Args:
      texts: the corpus, read once.
      to: JSON file to write.
      vocab_size: the most ids to use.
      lowercase: put texts in lower case, in training and ever after.
      min_frequency: a pair must occur so often to be merged.

    Returns:
      The tokenizer, with a context of 32.

    Raises:
      ValueError: ``vocab_size`` is too small for the bytes.
    """
    if vocab_size < 256 + 3:
        raise ValueError(f"vocab_size={vocab_size} is less than the 256 bytes and 3 special tokens")
    hf = library()
    steps = [hf.normalizers.NFC(), *([hf.normalizers.Lowercase()] if lowercase else [])]
    steps += [hf.normalizers.Replace(hf.Regex(r"\s+"), " "), hf.normalizers.Strip()]
    bpe = hf.Tokenizer(hf.models.BPE())
    bpe.normalizer = hf.normalizers.Sequence(steps)
    # A blank in front makes a word the same token at the start of a text and inside it.
    bpe.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=True)
    bpe.decoder = hf.decoders.ByteLevel()
    trainer = hf.trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=[_PAD, _START, _END],
        initial_alphabet=sorted(hf.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    pathlib.Path(to).parent.mkdir(parents=True, exist_ok=True)
    bpe.save(os.fspath(to), pretty=False)
    return BPETokenizer(to, 32)


def check_kind(kind: Any) -> None:
    """Raise ValueError if there is no such kind of tokenizer."""
    if kind not in _KINDS:
        raise ValueError(f"tokenizer.kind={kind!r} is unknown{hint(str(kind), _KINDS)}")


def load(config: Mapping[str, Any]) -> Tokenizer:
    """Make the tokenizer that a configuration describes.

    Args:
      config: ``kind`` (see the module docstring), ``path`` of the vocabulary where the kind needs
        one, ``context_length`` (32; 77 for ``"clip"`` and ``"roberta"``, 64 for ``"siglip"`` and
        ``"gemma"``), and the kind's own options: ``lowercase`` for ``"sentencepiece"``,
        ``fix_text`` for ``"clip"`` and ``"roberta"``.

    Returns:
      The tokenizer.

    Raises:
      ValueError: unknown kind or option, or a missing or superfluous path.
      FileNotFoundError: the vocabulary is not there.
    """
    options = dict(config)
    kind, path = options.pop("kind", "emoji_bpe"), os.fspath(options.pop("path", "") or "")
    check_kind(kind)
    context_length = options.pop("context_length", defaults.context_length(kind))
    known = _OPTIONS.get(kind, ())
    for key in options:
        if key not in known:
            names = ("kind", "path", "context_length", *known)
            raise ValueError(
                f"tokenizer.{key} is no option of tokenizer.kind={kind!r}{hint(key, names)}"
            )
    if kind == "emoji_bpe" and path:
        raise ValueError(
            f"tokenizer.path={path!r} has no meaning for tokenizer.kind='emoji_bpe', which comes "
            "with the package; for a vocabulary of your own use tokenizer.kind='bpe'"
        )
    if kind not in ("emoji_bpe", "clip") and not path:
        raise ValueError(f"tokenizer.kind={kind!r} needs tokenizer.path, the vocabulary file")
    return _KINDS[kind](path, context_length, **options)


def _load_emoji(path: str, context_length: int) -> Tokenizer:
    return BPETokenizer(emoji.tokenizer_file(), context_length)


_KINDS: dict[str, Callable[..., Tokenizer]] = {
    "emoji_bpe": _load_emoji,
    "bpe": BPETokenizer,
    "clip": CLIPTokenizer,
    "siglip": SigLIPTokenizer,
    "gemma": GemmaTokenizer,
    "roberta": RobertaTokenizer,
    "sentencepiece": SentencePieceTokenizer,
}
_OPTIONS = {"sentencepiece": ("lowercase",), "clip": ("fix_text",), "roberta": ("fix_text",)}


def _captions(data: str, split: str) -> Iterator[str]:
    """Captions of a data set, each once (the pictures of one idea share theirs)."""
    from jaxclip.data import sources

    source = sources.open(data).source(split)
    seen: set[int] = set()
    for index in range(len(source)):
        record = source[index]
        if not isinstance(record, Record):
            continue
        for text in record.texts:
            if hash(text) not in seen:
                seen.add(hash(text))
                yield text


def main(argv: Sequence[str] | None = None) -> int:
    """Train a BPE on the captions of a data set."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--data", required=True, help="name or directory of a data set")
    parser.add_argument("--split", default="train")
    parser.add_argument("--vocab_size", type=int, default=4096)
    parser.add_argument("--keep_case", action="store_true", help="do not put texts in lower case")
    parser.add_argument("--to", required=True, help="JSON file to write")
    args = parser.parse_args(argv)
    try:
        tokenizer = train_bpe(
            _captions(args.data, args.split),
            args.to,
            vocab_size=args.vocab_size,
            lowercase=not args.keep_case,
        )
    except (OSError, ValueError) as error:
        parser.exit(2, f"error: {error}\n")
    print(f"{args.to}: {tokenizer.vocab_size} tokens")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
