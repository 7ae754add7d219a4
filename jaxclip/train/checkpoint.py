"""Checkpoints: asynchronous, all or nothing, verified before use (orbax underneath).

Layout of the folder::

    step_00000500/
      state/          the arrays, written by orbax (tensorstore, OCDBT)
      manifest.json   commits the checkpoint: digests of all files, metrics, ``extra``, tree

The state is stored under plain nested names (``params/image/…``, ``opt_state/0/mu/…``), so that
other programs, and later versions of the same optimizer, can read parts of it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
from collections.abc import Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp

from jaxclip import storage
from jaxclip.errors import ProcessesError
from jaxclip.parallel import distributed
from jaxclip.train import manifest, mirror, multihost, parts, staging, state_io
from jaxclip.train.checkpoint_folder import CheckpointFolder, Retention
from jaxclip.train.checkpoint_search import CheckpointError, Restored, restore

__all__ = ["CheckpointError", "Checkpointer", "Restored"]

logger = logging.getLogger("jaxclip")


# Bytes of a file that is to be uploaded.
_LARGEST_FILE = 2**28


class Checkpointer:
    """Saves and restores training states in a folder.

    Saving copies the arrays to the host and returns; writing, hashing, committing and the removal
    of old checkpoints happen in the background, one save at a time. With several processes every
    method must be called by all of them; process 0 commits and decides which step is restored.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        writable: bool = True,
        one_by_one: bool = False,
        copy: staging.Copy | None = None,
        **retention: Any,
    ):
        """Open (and, if ``writable``, create and probe) the folder.

        Args:
          directory: folder of the checkpoints; of an address (``gs://…/checkpoints``) a reader has
            a temporary copy.
          writable: False for readers, such as an evaluation beside a run: nothing is ever changed.
          one_by_one: whether what is saved are NumPy and lazy arrays
            (:mod:`jaxclip.train.lazy_arrays`), written one after the other.
          copy: what the folder is a copy of (:mod:`jaxclip.train.staging`).
          **retention: which checkpoints stay, as :class:`.checkpoint_folder.Retention` has it.

        Raises:
          ValueError: an option out of range, or an address that is not only read.
          CheckpointError: the folder can't be written.
        """
        self._retention = Retention(**retention)
        if writable and not storage.is_local(directory):
            raise ValueError(f"{directory}: a run at an address saves in its staging folder")
        if writable or storage.is_local(directory):
            self._folder = CheckpointFolder(directory, copy)
        else:
            with multihost.together(f"{directory} can't be read by all processes"):
                self._folder = CheckpointFolder(directory)
        self.directory = self._folder.directory
        self._one_by_one = one_by_one
        # Files are uploaded one by one, each from memory.
        self._sizes = {} if copy is None else {"ocdbt_target_data_file_size": _LARGEST_FILE}
        logging.getLogger("absl").addFilter(state_io.is_news)
        apart = writable and copy is not None and jax.process_count() > 1
        self._parts = parts.Parts(copy) if apart and copy is not None else None
        self._given_up: tuple[int, BaseException] | None = None  # by several processes: step, why
        # Steps that all processes know to be on disk or on their way there.
        self._known: set[int] = set()
        self._thread: threading.Thread | None = None
        self._error: tuple[int, BaseException] | None = None
        self._failed = False  # any save
        self._orbax: ocp.AsyncCheckpointer | None = None
        if writable:
            problem = storage.probe(self.directory) if jax.process_index() == 0 else ""
            problem = multihost.first_problem(problem)
            if problem:
                raise CheckpointError(problem)

    def __enter__(self) -> Checkpointer:
        return self

    def __exit__(self, _kind: Any, error: Any, _trace: Any) -> None:
        if error is None:
            self.close()
            return
        if distributed.explain_loss(error):
            # A save under way would wait for the lost process until JAX gives that up, too.
            return
        try:
            self.close()
        except CheckpointError as second:  # never hide the first error behind this one
            logger.error("%s", second)

    # Saving.

    def save(
        self,
        step: int,
        state: Any,
        metrics: Mapping[str, float] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> bool:
        """Start saving a state; returns once its arrays are copied to the host.

        Args:
          step: the number of updates done, which is also the position in the data.
          state: pytree of arrays (typed PRNG keys included) and numbers. It may be donated to the
            next step straight away.
          metrics: numbers to choose the best checkpoint by.
          extra: JSON-serialisable, for instance the configuration.

        Returns:
          True; False if this step is saved already (then only its metrics are updated).

        Raises:
          CheckpointError: an earlier save failed in the background, or this one can't start.
          errors.ProcessesError: so it is on some of several processes, with the same words.
          TypeError: ``extra`` is not JSON-serialisable.
        """
        self.wait()
        step = int(step)
        numbers = {key: float(value) for key, value in (metrics or {}).items()}
        if step in self._known:
            if numbers and jax.process_index() == 0:
                self._update_metrics(step, numbers)
            return False
        json.dumps(extra)
        tree = state_io.to_nested(state)
        content = {
            "step": step,
            "metrics": storage.encode_floats(numbers),
            "extra": dict(extra or {}),
            "tree": state_io.describe(state),
        }
        target, number = self._folder.path(step), ""
        what = f"checkpoint of step {step} can't be written by all processes"
        try:
            with multihost.together(what):
                self._prepare(step)
            if self._parts is not None:
                number = self._parts.begin()
            # By itself orbax has the processes wait for each other.
            with contextlib.nullcontext() if self._parts is None else multihost.together(what):
                self._writer().save(target / "state", args=ocp.args.PyTreeSave(tree, **self._sizes))
        except ProcessesError:
            with contextlib.suppress(Exception):  # of what this process may have begun to write
                self._writer().wait_until_finished()
            self._folder.remove(step)
            raise
        except Exception as error:
            self._folder.remove(step)
            raise self._explain(step, error) from error
        self._known.add(step)
        self._thread = threading.Thread(
            target=self._commit, args=(step, content, number), name="checkpoint_commit"
        )
        self._thread.start()
        return True

    def _prepare(self, step: int) -> None:
        """Make room for a checkpoint."""
        target = self._folder.path(step)
        if jax.process_index() == 0:
            self._folder.remove_unfinished()
            self._folder.remove(step)
            self._folder.damaged.discard(step)
            target.mkdir(parents=True, exist_ok=True)
        if self._parts is not None:
            self._parts.prepare(target)

    def _writer(self) -> ocp.AsyncCheckpointer:
        if self._orbax is None:
            options = {} if self._parts is None else {"multiprocessing_options": parts.options()}
            self._orbax = ocp.AsyncCheckpointer(
                state_io.handler(
                    one_by_one=self._one_by_one,
                    processes=options.get("multiprocessing_options"),
                ),
                timeout_secs=3600,
                **options,
            )
        return self._orbax

    def wait(self) -> None:
        """Block until the save in the background, if any, is committed.

        Raises:
          CheckpointError: it failed; the checkpoints before it are untouched.
          errors.ProcessesError: at an address, on one of several processes; with the same words.
        """
        if self._parts is None:
            self._join()
            return
        try:
            with multihost.together("a checkpoint can't be written by all processes"):
                self._join()
        except ProcessesError:
            self._given_up = None  # it says why
            raise
        self._known = multihost.broadcast_steps(self._folder.steps())

    def _join(self, patience: float = 0.0) -> None:
        """:meth:`wait`, for this process alone; a failing upload is given up after ``patience``."""
        if self._thread is not None:
            if self._parts is not None:
                self._thread.join(patience)
                self._parts.hurry.set()
            self._thread.join()
            self._thread = None
        if self._error is not None:
            step, error = self._error
            self._error = None
            raise self._explain(step, error) from error

    def drop_after(self, step: int) -> int | None:
        """Remove the checkpoints after a step, if there is a whole one of it or before it.

        Args:
          step: the last step whose checkpoint is good.

        Returns:
          The step of the newest checkpoint that is left, or None.
        """
        self.wait()
        steps = self.steps()
        if any(other <= step for other in steps):
            for other in steps:
                if other > step:
                    self._folder.remove(other)
                    self._known.discard(other)
            steps = [other for other in steps if other <= step]
        return steps[-1] if steps else None

    def forget_after(self, step: int) -> None:
        """Remove all checkpoints after a step: they are of a past that is done again."""
        self.wait()
        if jax.process_index() == 0:
            for other in self._folder.on_disk():
                if other > step:
                    self._folder.remove(other)
            self._folder.changed()
        self._known = {other for other in self._known if other <= step}

    def close(self) -> None:
        """Wait for the last save and let go of orbax's threads."""
        try:
            self._join(mirror.FINAL_SECONDS)
            if self._given_up is not None:
                raise self._explain(*self._given_up) from self._given_up[1]
        finally:
            if self._orbax is not None:
                self._orbax.close()
                self._orbax = None
            if self._failed:  # orbax may have written on after its first error
                self._folder.remove_unfinished()
            self._folder.close()

    def _commit(self, step: int, content: dict[str, Any], number: str) -> None:
        """In the background: finish the arrays, write the manifest, drop old checkpoints."""
        try:
            assert self._orbax is not None
            self._orbax.wait_until_finished()
            if self._parts is not None:
                self._upload_part(step, content, number)
            elif jax.process_index() == 0:
                if self._sizes:
                    content["blocks"] = manifest.blocks_of(self._folder.path(step))
                    content["block_bytes"] = manifest.BLOCK
                manifest.write(self._folder.path(step), content)
            if jax.process_index() == 0:
                self._known.difference_update(self._folder.prune(self._retention))
                self._folder.changed()
        except BaseException as error:  # handed to the main thread by wait()
            self._error, self._failed = (step, error), True
            self._known.discard(step)
            if self._parts is not None:
                name = self._folder.path(step).name
                self._parts.fail(name, number, storage.reason(error, self.directory))
            if jax.process_index() == 0:
                self._folder.remove(step)

    def _upload_part(self, step: int, content: dict[str, Any], number: str) -> None:
        assert self._parts is not None
        self._given_up = None
        try:
            self._parts.commit(self._folder.path(step), content, number)
        except parts.PartError as error:
            self._given_up = (step, error)  # all learn of it in wait(), of the last one in close()
            self._folder.remove(step)
        except OSError as error:
            self._given_up = (step, error)
            self._folder.remove(step)
            logger.warning(
                "there is no checkpoint of step %d: %s; training goes on, those before it stay",
                step,
                error,
            )

    def _update_metrics(self, step: int, metrics: dict[str, float]) -> None:
        content = manifest.read(self._folder.path(step))
        content["metrics"] = {**content["metrics"], **storage.encode_floats(metrics)}
        manifest.put(self._folder.path(step), content)
        self._folder.changed()

    def _explain(self, step: int, error: BaseException) -> CheckpointError:
        """The error for a failed save, with the way out."""
        before = [other for other in self.steps() if other != step]
        safe = f"step {before[-1]} is the newest intact one" if before else "none is on disk yet"
        where = self.directory if self._parts is None else self._folder.place
        return CheckpointError(
            f"checkpoint of step {step} was not written to {where}: "
            f"{storage.reason(error, self.directory)}; {safe}"
        )

    # Reading.

    def steps(self) -> list[int]:
        """Steps of the committed checkpoints that are not known to be damaged, ascending.

        Only manifests are read here; files are verified on restoring.
        """
        return self._folder.steps() if self._parts is None else sorted(self._known)

    def best_step(self) -> int | None:
        """The step with the best ``best_metric``, or None if none has been measured."""
        ranked = self._folder.ranked(self._retention)
        return ranked[0] if ranked else None

    def restore_latest(
        self, abstract_state: Any, *, partial: bool = False, optional: str = ""
    ) -> Restored | None:
        """Restore the newest checkpoint that is whole, reporting each one that is not.

        Args:
          abstract_state: pytree of ``jax.ShapeDtypeStruct`` (or arrays) with the shardings wanted;
            mesh and number of devices may differ from those of the run that saved.
          partial: ``abstract_state`` may be a part of what was saved, for instance a dict with
            ``params`` alone.
          optional: a field of the state that comes back as None where the checkpoint holds none of
            these shapes.

        Returns:
          The checkpoint, or None where no save was ever finished.

        Raises:
          CheckpointError: there are checkpoints, but each of them is damaged.
          ValueError: the checkpoint is whole but of another state; the message names the leaves.
        """
        return self._restore(None, abstract_state, partial, optional)

    def restore(
        self, step: int, abstract_state: Any, *, partial: bool = False, optional: str = ""
    ) -> Restored:
        """Restore the checkpoint of one step; arguments as :meth:`restore_latest`.

        Raises:
          CheckpointError: it does not exist or is damaged.
          ValueError: it is of another state.
        """
        restored = self._restore(int(step), abstract_state, partial, optional)
        if restored is None:
            have = ", ".join(map(str, self.steps())) or "none"
            raise CheckpointError(
                f"no usable checkpoint of step {step} in {self._folder.place}; there are: {have}"
            )
        return restored

    def _restore(
        self, only: int | None, abstract_state: Any, partial: bool, optional: str
    ) -> Restored | None:
        self.wait()
        found = restore(self._folder, abstract_state, only=only, partial=partial, optional=optional)
        if found is not None:
            if self._parts is not None:
                self._parts.release(self._folder.path(found.step))
            self._known = multihost.broadcast_steps(self._folder.steps())
        return found
