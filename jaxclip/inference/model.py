"""A model ready for use: parameters, preprocessing, tokenizer and both encoders."""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxclip import config as config_lib
from jaxclip import models
from jaxclip.config import Config
from jaxclip.data import decode, image_chain, patch_sequence
from jaxclip.data.record import BadRecord
from jaxclip.inference import caption, generate
from jaxclip.inference.inputs import (
    Picture,
    as_pixels,
    as_strings,
    as_tokens,
    preprocess_of,
    to_pixels,
)
from jaxclip.models import presets, reductions
from jaxclip.models.products import rules
from jaxclip.registry import hint, nearest
from jaxclip.train import init_from, tokenizer_check, towers
from jaxclip.weights.families._base import Preprocess

logger = logging.getLogger("jaxclip")

Params = Any


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Model:
    """A CLIP model with its inputs' preparation.

    The encoders are pure functions of arrays: call them under ``jax.jit``, ``jax.grad`` and
    ``jax.vmap``, with the model's own parameters or with ``params=``.

    Attributes:
      path: where it is from.
      params: the tree of :meth:`jaxclip.models.CLIP.init`.
      config: the resolved configuration that it belongs to.
      towers: both encoders with normalisation.
    """

    path: str
    params: Params
    config: Config
    towers: towers.ModelTowers

    def __repr__(self) -> str:
        image, text = self.sizes.image, self.sizes.text
        pictures = (
            f"up to {image.max_patches} patches" if self.is_native else f"{image.image_size} px"
        )
        return (
            f"Model({self.path!r}: {pictures}, text of {text.context_length} tokens, "
            f"embeddings of {self.sizes.embed_dim})"
        )

    @property
    def sizes(self) -> models.CLIPConfig:
        """The architecture."""
        return self.towers.sizes

    @property
    def inputs(self) -> Preprocess:
        """How images and texts become input."""
        return preprocess_of(self.config)

    @property
    def is_native(self) -> bool:
        """Whether pictures keep their aspect ratio, as sequences of patches (NaFlex)."""
        return self.sizes.image.max_patches > 0

    def preprocess(self, images: Picture | Sequence[Picture]) -> Any:
        """Pictures as the model sees them.

        Args:
          images: a path, a ``PIL.Image`` or an array uint8[H, W, 3], or a list of them.

        Returns:
          uint8[B, S, S, 3]; B = 1 for one picture. Of a NaFlex model a
          :class:`jaxclip.models.PatchSequence`, of uint8 patches.

        Raises:
          ValueError: no picture, or one that can't be decoded.
          FileNotFoundError: there is no such file.
        """
        if not isinstance(images, (list, tuple)):
            images = [images]
        if not images:
            return self.batch([], 0)
        if self.is_native:
            return self.batch([self._cut(to_pixels(image)) for image in images], len(images))
        return self._resized([to_pixels(image) for image in images])

    def prepare(self, data: bytes) -> Any:
        """uint8[S, S, 3] of an encoded picture (or its patches), or a :class:`BadRecord`."""
        decoded = decode.decode(data)
        if isinstance(decoded, BadRecord):
            return decoded
        pixels = np.asarray(decoded)
        return self._cut(pixels) if self.is_native else self._resized([pixels])[0]

    def batch(self, prepared: Sequence[Any], rows: int) -> Any:
        """What :meth:`prepare` gave, as the input of :meth:`encode_image`.

        Args:
          prepared: at most ``rows`` pictures.
          rows: of the batch; those that are missing are black.
        """
        image = self.sizes.image
        if self.is_native:
            shapes = [(image.max_patches, 3 * image.patch_size**2), (image.max_patches,), (2,)]
            kinds = [np.uint8, np.bool_, np.int32]
            arrays: list[Any] = [
                np.zeros((rows, *s), k) for s, k in zip(shapes, kinds, strict=True)
            ]
            arrays[1][:, 0], arrays[2][:] = True, 1
            for row, each in enumerate(prepared):
                for array, part in zip(arrays, each, strict=True):
                    array[row] = part
            return models.PatchSequence(*arrays)
        size = image.image_size
        pixels = np.zeros((rows, size, size, 3), np.uint8)
        for row, each in enumerate(prepared):
            pixels[row] = each
        return pixels

    def tokenize(self, texts: str | Sequence[str]) -> np.ndarray:
        """int32[B, L], the tokens of texts.

        Raises:
          ValueError: no text, or the weights came without their tokenizer; the message says what
            to give.
        """
        strings = as_strings(texts)
        return np.asarray(self._tokenizer(strings))

    def encode_image(self, images: Any, *, params: Params = None) -> jax.Array:
        """float32[B, D] of unit length, of uint8[B, S, S, 3] or what :meth:`preprocess` gave.

        Raises:
          ValueError: another shape, no numbers, floats that are not in 0 to 255 (where they are
            known, not under ``jax.jit``; those on a device are waited for), or weights without an
            image tower.
        """
        if isinstance(images, models.PatchSequence):
            images = models.PatchSequence(*map(jnp.asarray, images))
        else:
            images = as_pixels(images)
        return self._image(self._holding("image", params), images)

    def encode_text(self, tokens: ArrayLike, *, params: Params = None) -> jax.Array:
        """float32[B, D] of unit length, of int32[B, L].

        Raises:
          ValueError: rows that are too long, what are no tokens of the model's vocabulary, or
            weights without a text tower.
        """
        params = self._holding("text", params)
        text = self.sizes.text
        tokens = as_tokens(tokens, None if text.kind == "vector" else text.vocab_size)
        return self._text(params, tokens)

    def logits(self, images: Any, tokens: ArrayLike, *, params: Params = None) -> jax.Array:
        """float32[B, M]: every image against every text, scaled as in training.

        The softmax of a row is a zero-shot classifier's probabilities; of SigLIP models the sigmoid
        is the probability of a pair.
        """
        params = self.params if params is None else params
        image = self.encode_image(images, params=params)
        text = self.encode_text(tokens, params=params)
        return jnp.exp(params["logit_scale"]) * image @ text.T + params.get("logit_bias", 0.0)

    def _holding(self, tower: str, params: Params) -> Params:
        """The parameters, if a tower is among them: published weights may hold one alone."""
        params = self.params if params is None else params
        if tower not in params:
            there = " and ".join(t for t in ("image", "text") if t in params) or "no"
            raise ValueError(
                f"{self.path} holds the {there} tower alone: nothing can embed "
                f"{'texts' if tower == 'text' else 'images'}"
            )
        return params

    def caption(
        self,
        images: Picture | Sequence[Picture],
        *,
        method: str = "beam",
        length: int = 30,
        min_length: int = 5,
        seed: int = 0,
        params: Params = None,
        **options: Any,
    ) -> list[str]:
        """Captions of pictures, by a model with a captioning decoder (CoCa).

        Args:
          images: as of :meth:`preprocess`, or what it gave.
          method: ``"greedy"``, ``"beam"`` or ``"nucleus"``.
          length: the most tokens, start and end among them.
          min_length: tokens before a caption may end.
          seed: of ``"nucleus"``.
          params: in place of the model's own.
          options: of the method, see :func:`jaxclip.inference.caption.captioner`.

        Raises:
          ValueError: the model has no decoder, an unknown method or option, no tokenizer.
        """
        name, term = caption.term_of(self.config, self.path)
        is_input = isinstance(images, models.PatchSequence) or (
            isinstance(images, (np.ndarray, jax.Array)) and images.ndim == 4
        )
        batch = images if is_input else self.preprocess(images)
        tokenizer = self._tokenizer
        if tokenizer.start_id is None:
            raise ValueError(
                f"tokenizer.kind={self.config['tokenizer']['kind']!r} has no start of text: a "
                "caption has nothing to begin with"
            )
        length = min(length, self.sizes.text.context_length)
        frame = generate.Frame(
            length, tokenizer.start_id, tokenizer.end_id, tokenizer.pad_id, min_length
        )
        write = self._captioner(name, term, frame, method, tuple(sorted(options.items())))
        params = self._with_term(name) if params is None else params
        rows = write(params, jax.tree.map(jnp.asarray, batch), jax.random.key(seed))
        return [tokenizer.decode(row) for row in np.asarray(rows)]

    def _captioner(self, name: str, term: Any, frame: Any, method: str, options: Any) -> Any:
        key = (name, term, frame, method, options)
        if key not in self._captioners:
            made = caption.captioner(self.towers, term, frame, method, dict(options), name)
            self._captioners[key] = jax.jit(made)
        return self._captioners[key]

    @functools.cached_property
    def _captioners(self) -> dict[Any, Any]:
        return {}

    def _with_term(self, name: str) -> Params:
        """The parameters with a term's own, read from the run where they are not there yet."""
        if name not in self.params.get("objective", {}):
            if name not in self._terms:
                found: Mapping[str, Any] = {}
                if init_from.exists(self.path):
                    found = init_from.open_source(self.path, "the path").read_own([name])
                if name not in found:
                    raise ValueError(f"{self.path} has no trained parameters of objective {name!r}")
                self._terms[name] = found[name]
            return {**self.params, "objective": self._terms}
        return self.params

    @functools.cached_property
    def _terms(self) -> dict[str, Any]:
        return {}

    def _resized(self, arrays: list[np.ndarray]) -> np.ndarray:
        draws = np.zeros((len(arrays), self._chain.num_draws), np.float32)
        return np.asarray(self._chain(arrays, draws))

    def _cut(self, pixels: np.ndarray) -> Any:
        image = self.sizes.image
        return patch_sequence.cut(
            pixels, image.patch_size, image.max_patches, method=self._resize_method
        )

    @functools.cached_property
    def _resize_method(self) -> str:
        for spec in self._chain.specs:
            if "method" in spec.options:
                return str(spec.options["method"])
        return "bilinear"

    @functools.cached_property
    def _image(self) -> Callable[[Params, Any], jax.Array]:
        return jax.jit(lambda params, x: self.towers.encode(params, "image", x))

    @functools.cached_property
    def _text(self) -> Callable[[Params, jax.Array], jax.Array]:
        return jax.jit(lambda params, x: self.towers.encode(params, "text", x))

    @functools.cached_property
    def _chain(self) -> image_chain.Chain:
        return image_chain.build(self.config["data"]["eval_image_ops"], self.sizes.image.image_size)

    @functools.cached_property
    def _tokenizer(self) -> Any:
        from jaxclip.data import tokenizers

        try:
            tokenizer = tokenizers.load(self.config["tokenizer"])
            self._check_tokenizer(tokenizer)
            return tokenizer
        except ValueError as error:
            raise ValueError(
                f"the tokenizer of {self.path} can't be made: {error}; give it by --tokenizer, or "
                "to load: jaxclip.load(path, tokenizer={'path': 'bpe_simple_vocab_16e6.txt.gz'})"
            ) from error

    def check_tokenizer(self) -> None:
        """Make the tokenizer now, which else is made at the first text.

        Raises:
          ValueError: as :meth:`tokenize`; it has more tokens than the weights embed, or pads with
            another.
        """
        _ = self._tokenizer

    def _check_tokenizer(self, tokenizer: Any) -> None:
        published = init_from.exists(self.path) and not init_from.is_run(self.path)
        tokenizer_check.fit(
            tokenizer,
            self.config["tokenizer"]["kind"],
            self.sizes.text,
            self.path,
            published=published,
        )


