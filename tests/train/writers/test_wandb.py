"""Weights & Biases in its offline mode: what is in its file, going on, options."""

import math
import struct
import time

import pytest

from jaxclip import storage
from jaxclip.train import metrics, writers
from tests.patience import until

wandb = pytest.importorskip("wandb")

OFFLINE = {"name": "wandb", "mode": "offline", "project": "p"}


def chunks(data):
    """Records of a `.wandb` file: LevelDB's log format behind seven bytes of its own."""
    place, whole = 7, b""
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:  # what is left of a block is padding
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield whole
            whole = b""


def records(workdir):
    """Run ids, history rows and configuration keys in the files of a workdir."""
    from wandb.proto import wandb_internal_pb2

    ids, rows, config = [], [], set()
    for file in sorted(workdir.glob("wandb/offline-run-*/*.wandb")):

        def whole(file=file):
            parsed = [*map(wandb_internal_pb2.Record.FromString, chunks(file.read_bytes()))]
            return parsed if any(record.HasField("exit") for record in parsed) else None

        # Its own process writes the file, some of it after `finish` has come back.
        for record in until(whole):
            if record.HasField("run"):
                ids.append(record.run.run_id)
                config |= {update.key for update in record.run.config.update}
            if record.HasField("history"):
                items = record.history.item
                row = {item.key or item.nested_key[0]: item.value_json for item in items}
                rows.append({k: v for k, v in row.items() if not k.startswith("_")})
    return ids, rows, config


def test_offline_runs_keep_everything_and_go_on_as_one(tmp_path):
    config = {"seed": 3, "optim": {"name": "adamw"}}
    for resume, steps in ((0, [1, 2, 3]), (2, [3, 4])):
        time.sleep(1.1 if resume else 0)  # its folders are named by the second
        with metrics.MetricWriter(tmp_path, [OFFLINE], resume_step=resume, config=config) as writer:
            for step in steps:
                writer.write(step, {"loss": float(step + resume), "nan": math.nan})
    ids, rows, keys = records(tmp_path)
    assert set(ids) == {storage.read_json(tmp_path / "wandb.json", {})["id"]}
    assert [(int(row["step"]), float(row["loss"])) for row in rows] == [
        (1, 1.0), (2, 2.0), (3, 3.0), (3, 5.0), (4, 6.0)
    ]  # fmt: skip
    assert {"seed", "optim"} <= keys
    assert [r["step"] for r in metrics.read_metrics(tmp_path)] == [1, 2, 3, 4]


def test_a_new_run_in_the_same_folder_is_another_one(tmp_path):
    for _ in range(2):
        with metrics.MetricWriter(tmp_path, [OFFLINE], resume_step=0) as writer:
            writer.write(1, {"loss": 1.0})
    assert len(set(records(tmp_path)[0])) == 2


def test_an_unknown_mode_is_refused():
    with pytest.raises(ValueError, match="mode='offlin'; use one of 'online', 'offline'"):
        writers.from_config([{**OFFLINE, "mode": "offlin"}])
