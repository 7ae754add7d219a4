"""The search for the checkpoint to go on from: the newest that is whole."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxclip import storage
from jaxclip.errors import RunError
from jaxclip.train import manifest, multihost, shards, state_io
from jaxclip.train.checkpoint_folder import CheckpointFolder

logger = logging.getLogger("jaxclip")


class CheckpointError(RunError):
    """A checkpoint can't be written or read; the message names the path and the way out."""


class Restored(NamedTuple):
    """What a checkpoint held.

    Attributes:
      state: the state, in the structure, dtypes and shardings that were asked for.
      step: the step it was saved at.
      extra: what was given to :meth:`Checkpointer.save` as ``extra``.
      metrics: what was given as ``metrics``.
      skipped: one line for each newer checkpoint that could not be used, newest first.
    """

    state: Any
    step: int
    extra: dict[str, Any]
    metrics: dict[str, float]
    skipped: tuple[str, ...] = ()


@dataclasses.dataclass
class _Search:
    """The search for a usable checkpoint.

    Attributes:
      passed: steps passed over.
      lines: why.
      damaged: how many of them were finished once.
      unread: how many of these have the right checksums, but could not be read.
    """

    passed: list[int] = dataclasses.field(default_factory=list)
    lines: list[str] = dataclasses.field(default_factory=list)
    damaged: int = 0
    unread: int = 0


def restore(
    folder: CheckpointFolder,
    abstract_state: Any,
    *,
    only: int | None = None,
    partial: bool = False,
    optional: str = "",
) -> Restored | None:
    """Restore the newest whole checkpoint of a folder; called by all processes.

    Args:
      folder: of the checkpoints.
      abstract_state: as of :meth:`.checkpoint.Checkpointer.restore_latest`, as the rest.
      only: a step, in place of the newest.
      partial: whether ``abstract_state`` may be a part of what was saved.
      optional: a field that need not be there.

    Returns:
      None where there is none.

    Raises:
      CheckpointError: there are some, but each of them is damaged.
      ValueError: the checkpoint is whole but of another state; the message names the leaves.
    """
    try:
        return _restore(folder, abstract_state, only, partial, optional)
    finally:
        folder.release()


def _restore(
    folder: CheckpointFolder, abstract_state: Any, only: int | None, partial: bool, optional: str
) -> Restored | None:
    search = _Search()
    while (step := _choose(folder, only, search)) >= 0:
        path = folder.path(step)
        what = f"{folder.place}/{path.name} can't be fetched by all processes"
        with multihost.together(what):
            content = folder.manifest(step)
        # Not a matter of damage: an older checkpoint of the same run would not fit either.
        saved, wanted = content["tree"], abstract_state
        if optional:
            saved, wanted = state_io.leave_out_unfit(saved, wanted, optional)
        state_io.check_tree(saved, wanted, path, partial=partial)
        damage = ""
        with multihost.together(what):
            try:
                place = folder.bring(step, wanted)
            except shards.DamageError as error:
                damage = str(error)
        if damage := multihost.first_problem(damage):
            search.damaged += 1
            _pass_over(folder, search, step, damage)
            continue
        failure = ""
        try:
            folder.join(place, content)
            state = state_io.restore(place / "state", wanted)
        except Exception as error:
            failure = f"{type(error).__name__}: {error}"
        failure = multihost.first_problem(failure)
        if not failure:
            metrics = storage.decode_floats(content["metrics"])
            return Restored(state, step, content["extra"], metrics, tuple(search.lines))
        search.damaged += 1
        search.unread += 1
        _pass_over(folder, search, step, f"its checksums are right, but {failure}")
    if int(multihost.broadcast(np.asarray(search.damaged))) and only is None:
        if search.unread:
            what = f"no checkpoint in {folder.place} can be read, but not all are damaged"
        else:
            what = f"every checkpoint in {folder.place} is damaged"
        raise CheckpointError(
            f"{what}:\n  "
            + "\n  ".join(search.lines)
            + "\nnothing was changed; bring back a copy, or start anew in another workdir"
        )
    return None


def _choose(folder: CheckpointFolder, only: int | None, search: _Search) -> int:
    """The newest whole step not yet passed over, or -1; process 0's choice for all."""
    chosen = -1
    with multihost.together(f"the checkpoints in {folder.place} can't be read"):
        if jax.process_index() == 0:
            chosen = _newest(folder, only, search)
    return int(multihost.broadcast(np.asarray(chosen)))


def _newest(folder: CheckpointFolder, only: int | None, search: _Search) -> int:
    for step in reversed(folder.on_disk()):
        if step in search.passed or (only is not None and step != only):
            continue
        try:
            folder.check(step)
        except manifest.ManifestError as error:
            # One that was never finished is the trace of a kill, not of damage.
            search.damaged += not isinstance(error, manifest.MissingManifestError)
            _pass_over(folder, search, step, str(error))
            continue
        return step
    return -1


def _pass_over(folder: CheckpointFolder, search: _Search, step: int, reason: str) -> None:
    search.passed.append(step)
    folder.damaged.add(step)
    search.lines.append(
        f"checkpoint {folder.place}/{folder.path(step).name} can't be used: {reason}"
    )
    logger.warning("%s; trying the one before it", search.lines[-1])
