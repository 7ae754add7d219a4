"""A tokenizer in the words of other people's folders: ids that they name, and files."""

from __future__ import annotations

import json
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

from jaxclip.data import siglip_tokens
from jaxclip.models.presets import CLIPConfig
from jaxclip.weights.families._base import SpecialIds

_CLIP_TOKENIZER = {
    "tokenizer_class": "CLIPTokenizer",
    "bos_token": "<|startoftext|>",
    "eos_token": "<|endoftext|>",
    "unk_token": "<|endoftext|>",
    "pad_token": "!",  # id 0, which is what our rows are filled with
    "add_prefix_space": False,
}


def special_ids(tokenizer: Mapping[str, Any], sizes: CLIPConfig) -> SpecialIds:
    """Ids that begin, end and fill a text.

    Args:
      tokenizer: section ``tokenizer`` of a configuration.
      sizes: of the model; CLIP's vocabulary ends with its two special tokens.

    Raises:
      ValueError: the tokenizer can't be made; FileNotFoundError likewise.
    """
    kind, size = tokenizer.get("kind"), sizes.text.vocab_size
    if kind == "clip":
        return SpecialIds(size - 2, size - 1)
    if kind == "roberta":
        return SpecialIds(0, 2, 1)
    if kind in ("siglip", "gemma"):
        return SpecialIds(None, 1, 1 if kind == "siglip" else 0)
    from jaxclip.data import tokenizers

    made = tokenizers.load(tokenizer)
    return SpecialIds(made.start_id, made.end_id, made.pad_id)


def find(folder: pathlib.Path, tokenizer: Mapping[str, Any]) -> dict[str, Any]:
    """The section ``tokenizer`` with the path of the vocabulary in a published folder, if any."""
    kind = tokenizer.get("kind")
    if kind == "clip" and all((folder / n).is_file() for n in ("vocab.json", "merges.txt")):
        return {**tokenizer, "path": str(folder)}
    if kind == "roberta" and (folder / "tokenizer.json").is_file():
        return {**tokenizer, "path": str(folder / "tokenizer.json")}
    for name in siglip_tokens.FILES:
        if kind in ("siglip", "gemma") and (folder / name).is_file():
            return {**tokenizer, "path": str(folder / name)}
    return dict(tokenizer)


def write(tokenizer: Mapping[str, Any], folder: pathlib.Path, vocab_size: int) -> None:
    """Put a tokenizer's files into an exported folder, where we have them.

    CLIP's vocabulary becomes ``vocab.json`` and ``merges.txt`` of ``transformers.CLIPTokenizer``;
    files of the ``tokenizers`` library and of SentencePiece are copied as they are.

    Args:
      tokenizer: section ``tokenizer`` of a configuration.
      folder: where to.
      vocab_size: of the model; CLIP's own vocabulary is written if it is that one's.
    """
    kind, path = tokenizer.get("kind"), str(tokenizer.get("path") or "")
    length = {"model_max_length": tokenizer.get("context_length", 77)}
    from jaxclip.data import clip_bpe

    if kind == "clip" and (path or vocab_size == clip_bpe.VOCAB_SIZE):
        vocabulary, merges = clip_bpe.read_vocabulary(path or clip_bpe.vocabulary_file())
        lines = ["#version: 0.2", *(" ".join(pair) for pair in merges), ""]
        _write(folder / "vocab.json", json.dumps(vocabulary, ensure_ascii=False))
        _write(folder / "merges.txt", "\n".join(lines))
        _write(folder / "tokenizer_config.json", json.dumps({**_CLIP_TOKENIZER, **length}))
    elif kind in ("siglip", "gemma", "sentencepiece") and path:
        file = siglip_tokens.find_file(path)
        model = "tokenizer.model" if kind == "gemma" else "spiece.model"
        shutil.copyfile(file, folder / (file.name if file.suffix == ".json" else model))
        name = "GemmaTokenizerFast" if kind == "gemma" else "SiglipTokenizer"
        config = {"tokenizer_class": name, **length}
        _write(folder / "tokenizer_config.json", json.dumps(config))
    elif kind == "roberta" and path:
        shutil.copyfile(path, folder / "tokenizer.json")
    elif kind in ("bpe", "emoji_bpe"):
        from jaxclip.data import emoji

        source = path or emoji.tokenizer_file()
        shutil.copyfile(source, folder / "tokenizer.json")


def _write(path: pathlib.Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
