"""MLflow with a store of its own: metrics, configuration, going on as one run."""

import math

import pytest

from jaxclip import storage
from jaxclip.train import metrics

mlflow = pytest.importorskip("mlflow")


def test_metrics_and_configuration_are_kept_and_a_run_goes_on(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    uri = (tmp_path / "store").as_uri()
    given = {"name": "mlflow", "tracking_uri": uri, "experiment": "e"}
    config = {"seed": 3, "optim": {"name": "adamw", "text": "x" * 1000}}
    workdir = tmp_path / "run"
    for resume, steps in ((0, [1, 2, 3]), (2, [3, 4])):
        with metrics.MetricWriter(workdir, [given], resume_step=resume, config=config) as writer:
            for step in steps:
                writer.write(step, {"loss": step + resume, "eval/a/top1": 0.5, "nan": math.nan})
    client = mlflow.MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("e")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_id == storage.read_json(workdir / "mlflow.json", {})["id"]
    assert (run.info.run_name, run.info.status) == ("run", "FINISHED")
    assert run.data.params["seed"] == "3" and run.data.params["optim.name"] == "adamw"
    history = client.get_metric_history(run.info.run_id, "loss")
    assert [(m.step, m.value) for m in history] == [(1, 1), (2, 2), (3, 3), (3, 5), (4, 6)]
    assert client.get_metric_history(run.info.run_id, "eval/a/top1")[0].value == 0.5
    assert math.isnan(client.get_metric_history(run.info.run_id, "nan")[0].value)
