"""What a configuration says of parameters by patterns of their paths."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import optax

from jaxclip.optim import _base, _sections
from jaxclip.optim.groups import Group, group_of
from jaxclip.registry import hint


def checking(
    tx: optax.GradientTransformation, used: Sequence[tuple[str, str]]
) -> optax.GradientTransformationExtraArgs:
    """The transformation, whose ``init`` refuses patterns that match no parameter."""
    tx = optax.with_extra_args_support(tx)

    def init_fn(params: Any) -> Any:
        names = _base.tensor_names(params)
        for key, pattern in used:
            if not any(re.search(pattern, name) for name in names):
                near = hint(pattern.strip("^$"), names[:200])
                raise ValueError(f"{key}: pattern {pattern!r} matches no parameter{near}")
        return tx.init(params)

    return optax.GradientTransformationExtraArgs(init_fn, tx.update)


def read(key: str, given: Any, used: list[tuple[str, str]]) -> list[re.Pattern[str]]:
    """Compiled patterns, noted in ``used`` for the check against the parameters."""
    patterns = []
    for pattern in [given] if isinstance(given, str) else given or []:
        try:
            patterns.append(re.compile(pattern))
        except (re.error, TypeError) as error:
            raise ValueError(f"{key}: {pattern!r} is no regular expression: {error}") from error
        used.append((key, pattern))
    return patterns


def matches(patterns: Iterable[re.Pattern[str]], path: str) -> bool:
    return any(pattern.search(path) for pattern in patterns)


def multipliers(pairs: Any, used: list[tuple[str, str]]) -> list[optax.GradientTransformation]:
    key = "optim.learning_rate_multipliers"
    if not pairs:
        return []
    if not isinstance(pairs, list) or not all(isinstance(p, list) and len(p) == 2 for p in pairs):
        raise ValueError(f"{key}={pairs!r} must be a list of [pattern, factor]")
    patterns = read(key, [pattern for pattern, _ in pairs], used)
    factors = {
        str(i): _sections.number(f"{key}[{i}]", factor) for i, (_, factor) in enumerate(pairs)
    }
    scales = {label: optax.scale(factor) for label, factor in factors.items()}

    def label(path: str, leaf: Any) -> str:
        del leaf
        return next((str(i) for i, p in enumerate(patterns) if p.search(path)), "others")

    groups = {**scales, "others": optax.identity()}
    return [optax.partition(groups, lambda tree: _base.map_named(label, tree))]


def frozen(
    tx: optax.GradientTransformation,
    patterns: Sequence[re.Pattern[str]],
    others: Sequence[Group],
) -> optax.GradientTransformation:
    """The transformation for all but the parameters that match; zero updates for these."""
    if not patterns and not any(group.frozen for group in others):
        return tx

    def label(path: str, leaf: Any) -> str:
        del leaf
        group = group_of(others, path)
        stays = matches(patterns, path) or (group is not None and group.frozen)
        return "frozen" if stays else "trained"

    def labels(tree: Any) -> Any:
        found = _base.map_named(label, tree)
        if set(jax.tree.leaves(found)) == {"frozen"}:
            raise ValueError(
                "optim.freeze and optim.groups freeze all parameters; leave some to train"
            )
        return found

    return optax.partition({"trained": tx, "frozen": optax.set_to_zero()}, labels)
