"""Reading what the transformations in an optimizer state did in the last step."""

from __future__ import annotations

import re
import warnings
from typing import Any

import jax

from jaxclip.optim import _base
from jaxclip.optim.skip_nonfinite import SkipNonfiniteState
from jaxclip.optim.skip_on_spike import SkipOnSpikeState

# Fields that only some rules report.
_EXTRA_FIELDS = ("streak",)
# States whose name says the part that has them, not what people call the whole.
_NAMES = {"stable_adam": "stable_adamw"}


def read_metrics(opt_state: Any) -> dict[str, jax.Array]:
    """Collects every norm, threshold, clip decision and count of non-finite steps in a state.

    Looks through all that optax nests states in (``chain``, ``named_chain``, ``masked``,
    ``partition``, ``MultiSteps``, ``inject_hyperparams``, …) for states that follow the convention
    of this package. It only picks arrays out of the state: it costs nothing, under ``jit`` too.

    Args:
      opt_state: state of any optax transformation.

    Returns:
      A flat dict with names such as ``"zclip/norm"``. If there are several states of one
      transformation, names start with the keys of the dicts that tell them apart (labels of a
      ``partition``, names of a ``named_chain``: ``"text/adagc/norm"``), and else end in a number
      (``"zclip_1/norm"``). The values:

      * ``norm``, ``threshold``: float32; what the rule looked at and what it let out;
      * ``clipped``: bool, whether it acted;
      * ``nonfinite_count``: int32, how often it met a NaN or infinite norm so far;
      * ``streak`` (of rules that have it): int32, for how many updates in a row it has acted. The
        alarm for a rule that has locked: from some 50 on the norms have risen for good.

      Scalars for rules that look at the tree as a whole, ``[num_tensors]`` for those that look at
      each tensor (in the order of :func:`jaxclip.optim.tensor_names`).

    Examples:
      >>> import jax.numpy as jnp, optax
      >>> from jaxclip import optim
      >>> tx = optax.chain(optim.zclip(), optax.adamw(1e-3))
      >>> params = jnp.ones(4)
      >>> _, state = tx.update(10 * params, tx.init(params), params)
      >>> for name, value in optim.read_metrics(state).items():
      ...     print(name, value)
      zclip/norm 20.0
      zclip/threshold 1.0
      zclip/clipped True
      zclip/nonfinite_count 0
      zclip/streak 0
    """
    found = _reports(opt_state, ())
    names = [name for _, name, _ in found]
    result: dict[str, jax.Array] = {}
    for keys, name, state in found:
        title = name if names.count(name) == 1 else "/".join((*keys, name))
        number = 0
        while f"{title}/norm" in result:
            number += 1
            title = f"{title.removesuffix(f'_{number - 1}')}_{number}"
        for field in (*_base.REPORTED_FIELDS, *_EXTRA_FIELDS):
            if hasattr(state, field):
                result[f"{title}/{field}"] = getattr(state, field)
    return result


def skipped_steps(opt_state: Any) -> Any:
    """How many steps :func:`skip_nonfinite` and :func:`skip_on_spike` have left out so far.

    A schedule within them counts the others only.

    Args:
      opt_state: state of any optax transformation.

    Returns:
      int32 scalar, 0 if the state is of neither; of one within the other, both's.
    """
    total: Any = 0
    node = opt_state
    # They stand outermost; within a chain or a partition others count their own steps.
    while isinstance(node, (SkipNonfiniteState, SkipOnSpikeState)):
        if isinstance(node, SkipOnSpikeState):
            total = total + node.skipped_count
        else:
            total = total + node.nonfinite_count
        node = node.inner_state
    return total


def _is_report(node: Any) -> bool:
    """Whether a node of a state tree follows the convention."""
    fields = getattr(type(node), "_fields", ())
    return all(field in fields for field in _base.REPORTED_FIELDS)


def _reports(tree: Any, keys: tuple[str, ...]) -> list[tuple[tuple[str, ...], str, Any]]:
    """Keys of dicts on the way, transformation and state, for every state that reports."""
    found = []
    for path, node in jax.tree_util.tree_leaves_with_path(tree, is_leaf=_is_report):
        if not _is_report(node):
            continue
        labels = tuple(str(entry.key) for entry in path if isinstance(entry, jax.tree_util.DictKey))
        found.append(((*keys, *labels), _transformation(type(node)), node))
        others = {f: getattr(node, f) for f in node._fields if f not in _base.REPORTED_FIELDS}
        for value in others.values():
            found += _reports(value, (*keys, *labels))
    return found


def _transformation(state_class: type) -> str:
    """The public name: ``ZclipState`` to ``zclip``, ``StableAdamState`` to ``stable_adamw``."""
    name = state_class.__name__.removesuffix("State")
    snake = re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()
    return _NAMES.get(snake, snake)


def monitor(opt_state: Any) -> dict[str, jax.Array]:
    """The former name of :func:`read_metrics`; ``optax.monitor`` is something else.

    Args:
      opt_state: state of any optax transformation.

    Returns:
      What :func:`read_metrics` returns.
    """
    warnings.warn(
        "optim.monitor is now optim.read_metrics", PendingDeprecationWarning, stacklevel=2
    )
    return read_metrics(opt_state)
