"""The forward pass: outputs by name, made only as far as somebody needs them.

Names are explained at :class:`jaxclip.objectives.Objective`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, Protocol

import jax

from jaxclip.models import CLIPConfig, PatchSequence, unit
from jaxclip.registry import hint

Params = Any
Batch = Mapping[str, jax.Array]

TEACHER = "teacher/"
LARGEST_LOGITS = "largest_logits"
ACTIVATION_SUMS = "activation_sums"
ROUTER = "router"
PROJECTED = "projected"
_KINDS = (
    *("raw", "pooled", "tokens", "prefix", "mask", "input", "attention"),
    *(LARGEST_LOGITS, ACTIVATION_SUMS, ROUTER, PROJECTED),
)
_NAME = re.compile(
    rf"(?P<teacher>{TEACHER})?(?P<scope>(?:\w+/)*)(?P<tower>image|text)"
    rf"(?:_(?P<kind>(?:hidden|attention)_(?P<layer>\d+)|{'|'.join(_KINDS)}))?"
)


class Output(NamedTuple):
    """A parsed name.

    Attributes:
      name: as it was written.
      teacher: whether it is the teacher's.
      view: key of the batch that the tower runs on.
      tower: ``"image"`` or ``"text"``.
      kind: ``""`` for the embedding, else as in the name.
    """

    name: str
    teacher: bool
    view: str
    tower: str
    kind: str


def parse(name: str) -> Output | None:
    """The output of a name, None if it is no tower's."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    view = f"{match['scope']}{match['tower']}"
    return Output(name, bool(match["teacher"]), view, match["tower"], match["kind"] or "")


class Towers(Protocol):
    """Both towers of a model on a batch's own arrays (uint8 images, int32 tokens)."""

    @property
    def sizes(self) -> CLIPConfig:
        """Their architecture."""
        ...

    def encode(self, params: Params, tower: str, array: jax.Array) -> jax.Array:
        """float32[B, D] of unit length."""
        ...

    def features(self, params: Params, tower: str, array: jax.Array, **options: Any) -> Any:
        """:class:`jaxclip.models.Features`."""
        ...

    def project(self, params: Params, tower: str, tokens: jax.Array) -> jax.Array:
        """Tokens in the joint space, float32[..., D], not of unit length."""
        ...

    def train_options(self, tower: str, keys: jax.Array) -> dict[str, Any]:
        """What a tower is given in training, dropout say, with a key for each row."""
        ...


@dataclasses.dataclass(frozen=True)
class Teacher:
    """Where outputs under ``teacher/`` come from.

    Attributes:
      towers: of the teacher; None if its embeddings stand in the batch.
    """

    towers: Towers | None


def check(
    needs: Iterable[tuple[str, Iterable[str]]], batch_keys: Iterable[str], teacher: Teacher | None
) -> None:
    """Refuse an output that can't be made, before anything compiles.

    Args:
      needs: ``(who wants them, names)``.
      batch_keys: keys of the batch.
      teacher: the run's teacher, if it has one.

    Raises:
      ValueError: no such output, a view that nobody declares, or no teacher.
    """
    keys = set(batch_keys)
    for owner, names in needs:
        for name in sorted(names):
            output = parse(name)
            if output is None:
                if name not in keys:
                    raise ValueError(
                        f"{owner} needs {name!r}, which is neither a tower's output nor a field of "
                        f"the batch{hint(name, keys)}"
                    )
            elif output.teacher and teacher is None:
                raise ValueError(
                    f"{owner} needs {name!r}, but the run has no teacher; set config.teacher.kind "
                    "to 'frozen', 'ema', 'stored' or 'reinforced'"
                )
            elif output.teacher and teacher is not None and teacher.towers is None:
                if name not in keys:
                    stored = ", ".join(sorted(key for key in keys if key.startswith(TEACHER)))
                    raise ValueError(
                        f"{owner} needs {name!r}, but the teacher's embeddings are stored and the "
                        f"records give only {stored or 'none'}; see config.teacher"
                    )
            elif output.view not in keys:
                raise ValueError(
                    f"{owner} needs {name!r}, but the batch has no {output.view!r}"
                    f"{hint(output.view, keys)}"
                )


def fields(names: Iterable[str], batch: Batch) -> dict[str, jax.Array]:
    """Those of the names that are arrays [B, ...] of the batch and no tower's output."""
    return {name: batch[name] for name in sorted(set(names)) if parse(name) is None}


def tower_input(batch: Batch, view: str) -> Any:
    """What a tower runs on: the array of a view, or its patches with their grid."""
    grid = batch.get(f"{view}_grid")
    if grid is None:
        return batch[view]
    patches = batch[view]
    valid = jax.numpy.arange(patches.shape[1]) < jax.numpy.prod(grid, axis=1, keepdims=True)
    return PatchSequence(patches, valid, grid)


