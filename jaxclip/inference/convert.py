"""Weights between other people's files and workdirs: look at them, bring them in, hand them out."""

from __future__ import annotations

import contextlib
import math
import os
import pathlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from jaxclip import config as config_lib
from jaxclip import storage
from jaxclip.config import Config
from jaxclip.inference.inputs import preprocess_of
from jaxclip.train import init_from, tokenizer_check, towers
from jaxclip.train import workdir as workdir_lib
from jaxclip.train.checkpoint import Checkpointer
from jaxclip.train.lazy_arrays import LazyArray
from jaxclip.weights import export
from jaxclip.weights.checkpoint import open_checkpoint


def describe(path: str | os.PathLike[str]) -> str:
    """What weights are, for a person: family, architecture, tensors, preprocessing.

    Raises:
      ValueError: neither published weights nor a workdir.
    """
    if init_from.is_run(path):
        source = init_from.open_source(path, "the path")
        shapes = jax.eval_shape(towers.build_model(source.config).init, jax.random.key(0))
        leaves = jax.tree.leaves(shapes)
        family, sizes = "workdir of a run", towers.model_sizes(source.config)
        preprocess = preprocess_of(source.config)
        kinds = Counter(str(leaf.dtype) for leaf in leaves)
        total = sum(leaf.size for leaf in leaves)
        parts: tuple[str, ...] = ("image", "text")
    else:
        opened = open_checkpoint(pathlib.Path(path).expanduser())
        family, sizes, preprocess = opened.family, opened.sizes, opened.preprocess
        parts = opened.parts
        used = [opened.tensors[entry.theirs] for entry in opened.entries]
        kinds = Counter(str(tensor.dtype) for tensor in used)
        total = sum(int(np.prod(tensor.shape, dtype=np.int64)) for tensor in used)
    image, text = sizes.image, sizes.text
    lines = {
        "family": family,
        "parameters": f"{total:,} in {kinds.total()} tensors "
        f"({', '.join(f'{count} {kind}' for kind, count in sorted(kinds.items()))})",
        "image": image.summary,
        "text": f"{text.vocab_size:,} tokens, length {text.context_length}, width {text.width}, "
        f"depth {text.depth}, {text.num_heads} heads, MLP {text.mlp_dim}, pool {text.pool}, "
        f"{text.activation}",
        "embedding": f"{sizes.embed_dim}",
        **({tower: "none" for tower in ("image", "text") if tower not in parts}),
        "pictures": f"{preprocess.image_ops}, mean {_numbers(preprocess.image_mean)}, "
        f"std {_numbers(preprocess.image_std)}",
        "tokenizer": ", ".join(f"{k}={v}" for k, v in preprocess.tokenizer.items() if v != ""),
    }
    return "\n".join(f"{name:<11} {line}" for name, line in lines.items())


def import_weights(
    source: str | os.PathLike[str], to: str | os.PathLike[str], *, tokenizer_path: str = ""
) -> str:
    """Write published weights as a workdir with one checkpoint, of step 0.

    ``init_from``, ``jaxclip eval`` and :func:`jaxclip.load` take it like that of a run.

    Args:
      source: published weights.
      to: a new folder, or an empty one.
      tokenizer_path: of the vocabulary, if the weights came without.

    Returns:
      What was done, in one line.

    Raises:
      ValueError: they are no published weights, or the folder holds something.
    """
    target = export.check_free(to)
    if init_from.is_run(source):
        raise ValueError(f"--from {os.fspath(source)} is a workdir already")
    parts = open_checkpoint(source).parts
    if len(parts) == 1:
        raise ValueError(
            f"--from {os.fspath(source)} holds the {parts[0]} tower alone, which makes no workdir; "
            "name it in config.init_from, or open it with jaxclip.load"
        )
    found = init_from.open_source(source, "--from")
    config = found.config
    if tokenizer_path:
        path = str(pathlib.Path(tokenizer_path).expanduser().absolute())
        config = {**config, "tokenizer": {**config["tokenizer"], "path": path}}
        check_tokenizer(config, os.fspath(source))
    assert found.lazy is not None  # they are published
    # Read, widened and written one after the other: a checkpoint may be larger than the memory.
    count = write_workdir(config, found.lazy(LazyArray), target)
    return f"{target}: {count:,} parameters of {os.fspath(source)}, as a workdir"


def check_tokenizer(config: Config, source: str) -> None:
    """Refuse a tokenizer that was given with weights which it does not fit.

    Raises:
      ValueError: as :func:`jaxclip.train.tokenizer_check.fit`, or it can't be made.
    """
    from jaxclip.data import tokenizers

    section = config["tokenizer"]
    text = towers.model_sizes(config).text
    made = tokenizers.load(section)
    tokenizer_check.fit(made, section["kind"], text, source, published=True)


