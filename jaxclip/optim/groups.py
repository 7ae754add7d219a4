"""Parameter groups by path: learning-rate factors, weight decay, freezing, layer-wise decay."""

from __future__ import annotations

import dataclasses
import posixpath
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import optax

from jaxclip.optim import _base, _sections
from jaxclip.registry import hint

_KEYS = ("pattern", "learning_rate_factor", "weight_decay", "frozen")
_BLOCK = re.compile(r"(^|/)blocks_(\d+)(/|$)")
_EMBEDDING = re.compile(r"(^|/)[^/]*(embedding|positions|class_token)[^/]*(/|$)")


@dataclasses.dataclass(frozen=True)
class Group:
    """What holds for the parameters whose path a pattern is found in.

    Attributes:
      pattern: regular expression, searched in paths such as ``image/blocks_0/mlp/up/kernel``.
      learning_rate_factor: multiplies the update, weight decay included.
      weight_decay: whether the parameters decay; ``None`` leaves it to the optimizer's mask.
      frozen: no update, and no optimizer state.
    """

    pattern: str
    learning_rate_factor: float = 1.0
    weight_decay: bool | None = None
    frozen: bool = False


def read_groups(key: str, sections: Any) -> tuple[Group, ...]:
    """Groups of a configuration.

    Args:
      key: where they stand, for messages.
      sections: list of mappings with ``pattern`` and any of the other attributes of
        :class:`Group`; ``None`` for no groups.

    Raises:
      ValueError: an unknown key, naming the nearest one, or an impossible value.
    """
    if sections is None:
        return ()
    if not isinstance(sections, list):
        raise ValueError(f"{key}={sections!r} must be a list of mappings with a pattern")
    return tuple(_read_group(f"{key}[{i}]", section) for i, section in enumerate(sections))


def _read_group(key: str, section: Any) -> Group:
    if not isinstance(section, Mapping) or "pattern" not in section:
        raise ValueError(f"{key}={section!r} must be a mapping with a pattern")
    for name in section:
        if name not in _KEYS:
            raise ValueError(f"{key}.{name}: a group has no such key{hint(str(name), _KEYS)}")
    values = dict(section)
    try:
        re.compile(values["pattern"])
    except (re.error, TypeError) as error:
        raise ValueError(
            f"{key}.pattern={values['pattern']!r} is no regular expression: {error}"
        ) from error
    if "learning_rate_factor" in values:
        factor = values["learning_rate_factor"]
        values["learning_rate_factor"] = _sections.number(f"{key}.learning_rate_factor", factor)
    for name in ("weight_decay", "frozen"):
        if not isinstance(values.get(name), (bool, type(None))):
            raise ValueError(f"{key}.{name}={values[name]!r} must be True or False")
    values["frozen"] = bool(values.get("frozen"))
    return Group(**values)


def group_of(groups: Sequence[Group], path: str) -> Group | None:
    """The first group whose pattern is found in a path."""
    return next((group for group in groups if re.search(group.pattern, path)), None)


def layer_factors(params: Any, decay: float) -> dict[str, float]:
    r"""Learning-rate factors that fall with the distance from the head, by path.

    In a tower of L blocks, block i gets :math:`d^{L - i}` (the last one d), embeddings, positions
    and class tokens :math:`d^{L + 1}`, and everything else (final norm, projection, temperature) 1.
    A tower is what stands before ``blocks_<i>`` in a path; each has its own L. Embeddings belong to
    the tower with which they share the beginning of their path.

    Args:
      params: tree of parameters.
      decay: d, in (0, 1].

    Returns:
      A factor for every path.

    Raises:
      ValueError: no path has ``blocks_<i>`` in it.

    References:
      Clark et al., `ELECTRA <https://arxiv.org/abs/2003.10555>`_, 2020; for ViTs Bao et al., `BEiT
      <https://arxiv.org/abs/2106.08254>`_, 2022.
    """
    paths = _base.tensor_names(params)
    depths: dict[str, int] = {}
    for path in paths:
        if found := _BLOCK.search(path):
            tower = path[: found.start()]
            depths[tower] = max(depths.get(tower, 0), int(found[2]) + 1)
    if not depths:
        raise ValueError(
            "optim.layer_decay needs parameters with blocks_<i> in their paths, one block each "
            f"(not stacked by scan_layers); there are paths like {paths[:3]}"
        )
    return {path: decay ** _distance(path, depths) for path in paths}


def _distance(path: str, depths: Mapping[str, int]) -> int:
    """How many layers lie between a parameter and the head; the head itself has 0."""
    if found := _BLOCK.search(path):
        return depths[path[: found.start()]] - int(found[2])
    if not _EMBEDDING.search(path):
        return 0
    root = path.partition("/")[0]
    towers = [tower for tower in depths if tower.partition("/")[0] in ("", root)]
    if not towers:
        return 0
    return depths[max(towers, key=lambda tower: len(posixpath.commonpath([tower, path])))] + 1


def scale_updates(
    groups: Sequence[Group], layer_decay: float | None
) -> optax.GradientTransformation:
    """Multiplies updates by the factors of their groups and layers; the last in a chain.

    Args:
      groups: the first that matches counts.
      layer_decay: see :func:`layer_factors`; ``None`` for none.

    Returns:
      A transformation without state.
    """

    def factors_of(params: Any) -> Any:
        by_layer = {} if layer_decay is None else layer_factors(params, layer_decay)

        def of(path: str) -> float:
            group = group_of(groups, path)
            factor = 1.0 if group is None else group.learning_rate_factor
            return factor * by_layer.get(path, 1.0)

        treedef = jax.tree.structure(params)
        return jax.tree.unflatten(treedef, [of(path) for path in _base.tensor_names(params)])

    def init_fn(params: Any) -> optax.EmptyState:
        factors_of(params)
        return optax.EmptyState()

    def update_fn(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        factors = factors_of(updates)
        scaled = jax.tree.map(
            lambda update, factor: update if factor == 1.0 else (factor * update), updates, factors
        )
        return scaled, state

    return optax.GradientTransformation(init_fn, update_fn)
