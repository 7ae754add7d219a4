"""Arrays over the steps of a run: which pairs a batch holds, and what is done to it."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np


class Plan(NamedTuple):
    """What a run of T steps with batches of B and N tensors of parameters follows.

    Attributes:
      image: int32[T, B], places of the pictures in the data.
      text: int32[T, B], places of the captions.
      noise: float32[T], above 0: the batch's pictures are noise.
      gradient: float32[T, N], factor of each tensor's gradient.
      direction: float32[T], k in g + k ‖g‖ u with u random of unit length.
      tail: float32[T], k in g + k ‖g‖ / √n z with z of Student's t.
      df: float32[T], its degrees of freedom.
      weight: float32[T, N], factor of one element of each tensor of parameters before the step.
      rate: float32[T], factor of the learning rate.
      logit_scale: float32[T], what it is set to before the step; NaN leaves it.
      active: bool[T], the steps that an injector touches, for the report.
    """

    image: np.ndarray
    text: np.ndarray
    noise: np.ndarray
    gradient: np.ndarray
    direction: np.ndarray
    tail: np.ndarray
    df: np.ndarray
    weight: np.ndarray
    rate: np.ndarray
    logit_scale: np.ndarray
    active: np.ndarray


class Place(NamedTuple):
    """Where an injector works.

    Attributes:
      seed: of the run.
      steps: T.
      batch_size: B.
      names: paths of the N tensors of parameters.
      groups: int[num_pairs], which part of the data a pair belongs to (who drew the picture).
    """

    seed: int
    steps: int
    batch_size: int
    names: Sequence[str]
    groups: np.ndarray


def empty_plan(place: Place) -> Plan:
    """Random batches, and nothing else. A batch depends on (seed, step) alone."""
    t, n = place.steps, len(place.names)
    batches = draw_batches(place, np.arange(len(place.groups)), range(t))
    return Plan(
        image=batches,
        text=batches.copy(),
        noise=np.zeros(t, np.float32),
        gradient=np.ones((t, n), np.float32),
        direction=np.zeros(t, np.float32),
        tail=np.zeros(t, np.float32),
        df=np.ones(t, np.float32),
        weight=np.ones((t, n), np.float32),
        rate=np.ones(t, np.float32),
        logit_scale=np.full(t, np.nan, np.float32),
        active=np.zeros(t, bool),
    )


def extend(plan: Plan, place: Place, more: int) -> Plan:
    """A plan with so many steps behind it, in which nothing is injected."""
    if not more:
        return plan
    longer = empty_plan(place._replace(steps=place.steps + more))
    return Plan(
        *(
            np.concatenate([own, rest[place.steps :]])
            for own, rest in zip(plan, longer, strict=True)
        )
    )


def draw_batches(place: Place, pairs: np.ndarray, steps: Any) -> np.ndarray:
    """int32[len(steps), B]: for each step other pairs out of some, none twice in a batch.

    Raises:
      ValueError: there are fewer pairs than a batch holds.
    """
    if len(pairs) < place.batch_size:
        raise ValueError(
            f"train.global_batch_size={place.batch_size}, but there are only {len(pairs)} pairs to "
            "draw from; lower it"
        )
    rows = [
        np.random.default_rng([place.seed, int(step)]).choice(pairs, place.batch_size, False)
        for step in steps
    ]
    return np.asarray(rows, np.int32).reshape(len(rows), place.batch_size)


def generator(place: Place, name: str) -> np.random.Generator:
    """Randomness of an injector: of the seed and its name, not of the batches'."""
    return np.random.default_rng([place.seed, zlib.crc32(name.encode())])


def span(place: Place, name: str, start: int, count: int) -> slice:
    """The steps ``start`` to ``start + count``.

    Raises:
      ValueError: they are not all in the run.
    """
    if start < 0 or count < 0 or (count and start + count > place.steps):
        raise ValueError(
            f"injector {name!r}: steps {start} to {start + count - 1} are not in a run of "
            f"train.total_steps={place.steps} steps; lower start or count"
        )
    return slice(start, start + count)


def chosen(place: Place, name: str, steps: Sequence[int], share: float, start: int) -> np.ndarray:
    """bool[T]: given steps, and a random share of those from ``start`` on.

    Of a share exactly ``round(share * (T - start))`` steps are drawn: all seeds have as many.

    Raises:
      ValueError: a step that is not in the run, or a share outside of [0, 1].
    """
    if not 0 <= share <= 1:
        raise ValueError(f"injector {name!r}: share={share} must be in [0, 1]")
    if not 0 <= start < place.steps:
        raise ValueError(
            f"injector {name!r}: start={start} is not in a run of train.total_steps={place.steps} "
            "steps"
        )
    result = np.zeros(place.steps, bool)
    for step in steps:
        if not 0 <= step < place.steps:
            raise ValueError(
                f"injector {name!r}: step {step} is not in a run of train.total_steps="
                f"{place.steps} steps"
            )
        result[step] = True
    late = np.arange(start, place.steps)
    count = round(share * len(late))
    result[generator(place, name).choice(late, count, False)] = True
    return result


def tensors(place: Place, name: str, pattern: str) -> np.ndarray:
    """int[K]: numbers of the tensors whose path a pattern is found in.

    Raises:
      ValueError: there is none, or it is no pattern.
    """
    try:
        found = [i for i, path in enumerate(place.names) if re.search(pattern, path)]
    except re.error as error:
        raise ValueError(f"injector {name!r}: path={pattern!r} is no pattern: {error}") from error
    if not found:
        raise ValueError(
            f"injector {name!r}: path={pattern!r} matches no parameter; they are called as "
            f"{place.names[0]!r}"
        )
    return np.asarray(found)
