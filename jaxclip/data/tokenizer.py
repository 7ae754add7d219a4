"""What every tokenizer has in common; see :mod:`jaxclip.data.tokenizers`."""

from __future__ import annotations

import abc
import copy
import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

PAD_ID = 0
HINT = "install the training extra, in a clone of jaxclip: pip install '.[train]'"


class Tokenizer(abc.ABC):
    """Turns texts into rows of token ids.

    Args:
      vocab_size: number of ids, the size of the embedding table.
      context_length: tokens in a row, start and end of text included.
      start_id: put before every text; None for none.
      end_id: put after every text.
      pad_id: fills the rest of a row; SigLIP's is its ``end_id``.

    Raises:
      ValueError: ``context_length`` leaves no room for a token between start and end.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        context_length: int,
        start_id: int | None,
        end_id: int,
        pad_id: int = PAD_ID,
    ) -> None:
        least = 2 if start_id is None else 3
        if not isinstance(context_length, int) or context_length < least:
            raise ValueError(
                f"tokenizer.context_length={context_length!r} must be an integer, at least {least}"
            )
        self.vocab_size = vocab_size
        self.context_length = context_length
        self.start_id = start_id
        self.end_id = end_id
        self.pad_id = pad_id

    def with_length(self, context_length: int) -> Tokenizer:
        """The same tokenizer with rows of another length.

        Raises:
          ValueError: it leaves no room for a token between start and end.
        """
        other = copy.copy(self)
        Tokenizer.__init__(
            other,
            vocab_size=self.vocab_size,
            context_length=context_length,
            start_id=self.start_id,
            end_id=self.end_id,
            pad_id=self.pad_id,
        )
        return other

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Tokenize.

        Args:
          texts: any strings; too long ones lose their end.

        Returns:
          int32[len(texts), context_length].

        Raises:
          TypeError: given a single string in place of a sequence of them.
        """
        if isinstance(texts, str):
            raise TypeError(
                f"expected a sequence of texts, got the text {texts!r}; wrap it in a list"
            )
        rows = np.full((len(texts), self.context_length), self.pad_id, np.int32)
        start = [] if self.start_id is None else [self.start_id]
        room = self.context_length - len(start) - 1
        for row, ids in zip(rows, self._encode([_encodable(text) for text in texts]), strict=True):
            whole = [*start, *ids[:room], self.end_id]
            row[: len(whole)] = whole
        return rows

    def decode(self, ids: Iterable[int]) -> str:
        """The text of one row, without padding, start and end.

        Args:
          ids: token ids, one-dimensional.

        Returns:
          The text as the vocabulary sees it (in lower case if it is a lower-case vocabulary).
        """
        row = [int(i) for i in ids]
        if row and row[0] == self.start_id:
            row = row[1:]
        if self.end_id in row:
            row = row[: row.index(self.end_id)]
        while row and row[-1] == self.pad_id:  # a row without its end
            row.pop()
        return self._decode(row)

    @abc.abstractmethod
    def _encode(self, texts: list[str]) -> Iterable[Sequence[int]]:
        """Ids of each text without start and end, and never those."""

    @abc.abstractmethod
    def _decode(self, ids: list[int]) -> str: ...


def library() -> Any:
    try:
        import tokenizers
    except ImportError as error:
        raise ImportError(f"BPE vocabularies need the package `tokenizers`; {HINT}") from error
    return tokenizers


def check_file(path: str | os.PathLike[str], hint: str) -> None:
    if not os.path.isfile(path):
        raise FileNotFoundError(
            f"tokenizer.path={os.fspath(path)!r}: there is no such vocabulary file; {hint}"
        )


def _encodable(text: str) -> str:
    """Half surrogates, which are no characters, become question marks."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")