def write_workdir(config: Config, params: Any, target: pathlib.Path) -> int:
    """Write parameters as a workdir with one checkpoint, of step 0.

    Args:
      config: that they belong to; it is written without what only a run with averages, additions,
        masks or a start elsewhere has.
      params: the tree of :meth:`jaxclip.models.CLIP.init`, and ``objective`` where there is one;
        of arrays, or of :class:`jaxclip.train.lazy_arrays.LazyArray`.
      target: a folder that is free (:func:`jaxclip.weights.export.check_free`).

    Returns:
      The number of parameters.

    Raises:
      RunError: the disk is full; nothing is left then.
    """
    target.mkdir(parents=True, exist_ok=True)
    lazy = any(isinstance(leaf, LazyArray) for leaf in jax.tree.leaves(params))
    # Another command may have written there since the folder was found free: that is not ours.
    ours = not (target / workdir_lib.CHECKPOINTS).exists()
    try:
        with Checkpointer(target / workdir_lib.CHECKPOINTS, one_by_one=lazy) as checkpointer:
            checkpointer.save(0, {"step": np.zeros((), np.int32), "params": params})
            checkpointer.wait()
        plain = {"ema_decay": 0.0, "init_from": "", "init_from_exclude": [], "sparsity": []}
        low_rank = {**config["low_rank"], "rank": 0}
        # Last, for it makes the folder a workdir.
        config_lib.save({**config, **plain, "low_rank": low_rank}, target / workdir_lib.CONFIG_FILE)
    except BaseException:
        # A full disk or Ctrl-C: what is half there would be in the way of the same command.
        if ours:
            storage.discard(target / workdir_lib.CHECKPOINTS)
        with contextlib.suppress(OSError):
            target.rmdir()
        raise
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def export_weights(
    source: str | os.PathLike[str], to: str | os.PathLike[str], *, form: str, tokenizer_path: str
) -> str:
    """Write a workdir's parameters, or published weights, as other people's checkpoint.

    Args:
      source: a workdir (its averaged parameters, where it keeps them) or published weights.
      to: a new folder, or an empty one.
      form: ``"hf"``, ``"open_clip"``, ``"original"`` for the names of the model's authors, or
        ``"stablehlo"`` for programs that JAX alone runs (:mod:`jaxclip.inference.programs`), or
        ``"onnx"``.
      tokenizer_path: of the vocabulary, if the configuration has none; empty for none.

    Returns:
      What was done, in one line.

    Raises:
      ValueError: as :func:`jaxclip.weights.export.export_checkpoint`.
    """
    export.check_free(to)  # before anything large is read
    found = init_from.open_source(source, "--from")
    sizes, preprocess = towers.model_sizes(found.config), preprocess_of(found.config)
    if tokenizer_path:
        tokenizer: dict[str, Any] = {**preprocess.tokenizer, "path": tokenizer_path}
        preprocess = preprocess._replace(tokenizer=tokenizer)
        check_tokenizer({**found.config, "tokenizer": tokenizer}, os.fspath(source))
    if form == "stablehlo":
        from jaxclip.inference import programs

        files = programs.write_programs(found.config, found.read(None), to, preprocess)
        return f"{os.fspath(to)}: programs of both towers ({', '.join(files)})"
    if form == "onnx":
        from jaxclip.inference import onnx_files

        files = onnx_files.write_onnx(found.config, found.read(None), to, preprocess)
        return f"{os.fspath(to)}: both towers for ONNX ({', '.join(files)})"
    with _naming_the_way_out():
        family = export.family_of(sizes, form)
        params = found.read(None)
        if names := export.terms_of(family, sizes):
            own = {**found.read_own(names), **params.get("objective", {})}
            params = {**params, "objective": own}
        files = export.export_checkpoint(params, sizes, family, to, preprocess)
    return f"{os.fspath(to)}: {family} ({', '.join(files)})"


# How errors begin to say that other people's code has no such model.
_NOWHERE = ("can't be expressed", "transformers has no class")


@contextlib.contextmanager
def _naming_the_way_out() -> Iterator[None]:
    """A model that other people's code lacks can always be written as programs."""
    try:
        yield
    except ValueError as error:
        text = str(error)
        if any(each in text for each in _NOWHERE) and "--format" not in text:
            text = f"{text}; --format stablehlo writes any model, as programs that need JAX alone"
            raise ValueError(text) from error
        raise


def _numbers(values: Any) -> str:
    return "/".join(f"{value:.4g}" for value in values)
