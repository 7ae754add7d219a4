"""What lies in a folder of checkpoints, which of it stays, and how the rest is removed."""

from __future__ import annotations

import dataclasses
import logging
import math
import os
from typing import Any

import jax
from etils import epath

from jaxclip import storage
from jaxclip.train import manifest, parts, shards, staging

logger = logging.getLogger("jaxclip")


@dataclasses.dataclass(frozen=True)
class Retention:
    """Which checkpoints stay.

    Attributes:
      keep_last: how many of the newest (at least 1).
      keep_best: how many of the best by ``best_metric`` as well.
      best_metric: key of their metrics; empty: none is kept for being good.
      best_mode: ``"max"`` or ``"min"``.
      keep_every: ``(every, count)``: of the steps that ``every`` divides, the newest ``count`` stay
        as well, so that one may go back to them.
    """

    keep_last: int = 3
    keep_best: int = 1
    best_metric: str = ""
    best_mode: str = "max"
    keep_every: tuple[int, int] = (1, 0)

    def __post_init__(self) -> None:
        if self.keep_last < 1:
            raise ValueError(f"checkpoint.keep_last={self.keep_last} must be at least 1")
        if self.keep_best < 0:
            raise ValueError(f"checkpoint.keep_best={self.keep_best} must not be negative")
        if self.best_mode not in ("max", "min"):
            raise ValueError(f"checkpoint.best_mode={self.best_mode!r} must be 'max' or 'min'")

    def kept(self, steps: list[int], ranked: list[int]) -> set[int]:
        """Those of ``steps``, ascending, that stay; ``ranked`` are those measured, best first."""
        every, count = self.keep_every
        regular = [step for step in steps if step % every == 0]
        newest = set(steps[-self.keep_last :]) | set(regular[max(0, len(regular) - count) :])
        return newest | set(ranked[: self.keep_best])


