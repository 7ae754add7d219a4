"""The tokenizers of SigLIP and SigLIP 2, over the vocabulary that comes with their weights.

``path`` is a SentencePiece model (``spiece.model``, ``tokenizer.model``, …), a ``tokenizer.json``
of the ``tokenizers`` library, or a folder with one of them.

Both put nothing before a text and the end token behind it, also behind one that is cut
(big_vision's ``eos="sticky"``). They differ in the text's form and in the padding:

- SigLIP (Zhai et al. 2023, arXiv:2303.15343): lower case without punctuation
  (:func:`~jaxclip.data.text_cleaning.canonical`); padding is the end token, 1. The published models
  were trained so, and lose tens of points with another padding.
- SigLIP 2 (Tschannen et al. 2025, arXiv:2502.14786): lower case, Gemma's vocabulary; padding is 0.

A text that spells a special token (``<eos>``) gets the ordinary tokens of these characters.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from jaxclip.data import text_cleaning
from jaxclip.data.tokenizer import HINT, PAD_ID, Tokenizer, check_file, library

END_ID = 1
FILES = ("spiece.model", "tokenizer.model", "sentencepiece.model", "tokenizer.json")


# Tokens of Gemma's vocabulary. SigLIP's has 32 000, its multilingual one 250 000.
_GEMMA_SIZE = 256_000


def kind_of(vocab_size: int) -> str:
    """Which tokenizer SigLIP weights with an embedding table of so many rows were trained with."""
    return "gemma" if vocab_size == _GEMMA_SIZE else "siglip"


class _EndedByOne(Tokenizer):
    """Rows ``tokens..., 1, pad, pad, ...``."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        context_length: int,
        kind: str,
        clean: Callable[[str], str],
        pad_id: int,
    ):
        self._clean = clean
        self._model = Pieces(path)
        special = {"end of text": (self._model.end_id, END_ID)}
        if pad_id != END_ID:
            special["padding"] = (self._model.pad_id, pad_id)
        for what, (found, wanted) in special.items():
            if found != wanted:
                raise ValueError(
                    f"tokenizer.path={os.fspath(path)!r} has {what} as id {found}, the vocabulary "
                    f"of tokenizer.kind={kind!r} as {wanted}; use the one beside the weights, or "
                    "tokenizer.kind='sentencepiece'"
                )
        super().__init__(
            vocab_size=self._model.size,
            context_length=context_length,
            start_id=None,
            end_id=END_ID,
            pad_id=pad_id,
        )

    def _encode(self, texts: list[str]) -> Iterable[Sequence[int]]:
        return self._model.encode([self._clean(text) for text in texts])

    def _decode(self, ids: list[int]) -> str:
        return self._model.decode(ids)


class SigLIPTokenizer(_EndedByOne):
    """The tokenizer of SigLIP models: canonical text, padding 1.

    Args:
      path: see the module docstring.
      context_length: tokens in a row, 64 in the published models (16 in the first ones).

    Raises:
      FileNotFoundError: there is no vocabulary at ``path``.
      ValueError: it is none, or its end-of-text is not 1.
    """

    def __init__(self, path: str | os.PathLike[str], context_length: int = 64):
        super().__init__(path, context_length, "siglip", text_cleaning.canonical, END_ID)


class GemmaTokenizer(_EndedByOne):
    """The tokenizer of SigLIP 2 models: lower case, padding 0.

    Args:
      path: see the module docstring.
      context_length: tokens in a row, 64 in the published models.

    Raises:
      FileNotFoundError: there is no vocabulary at ``path``.
      ValueError: it is none, or its padding and end-of-text are not 0 and 1.
    """

    def __init__(self, path: str | os.PathLike[str], context_length: int = 64):
        super().__init__(path, context_length, "gemma", str.lower, PAD_ID)


class Pieces:
    """A vocabulary of pieces, of SentencePiece or of the ``tokenizers`` library.

    Attributes:
      size: number of ids.
      pad_id, end_id: of padding and end of text; -1 for none.

    Args:
      path: file, or folder with one of :data:`FILES`.

    Raises:
      FileNotFoundError: there is no such file, or none in the folder.
      ValueError: it is no vocabulary.
    """

    def __init__(self, path: str | os.PathLike[str]):
        file = find_file(path)
        if file.suffix == ".json":
            self._json: Any = json_model(file)
            ids = [self._json.token_to_id(name) for name in ("<pad>", "</s>", "<eos>")]
            self.size = self._json.get_vocab_size()
            self.pad_id = -1 if ids[0] is None else ids[0]
            self.end_id = next((each for each in ids[1:] if each is not None), -1)
        else:
            self._json = None
            self._model = sentencepiece_model(file)
            self.size = self._model.get_piece_size()
            self.pad_id, self.end_id = self._model.pad_id(), self._model.eos_id()

    def encode(self, texts: list[str]) -> Iterable[Sequence[int]]:
        """Ids of each text, without special ones."""
        if self._json is None:
            return self._model.encode(texts, num_threads=1)
        return (each.ids for each in self._json.encode_batch(texts, add_special_tokens=False))

    def decode(self, ids: list[int]) -> str:
        """The text of ids."""
        return self._model.decode(ids) if self._json is None else self._json.decode(ids)


def sentencepiece_model(path: str | os.PathLike[str]) -> Any:
    """Open a SentencePiece model.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is no SentencePiece model.
      ImportError: ``sentencepiece`` is not installed.
    """
    check_file(path, "models come with the weights they were trained with")
    try:
        import sentencepiece
    except ImportError as error:
        raise ImportError(f"SentencePiece models need sentencepiece; {HINT}") from error
    try:
        return sentencepiece.SentencePieceProcessor(model_file=os.fspath(path))
    except (RuntimeError, OSError) as error:
        raise ValueError(f"{os.fspath(path)!r} is not a SentencePiece model: {error}") from error


def json_model(file: pathlib.Path) -> Any:
    """Open a ``tokenizer.json``.

    Raises:
      ValueError: it is none.
    """
    try:
        model = library().Tokenizer.from_file(os.fspath(file))
    except ImportError:
        raise
    except Exception as error:  # the library raises bare Exception for whatever is wrong
        raise ValueError(
            f"{os.fspath(file)!r} is not a tokenizer of the `tokenizers` library: {error}"
        ) from error
    # So that a caption that spells a special token is text like any other, and rows are ours.
    model.encode_special_tokens = True
    model.no_truncation()
    model.no_padding()
    return model


def find_file(path: str | os.PathLike[str]) -> pathlib.Path:
    """A vocabulary, or the first of :data:`FILES` in a folder.

    Raises:
      FileNotFoundError: there is none.
    """
    folder = pathlib.Path(path)
    if not folder.is_dir():
        check_file(path, "the vocabulary is beside the weights: spiece.model or tokenizer.json")
        return folder
    for name in FILES:
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(
        f"tokenizer.path={os.fspath(path)!r} is a folder without a vocabulary; it would be one of "
        f"{', '.join(FILES)}"
    )
