"""MLflow."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from jaxclip import storage
from jaxclip.train.writers.base import Run, Writer

_ID_FILE = "mlflow.json"
# Of parameters in one request, and of characters in a value: limits of the servers.
_MOST_PARAMS, _MOST_CHARACTERS = 100, 500


@dataclasses.dataclass
class MLflow(Writer):
    """A run of MLflow, one for a workdir: going on goes on with it.

    Attributes:
      experiment: its name; made if it does not exist.
      tracking_uri: where to; empty: ``$MLFLOW_TRACKING_URI``, else MLflow's own default.
      run_name: empty: the name of the workdir.
    """

    experiment: str = "jaxclip"
    tracking_uri: str = ""
    run_name: str = ""

    library: ClassVar[str] = "mlflow"
    package: ClassVar[str] = "mlflow-skinny"
    may_fail: ClassVar[bool] = True

    _client: Any = dataclasses.field(default=None, init=False, repr=False)
    _id: str = dataclasses.field(default="", init=False, repr=False)

    def open(self, run: Run) -> None:
        from mlflow import MlflowClient

        self._client = MlflowClient(tracking_uri=self.tracking_uri or None)
        path = run.workdir / _ID_FILE
        self._id = storage.read_json(path, {}).get("id", "")
        if self._id and run.resume_step != 0:
            self._client.update_run(self._id, status="RUNNING")
            return
        found = self._client.get_experiment_by_name(self.experiment)
        experiment = found.experiment_id if found else self._create_experiment()
        name = self.run_name or run.workdir.resolve().name
        self._id = self._client.create_run(experiment, run_name=name).info.run_id
        storage.write_json(path, {"id": self._id})
        self._log_config(run.config)

    def write(self, step: int, time: float, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        milliseconds = round(1000 * time)
        metrics = [Metric(name, value, milliseconds, step) for name, value in values.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def close(self) -> None:
        if self._client is not None:
            self._client.set_terminated(self._id)
            self._client = None

    def _create_experiment(self) -> str:
        return self._client.create_experiment(self.experiment)

    def _log_config(self, config: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        from jaxclip.config import flatten

        params = [Param(key, str(value)[:_MOST_CHARACTERS]) for key, value in flatten(config)]
        for start in range(0, len(params), _MOST_PARAMS):
            self._client.log_batch(self._id, params=params[start : start + _MOST_PARAMS])
