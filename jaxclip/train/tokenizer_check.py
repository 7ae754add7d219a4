"""Whether a tokenizer is the one that weights were trained with.

The wrong one makes ids that mean something else, or pads with a token that the weights know as a
word: nothing fails, and zero-shot accuracy falls to chance or by tens of points.
"""

from __future__ import annotations

import hashlib
import logging
import pathlib
import re
from collections.abc import Mapping
from typing import Any

logger = logging.getLogger("jaxclip")

# What holds the meaning of ids.
TABLE = "text/token_embedding/embedding"
# Tables of published weights are at most a little longer than their vocabularies.
_VOCABULARY_SHARE = 0.98


def fit(tokenizer: Any, kind: str, text: Any, path: str, *, published: bool) -> None:
    """Refuse a tokenizer that can't be the one of the weights, and say where it hardly is.

    Args:
      tokenizer: made (:func:`jaxclip.data.tokenizers.load`).
      kind: its ``tokenizer.kind``.
      text: sizes of the text tower.
      path: of the weights, for messages.
      published: whether they are other people's, whose tables are as long as their vocabularies.

    Raises:
      ValueError: it has more tokens than the weights embed, or pads with another.
    """
    if tokenizer.vocab_size > text.vocab_size:
        raise ValueError(
            f"tokenizer.kind={kind!r} has {tokenizer.vocab_size} tokens, the text tower embeds "
            f"{text.vocab_size}"
        )
    if tokenizer.pad_id != text.pad_id:
        raise ValueError(
            f"tokenizer.kind={kind!r} pads with {tokenizer.pad_id}, the weights were trained "
            f"with padding {text.pad_id}"
        )
    if published and tokenizer.vocab_size < _VOCABULARY_SHARE * text.vocab_size:
        logger.warning(
            "tokenizer.kind=%r has %d tokens, but the weights of %s embed %d: it is hardly the "
            "tokenizer that they were trained with",
            kind,
            tokenizer.vocab_size,
            path,
            text.vocab_size,
        )


def difference(trained: Mapping[str, Any], chosen: Mapping[str, Any]) -> str:
    """What tells two sections ``tokenizer`` apart, as far as ids go; empty for nothing.

    Args:
      trained: of the weights.
      chosen: of whoever uses them.
    """
    if trained["kind"] != chosen["kind"]:
        return f"tokenizer.kind={trained['kind']!r}, not {chosen['kind']!r}"
    for key in sorted((trained.keys() | chosen.keys()) - {"kind", "path", "context_length"}):
        if trained.get(key) != chosen.get(key):
            return f"tokenizer.{key}={trained.get(key)!r}, not {chosen.get(key)!r}"
    old, new = _content(trained), _content(chosen)
    if old and new and old != new:
        return f"the vocabulary {trained['path']}, not {chosen['path']}"
    return ""


def warn(trained: Mapping[str, Any], chosen: Mapping[str, Any], path: str) -> None:
    """Say that weights are used with another tokenizer than they were trained with."""
    if found := difference(trained, chosen):
        logger.warning("the weights of %s were trained with %s", path, found)


def check_start(source: Any, config: Mapping[str, Any]) -> None:
    """Look at the tokenizer of a run that starts from weights.

    Args:
      source: a :class:`jaxclip.train.init_from.Source`.
      config: of the run. Where ``init_from_exclude`` leaves out the table of tokens, which then is
        learned anew, any tokenizer will do.

    Raises:
      ValueError: it pads with another token than the weights were trained with.
    """
    anew = any(re.search(pattern, TABLE) for pattern in config["init_from_exclude"])
    if anew or "text" not in source.parts:
        return
    pads = [each["model"]["text"].get("pad_id", 0) for each in (source.config, config)]
    if pads[0] != pads[1]:
        raise ValueError(
            f"init_from={source.path!r} was trained with padding {pads[0]} (tokenizer.kind="
            f"{source.config['tokenizer']['kind']!r}), but tokenizer.kind="
            f"{config['tokenizer']['kind']!r} pads with {pads[1]}; use its tokenizer, or put "
            f"'^{TABLE}' into init_from_exclude to learn the tokens anew"
        )
    warn(source.config["tokenizer"], config["tokenizer"], source.path)


def _content(section: Mapping[str, Any]) -> str:
    """Digest of a vocabulary file; empty where there is none, or it is a folder."""
    path = section.get("path")
    if not path:
        return ""
    file = pathlib.Path(path).expanduser()
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else ""
