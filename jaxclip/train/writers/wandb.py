"""Weights & Biases."""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from jaxclip import storage
from jaxclip.train.writers.base import Run, Writer

_ID_FILE = "wandb.json"
_MODES = ("", "online", "offline", "disabled")


@dataclasses.dataclass
class Wandb(Writer):
    """A run of Weights & Biases, one for a workdir: going on goes on with it.

    What was logged beyond the checkpoint of a killed run stays there, and its steps come again; the
    later value counts. In offline mode files are kept in ``workdir/wandb`` for ``wandb sync``.

    Attributes:
      project: its name.
      entity: user or team; empty: the account's default.
      run_name: empty: the name of the workdir.
      mode: ``"online"``, ``"offline"``, ``"disabled"``; empty: ``$WANDB_MODE``, else online.
      tags: of the run.
    """

    project: str = "jaxclip"
    entity: str = ""
    run_name: str = ""
    mode: str = ""
    tags: Sequence[str] = ()

    library: ClassVar[str] = "wandb"
    may_fail: ClassVar[bool] = True

    _run: Any = dataclasses.field(default=None, init=False, repr=False)

    def check(self) -> None:
        super().check()
        if self.mode not in _MODES:
            known = ", ".join(repr(mode) for mode in _MODES[1:])
            raise ValueError(f"config.writers: wandb mode={self.mode!r}; use one of {known}")

    def open(self, run: Run) -> None:
        import wandb

        path = run.workdir / _ID_FILE
        key = storage.read_json(path, {}).get("id")
        if not key or run.resume_step == 0:
            key = uuid.uuid4().hex[:12]
            storage.write_json(path, {"id": key})
        self._run = wandb.init(
            project=self.project,
            entity=self.entity or None,
            name=self.run_name or run.workdir.resolve().name,
            id=key,
            resume="allow",
            mode=self.mode or None,  # type: ignore[arg-type]
            tags=list(self.tags) or None,
            dir=str(run.workdir),
            config=dict(run.config),
            settings=wandb.Settings(silent=True, console="off"),
        )
        # Its own step can't go back; ours can, after a kill.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, time: float, values: Mapping[str, float]) -> None:
        self._run.log({"step": step, **values})

    def close(self) -> None:
        if self._run is not None:
            self._run.finish()
            self._run = None