def compute(
    names: Iterable[str],
    batch: Batch,
    towers: Towers,
    params: Params,
    options: Callable[[str, str, Batch], dict[str, Any]],
    *,
    teacher: Teacher | None = None,
    teacher_params: Params = None,
) -> dict[str, jax.Array]:
    """Make outputs; each tower runs once for each view.

    Args:
      names: which.
      batch: the rows at hand.
      towers: of the model in training.
      params: its parameters.
      options: ``(tower, view, outputs of the teacher) ->`` how the tower runs on it, see
        :meth:`jaxclip.objectives.Objective.tower_options`.
      teacher: the teacher, if any output is its.
      teacher_params: its parameters.

    Returns:
      Arrays by name, without those that are :func:`fields`.
    """
    of_teacher: dict[str, jax.Array] = {}
    outputs: dict[str, jax.Array] = {}
    runs: dict[tuple[bool, str], list[Output]] = {}
    for name in sorted(set(names)):
        output = parse(name)
        if output is not None:
            runs.setdefault((output.teacher, output.view), []).append(output)
    # The teacher first: how a tower runs may depend on what it saw.
    for (is_teacher, view), wanted in sorted(runs.items(), key=lambda item: not item[0][0]):
        if not is_teacher:
            how = options(wanted[0].tower, view, of_teacher)
            outputs |= _run(towers, params, tower_input(batch, view), wanted, how)
        elif teacher is not None and teacher.towers is not None:
            made = _run(teacher.towers, teacher_params, tower_input(batch, view), wanted, {})
            of_teacher |= jax.lax.stop_gradient(made)
        else:
            of_teacher |= {output.name: unit(batch[output.name]) for output in wanted}
    return of_teacher | outputs


def _run(
    towers: Towers, params: Params, array: Any, wanted: list[Output], options: dict[str, Any]
) -> dict[str, jax.Array]:
    """One tower on one view."""
    tower = wanted[0].tower
    pixels = array.patches if isinstance(array, PatchSequence) else array
    inputs = {output.name: pixels for output in wanted if output.kind == "input"}
    wanted = [output for output in wanted if output.kind != "input"]
    if inputs:
        return inputs | (_run(towers, params, array, wanted, options) if wanted else {})
    flat, restore = _flatten_copies(array, 4 if tower == "image" else 2)
    if not options and all(output.kind == "" for output in wanted):
        embedding = towers.encode(params, tower, flat)
        return {output.name: restore(embedding) for output in wanted}
    asked: dict[str, list[int]] = {"hidden": [], "attention": []}
    for output in wanted:
        part, _, layer = output.kind.partition("_")
        if part in asked:
            asked[part] += [int(layer)] if layer else range(getattr(towers.sizes, tower).depth)
    layers = {part: tuple(sorted(set(numbers))) for part, numbers in asked.items() if numbers}
    kinds = {output.kind for output in wanted} & {LARGEST_LOGITS, ACTIVATION_SUMS}
    options = options | dict.fromkeys(sorted(kinds), True)
    features = towers.features(params, tower, flat, **layers, **options)
    made = {
        output.name: towers.project(params, tower, features.tokens)
        if output.kind == PROJECTED
        else _pick(features, output.kind)
        for output in wanted
    }
    return {name: restore(x) for name, x in made.items()}


def _pick(features: Any, kind: str) -> jax.Array:
    if kind in (LARGEST_LOGITS, ACTIVATION_SUMS):
        return features.aux[kind]
    if kind == ROUTER:  # of a tower without experts: no blocks
        none = jax.numpy.zeros((features.raw.shape[0], 0, 3, 1))
        return features.aux.get(ROUTER, none)
    part, _, layer = kind.partition("_")
    if layer:
        return getattr(features, part)[int(layer)]
    if kind == "mask":
        tokens = features.tokens
        if features.valid is None:
            return jax.numpy.ones(tokens.shape[:2], bool)
        return features.valid
    if kind == "attention":
        every = [jax.numpy.mean(weights, axis=1) for weights in features.attention.values()]
        return jax.numpy.mean(jax.numpy.stack(every), axis=0)
    return getattr(features, kind or "embedding")


def _flatten_copies(array: Any, rank: int) -> tuple[Any, Callable[[jax.Array], jax.Array]]:
    """``[B, K, ...]`` as ``[B * K, ...]`` and back, where there are several a row."""
    if isinstance(array, PatchSequence) or array.ndim == rank:
        return array, lambda x: x
    rows, copies = array.shape[:2]
    flat = array.reshape(rows * copies, *array.shape[2:])
    return flat, lambda x: x.reshape(rows, copies, *x.shape[1:])