_SPLIT = {f"bfloat16x{terms}": {"name": "split_bfloat16", "terms": terms} for terms in (2, 3)}
_DTYPES = ("float32", "bfloat16", "float16", *_SPLIT)


def load(
    source: str | os.PathLike[str],
    *,
    tokenizer: Mapping[str, Any] | None = None,
    dtype: str = "float32",
    token_reduction: Mapping[str, Any] | None = None,
) -> Model:
    """Open a model.

    Args:
      source: a workdir, also at an address (its averaged parameters, where it keeps them),
        published weights (a file or folder of any family of :mod:`jaxclip.weights.families`), or
        the name of a preset, whose parameters are random.
      tokenizer: laid over the section ``tokenizer`` of its configuration.
      dtype: compute dtype of the encoders' blocks; parameters, the residual stream, what is before
        and behind the blocks, and embeddings are float32. ``"bfloat16x2"`` and ``"bfloat16x3"``
        make the products of the blocks' linear layers of two or three in bfloat16
        (:mod:`jaxclip.models.products.split_bfloat16`).
      token_reduction: fewer patches in the image tower, ``{"name": "tome", "r": 8}``
        (:mod:`jaxclip.models.reductions`); None for all.

    Raises:
      ValueError: nothing of that name (the message names the nearest preset), or an unknown dtype,
        reduction or option.
    """
    if dtype not in _DTYPES:
        raise ValueError(f"dtype={dtype!r}; use {', '.join(map(repr, _DTYPES))}")
    path = os.fspath(source)
    exists = init_from.exists(path)
    if exists:
        found = init_from.open_source(path, "the path")
        config, params = found.config, jax.tree.map(jnp.asarray, found.read(None))
    elif path in presets.names():
        config = config_lib.resolve({"model": {"preset": path}, **_sized(presets.get(path))})
        logger.warning("%s is a preset: its parameters are random", path)
        params = towers.build_model(config).init(jax.random.key(0))
    else:
        raise ValueError(
            f"{path!r} is neither a workdir, published weights nor a preset{_hint_of_weights(path)}"
        )
    if tokenizer:
        trained, chosen = config["tokenizer"], {**config["tokenizer"], **tokenizer}
        if exists:
            tokenizer_check.warn(trained, chosen, path)
        config = {**config, "tokenizer": chosen}
    products = rules.from_config(_SPLIT.get(dtype))
    dtype = "float32" if products else dtype
    # The residual stream costs little, and most of the precision (docs/weights.md).
    half = {"residual_dtype": None if dtype == "float32" else "float32"}
    config = {**config, "precision": {**config["precision"], "compute_dtype": dtype, **half}}
    own = towers.from_config(config, towers.build_model(config), products=products)
    reduction = reductions.from_config(token_reduction)
    return Model(path, params, config, dataclasses.replace(own, reduction=reduction))


def _hint_of_weights(path: str) -> str:
    """The end of an error about weights that are not there: what is beside them, or a preset."""
    folder, name = os.path.split(path.rstrip("/"))
    near = nearest(name, os.listdir(folder or ".") if os.path.isdir(folder or ".") else ())
    if near and not nearest(path, presets.names()):
        return f"; did you mean {os.path.join(folder, near)!r}?"
    return hint(path, presets.names(), listed_by=presets.LISTED_BY) if not folder else ""


def _sized(sizes: models.CLIPConfig) -> dict[str, Any]:
    return {
        "data": {"image_size": sizes.image.image_size},
        "tokenizer": {"context_length": sizes.text.context_length},
    }
