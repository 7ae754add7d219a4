"""How pictures and texts become a model's input."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxclip.config import Config
from jaxclip.data import decode
from jaxclip.data.record import BadRecord
from jaxclip.weights.families._base import Preprocess

Picture = Any

# Means and standard deviations in use bring pixels to within 5 or so.
_LARGEST_NORMALISED = 8.0


def preprocess_of(config: Config) -> Preprocess:
    """How the inputs of a configuration's model are made."""
    data = config["data"]
    ops = data["eval_image_ops"]
    chain = ops if isinstance(ops, str) else "|".join(map(str, ops))
    return Preprocess(data["image_mean"], data["image_std"], chain, config["tokenizer"])


def to_pixels(image: Picture) -> np.ndarray:
    """uint8[H, W, 3] of a path, encoded bytes, a ``PIL.Image`` or an array.

    Raises:
      ValueError: it is no picture, or can't be decoded.
      FileNotFoundError: there is no such file.
    """
    if isinstance(image, (np.ndarray, jax.Array)):
        if image.ndim != 3 or image.shape[-1] != 3 or image.dtype != np.uint8:
            raise ValueError(
                f"an array of a picture is uint8[H, W, 3], not {image.dtype}{list(image.shape)}"
            )
        return np.asarray(image)
    name = ""
    if isinstance(image, (str, os.PathLike)):
        name, image = os.fspath(image), pathlib.Path(image).expanduser().read_bytes()
    if isinstance(image, bytes):
        decoded = decode.decode(image)
    elif hasattr(image, "convert") and hasattr(image, "size"):
        decoded = decode.to_rgb(image)
    else:
        raise ValueError(
            f"{type(image).__name__} is no picture: give a path, a PIL image, an array"
        )
    if isinstance(decoded, BadRecord):
        why = f"{decoded.reason} {decoded.detail}".rstrip()
        raise ValueError(f"{name or 'the picture'} can't be decoded: {why}")
    return np.asarray(decoded)


def as_strings(texts: str | Sequence[str]) -> list[str]:
    """A list of texts, of one or several.

    Raises:
      ValueError: something that is no text.
    """
    one = isinstance(texts, str) or not hasattr(texts, "__iter__")
    found: list[Any] = [texts] if one else list(texts)
    for each in found:
        if not isinstance(each, str):
            raise ValueError(f"{each!r} is no text; tokenize takes a string or a list of strings")
    return found


def as_pixels(given: Any) -> jax.Array:
    """Pictures as an array, where their values are known of 0 to 255.

    Raises:
      ValueError: they are none, such as a path; floats as of pixels divided by 255, or normalised:
        they would be so twice.
    """
    images = _as_numbers(
        given, "pictures uint8[B, S, S, 3]", "model.preprocess makes them of paths and files"
    )
    found = _range(given, images) if jnp.issubdtype(images.dtype, jnp.floating) else None
    if found is None:
        return images
    least, most = found
    # From 0 to more than 1 they are dark pictures of 0 to 255, such as a film fades to.
    scaled = least < 0 or most <= 1
    if scaled and least < most and max(-least, most) <= _LARGEST_NORMALISED:
        raise ValueError(
            f"pictures of {images.dtype} from {least:.3g} to {most:.3g}: the model takes 0 to 255 "
            "and normalises them itself; give what model.preprocess makes, or undo the "
            "normalisation"
        )
    return images


def as_tokens(given: Any, vocab_size: int | None) -> jax.Array:
    """Rows of tokens as an array.

    Args:
      given: int32[B, L].
      vocab_size: what they are below, where their values are known; None for any numbers at all.

    Raises:
      ValueError: another number of axes, no integers, or a number that is no token.
    """
    tokens = _as_numbers(given, "tokens int32[B, L]", "model.tokenize makes them of texts")
    if vocab_size is None:
        return tokens
    if tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise ValueError(
            f"tokens of shape {list(tokens.shape)} and dtype {tokens.dtype}, where int32[B, L] is "
            "wanted; model.tokenize makes them of texts"
        )
    found = _range(given, tokens)
    if found is not None and (found[0] < 0 or found[1] >= vocab_size):
        raise ValueError(
            f"tokens from {found[0]:.0f} to {found[1]:.0f}: the model has tokens 0 to "
            f"{vocab_size - 1}; they are of another tokenizer, model.tokenize makes the right ones"
        )
    return tokens


def _as_numbers(given: Any, what: str, way: str) -> jax.Array:
    """An array of numbers.

    Args:
      given: what ought to be one.
      what: what is wanted, for the error.
      way: how to get it.

    Raises:
      ValueError: it is none, such as a string or a path.
    """
    try:
        return jnp.asarray(given)
    except TypeError as error:
        raise ValueError(f"{type(given).__name__} is not {what}; {way}") from error


def _range(given: Any, array: jax.Array) -> tuple[float, float] | None:
    """The least and the largest value of what was given, which is the array.

    Returns:
      None where there is no value, or it is not known here.
    """
    if not array.size or isinstance(array, jax.core.Tracer):
        return None
    if isinstance(given, np.ndarray):
        # Without the device, which may be at work on the batch before.
        return float(given.min()), float(given.max())
    if not array.is_fully_addressable:
        return None
    least, most = jax.device_get((jnp.min(array), jnp.max(array)))
    return float(least), float(most)
