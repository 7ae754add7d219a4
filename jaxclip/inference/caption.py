"""Captions of pictures by a model with a captioning decoder (CoCa)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxclip import objectives
from jaxclip.config import Config
from jaxclip.inference import generate
from jaxclip.models import CLIPConfig
from jaxclip.objectives._captioning import Captioning
from jaxclip.registry import check_options, hint
from jaxclip.train import towers as towers_lib

TERM = "coca"
_OPTIONS: dict[str, dict[str, Any]] = {
    "greedy": {"guidance": 1.0},
    "beam": {"num_beams": 6, "length_penalty": 1.0, "guidance": 1.0},
    "nucleus": {"top_p": 0.9, "temperature": 1.0, "guidance": 1.0},
}


def term_of(config: Config, path: str) -> tuple[str, objectives.Objective]:
    """The first term of a configuration that writes captions, and its name there.

    Raises:
      ValueError: the model has none.
    """
    for term in objectives.listed(config["objective"]):
        if isinstance(term.objective, Captioning):
            return term.name, term.objective
    raise ValueError(
        f"{path} has no captioning decoder: captions need CoCa weights, or a run with objective "
        f"{TERM!r}"
    )


def captioner(
    towers: towers_lib.ModelTowers,
    term: Any,
    frame: generate.Frame,
    method: str = "beam",
    options: Mapping[str, Any] | None = None,
    name: str = TERM,
) -> Callable[..., jax.Array]:
    """A pure function that writes captions.

    Args:
      towers: of the model.
      term: its captioning objective (:class:`jaxclip.objectives.coca.CoCa` and others).
      frame: of the captions.
      method: ``"greedy"``, ``"beam"`` (options ``num_beams``, ``length_penalty``) or ``"nucleus"``
        (``top_p``, ``temperature``); see :mod:`jaxclip.inference.generate`. All have ``guidance``
        (:func:`jaxclip.inference.generate.guided_logits`), which is 1 for none.
      options: of the method.
      name: of the term in the run.

    Returns:
      ``(params, images, key) -> int32[B, L]``; ``params["objective"]`` has the term's own.

    Raises:
      ValueError: an unknown method or option, or captions longer than the model's texts.
    """
    if method not in _OPTIONS:
        raise ValueError(f"unknown method {method!r} of captions{hint(method, _OPTIONS)}")
    given = dict(options or {})
    check_options(given, _OPTIONS[method], f"method {method!r} of captions")
    chosen = {**_OPTIONS[method], **given}
    sizes = towers.sizes
    if frame.length > sizes.text.context_length:
        raise ValueError(
            f"length={frame.length} is more than the model's texts have, "
            f"{sizes.text.context_length} tokens"
        )
    beams = int(chosen["num_beams"]) if method == "beam" else 1
    guidance = chosen.pop("guidance")
    if not guidance >= 0:
        raise ValueError(f"guidance={guidance} must not be negative; 1 is none")

    def caption(params: Any, images: Any, key: jax.Array) -> jax.Array:
        own = params["objective"][name]
        features = towers.features(params, "image", images)
        image = jnp.repeat(term.visual(own, features, sizes), max(1, beams), axis=0)

        def next_logits(tokens: jax.Array, place: jax.Array) -> jax.Array:
            text = _text_tokens(towers, term, params, tokens, sizes)
            logits: jax.Array = term.decode(own, text, image, sizes, at=place)[:, 0]
            if guidance == 1:
                return logits
            blank = term.decode(own, text, jnp.zeros_like(image), sizes, at=place)[:, 0]
            return generate.guided_logits(logits, blank, guidance)

        rows = features.raw.shape[0]
        if method == "greedy":
            return generate.greedy(next_logits, rows, frame)
        if method == "nucleus":
            return generate.nucleus(next_logits, rows, frame, key, **chosen)
        return generate.beam(next_logits, rows, frame, **chosen)[0]

    return caption


def _text_tokens(
    towers: towers_lib.ModelTowers, term: Any, params: Any, tokens: jax.Array, sizes: CLIPConfig
) -> jax.Array:
    """What the decoder starts from, [R, L, C]."""
    if not term.from_embeddings:
        text: jax.Array = towers.features(params, "text", tokens).tokens
        return text
    hidden: jax.Array = towers.features(params, "text", tokens, hidden=(0,)).hidden[0]
    return hidden[:, : tokens.shape[1]]
