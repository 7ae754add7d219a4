"""Write our parameters as other people's checkpoints."""

from __future__ import annotations

import contextlib
import os
import pathlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxclip import storage
from jaxclip.errors import RunError
from jaxclip.models.presets import CLIPConfig, ImageConfig
from jaxclip.weights import checkpoint, mapping, tokenizer_files
from jaxclip.weights.families import FAMILIES, Checkpoint, Family
from jaxclip.weights.families._base import Preprocess
from jaxclip.weights.families._layouts import check_layout, fields

FORMATS = ("hf", "open_clip", "original")


def exporting() -> list[str]:
    """Names of the families that can be written."""
    return [name for name in FAMILIES.names() if FAMILIES.get(name).weights_file]


def terms_of(family: str, sizes: CLIPConfig) -> list[str]:
    """Names of the objectives whose own parameters a family's files hold."""
    return [str(term["name"]) for term in FAMILIES.get(family).terms(sizes)]


def family_of(sizes: CLIPConfig, form: str) -> str:
    """The family that a format has for an architecture.

    By its image tower: CLIP's ViT, SigLIP's with a MAP head, or another kind; and by its text
    tower, where that is RoBERTa or CoCa's.

    Raises:
      ValueError: an unknown format, or one that has no place for the image tower.
    """
    if form not in FORMATS:
        raise ValueError(f"format {form!r} is unknown; use {' or '.join(FORMATS)}")
    image = sizes.image
    own = _authors_family(image)
    if form == "original" and not own:
        raise ValueError(
            "--format original is for Alpha-CLIP's and EVA-CLIP's image towers, which this model "
            "does not have; use hf or open_clip"
        )
    if form == "original":
        return own
    if image.kind == "vit" and (image.alpha or image.norm == "rms"):
        field = "alpha" if image.alpha else "norm"
        raise ValueError(
            f"model.image.{field}={getattr(image, field)!r} can't be expressed by {form}; "
            f"--format original writes it by the names of {own}"
        )
    for family, is_its in (
        ("open_clip_roberta", sizes.text.kind == "roberta"),
        ("open_clip_coca", sizes.text.pool == "cls"),
    ):
        if is_its and form == "hf":
            raise ValueError(
                f"transformers has no class for such a text tower (model.text.kind="
                f"{sizes.text.kind!r}, pool={sizes.text.pool!r}); use --format open_clip"
            )
        if is_its:
            return family
    if form == "open_clip" and (family := _timm_family(image)):
        return family
    if form == "hf" and image.max_patches:
        return "hf_siglip2"
    siglip = image.pool == "map" or sizes.logit_bias_init is not None
    clip = {"hf": "hf_clip", "open_clip": "open_clip"}
    return {"hf": "hf_siglip", "open_clip": "open_clip_siglip"}[form] if siglip else clip[form]


def _authors_family(image: ImageConfig) -> str:
    """The family whose names are of the model's own code alone; empty for none."""
    if image.kind != "vit":
        return ""
    if image.alpha:
        return "alpha_clip"
    # No other has these.
    return "eva_clip" if image.norm == "rms" or image.qkv_bias == "qv" else ""


def _timm_family(image: ImageConfig) -> str:
    """open_clip's family of an image tower that is no plain ViT; empty for a plain one."""
    if image.kind != "vit":
        return f"open_clip_{image.kind}"
    blocks = (image.rope, image.mlp, image.qkv_bias, image.norm_place)
    if blocks != ("none", "plain", "all", "pre"):
        return "open_clip_timm"
    return "open_clip_timm_vit" if image.projection == "linear_bias" else ""


def export_checkpoint(
    params: Any,
    sizes: CLIPConfig,
    family: str,
    folder: str | os.PathLike[str],
    preprocess: Preprocess,
) -> list[str]:
    """Write a model as a folder that its family's own library loads.

    Args:
      params: the tree of :meth:`jaxclip.models.CLIP.init`, arrays on any devices; what objectives
        keep in it is left out, but for the family's own (:meth:`Family.terms`).
      sizes: its architecture.
      family: one of :func:`exporting`.
      folder: a new folder, or an empty one. It appears whole or not at all.
      preprocess: how its inputs are made; the tokenizer's files are written where there are any.

    Returns:
      Names of the files.

    Raises:
      ValueError: the folder holds something; the family can't express the architecture or the
        preprocessing (names the field); a parameter is missing, or of another shape.
    """
    target = check_free(folder)
    cls = FAMILIES.get(family)
    if not cls.weights_file:
        raise ValueError(f"{family} is only read; written are {', '.join(exporting())}")
    for tower in ("image", "text"):
        if size := getattr(getattr(sizes, tower), "head_dim", 0):
            raise ValueError(
                f"model.{tower}.head_dim={size} can't be expressed by {family}, whose heads share "
                "the width; prune units and layers alone"
            )
    check_layout(sizes, cls.layout or {}, family)
    ids = tokenizer_files.special_ids(preprocess.tokenizer, sizes)
    files = cls.config_files(sizes, preprocess, ids)
    shapes = checkpoint.parameter_shapes(sizes, cls)
    ours = _checked(params, shapes, cls, sizes)
    entries = cls.entries(sizes)
    _check_read_back(sizes, family, shapes, entries, files)
    with new_folder(target) as temporary:
        _write_tensors(temporary / cls.weights_file, entries, ours)
        for name, content in files.items():
            storage.write_json(temporary / name, content)
        tokenizer_files.write(preprocess.tokenizer, temporary, sizes.text.vocab_size)
    return sorted(file.name for file in target.iterdir())


