"""metrics.jsonl and TensorBoard events: written, torn, gone on with, read back."""

import errno
import json
import math

import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip.train import metrics
from jaxclip.train.metrics import MetricWriter, curves, read_metrics


def write(workdir, steps, **options):
    with MetricWriter(workdir, writers=["jsonl"], **options) as writer:
        for step in steps:
            writer.write(step, {"loss": 10.0 / step})


def steps_of(workdir):
    return [record["step"] for record in read_metrics(workdir)]


def test_values_come_back_as_they_were_in_their_order(tmp_path):
    values = {"z": 1, "a": np.float32(0.5), "m": jnp.asarray([2.5]), "nan": math.nan}
    with MetricWriter(tmp_path, writers=["jsonl"]) as writer:
        writer.write(3, {**values, "up": math.inf, "down": -math.inf})
    (record,) = read_metrics(tmp_path)
    assert list(record)[:5] == ["step", "time", "z", "a", "m"] and record["step"] == 3
    assert (record["a"], record["m"]) == (0.5, 2.5) and math.isnan(record["nan"])
    assert (record["up"], record["down"]) == (math.inf, -math.inf)
    json.loads((tmp_path / "metrics.jsonl").read_text())  # no NaN, which is not JSON


@pytest.mark.parametrize("values", [{"loss": np.zeros(2)}, {"step": 1.0}, {"time": 1.0}])
def test_what_is_no_metric_is_refused_by_name(tmp_path, values):
    with (
        MetricWriter(tmp_path, writers=["jsonl"]) as writer,
        pytest.raises(ValueError, match=next(iter(values))),
    ):
        writer.write(1, values)


def test_going_on_drops_what_the_killed_run_wrote_beyond_its_checkpoint(tmp_path):
    write(tmp_path, range(1, 9))
    write(tmp_path, range(6, 11), resume_step=5)
    assert steps_of(tmp_path) == list(range(1, 11))
    write(tmp_path, [1, 2], resume_step=0)
    assert steps_of(tmp_path) == [1, 2]
    write(tmp_path, [7])
    assert steps_of(tmp_path) == [1, 2, 7]


def test_torn_lines_are_dropped(tmp_path):
    write(tmp_path, [1, 2])
    file = tmp_path / "metrics.jsonl"
    whole = file.read_text()
    file.write_text(whole + '{"step": 3, "lo')
    assert steps_of(tmp_path) == [1, 2]
    write(tmp_path, [3], resume_step=2)
    assert steps_of(tmp_path) == [1, 2, 3]
    assert all(line.endswith("}") for line in file.read_text().splitlines())
    file.write_bytes(b"\xff\xfe\x00\n[1]\n" + whole.encode())
    assert steps_of(tmp_path) == [1, 2]


def test_a_full_disk_says_so(tmp_path):
    class Full:
        def write(self, text):
            raise OSError(errno.ENOSPC, "No space left on device")

        def flush(self):
            pass

        def close(self):
            pass

    with MetricWriter(tmp_path, writers=["jsonl"]) as writer:
        writer._writers[0]._file = Full()
        with pytest.raises(metrics.MetricsError, match=r"metrics.jsonl can't be written: no spa"):
            writer.write(1, {"loss": 1.0})


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(metrics.MetricsError, match="a part of the path is a file"):
        MetricWriter(tmp_path / "file" / "run")


def test_tensorboard_hides_what_came_after_the_checkpoint(tmp_path):
    from jaxclip.data._tfds import tensorflow

    for resume, steps in ((0, [1, 2, 3]), (2, [3, 4])):
        with MetricWriter(tmp_path, resume_step=resume) as writer:
            for step in steps:
                writer.write(step, {"loss": float(step + resume)})
    iterator = tensorflow().compat.v1.train.summary_iterator
    seen, purged = {}, []
    for file in sorted((tmp_path / "tensorboard").iterdir()):
        for event in iterator(str(file)):
            if event.HasField("session_log") and event.session_log.status == 1:  # START
                purged.append(event.step)
                seen = {step: value for step, value in seen.items() if step < event.step}
            for value in event.summary.value:
                seen[event.step] = value.simple_value
    assert purged == [1, 3]
    assert seen == {1: 1.0, 2: 2.0, 3: 5.0, 4: 6.0}


def test_curves_take_the_last_of_a_step():
    records = [
        {"step": 2, "time": 1.0, "loss": 5.0},
        {"step": 1, "time": 2.0, "loss": 6.0},
        {"step": 2, "time": 3.0, "loss": 4.0, "eval/top1": 0.5},
        {"step": 3, "time": 4.0, "note": "a string"},
    ]
    result = curves(records)
    assert result["loss"][0].tolist() == [1, 2] and result["loss"][1].tolist() == [6.0, 4.0]
    assert result["eval/top1"][0].tolist() == [2] and "note" not in result
