"""The towers of a configuration on what a batch holds: uint8 images, token ids."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxclip import models, parallel
from jaxclip.config import Config
from jaxclip.models import attention_logits, presets, reductions
from jaxclip.models.products import rules
from jaxclip.train import low_rank

Params = Any


@dataclasses.dataclass(frozen=True)
class ModelTowers:
    """A model with what stands before it: normalisation, and gathering of sharded parameters.

    Attributes:
      model: the encoders.
      image_mean: 3 channel means of pixels in [0, 1].
      image_std: 3 channel standard deviations.
      dtype: of what is outside of the blocks.
      shardings: of the parameters, None for one device; those outside of the blocks are gathered
        here, blocks gather their own.
      resize: bring images of another size to the model's own.
      reduction: how the image tower embeds with fewer patches, at evaluation and inference; None
        for all of them.
      low_rank_scaling: factor of low-rank additions, where the parameters have any
        (:mod:`jaxclip.train.low_rank`).
      products: what layers multiply by (:mod:`jaxclip.models.products.rules`); none for float
        products.
    """

    model: models.CLIP
    image_mean: Sequence[float]
    image_std: Sequence[float]
    dtype: str
    shardings: Any = None
    resize: bool = False
    low_rank_scaling: float = 1.0
    products: Sequence[rules.Rule] = ()
    reduction: reductions.Reduction | None = None

    @property
    def sizes(self) -> presets.CLIPConfig:
        """Architecture of the model."""
        return self.model.config

    def encode(self, params: Params, tower: str, array: Any) -> jax.Array:
        """float32[B, D] of unit length, of uint8[B, H, W, 3] (or a PatchSequence), int32[B, L]."""
        if tower == "image" and self.reduction is not None:
            with rules.applied(self.products, tower):
                own, images = self._ready(params, tower)[tower], self._input(tower, array)
                return models.unit(self.reduction.encode(self.model.image, own, images))
        encode = self.model.encode_image if tower == "image" else self.model.encode_text
        with rules.applied(self.products, tower):
            return encode(self._ready(params, tower), self._input(tower, array))

    def features(self, params: Params, tower: str, array: Any, **options: Any) -> Any:
        """:class:`jaxclip.models.Features` of the same; options as in ``CLIP.image_features``, and
        ``alpha``, float[B, H, W] in 0 to 1: the fourth channel of images that have one."""
        model: Any = self.model
        features = model.image_features if tower == "image" else model.text_features
        alpha, inputs = options.pop("alpha", None), self._input(tower, array)
        if alpha is not None:
            inputs = jnp.concatenate([inputs, alpha[..., None].astype(inputs.dtype)], axis=-1)
        with rules.applied(self.products, tower):
            return features(self._ready(params, tower), inputs, **options)

    def project(self, params: Params, tower: str, tokens: jax.Array) -> jax.Array:
        """Tokens in the joint space, each as if the pool saw it alone: float32[..., D], not of unit
        length."""
        ready, part = self._ready(params, tower), getattr(self.model, tower)
        if hasattr(part, "pool_tokens"):
            tokens = part.pool_tokens(ready[tower], tokens)
        to_space = self.model.project_image if tower == "image" else self.model.project_text
        return to_space(ready, tokens)

    def attention_logits(self, params: Params, tower: str, array: jax.Array) -> jax.Array:
        """float32[depth, H], the largest attention logit of every head on the same."""
        part = self.model.image if tower == "image" else self.model.text
        own = self._ready(params, tower)[tower]
        return attention_logits.largest_attention_logits(part, own, self._input(tower, array))

    def train_options(self, tower: str, keys: jax.Array) -> dict[str, Any]:
        """``train`` and the rows' keys where the tower drops anything; else nothing."""
        config = getattr(self.model.config, tower)
        if any(getattr(config, name, 0.0) for name in ("dropout", "patch_dropout")):
            return {"train": True, "keys": keys}
        return {}

    def _input(self, tower: str, array: Any) -> Any:
        if tower == "text":
            return array
        if isinstance(array, models.PatchSequence):
            return normalize_patches(array, self.image_mean, self.image_std)
        return self.image_input(array)

    def image_input(self, array: jax.Array) -> jax.Array:
        """What the image tower runs on, of uint8[B, H, W, 3]."""
        size = self.model.config.image.image_size
        if self.resize and array.shape[1:3] != (size, size):
            shape = (array.shape[0], size, size, array.shape[3])
            array = jax.image.resize(array.astype(jnp.float32), shape, "cubic")
        return normalize_images(array, self.image_mean, self.image_std)

    def _ready(self, params: Params, tower: str) -> Params:
        params = low_rank.add_to(params, tower, self.low_rank_scaling)
        if self.shardings is None:
            return params
        outside = {k: v for k, v in params[tower].items() if not k.startswith("blocks_")}
        shardings = {key: self.shardings[tower][key] for key in outside}
        whole = parallel.gather(outside, shardings, self.dtype)
        return {**params, tower: {**params[tower], **whole}}


