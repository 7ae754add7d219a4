"""A run in a bucket: what comes to the address, going on from it, what is refused, what is lost."""

import shutil
import signal

import fsspec
import jax
import numpy as np
import pytest

from jaxclip import cli, lock
from jaxclip.data import bucket as bucket_lib
from jaxclip.train import checkpoint, loop, metrics, setup, staging, workdir

pytest.importorskip("fsspec")


@pytest.fixture(autouse=True)
def cached(compilation_cache):
    with compilation_cache():
        yield


@pytest.fixture
def address(tmp_path, monkeypatch):
    """``memory://…``, empty, with staging folders of its own."""
    monkeypatch.setenv("JAXCLIP_STAGING", str(tmp_path / "staging"))
    files = fsspec.filesystem("memory")
    files.store.clear()
    yield "memory://bucket/runs/one"
    files.store.clear()


def names(address):
    return bucket_lib.Bucket(address).names()


def folder_of(address):
    return staging.folder_of(address)


def upload(folder, address):
    """What a run in ``folder`` would have left at an address."""
    place = bucket_lib.Bucket(address)
    for file in folder.rglob("*"):
        if file.is_file():
            place.write(str(file.relative_to(folder)), file.read_bytes())


def final_state(config, place):
    with checkpoint.Checkpointer(f"{place}/checkpoints", writable=False) as checkpointer:
        restored = checkpointer.restore_latest(setup.build(config).abstract_state)
    return jax.tree.map(np.asarray, restored.state)


def assert_equal(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.fixture
def stopped_run(address, tiny_config, monkeypatch):
    """A run at the address that SIGTERM has stopped after step 13."""
    from jaxclip.train import signals

    asked = signals.StopSignals.requested
    with monkeypatch.context() as patch:

        def requested(self, at):
            if at == 13:
                signal.raise_signal(signal.SIGTERM)
            return asked(self, at)

        patch.setattr(signals.StopSignals, "requested", requested)
        assert loop.train(tiny_config(), address).step == 13
    return address


def test_a_run_stopped_goes_on_elsewhere_to_the_bit(stopped_run, trained, tiny_config, capsys):
    address, folder = stopped_run, folder_of(stopped_run)
    capsys.readouterr()
    found = names(address)
    assert {"config.json", "metrics.jsonl", "report.html", "environment.json"} <= set(found)
    assert lock.FILE_NAME not in found and any(name.startswith("tensorboard/") for name in found)
    assert "checkpoints/step_00000013/manifest.json" in found
    for name, content in ((n, bucket_lib.Bucket(address).read(n)) for n in found):
        if name != staging.MARK:
            assert (folder / name).read_bytes() == content, name
    shutil.rmtree(folder)  # another machine
    assert cli.main(["train", "--workdir", address]) == 0
    assert f"workdir {address}: going on after step 13" in capsys.readouterr().out
    assert_equal(final_state(tiny_config(), address), final_state(tiny_config(), trained))
    with workdir.lent(address) as (copy, _):
        steps, _ = metrics.curves(metrics.read_metrics(copy))["loss"]
        assert steps.tolist() == list(range(1, 21))
    steps = {name.split("/")[1] for name in names(address) if name.startswith("checkpoints/")}
    assert steps == {path.name for path in (folder / "checkpoints").iterdir()}
