"""A published checkpoint: its family, its architecture, and its tensors as our parameters."""

from __future__ import annotations

import contextlib
import functools
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import traverse_util

from jaxclip import models
from jaxclip.models.presets import CLIPConfig
from jaxclip.weights import files, mapping, refusals, tokenizer_files
from jaxclip.weights.families import Checkpoint, Family, detect, renamed
from jaxclip.weights.families._base import TOWERS, Preprocess

Params = dict[str, Any]

# Names that tell a file of one tower alone: of transformers' models without a projection, and of
# Alpha-CLIP's image tower. Its prefix in the whole model.
_SINGLE = (
    (
        {"embeddings.patch_embedding.weight", "embeddings.position_embedding.weight"},
        "vision_model.",
    ),
    ({"embeddings.token_embedding.weight", "embeddings.position_embedding.weight"}, "text_model."),
    ({"conv1_alpha.weight", "class_embedding", "proj"}, "visual."),
)

CONFIGS = ("open_clip_config.json", "config.json")
PREPROCESSOR = "preprocessor_config.json"
# What wrappers put in front of every name: DistributedDataParallel, a trainer's attribute.
_WRAPPERS = ("module.", "model.", "clip.", "net.", "params.")
# And within names: torch.compile, FSDP, checkpointing of activations.
_INNER_WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")


class Opened(NamedTuple):
    """A checkpoint whose tensors are known, and fit, but have not been read.

    Attributes:
      path: where it is.
      family: name of its family.
      sizes: the architecture.
      preprocess: how its inputs are made.
      entries: the table of its tensors.
      tensors: by their names.
      parts: the towers that it holds, of ``"image"`` and ``"text"``.
      terms: of ``config.objective`` whose parameters are read, too, as ``objective/<name>``.
    """

    path: str
    family: str
    sizes: CLIPConfig
    preprocess: Preprocess
    entries: list[mapping.Entry]
    tensors: Mapping[str, files.Tensor]
    parts: tuple[str, ...] = TOWERS
    terms: Sequence[Mapping[str, Any]] = ()

    def read(self, shardings: Any = None, dtype: Any = np.float32) -> Params:
        """Read all tensors, one at a time.

        Args:
          shardings: tree of shardings of the parameters: each tensor goes to its devices as it is
            read, each device's part alone; None keeps NumPy arrays.
          dtype: of the parameters; half precision is widened to it.

        Returns:
          The tree of :meth:`jaxclip.models.CLIP.init`, without what the checkpoint does not hold
          (:attr:`parts`), and what comes with it for objectives.

        Raises:
          FileError: the file changed, or is damaged where it was not read before.
        """
        placed = {} if shardings is None else _by_path(shardings)
        return _nested(
            (path, _placed(array, dtype, placed.get(path)))
            for path, array in mapping.to_ours(self.entries, self._read_one)
        )

    def lazy(self, make: Callable[..., Any], dtype: Any = np.float32) -> Params:
        """The tree of :meth:`read` with something in place of each array that is not read yet.

        Args:
          make: ``shape, dtype, function that reads the array -> leaf``.
          dtype: as of :meth:`read`.
        """
        kind = np.dtype(dtype)
        leaves = []
        for entry in self.entries:
            # Strides of 0: shapes without memory.
            whole = np.broadcast_to(np.zeros((), np.uint8), self.tensors[entry.theirs].shape)
            for index, part in enumerate(entry.layout.to_ours(whole)):
                read = functools.partial(self._read_part, entry, index, kind)
                leaves.append((entry.ours[index], make(np.shape(part), kind, read)))
        return _nested(leaves)

    def _read_one(self, name: str) -> np.ndarray:
        return self.tensors[name].read()

    def _read_part(self, entry: mapping.Entry, index: int, dtype: Any) -> np.ndarray:
        return np.array(entry.layout.to_ours(self._read_one(entry.theirs))[index], dtype, order="C")


def open_checkpoint(path: str | os.PathLike[str]) -> Opened:
    """Open published weights of any known family.

    Args:
      path: a file (``.safetensors``, its ``.index.json``, ``.pt``, ``.bin``, ``.npz``) or a folder
        with one and the JSON that tells its architecture.

    Raises:
      FileError: no such file, damaged, or not of a known kind.
      MappingError: of no known family, or tensors that do not fit (listed by name and shape).
      ValueError: an architecture that our towers do not have.
    """
    place = _snapshot(pathlib.Path(path).expanduser())
    if not place.exists():
        raise files.FileError(f"{os.fspath(path)!r}: there is no such file or folder{_hub(place)}")
    folder = place if place.is_dir() else place.parent
    opened = files.open_folder(place) if place.is_dir() else files.open_file(place)
    tensors = _prefixed(_unwrapped(opened.tensors))
    config = next((c for name in CONFIGS if (c := files.read_json(folder / name))), {})
    refusals.refuse(os.fspath(path), tensors, config)
    checkpoint = Checkpoint(
        os.fspath(path),
        {name: tensor.shape for name, tensor in tensors.items()},
        config,
        files.read_json(folder / PREPROCESSOR),
    )
    with _told(checkpoint.path, "its family"):
        name, family = detect(checkpoint)
    checkpoint = renamed(checkpoint, family)
    tensors = {new: tensor for old, tensor in tensors.items() if (new := family.canonical(old))}
    with _told(f"{checkpoint.path} looks like {name}, but", "its architecture"):
        sizes, parts = family.sizes(checkpoint), family.parts(checkpoint)
        hash(sizes)  # a list or the like in place of a number
        tensors = dict(family.joined(tensors))
        entries = family.entries_of(checkpoint, sizes)
    shapes = parameter_shapes(sizes, family)
    if parts != TOWERS:
        entries = [entry for entry in entries if entry.ours[0].split("/")[0] in parts]
        shapes = {path: shape for path, shape in shapes.items() if path.split("/")[0] in parts}
    mapping.check(
        entries,
        {name: tensor.shape for name, tensor in tensors.items()},
        shapes,
        ignore=family.ignore,
        what=f"{os.fspath(path)} ({name})",
    )
    refusals.refuse_integers(os.fspath(path), tensors, (entry.theirs for entry in entries))
    with _told(f"{checkpoint.path} looks like {name}, but", "its preprocessing"):
        preprocess = _checked(family.preprocess(checkpoint, sizes))
    preprocess = preprocess._replace(tokenizer=tokenizer_files.find(folder, preprocess.tokenizer))
    terms = family.terms(sizes)
    return Opened(os.fspath(path), name, sizes, preprocess, entries, tensors, parts, terms)


