"""The tokenizers of RoBERTa and XLM-RoBERTa, and of others with ``<s>``, ``</s>`` and ``<pad>``.

``path`` is a ``tokenizer.json`` of the ``tokenizers`` library, which these models come with, or a
folder with one. Rows are ``<s> tokens... </s> <pad>...``, case is kept; texts are cleaned as
open_clip does it: repaired (ftfy), HTML entities resolved, blanks made single. A special token that
a text spells out gets the ordinary tokens of these characters, or none where it is a piece of the
vocabulary itself (XLM-RoBERTa).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

from jaxclip.data import text_cleaning
from jaxclip.data.siglip_tokens import find_file, json_model
from jaxclip.data.tokenizer import Tokenizer

PAD_ID = 1
_SPECIAL = ("<s>", "</s>", "<pad>")


class RobertaTokenizer(Tokenizer):
    """See the module docstring.

    Args:
      path: file or folder.
      context_length: tokens in a row, 77 in open_clip's models.
      fix_text: repair texts with ``ftfy``; None: where it is installed.

    Raises:
      FileNotFoundError: there is no vocabulary at ``path``.
      ValueError: it is none, or not of this kind.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        context_length: int = 77,
        *,
        fix_text: bool | None = None,
    ):
        file = find_file(path)
        if file.suffix != ".json":
            raise ValueError(
                f"tokenizer.path={os.fspath(path)!r} is no tokenizer.json, which tokenizer.kind="
                "'roberta' reads; transformers writes one: AutoTokenizer.from_pretrained(NAME)"
                ".save_pretrained(FOLDER)"
            )
        self._model = json_model(file)
        start, end, pad = (self._model.token_to_id(name) for name in _SPECIAL)
        if None in (start, end) or pad != PAD_ID:
            raise ValueError(
                f"tokenizer.path={os.fspath(path)!r} must hold <s>, </s> and <pad> (as id {PAD_ID})"
                f", as RoBERTa's does, but has {start}, {end} and {pad}; use the one beside the "
                "weights, and its kind"
            )
        self._fix = text_cleaning.fixer(fix_text)
        super().__init__(
            vocab_size=self._model.get_vocab_size(),
            context_length=context_length,
            start_id=start,
            end_id=end,
            pad_id=PAD_ID,
        )

    def _encode(self, texts: list[str]) -> Iterable[Sequence[int]]:
        cleaned = [" ".join(text_cleaning.unescape(text, self._fix).split()) for text in texts]
        special = {self.start_id, self.end_id, self.pad_id}
        for each in self._model.encode_batch(cleaned, add_special_tokens=False):
            yield [i for i in each.ids if i not in special]

    def _decode(self, ids: list[int]) -> str:
        text: str = self._model.decode(ids)
        return text.strip()
