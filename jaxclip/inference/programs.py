"""Both towers as programs that run without jaxclip: ``jax.export`` (StableHLO)."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from jaxclip import models, storage
from jaxclip.config import Config
from jaxclip.train import checks, towers
from jaxclip.weights import export, tokenizer_files
from jaxclip.weights.families._base import Preprocess

Arrays = dict[str, np.ndarray]

# One program serves all of these; it is lowered once for each.
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
MODEL_FILE = "model.json"


class Tower(NamedTuple):
    """A tower as a function of arrays alone.

    Attributes:
      name: ``"image"`` or ``"text"``.
      encode: ``({path: array}, inputs) -> float32[B, D]`` of unit length.
      params: its parameters by path, float32.
      row: shape of one row of its inputs.
      dtype: of its inputs.
    """

    name: str
    encode: Callable[[Any, jax.Array], jax.Array]
    params: Arrays
    row: tuple[int, ...]
    dtype: Any


def towers_of(config: Config, params: Any) -> list[Tower]:
    """Both towers of a model: uint8[B, S, S, 3] and int32[B, L] to embeddings.

    Args:
      config: resolved configuration; the programs compute in float32, by XLA's own attention.
      params: the tree of :meth:`jaxclip.models.CLIP.init`.
    """
    checks.warn_of_squares(config)
    sizes = towers.model_sizes(config)
    precision = {**config["precision"], "compute_dtype": "float32", "residual_dtype": None}
    plain = {**config, "precision": precision}
    both = towers.from_config(plain, models.build(sizes))
    side, length = sizes.image.image_size, sizes.text.context_length
    rows = {"image": ((side, side, 3), jnp.uint8), "text": ((length,), jnp.int32)}

    def encoder(name: str) -> Callable[[Any, jax.Array], jax.Array]:
        return lambda flat, inputs: both.encode({name: _nested(flat)}, name, inputs)

    return [
        Tower(name, encoder(name), _flat(params[name]), *rows[name]) for name in ("image", "text")
    ]


def serialized(tower: Tower, platforms: Sequence[str] = PLATFORMS) -> bytes:
    """The bytes of a tower's program, which takes any number of rows.

    Args:
      tower: what to export; its parameters are arguments of the program.
      platforms: that it is lowered for.
    """
    params = {k: jax.ShapeDtypeStruct(x.shape, x.dtype) for k, x in tower.params.items()}
    shape = jax.export.symbolic_shape(f"b, {', '.join(map(str, tower.row))}")
    inputs = jax.ShapeDtypeStruct(shape, tower.dtype)
    exported = jax.export.export(jax.jit(tower.encode), platforms=platforms)(params, inputs)
    return bytes(exported.serialize())


def write_programs(
    config: Config, params: Any, folder: str | os.PathLike[str], preprocess: Preprocess
) -> list[str]:
    """Write a model as a folder that JAX and NumPy alone can run.

    ``image.stablehlo`` and ``text.stablehlo`` hold the programs, ``image.npz`` and ``text.npz``
    their parameters, ``model.json`` what a caller must know; the tokenizer's files are written
    where there are any. docs/weights.md has the loader.

    Args:
      config: resolved configuration of the model.
      params: the tree of :meth:`jaxclip.models.CLIP.init`.
      folder: a new folder, or an empty one. It appears whole or not at all.
      preprocess: how its inputs are made.

    Returns:
      Names of the files.

    Raises:
      ValueError: the folder holds something, or the tokenizer can't be made.
    """
    target, sizes = export.check_free(folder), towers.model_sizes(config)
    with export.new_folder(target) as temporary:
        for tower in towers_of(config, params):
            (temporary / f"{tower.name}.stablehlo").write_bytes(serialized(tower))
            # Not compressed, which weights are not worth.
            np.savez(temporary / f"{tower.name}.npz", **tower.params)  # type: ignore[arg-type]
        write_description(temporary, config, params, preprocess)
        tokenizer_files.write(preprocess.tokenizer, temporary, sizes.text.vocab_size)
    return sorted(file.name for file in target.iterdir())


def write_description(
    folder: pathlib.Path, config: Config, params: Any, preprocess: Preprocess
) -> None:
    """Write ``model.json``: inputs, their preparation, and how embeddings become logits."""
    sizes = towers.model_sizes(config)
    bias = params.get("logit_bias")
    content = {
        "embed_dim": sizes.embed_dim,
        "logit_scale": float(np.exp(np.float32(params["logit_scale"]))),
        "logit_bias": None if bias is None else float(bias),
        "image": {
            "input": "uint8[B, S, S, 3]; the program normalises them",
            "image_size": sizes.image.image_size,
            "image_ops": str(preprocess.image_ops),
            "image_mean": [float(x) for x in preprocess.image_mean],
            "image_std": [float(x) for x in preprocess.image_std],
        },
        "text": {
            "input": "int32[B, L]",
            "context_length": sizes.text.context_length,
            "vocab_size": sizes.text.vocab_size,
            "pad_id": sizes.text.pad_id,
            "tokenizer": {k: v for k, v in preprocess.tokenizer.items() if k != "path"},
        },
    }
    storage.write_json(folder / MODEL_FILE, content)


def _flat(tree: Any) -> Arrays:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf, np.float32)
        for path, leaf in leaves
    }


def _nested(flat: Arrays) -> dict[str, Any]:
    tree: dict[str, Any] = traverse_util.unflatten_dict(flat, sep="/")
    return tree
