"""Sharding by rules: an ordered list of (path pattern, spec), the first match wins.

The same rules serve parameters, the optimizer's states and the moving average: a state is matched
by the parameter whose path its own path ends in.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxclip.parallel.mesh import AXES
from jaxclip.registry import hint

Entry = str | tuple[str, ...] | None

# Arrays with fewer elements are not worth a collective of their own.
MIN_FILL_SIZE = 2**12


class Rule(NamedTuple):
    """One line of the list.

    Attributes:
      pattern: regular expression, searched in a parameter's path such as
        ``image/blocks_0/mlp/up/kernel``.
      spec: one entry a dimension: None, a mesh axis, or a tuple of them. Shorter than the rank:
        the dimensions to the right are not sharded. A leading ``"..."`` aligns the rest with the
        last dimensions.
      fill: mesh axis over which the largest dimension that is still free and divides is sharded,
        in arrays of at least ``MIN_FILL_SIZE`` elements; where dimensions are free but none
        divides, the largest sharded one that does is cut once more. None for none.
    """

    pattern: str
    spec: tuple[Entry, ...] = ()
    fill: str | None = None


# Column-parallel where a layer widens, row-parallel where it narrows again: one all-reduce after
# attention and one after the MLP, none in between (Shoeybi et al. 2019, arXiv:1909.08053). The
# kernels of attention are [width, heads, head_dim] or [width, width] in, the reverse out.
_TENSOR_RULES: tuple[Rule, ...] = (
    # Whole experts: tokens go to the devices that have theirs.
    Rule(r"mlp/experts/(up|down)/(kernel|bias)$", ("tensor",)),
    Rule(r"attention/(query|key|value|qkv)/(kernel|bias)$", ("...", "tensor")),
    Rule(r"attention/out/kernel$", ("tensor",)),
    Rule(r"mlp/(up|gate)/(kernel|bias)$", ("...", "tensor")),
    Rule(r"mlp/down/kernel$", ("tensor",)),
    Rule(r"token_embedding/embedding$", (None, "tensor")),
)

PRESETS: dict[str, tuple[Rule, ...]] = {
    "dp": (Rule(r""),),
    "fsdp": (Rule(r"", (), "fsdp"),),
    "tp": (*_TENSOR_RULES, Rule(r"")),
    "fsdp+tp": (*(r._replace(fill="fsdp") for r in _TENSOR_RULES), Rule(r"", (), "fsdp")),
}


def sharding_rules(preset_or_rules: str | Iterable[Any]) -> tuple[Rule, ...]:
    """Rules from a preset's name or a list out of a config.

    Args:
      preset_or_rules: ``"dp"``, ``"fsdp"``, ``"tp"``, ``"fsdp+tp"``, or a list of
        ``[pattern, spec]`` or ``[pattern, spec, fill]`` (see :class:`Rule`); a string in the list
        stands for that preset's rules.

    Returns:
      Tuple of :class:`Rule`.

    Raises:
      ValueError: an unknown preset or mesh axis, an axis used twice, or a pattern that is no
        regular expression.
    """
    if isinstance(preset_or_rules, str):
        return _preset(preset_or_rules)
    rules: list[Rule] = []
    for item in preset_or_rules:
        if isinstance(item, str):
            rules.extend(_preset(item))
        else:
            rules.append(_check_rule(item))
    return tuple(rules)


def specs_for(tree: Any, rules: Sequence[Rule], mesh: Mesh, *, params: Any = None) -> Any:
    """Shardings of parameters, or of a whole training state.

    Args:
      tree: tree of arrays or ``jax.ShapeDtypeStruct``.
      rules: what :func:`sharding_rules` returned.
      mesh: the mesh.
      params: the tree of parameters; None takes ``tree.params`` if there is one, else ``tree``.

    Returns:
      The same tree with a :class:`jax.sharding.NamedSharding` for every leaf. A leaf whose path
      ends in a parameter's path and that has its shape gets its sharding. Factored states (the
      shape less some dimensions) keep the entries of the dimensions they have, stacked ones (the
      shape with dimensions in front) are sharded in the last ones, compact ones (as many
      dimensions, but other sizes) wherever their sizes divide; any other is replicated unless its
      parameter was sharded by ``fill`` and it is large. A parameter no rule matches is replicated.

    Raises:
      ValueError: a spec that does not fit the parameter's rank or does not divide it, naming the
        parameter, the dimension and the sizes.
    """
    if params is None:
        params = getattr(tree, "params", tree)
    known: dict[str, tuple[tuple[int, ...], tuple[Entry, ...], Rule]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = _path(path)
        rule = next((r for r in rules if re.search(r.pattern, name)), Rule(""))
        known[name] = (leaf.shape, _resolve(name, leaf.shape, rule, mesh), rule)

    def sharding(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        name = _parameter_of(_path(path), known)
        if name is None:
            return NamedSharding(mesh, PartitionSpec())
        shape, entries, rule = known[name]
        return NamedSharding(mesh, _to_spec(_follow(leaf.shape, shape, entries, rule, mesh)))

    return jax.tree_util.tree_map_with_path(sharding, tree)


def init_sharded(init_fn: Callable[[jax.Array], Any], rng: jax.Array, shardings: Any) -> Any:
    """Run an initialiser such that every device computes its own shards and no more.

    Args:
      init_fn: ``rng -> tree`` of arrays, traceable.
      rng: a PRNG key, the same on every process.
      shardings: tree of shardings like the result (:func:`specs_for` of its ``jax.eval_shape``).

    Returns:
      The tree of global arrays. Values do not depend on the mesh.
    """
    return jax.jit(init_fn, out_shardings=shardings)(rng)


def abstract(shapes: Any, shardings: Any) -> Any:
    """A tree of arrays that are not there yet: shapes and dtypes with their shardings.

    Args:
      shapes: tree of what has ``shape`` and ``dtype``.
      shardings: of the same structure.

    Returns:
      A tree of ``jax.ShapeDtypeStruct``.
    """
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        shardings,
    )


def _preset(name: str) -> tuple[Rule, ...]:
    if name not in PRESETS:
        raise ValueError(f"unknown sharding preset {name!r}{hint(name, PRESETS)}")
    return PRESETS[name]


def _check_rule(item: Sequence[Any]) -> Rule:
    if not 2 <= len(item) <= 3 or not isinstance(item[0], str) or isinstance(item[1], str):
        raise ValueError(
            f"sharding rule {item!r} is not [pattern, [axis or null, ...]] with an optional third "
            "item, the axis to fill"
        )
    pattern = item[0]
    spec = tuple(tuple(e) if isinstance(e, (list, tuple)) else e for e in item[1])
    fill = item[2] if len(item) == 3 else None
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"sharding rule {pattern!r} is no regular expression: {error}") from error
    if "..." in spec[1:]:
        raise ValueError(f"sharding rule {pattern!r}: '...' stands first in a spec or not at all")
    axes = [*_axes(spec), *([] if fill is None else [fill])]
    for axis in axes:
        if axis not in AXES:
            raise ValueError(
                f"sharding rule {pattern!r} names the mesh axis {axis!r}; known: {', '.join(AXES)}"
            )
    twice = [axis for axis in axes if axes.count(axis) > 1]
    if twice:
        raise ValueError(f"sharding rule {pattern!r} uses the mesh axis {twice[0]!r} twice")
    return Rule(pattern, spec, fill)


def _resolve(name: str, shape: tuple[int, ...], rule: Rule, mesh: Mesh) -> tuple[Entry, ...]:
    """One entry a dimension of a parameter, checked and filled."""
    aligned_right = rule.spec[:1] == ("...",)
    given = rule.spec[1:] if aligned_right else rule.spec
    if len(given) > len(shape):
        raise ValueError(
            f"sharding rule {rule.pattern!r} gives {len(given)} dimensions, but {name} has "
            f"shape {shape}; shorten its spec or put a narrower rule before it"
        )
    padding = (None,) * (len(shape) - len(given))
    entries = [*padding, *given] if aligned_right else [*given, *padding]
    for dim, (size, entry) in enumerate(zip(shape, entries, strict=True)):
        pieces = _pieces(entry, mesh)
        if size % pieces:
            raise ValueError(
                f"{name} of shape {shape} can't be sharded by rule {rule.pattern!r}: dimension "
                f"{dim} has size {size}, which mesh axis {_name(entry)} of size {pieces} does not "
                f"divide; use {_divisors(size, pieces)} for mesh.{_name(entry)}, or put a rule "
                f"[{name!r}, []] before it to replicate this parameter"
            )
    return _fill(shape, entries, rule, mesh)


def _fill(
    shape: tuple[int, ...], entries: Sequence[Entry], rule: Rule, mesh: Mesh
) -> tuple[Entry, ...]:
    filled = list(entries)
    if rule.fill is None or math.prod(shape) < MIN_FILL_SIZE:
        return tuple(filled)
    pieces = mesh.shape[rule.fill]
    # Of equally large dimensions the last: it is the one that lies contiguous in memory.
    by_size = sorted(range(len(shape)), key=lambda d: (shape[d], d), reverse=True)
    for dim in by_size:
        if filled[dim] is None and shape[dim] % pieces == 0:
            filled[dim] = rule.fill
            return tuple(filled)
    for dim in by_size if None in filled else ():  # RoBERTa's 50265 tokens, which no axis divides
        if filled[dim] is not None and shape[dim] % (pieces * _pieces(filled[dim], mesh)) == 0:
            filled[dim] = (*_axes((filled[dim],)), rule.fill)
            break
    return tuple(filled)


def _follow(
    shape: tuple[int, ...],
    param_shape: tuple[int, ...],
    entries: tuple[Entry, ...],
    rule: Rule,
    mesh: Mesh,
) -> tuple[Entry, ...]:
    """Entries of a state of some shape that belongs to a parameter."""
    if shape == param_shape:
        return entries
    extra = len(shape) - len(param_shape)
    if extra > 0 and shape[extra:] == param_shape:
        return (None,) * extra + entries
    kept = _subsequence(shape, param_shape)
    if shape and kept is not None:
        return tuple(entries[dim] for dim in kept)
    if extra == 0:
        divides = (size % _pieces(e, mesh) == 0 for size, e in zip(shape, entries, strict=True))
        return tuple(e if fits else None for e, fits in zip(entries, divides, strict=True))
    fill = rule.fill if rule.fill in _axes(entries) else None
    return _fill(shape, (None,) * len(shape), rule._replace(fill=fill), mesh)


def _subsequence(shape: Sequence[int], of: Sequence[int]) -> list[int] | None:
    """Dimensions of ``of`` that ``shape`` consists of, in order; None if it does not."""
    kept: list[int] = []
    for size in shape:
        start = kept[-1] + 1 if kept else 0
        dim = next((d for d in range(start, len(of)) if of[d] == size), None)
        if dim is None:
            return None
        kept.append(dim)
    return kept


def _parameter_of(path: str, known: Mapping[str, Any]) -> str | None:
    """The longest parameter path that ``path`` ends in."""
    parts = path.split("/")
    for start in range(len(parts)):
        name = "/".join(parts[start:])
        if name in known:
            return name
    return None


def _path(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _axes(entries: Iterable[Entry]) -> list[str]:
    axes: list[str] = []
    for entry in entries:
        if entry is not None and entry != "...":
            axes.extend((entry,) if isinstance(entry, str) else entry)
    return axes


def _pieces(entry: Entry, mesh: Mesh) -> int:
    return math.prod(mesh.shape[axis] for axis in _axes((entry,)))


def _name(entry: Entry) -> str:
    return " x ".join(_axes((entry,)))


def _divisors(size: int, at_most: int) -> str:
    fits = [n for n in range(1, at_most) if size % n == 0]
    return ", ".join(map(str, fits[-4:]))


def _to_spec(entries: Sequence[Entry]) -> PartitionSpec:
    trimmed = list(entries)
    while trimmed and trimmed[-1] is None:
        trimmed.pop()
    return PartitionSpec(*trimmed)