def check_free(folder: str | os.PathLike[str]) -> pathlib.Path:
    """The absolute path of a folder that does not exist, or is empty.

    Raises:
      ValueError: it holds something.
      OSError: it can't be made.
    """
    target = pathlib.Path(folder).expanduser().absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        there = sorted(f.name for f in target.iterdir())[:3] if target.is_dir() else ["a file"]
        raise ValueError(
            f"{target} is there already ({', '.join(there)}): nothing is overwritten; name a new "
            "folder"
        )
    storage.check_place(target)
    return target


@contextlib.contextmanager
def new_folder(target: pathlib.Path) -> Iterator[pathlib.Path]:
    """A folder to write to that takes the target's place when all went well, and else is gone.

    Raises:
      RunError: the disk is full.
    """
    with _told_of_a_full_disk(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = pathlib.Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        with _told_of_a_full_disk(target):
            yield temporary
            temporary.chmod(0o755)
            temporary.replace(target)
    except BaseException:
        storage.discard(temporary)
        raise


@contextlib.contextmanager
def _told_of_a_full_disk(target: pathlib.Path) -> Iterator[None]:
    """Say that there is no space as a :class:`RunError`: libraries have errors of their own."""
    try:
        yield
    except Exception as error:
        if not storage.is_full(error):
            raise
        free = storage.free_space(target.parent)
        raise RunError(
            f"{target}: no space left on the device ({free}); nothing was written. Free some, or "
            "name a folder on another disk"
        ) from error


def _checked(
    params: Any, expected: Mapping[str, tuple[int, ...]], cls: type[Family], sizes: CLIPConfig
) -> dict[str, Any]:
    """Parameters by path, of the towers and the family's terms alone, with the shapes expected."""
    kept = {term["name"] for term in cls.terms(sizes)}
    own = {name: tree for name, tree in params.get("objective", {}).items() if name in kept}
    for name in sorted(kept - own.keys()):
        raise ValueError(
            f"the model has no parameters of objective {name!r}, which a file of this kind holds "
            "(CoCa's text decoder)"
        )
    ours = _by_path({**params, "objective": own})
    for path, shape in expected.items():
        if path not in ours or tuple(ours[path].shape) != shape:
            found = list(ours[path].shape) if path in ours else "missing"
            raise ValueError(f"parameter {path} is {found}, but the model has {list(shape)}")
    extra = [path for path in ours if path not in expected]
    if extra:
        raise ValueError(f"the model has no parameter {extra[0]} (nor {len(extra) - 1} more)")
    return ours


def _check_read_back(
    sizes: CLIPConfig,
    family: str,
    shapes: Mapping[str, tuple[int, ...]],
    entries: Sequence[mapping.Entry],
    files: Mapping[str, Mapping[str, Any]],
) -> None:
    """Refuse what would be read as another architecture than it is."""
    views = {path: np.broadcast_to(np.zeros((), np.uint8), s) for path, s in shapes.items()}
    theirs = {
        entry.theirs: np.shape(entry.layout.to_theirs([views[path] for path in entry.ours]))
        for entry in entries
    }
    config = next((files[name] for name in checkpoint.CONFIGS if name in files), {})
    preprocessor = files.get(checkpoint.PREPROCESSOR, {})
    read = fields(FAMILIES.get(family).sizes(Checkpoint("it", theirs, config, preprocessor)))
    for key, value in fields(sizes).items():
        if read.get(key) != value:
            raise ValueError(
                f"model.{key}={value!r} can't be expressed by {family}, which would make it "
                f"{read.get(key)!r}"
            )


def _write_tensors(
    path: pathlib.Path, entries: Sequence[mapping.Entry], ours: Mapping[str, Any]
) -> None:
    try:
        from safetensors.numpy import save_file
    except ImportError as error:
        raise ImportError(
            "safetensors files need the extra 'weights', in a clone of jaxclip: "
            "pip install '.[weights]'"
        ) from error
    save_file(dict(mapping.to_theirs(entries, ours)), path, metadata={"format": "pt"})
    path.chmod(0o644)


def _by_path(tree: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(p, simple=True, separator="/"): leaf for p, leaf in leaves}