def parameter_shapes(sizes: CLIPConfig, family: type[Family]) -> dict[str, tuple[int, ...]]:
    """Shapes by path of all parameters that a family's files hold: towers, and terms' own."""
    own = _by_path(jax.eval_shape(functools.partial(family.init_terms, sizes), _key()))
    return {**_shapes(sizes), **{f"objective/{path}": leaf.shape for path, leaf in own.items()}}


@contextlib.contextmanager
def _told(start: str, what: str) -> Iterator[None]:
    """Say in a line what a configuration, which may hold anything, leaves unclear.

    Raises:
      MappingError: whatever the reader of the configuration met.
    """
    try:
        yield
    except mapping.MappingError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        why = f"lacks {error}" if isinstance(error, KeyError) else str(error)[:2000]
        raise mapping.MappingError(f"{start} {what} can't be told: {why}") from error


def _checked(preprocess: Preprocess) -> Preprocess:
    for name in ("image_mean", "image_std"):
        values = getattr(preprocess, name)
        numbers = [x for x in values if isinstance(x, (int, float)) and abs(x) < 1e6]
        if len(values) != 3 or len(numbers) != 3 or (name == "image_std" and min(numbers) <= 0):
            raise ValueError(f"{name}={str(values)[:80]} are no three numbers")
    return preprocess


def _unwrapped(tensors: Mapping[str, files.Tensor]) -> dict[str, files.Tensor]:
    """Without a wrapper's prefix, where most names have it."""
    result = dict(tensors)
    for inner in _INNER_WRAPPERS:
        result = {name.replace(inner, ""): each for name, each in result.items()}
    if len(result) != len(tensors):  # two became one
        return dict(tensors)
    for prefix in _WRAPPERS:
        inside = [name for name in result if name.startswith(prefix)]
        # What is beside is a trainer's own, and listed as not used unless it is known.
        if 2 * len(inside) > len(result):
            stripped = {name.removeprefix(prefix): each for name, each in result.items()}
            result = stripped if len(stripped) == len(result) else result
    result.pop("n_averaged", None)  # torch.optim.swa_utils.AveragedModel
    return result


def _snapshot(place: pathlib.Path) -> pathlib.Path:
    """The snapshot in a folder of the Hugging Face cache, ``models--owner--name``."""
    main = place / "refs" / "main"
    if (place / "snapshots").is_dir() and main.is_file() and main.stat().st_size < 200:
        commit = main.read_text(encoding="utf-8", errors="replace").strip()
        if commit and pathlib.PurePath(commit).name == commit != "..":
            return place / "snapshots" / commit
    return place


def _hub(place: pathlib.Path) -> str:
    """What to do, where the path looks like a name on the Hugging Face hub."""
    name = "/".join(place.parts[-2:])
    if place.suffix in (".pt", ".bin", ".npz", ".safetensors") or place.parent.exists():
        return ""
    if not re.fullmatch(r"[\w-]+/[\w.-]+", name):
        return ""
    return f"; if it is a name on the hub, fetch it first: hf download {name} --local-dir DIR"


def _prefixed(tensors: Mapping[str, files.Tensor]) -> dict[str, files.Tensor]:
    """One tower's tensors by the names that they have in the whole model."""
    for names, prefix in _SINGLE:
        if names <= set(tensors):
            return {f"{prefix}{name}": tensor for name, tensor in tensors.items()}
    return dict(tensors)


def _nested(leaves: Iterable[tuple[str, Any]]) -> Params:
    params: Params = traverse_util.unflatten_dict(dict(leaves), sep="/")
    return params


def _placed(array: np.ndarray, dtype: Any, sharding: Any) -> Any:
    if sharding is None:
        # A copy: what was mapped from the file must not change with it.
        return np.array(array, dtype)
    return jax.make_array_from_callback(
        array.shape, sharding, lambda index: np.array(array[index], dtype, order="C")
    )


@functools.lru_cache(maxsize=8)
def _shapes(sizes: CLIPConfig) -> Mapping[str, tuple[int, ...]]:
    """Of the parameters of an architecture, by path."""
    drawn = jax.eval_shape(models.build(sizes).init, _key())
    return {path: leaf.shape for path, leaf in _by_path(drawn).items()}


def _by_path(tree: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(p, simple=True, separator="/"): leaf for p, leaf in leaves}


def _key() -> jax.Array:
    return jax.random.key(0)
