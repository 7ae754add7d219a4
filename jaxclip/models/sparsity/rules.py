"""Which tensors are made sparse, and how: ``config.sparsity``."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxclip.models.sparsity import SPARSITIES
from jaxclip.models.sparsity._base import Sparsity
from jaxclip.registry import check_numbers

# Where numbers that are learned beside tensors stand among a run's parameters.
KEY = "sparsity"

BLOCKS = r"^(image|text)/blocks_\d+/mlp/(up|down|gate)/kernel$"

Params = dict[str, Any]


class Rule(NamedTuple):
    """A map for some tensors.

    Attributes:
      tensors: pattern of their paths, such as ``image/blocks_0/mlp/up/kernel``.
      sparsity: what is done to them.
    """

    tensors: str
    sparsity: Sparsity


@dataclasses.dataclass(frozen=True)
class Sparse:
    """The rules of a run.

    Attributes:
      rules: of which the first counts that matches a tensor; none for dense weights.
      total_steps: of the run.
    """

    rules: tuple[Rule, ...] = ()
    total_steps: int = 1

    def init(self, params: Params) -> Params:
        """What is learned beside the tensors: ``{KEY: tree}``, ``own`` below each tensor's path.

        Empty where nothing is.

        Raises:
          ValueError: a rule that is for no kernel.
        """
        chosen = self._chosen(params)
        for number, rule in enumerate(self.rules):
            if rule not in chosen.values():
                raise ValueError(
                    f"config.sparsity[{number}]: tensors={rule.tensors!r} is left with no kernel; "
                    "name paths such as 'image/blocks_0/mlp/up/kernel'"
                )
        starts = {path: rule.sparsity.initial() for path, rule in chosen.items()}
        own: Params = {}
        for path, start in starts.items():
            if start is not None:
                node = own
                for folder in path.split("/"):
                    node = node.setdefault(folder, {})
                node["own"] = jnp.float32(start)
        return {KEY: own} if own else {}

    def __call__(self, params: Params, step: Any = None) -> Params:
        """The parameters that the forward pass sees, without what is learned beside them.

        Args:
          params: of a run, dense.
          step: int[], updates done; None for the end of the run.
        """
        if not self.rules:
            return params
        progress = jnp.float32(1.0 if step is None else step / self.total_steps)
        leaves = jax.tree_util.tree_leaves_with_path(params.get(KEY, {}))
        own = {_name(path).removesuffix("/own"): leaf for path, leaf in leaves}
        chosen = self._chosen(params)

        def seen(path: Any, leaf: jax.Array) -> jax.Array:
            name = _name(path)
            if name not in chosen:
                return leaf
            return chosen[name].sparsity(jnp.asarray(leaf), progress, own.get(name))

        rest = {name: value for name, value in params.items() if name != KEY}
        result: Params = jax.tree_util.tree_map_with_path(seen, rest)
        return result

    def _chosen(self, params: Params) -> dict[str, Rule]:
        """The rule of each tensor that has one: kernels of the towers, of two axes."""
        found = {}
        for path, leaf in jax.tree_util.tree_leaves_with_path(params):
            name = _name(path)
            if name.startswith(("image/", "text/")) and jnp.ndim(leaf) == 2:
                for rule in self.rules:
                    if name.endswith("/kernel") and re.search(rule.tensors, name):
                        found[name] = rule
                        break
        return found


def from_config(given: Any, total_steps: int) -> Sparse:
    """The rules of a configuration.

    Args:
      given: a list of ``{"name", "tensors", option: value, …}``; a name alone is that map for the
        MLPs of all blocks. Empty for none.
      total_steps: of the run.

    Raises:
      ValueError: an unknown name or option (naming the nearest), or a pattern that is none.
    """
    rules: list[Rule] = []
    alone = isinstance(given, (str, Mapping))
    entries: Sequence[Any] = [given] if alone else given or ()
    for number, each in enumerate(entries):
        where = f"config.sparsity[{number}]"
        options = {"name": each} if isinstance(each, str) else each
        if not isinstance(options, Mapping):
            raise ValueError(f"{where}={each!r} is neither a name nor a dict with a 'name'")
        pattern = options.get("tensors", BLOCKS)
        try:
            made = SPARSITIES.build({k: v for k, v in options.items() if k != "tensors"})
            check_numbers(made, f"sparsity {options['name']!r}")
            made.check()
            re.compile(pattern)
        except (ValueError, re.error, TypeError) as error:
            raise ValueError(f"{where}: {error}") from error
        rules.append(Rule(pattern, made))
    return Sparse(tuple(rules), total_steps)


def share_of_zeros(params: Params, sparse: Sparse) -> dict[str, float]:
    """The share of zeros of each tensor that a rule is for, at the end of the run."""
    names = sparse._chosen(params)
    seen = sparse(params)
    return {
        _name(path): float(jnp.mean(leaf == 0))
        for path, leaf in jax.tree_util.tree_leaves_with_path(seen)
        if _name(path) in names
    }


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
