"""Both towers as ONNX files, made by jax2onnx and checked by onnxruntime."""

from __future__ import annotations

import logging
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxclip.config import Config
from jaxclip.inference import programs
from jaxclip.train import towers
from jaxclip.weights import export, tokenizer_files
from jaxclip.weights.families._base import Preprocess

# Largest difference of an embedding, whose numbers are at most 1, from what JAX computes.
TOLERANCE = 1e-5


def write_onnx(
    config: Config, params: Any, folder: str | os.PathLike[str], preprocess: Preprocess
) -> list[str]:
    """Write a model as a folder with ``image.onnx`` and ``text.onnx``.

    Both take any number of rows (``uint8[B, S, S, 3]``, ``int32[B, L]``) and hold their
    parameters. Each is run by onnxruntime and compared with JAX before the folder appears.

    Args:
      config: resolved configuration of the model.
      params: the tree of :meth:`jaxclip.models.CLIP.init`.
      folder: a new folder, or an empty one. It appears whole or not at all.
      preprocess: how its inputs are made.

    Returns:
      Names of the files.

    Raises:
      ImportError: jax2onnx is not installed; names the extra.
      ValueError: the folder holds something, an operation that jax2onnx lacks, or a file that
        computes something else.
    """
    target = export.check_free(folder)
    _import()
    with export.new_folder(target) as temporary:
        for tower in programs.towers_of(config, params):
            file = temporary / f"{tower.name}.onnx"
            _write(tower, file)
            check(tower, file)
        programs.write_description(temporary, config, params, preprocess)
        vocab_size = towers.model_sizes(config).text.vocab_size
        tokenizer_files.write(preprocess.tokenizer, temporary, vocab_size)
    return sorted(file.name for file in target.iterdir())


def check(tower: programs.Tower, file: pathlib.Path) -> None:
    """Compare a file's outputs with JAX's, for one row and for three.

    Raises:
      ValueError: they differ by more than :data:`TOLERANCE`.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    for count in (1, 3):
        # Small numbers are pixels as well as ids of any vocabulary.
        inputs = rng.integers(0, 2, (count, *tower.row)).astype(tower.dtype)
        (theirs,) = session.run(None, {session.get_inputs()[0].name: inputs})
        ours = np.asarray(jax.jit(tower.encode)(tower.params, inputs))
        difference = float(np.abs(theirs - ours).max())
        if not difference <= TOLERANCE:
            raise ValueError(
                f"{file.name} as jax2onnx makes it differs from the model by {difference:.1e} "
                f"(allowed: {TOLERANCE}); use --format stablehlo"
            )


def _write(tower: programs.Tower, file: pathlib.Path) -> None:
    jax2onnx = _import()
    params = {path: jnp.asarray(leaf) for path, leaf in tower.params.items()}
    inputs = jax.ShapeDtypeStruct(("B", *tower.row), tower.dtype)
    # It warns of every intermediate array whose type it leaves out.
    logging.getLogger("onnx_ir.serde").setLevel(logging.ERROR)
    try:
        jax2onnx.to_onnx(
            lambda x: tower.encode(params, x),
            inputs=[inputs],
            model_name=tower.name,
            input_names=["inputs"],
            output_names=["embedding"],
            return_mode="file",
            output_path=str(file),
        )
    except NotImplementedError as error:
        raise ValueError(
            f"jax2onnx can't write the {tower.name} tower: {error}; use --format stablehlo"
        ) from error


def _import() -> Any:
    try:
        import jax2onnx
    except ImportError as error:
        raise ImportError(
            "ONNX files need the extra 'onnx', in a clone of jaxclip: pip install '.[onnx]'"
        ) from error
    return jax2onnx