def normalize_images(images: jax.Array, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
    """uint8 pixels to normalised floats, on the device: ``(x / 255 - mean) / std``.

    Args:
      images: uint8[B, H, W, 3] (floating input is taken as already in 0…255).
      mean: 3 channel means, in 0…1.
      std: 3 channel standard deviations, in 0…1.

    Returns:
      float32[B, H, W, 3].
    """
    # One multiply-add a pixel instead of two divisions and a subtraction.
    scale = jnp.asarray([1.0 / (255.0 * s) for s in std], jnp.float32)
    shift = jnp.asarray([-m / s for m, s in zip(mean, std, strict=True)], jnp.float32)
    return images.astype(jnp.float32) * scale + shift


def normalize_patches(
    sequence: models.PatchSequence, mean: Sequence[float], std: Sequence[float]
) -> models.PatchSequence:
    """:func:`normalize_images` for uint8 patches; padding becomes 0."""
    patches, valid = sequence.patches, sequence.valid
    pixels = patches.reshape(*patches.shape[:2], -1, 3)
    normal = normalize_images(pixels, mean, std).reshape(patches.shape)
    return sequence._replace(patches=jnp.where(valid[..., None], normal, 0.0))


def build_model(
    config: Config, mesh: jax.sharding.Mesh | None = None, shardings: Any = None
) -> models.CLIP:
    """The encoders of a resolved configuration.

    Args:
      config: the configuration.
      mesh: devices that their arguments are sharded over; None for one device.
      shardings: of the parameters, None for one device.
    """
    dtype = config["precision"]["compute_dtype"]
    attention = config["attention_implementation"]
    if attention == "fused" and mesh is not None:
        attention = models.fused_attention.sharded(mesh, parallel.BATCH_AXES, "tensor")
    gather_block = None
    if shardings is not None:
        gather_block = {
            tower: functools.partial(_gather_block, shardings[tower], dtype)
            for tower in ("image", "text")
        }
    # The devices that it will run on, not those of this process: it may be an ahead-of-time build.
    platform = jax.default_backend() if mesh is None else mesh.devices.flat[0].platform
    return models.build(
        model_sizes(config),
        dtype=dtype,
        remat=config["remat"],
        scan_layers=config["scan_layers"],
        attention_implementation=attention,
        gather_block=gather_block,
        flat_products=platform == "cpu",
        residual_dtype=config["precision"]["residual_dtype"],
    )


def _gather_block(shardings: Mapping[str, Any], dtype: Any, params: Any, name: str) -> Any:
    """A block's parameters, gathered as those of the block ``name`` are; where that is the first
    of blocks that have experts at the end, as the last one's."""
    like = shardings[name]
    if name == "blocks_0" and set(like.get("mlp", ())) != set(params.get("mlp", ())):
        last = max(int(key[7:]) for key in shardings if key.startswith("blocks_"))
        like = shardings[f"blocks_{last}"]
    return parallel.gather(params, like, dtype)


def model_sizes(config: Config) -> presets.CLIPConfig:
    """The architecture of a resolved configuration."""
    fields = {key: value for key, value in config["model"].items() if key != "preset"}
    return presets.CLIPConfig.from_dict(fields)


def from_config(
    config: Config,
    model: models.CLIP,
    shardings: Mapping[str, Any] | None = None,
    *,
    resize: bool = False,
    products: Sequence[rules.Rule] = (),
) -> ModelTowers:
    """The towers of a model with the normalisation of its configuration.

    Whoever wants the products of ``precision.products`` gives them; by default they are float ones.
    """
    data = config["data"]
    return ModelTowers(
        model,
        tuple(data["image_mean"]),
        tuple(data["image_std"]),
        config["precision"]["residual_dtype"] or config["precision"]["compute_dtype"],
        shardings,
        resize,
        config["low_rank"]["scaling"],
        products,
    )