class CheckpointFolder:
    """The checkpoints of a folder, as this process sees them; process 0 alone removes.

    Args:
      directory: of all checkpoints; of an address, which is only read then, a temporary copy.
      copy: what the folder is a copy of, with checkpoints that are yet to be fetched.

    Attributes:
      directory: of all checkpoints.
      damaged: steps whose files turned out to be damaged. They stay, for a look, until a newer
        checkpoint is committed.
    """

    def __init__(self, directory: str | os.PathLike[str], copy: staging.Copy | None = None):
        # Tensorstore reads and writes absolute paths only.
        place = storage.absolute(directory)
        self._borrowed: staging.Borrowed | None = None
        if not storage.is_local(place):
            address, _, name = place.rstrip("/").rpartition("/")
            if name != staging.CHECKPOINTS:
                raise ValueError(
                    f"{place}: the folder of checkpoints at an address is …/checkpoints"
                )
            copy = self._borrowed = staging.Borrowed(address)
            place = os.fspath(copy.folder / name)
        self.directory = epath.Path(place)
        # What people call it.
        self.place = f"{copy.bucket.address}/{staging.CHECKPOINTS}" if copy is not None else place
        self._copy = copy
        self.damaged: set[int] = set()

    def close(self) -> None:
        """Let go of a temporary copy."""
        if self._borrowed is not None:
            self._borrowed.close()

    def check(self, step: int) -> None:
        """Verify a checkpoint, as far as process 0 can that chooses it for all.

        Of one that each process reads in part, only that its files are there: each verifies what it
        reads. Any other is fetched, as far as there is all of it.

        Raises:
          ManifestError: it is not whole.
          OSError: an address can't be read, or the folder can't be written.
        """
        path = self.path(step)
        if self._copy is None or not self._in_part(step):
            if self._copy is not None:
                self._copy.fetch(path.name)
            self._join(path, manifest.verify(path))
            return
        base = f"{staging.CHECKPOINTS}/{path.name}/"
        there = {name.removeprefix(base) for name in self._copy.bucket.names(base)}
        missing = [name for name in manifest.read(path)["files"] if name not in there]
        if missing:
            raise manifest.ManifestError(f"file {missing[0]} is missing")

    def bring(self, step: int, wanted: Any) -> epath.Path:
        """Have what this process reads of a checkpoint that was chosen.

        Args:
          step: of the checkpoint.
          wanted: the state that is read, with its shardings.

        Returns:
          The folder that has it.

        Raises:
          shards.DamageError: something is not as it was saved.
          ManifestError: this process's copy is not as process 0's was.
          OSError: an address can't be read, or the folder can't be written.
        """
        path = self.path(step)
        if self._copy is None:
            return path
        in_part = self._in_part(step)
        if in_part:
            place = shards.fetch(self._copy, path.name, self.manifest(step), wanted)
            if place is not None:
                return place
        self._copy.fetch(path.name)
        try:
            if in_part or jax.process_index() != 0:
                manifest.verify(path)
        except manifest.ManifestError as error:
            if in_part:  # nobody has verified it before
                raise shards.DamageError(str(error)) from error
            raise
        return path

    def release(self) -> None:
        """Remove what was brought of a checkpoint in part."""
        if self._copy is not None:
            shards.drop(self._copy)

    def manifest(self, step: int) -> dict[str, Any]:
        """The manifest of a checkpoint.

        Raises:
          ManifestError: it has none, or a damaged one.
          OSError: an address can't be read, or the folder can't be written.
        """
        if self._copy is not None:
            self._copy.fetch_manifest(self.path(step).name)
        return manifest.read(self.path(step))

    def join(self, place: epath.Path, content: dict[str, Any]) -> None:
        """Make a checkpoint readable whose parts were written apart.

        Args:
          place: what :meth:`bring` returned.
          content: of its manifest.

        Raises:
          ManifestError: its parts can't be joined.
        """
        if self._copy is not None or jax.process_index() == 0:
            self._join(place, content)

    def _join(self, place: epath.Path, content: dict[str, Any]) -> None:
        try:
            parts.join(place / "state", content["files"])
        except Exception as error:  # TensorStore has no class of its own for errors
            raise manifest.ManifestError(f"its parts can't be joined ({error})") from error

    def _in_part(self, step: int) -> bool:
        """Whether each process fetches only what it reads; the one of a run keeps it all."""
        if self._copy is None or (self._borrowed is None and jax.process_count() == 1):
            return False
        return shards.is_possible(self.manifest(step))

    def changed(self) -> None:
        """To be called when a checkpoint was committed or removed."""
        if self._copy is not None:
            self._copy.committed()

    def path(self, step: int) -> epath.Path:
        """Folder of a checkpoint."""
        return self.directory / f"step_{step:08d}"

    def on_disk(self) -> list[int]:
        """Steps of all checkpoints, unfinished ones among them, ascending."""
        if not self.directory.exists():
            return []
        found = (staging.STEP.fullmatch(entry.name) for entry in self.directory.iterdir())
        return sorted(int(match[1]) for match in found if match)

    def steps(self) -> list[int]:
        """Steps of the committed checkpoints that are not known to be damaged, ascending.

        Only manifests are read here.
        """
        whole = (step for step in self.on_disk() if step not in self.damaged)
        return [step for step in whole if self._manifest(step) is not None]

    def ranked(self, retention: Retention) -> list[int]:
        """Steps that have the best metric, best first; of equals the earlier one."""
        name, scored = retention.best_metric, []
        for step in self.steps() if name else []:
            content = self._manifest(step) or {"metrics": {}}
            value = storage.decode_floats(content["metrics"]).get(name, math.nan)
            if not math.isnan(value):
                scored.append((-value if retention.best_mode == "max" else value, step))
        return [step for _, step in sorted(scored)]

    def prune(self, retention: Retention) -> list[int]:
        """Remove what need not stay, now that a newer checkpoint is safe; returns these steps."""
        keep = retention.kept(self.steps(), self.ranked(retention))
        doomed = [step for step in self.on_disk() if step not in keep]
        for step in doomed:
            self.remove(step)
        return doomed

    def remove_unfinished(self) -> None:
        """Remove what a killed process left behind."""
        finished = set(self.steps())
        newest = max(finished, default=-1)
        for step in self.on_disk():
            unfinished = not (self.path(step) / manifest.NAME).exists()
            if step not in finished and (unfinished or step < newest):
                self.remove(step)
        for entry in self.directory.glob("*.removed"):
            entry.rmtree(missing_ok=True)

    def remove(self, step: int) -> None:
        """Remove a checkpoint; renamed first, so that half a removal never looks like damage."""
        path = self.path(step)
        if jax.process_index() != 0 or not path.exists():
            return
        doomed = path.with_name(path.name + ".removed")
        try:
            doomed.rmtree(missing_ok=True)
            path.rename(doomed)
            doomed.rmtree(missing_ok=True)
        except OSError as error:
            logger.warning("old checkpoint %s can't be removed: %s", path, error)

    def _manifest(self, step: int) -> dict[str, Any] | None:
        try:
            return manifest.read(self.path(step))
        except manifest.ManifestError:
            return None
