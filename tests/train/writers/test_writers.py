"""Metric writers by name: which there are, what is refused, what a failing one does to a run."""

import dataclasses
import importlib.util
import logging
from typing import ClassVar

import pytest

from jaxclip.train import metrics, writers


@dataclasses.dataclass
class Breaking(writers.Writer):
    """Fails at a chosen moment."""

    moment: str = "write"
    error: str = "RuntimeError"
    seen: ClassVar[list] = []
    may_fail: ClassVar[bool] = True

    def open(self, run):
        self.run = run
        self._may_fail("open")

    def write(self, step, time, values):
        self.seen.append((step, values))
        self._may_fail("write")

    def flush(self):
        self._may_fail("flush")

    def close(self):
        self._may_fail("close")

    def _may_fail(self, moment):
        if self.moment == moment:
            kind = {"RuntimeError": RuntimeError, "OSError": OSError}[self.error]
            raise kind(f"server gone at {moment}\nand a page of details")


@pytest.fixture
def breaking(monkeypatch):
    monkeypatch.setattr(writers.WRITERS, "_registered", {"breaking": Breaking})
    Breaking.seen.clear()


def names(given):
    return [type(writer).__name__.lower() for writer in writers.from_config(given)]


def test_every_file_of_the_package_is_a_writer():
    assert writers.WRITERS.names() == ["jsonl", "mlflow", "tensorboard", "wandb"]
    for name in writers.WRITERS.names():
        assert issubclass(writers.WRITERS.get(name), writers.Writer)


def test_jsonl_is_always_on_and_first():
    assert names([]) == ["jsonl"]
    assert names("tensorboard") == ["jsonl", "tensorboard"]
    assert names(["tensorboard", "jsonl"]) == ["jsonl", "tensorboard"]
    assert names([{"name": "tensorboard", "flush_secs": 1}]) == ["jsonl", "tensorboard"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["tensorbord"], "unknown metric writer 'tensorbord'; did you mean 'tensorboard'"),
        ([{"name": "tensorboard", "flush_sec": 1}], "did you mean 'flush_secs'"),
        ([{"project": "x"}], "metric writer without a 'name'"),
        (["tensorboard", {"name": "tensorboard"}], "names 'tensorboard' twice"),
        ([3], "has 3; a writer is a name"),
        ([{"name": "tensorboard", "flush_secs": "x"}], "flush_secs='x' of .* must be float"),
    ],
)
def test_mistakes(given, message):
    with pytest.raises(ValueError, match=message):
        writers.from_config(given)


@pytest.mark.parametrize("name", ["wandb", "mlflow", "tensorboard"])
def test_a_missing_library_is_one_line_with_the_way_out(name, monkeypatch):
    library = writers.WRITERS.get(name).library
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda wanted: None if wanted == library else find(wanted)
    )
    with pytest.raises(ValueError, match=rf"'{name}' needs the library .*pip install '") as error:
        writers.from_config([name])
    assert "\n" not in str(error.value)


def test_a_run_is_refused_before_it_has_a_workdir(tiny_config, tmp_path, monkeypatch):
    from jaxclip.train import loop

    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda wanted: None if wanted == "wandb" else find(wanted)
    )
    with pytest.raises(ValueError, match="'wandb' needs the library"):
        loop.train(tiny_config("writers=['wandb']"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_writer_that_fails_is_closed_and_the_run_goes_on(breaking, tmp_path, caplog):
    with caplog.at_level(logging.WARNING), metrics.MetricWriter(tmp_path, ["breaking"]) as writer:
        writer.write(1, {"loss": 2.0})
        writer.write(2, {"loss": 1.0})
        writer.flush()
    assert Breaking.seen == [(1, {"loss": 2.0})]
    assert [r["step"] for r in metrics.read_metrics(tmp_path)] == [1, 2]
    assert [r.getMessage() for r in caplog.records] == [
        "metric writer 'breaking' failed and is closed; the run goes on, metrics.jsonl has "
        "everything: server gone at write"
    ]


@pytest.mark.parametrize("moment", ["flush", "close"])
@pytest.mark.parametrize("error", ["RuntimeError", "OSError"])
def test_so_is_one_that_fails_at_the_end(breaking, tmp_path, caplog, moment, error):
    given = {"name": "breaking", "moment": moment, "error": error}
    with metrics.MetricWriter(tmp_path, [given]) as writer:
        writer.write(1, {"loss": 2.0})
        writer.flush()
    assert f"server gone at {moment}" in caplog.text


@pytest.mark.parametrize("moment", ["open", "write", "flush", "close"])
def test_a_full_disk_under_a_writer_that_must_not_fail_ends_the_run(
    breaking, tmp_path, monkeypatch, moment
):
    monkeypatch.setattr(Breaking, "may_fail", False)
    given = {"name": "breaking", "moment": moment, "error": "OSError"}
    with (
        pytest.raises(metrics.MetricsError, match="can't be written"),
        metrics.MetricWriter(tmp_path, [given]) as writer,
    ):
        writer.write(1, {"loss": 2.0})
        writer.flush()


def test_the_first_error_is_not_hidden_by_one_in_closing(breaking, tmp_path, monkeypatch):
    monkeypatch.setattr(Breaking, "may_fail", False)
    given = {"name": "breaking", "moment": "close", "error": "OSError"}
    with pytest.raises(KeyError), metrics.MetricWriter(tmp_path, [given]):
        raise KeyError


def test_one_that_cannot_start_ends_the_run_in_one_line(breaking, tmp_path):
    with pytest.raises(metrics.MetricsError, match="'breaking' can't start: server gone") as error:
        metrics.MetricWriter(tmp_path, [{"name": "breaking", "moment": "open"}])
    assert "\n" not in str(error.value)


def test_writers_may_differ_when_a_run_goes_on(tiny_config):
    from jaxclip import config as config_lib

    assert not config_lib.differences(tiny_config(), tiny_config("writers=['jsonl']"))
