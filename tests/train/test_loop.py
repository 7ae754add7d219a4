"""The training loop: what it leaves behind, stopping and going on, bad numbers, bad records."""

import json
import shutil
import signal
import subprocess

import jax
import numpy as np
import pytest

from jaxclip.data import pipeline
from jaxclip.errors import RunError
from jaxclip.train import checkpoint, loop, metrics, setup, signals


@pytest.fixture(autouse=True)
def cached(compilation_cache):
    with compilation_cache():
        yield


def final_state(config, workdir):
    """The newest checkpoint as NumPy arrays."""
    experiment = setup.build(config)
    with checkpoint.Checkpointer(workdir / "checkpoints", writable=False) as checkpointer:
        restored = checkpointer.restore_latest(experiment.abstract_state)
    return jax.tree.map(np.asarray, restored.state)


def assert_equal(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.fixture
def stop_after(monkeypatch):
    """``stop_after(step, signal)``: raise a signal while that step is under way."""

    def arm(step, number):
        asked = signals.StopSignals.requested

        def requested(self, at):
            if at == step:
                signal.raise_signal(number)
            return asked(self, at)

        monkeypatch.setattr(signals.StopSignals, "requested", requested)

    return arm


def test_a_run_leaves_everything_that_is_promised(trained, tiny_config):
    for name in ("config.json", "metrics.jsonl", "eval.json", "gallery.json", "report.html"):
        assert (trained / name).stat().st_size > 0
    assert json.loads((trained / "config.json").read_text()) == tiny_config()
    environment = json.loads((trained / "environment.json").read_text())
    assert environment["devices"].startswith("8 x") and environment["parameters"] > 1000
    assert sorted(p.name for p in (trained / "checkpoints").iterdir()) == [
        "step_00000010",
        "step_00000020",
    ]


def test_every_step_is_recorded_once(trained):
    curves = metrics.curves(metrics.read_metrics(trained))
    for name in ("loss", "grad_norm", "logit_scale", "learning_rate", "optim/zclip/threshold"):
        steps, values = curves[name]
        assert steps.tolist() == list(range(1, 21)) and np.isfinite(values).all(), name
    assert curves["images_per_second"][0].tolist() == [5, 10, 15, 20]
    assert curves["eval/test/zero_shot/top1"][0].tolist() == [10, 20]
    keys = [(record["step"], name) for record in metrics.read_metrics(trained) for name in record]
    assert len(keys) - len(set(keys)) == 2 * sum(
        keys.count((step, "step")) - 1 for step in range(1, 21)
    ), "besides step and time, a step has each name once"


def test_the_recorded_rate_is_the_schedule_s(trained, tiny_config):
    from jaxclip import optim

    config = tiny_config()
    schedule = optim.learning_rate_schedule(config["optim"], config["total_steps"])
    _, rates = metrics.curves(metrics.read_metrics(trained))["learning_rate"]
    np.testing.assert_allclose(rates, [schedule(step) for step in range(20)], rtol=1e-6)


def test_the_model_learns(trained):
    _, loss = metrics.curves(metrics.read_metrics(trained))["loss"]
    assert loss[-5:].mean() < 0.7 * loss[:3].mean()


def test_tensorboard_shows_the_same_numbers(trained):
    from jaxclip.data._tfds import tensorflow

    iterator = tensorflow().compat.v1.train.summary_iterator
    found = {}
    for file in sorted((trained / "tensorboard").iterdir()):
        for event in iterator(str(file)):
            for value in event.summary.value:
                found.setdefault(value.tag, {})[event.step] = value.simple_value
    for name, (steps, values) in metrics.curves(metrics.read_metrics(trained)).items():
        if name != "time":
            assert list(found[name]) == steps.tolist()
            np.testing.assert_allclose(list(found[name].values()), values, rtol=1e-6)


def test_sigterm_saves_and_the_rest_is_bit_exact(
    trained, tiny_config, tmp_path, stop_after, capsys
):
    stop_after(7, signal.SIGTERM)
    before = signal.getsignal(signal.SIGTERM)
    result = loop.train(tiny_config(), tmp_path)
    assert (result.finished, result.step, result.signal) == (False, 7, signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before
    assert "stopped after step 7" in capsys.readouterr().out
    assert not (tmp_path / "lock.json").exists()
    assert (tmp_path / "report.html").exists()
    stop_after(-1, signal.SIGTERM)
    result = loop.train(tiny_config(), tmp_path)
    assert result.finished and result.signal is None
    assert "going on after step 7" in capsys.readouterr().out
    assert_equal(final_state(tiny_config(), tmp_path), final_state(tiny_config(), trained))
    steps, _ = metrics.curves(metrics.read_metrics(tmp_path))["loss"]
    assert steps.tolist() == list(range(1, 21))


def test_an_evaluation_that_a_stop_cut_off_is_made_up_for(
    trained, tiny_config, tmp_path, stop_after
):
    name = "eval/test/zero_shot/top1"
    stop_after(10, signal.SIGTERM)
    assert not loop.train(tiny_config(), tmp_path).metrics
    assert name not in metrics.curves(metrics.read_metrics(tmp_path))
    stop_after(11, signal.SIGTERM)
    loop.train(tiny_config(), tmp_path)
    steps, values = metrics.curves(metrics.read_metrics(tmp_path))[name]
    expected = metrics.curves(metrics.read_metrics(trained))[name][1][0]
    assert steps.tolist() == [10] and values.tolist() == [expected]
    manifest = tmp_path / "checkpoints" / "step_00000010" / "manifest.json"
    assert json.loads(manifest.read_text())["metrics"]["test/zero_shot/top1"] == expected


def test_ctrl_c_stops_and_unusable_records_are_shown(
    tiny_config, tmp_path, stop_after, monkeypatch, capsys
):
    def stats(self):
        return {"records": {"undecodable": 2, "no_caption": 1}, "uses": {}, "captions": {}}

    monkeypatch.setattr(pipeline.TrainIterator, "stats", stats)
    stop_after(8, signal.SIGINT)
    result = loop.train(tiny_config(), tmp_path)
    assert (result.finished, result.step, result.signal) == (False, 8, signal.SIGINT)
    assert capsys.readouterr().out.count("can't be used: 2 undecodable, 1 no_caption") == 1
    steps, counts = metrics.curves(metrics.read_metrics(tmp_path))["unusable_records"]
    assert steps.tolist() == [5, 8] and counts.tolist() == [3, 3]


def test_a_finished_run_is_left_as_it_is(trained, tiny_config, tmp_path):
    workdir = tmp_path / "copy"
    shutil.copytree(trained, workdir)
    was = (workdir / "metrics.jsonl").read_bytes()
    result = loop.train(tiny_config(), workdir)
    assert result.finished and result.step == 20 and "test/zero_shot/top1" in result.metrics
    assert (workdir / "metrics.jsonl").read_bytes() == was


def test_a_run_killed_before_its_last_evaluation_makes_up_for_it(trained, tiny_config, tmp_path):
    workdir = tmp_path / "copy"
    shutil.copytree(trained, workdir)
    manifest = workdir / "checkpoints" / "step_00000020" / "manifest.json"
    content = json.loads(manifest.read_text())
    expected, content["metrics"] = content["metrics"], {}
    manifest.write_text(json.dumps(content))
    (workdir / "eval.json").unlink()
    assert loop.train(tiny_config(), workdir).metrics == expected
    assert json.loads(manifest.read_text())["metrics"] == expected
    assert (workdir / "eval.json").exists()


@pytest.fixture
def break_from(monkeypatch):
    """``break_from(step)``: from this step on every gradient is NaN."""

    def arm(first):
        build = loop.checks.build

        def broken(config):
            experiment = build(config)
            whole = experiment.train_step

            def step(state, batch):
                at = int(state.step) + 1
                bad, good = state.nonfinite_count, state.params  # donated below
                bad, good = int(bad), jax.tree.map(np.asarray, good)
                if at < first:
                    return whole(state, batch)
                streak = int(state.nonfinite_streak) + 1
                state, metrics = whole(state, batch)
                put = jax.tree.map(
                    lambda old, new: jax.device_put(old, new.sharding), good, state.params
                )
                count = state.nonfinite_count * 0
                state = state._replace(
                    params=put, nonfinite_count=count + bad + 1, nonfinite_streak=count + streak
                )
                one = metrics["loss"] * 0
                changed = {"loss": one + np.nan, "nonfinite_streak": one + streak}
                return state, {**metrics, **changed, "nonfinite_count": one + bad + 1}

            monkeypatch.setattr(loop.checks, "trace", lambda _: None)
            return experiment._replace(train_step=step)

        monkeypatch.setattr(loop.checks, "build", broken)

    return arm


def test_a_streak_ends_the_run_when_it_is_reached(tiny_config, tmp_path, break_from, capsys):
    """Not at the next log step; and what is left is from before the streak."""
    break_from(12)
    options = ("max_consecutive_nonfinite=3", "evaluate.every_steps=0", "log_every_steps=20")
    with pytest.raises(loop.NonFiniteError) as error:
        loop.train(tiny_config(*options, "checkpoint.every_steps=5"), tmp_path)
    assert "the last 3 gradients up to step 14 were not finite" in str(error.value)
    assert "the newest checkpoint is 10" in str(error.value) and "--extend" in str(error.value)
    records = metrics.read_metrics(tmp_path)
    assert [r["step"] for r in records if "loss" in r] == list(range(1, 15))
    assert "3 step(s) skipped: loss or gradient not finite" in capsys.readouterr().out
    names = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert names == ["step_00000005", "step_00000010"]


def test_a_stop_within_a_streak_leaves_nothing_of_it_once_it_ends_the_run(
    tiny_config, tmp_path, break_from, stop_after
):
    """The stop keeps its exact place; the streak goes on after it, and then its places go."""
    break_from(12)
    options = ("max_consecutive_nonfinite=4", "evaluate.every_steps=0", "checkpoint.every_steps=5")
    stop_after(13, signal.SIGTERM)
    assert loop.train(tiny_config(*options), tmp_path).step == 13
    assert (tmp_path / "checkpoints" / "step_00000013").exists()
    stop_after(-1, signal.SIGTERM)
    with pytest.raises(loop.NonFiniteError, match=r"last 4 gradients up to step 15 .* is 10"):
        loop.train(tiny_config(*options), tmp_path)
    assert not (tmp_path / "checkpoints" / "step_00000013").exists()


def test_the_last_step_counts_too(tiny_config, tmp_path, break_from):
    break_from(19)
    options = ("evaluate.every_steps=0", "checkpoint.every_steps=0")
    with pytest.raises(
        loop.NonFiniteError, match=r"last 2 gradients up to step 20 .*no checkpoint"
    ):
        loop.train(tiny_config("max_consecutive_nonfinite=2", *options), tmp_path)


def test_parameters_that_an_update_broke_are_no_checkpoint(
    tiny_config, tmp_path, monkeypatch, capsys
):
    def broken(experiment, checkpointer):
        state = experiment.init_state()
        return state._replace(params=jax.tree.map(lambda x: x * np.nan, state.params)), {}, []

    monkeypatch.setattr(loop, "first_state", broken)
    monkeypatch.setattr(loop.state_lib, "_all_finite", lambda params: False)
    with pytest.raises(loop.NonFiniteError, match="last 12 gradients up to step 12 were not fin"):
        loop.train(tiny_config("max_consecutive_nonfinite=12", "evaluate.every_steps=0"), tmp_path)
    out = capsys.readouterr().out
    assert "no checkpoint at step 10: its gradient was not finite" in out
    # A state that only makes NaN is not what a run should go on from.
    assert not list((tmp_path / "checkpoints").glob("step_*"))


def test_a_frozen_logit_scale_is_left_alone_with_a_warning(tiny_config, monkeypatch, caplog):
    """The bound of ln 100 is for training it; a frozen one may be what a published model has."""
    given = {}

    def make(*args, **options):
        given.update(options)

    monkeypatch.setattr(setup.step_lib, "make_train_step", make)
    scale = {"logit_scale": np.float32(4.8)}
    setup.build(tiny_config())
    assert given["logit_scale_max"] == pytest.approx(np.log(100))
    loop.checks.warn_of_frozen_scale(tiny_config(), scale)
    assert not caplog.text
    frozen = tiny_config("optim.freeze=['^logit_scale$']")
    setup.build(frozen)
    assert given["logit_scale_max"] == np.inf
    loop.checks.warn_of_frozen_scale(frozen, scale)
    assert "logit_scale is frozen (by optim) at 4.8, above logit_scale_max=4.605" in caplog.text


def test_a_profile_of_some_steps(tiny_config, tmp_path, stop_after):
    stop_after(4, signal.SIGTERM)
    loop.train(tiny_config("profile.start_step=2", "profile.num_steps=2"), tmp_path)
    traces = list((tmp_path / "profile").rglob("*.xplane.pb"))
    assert len(traces) == 1 and traces[0].stat().st_size > 1000
    # How a run is carried out may differ on the way.
    stop_after(5, signal.SIGTERM)
    assert loop.train(tiny_config(), tmp_path).step == 5


def test_a_full_disk_ends_the_run_and_the_checkpoint_before_stays(
    tiny_config, tmp_path, monkeypatch
):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("may not mount a small file system here")
    save = checkpoint.Checkpointer.save

    def save_on_a_disk_that_fills(self, step, *args, **options):
        self.wait()
        if step == 16:  # a checkpoint takes 1 MB; other files still have room
            (disk / "others").write_bytes(bytes(shutil.disk_usage(disk).free - 400_000))
        saved = save(self, step, *args, **options)
        self._thread.join()  # or the next line of metrics finds no room while it tries
        return saved

    monkeypatch.setattr(checkpoint.Checkpointer, "save", save_on_a_disk_that_fills)
    try:
        config = tiny_config("evaluate.every_steps=0", "checkpoint.every_steps=8")
        with pytest.raises(RunError, match=r"no space left on the device") as error:
            loop.train(config, disk / "run")
        assert "checkpoint of step 16" in str(error.value)
        assert "step 8 is the newest intact one" in str(error.value)
        with checkpoint.Checkpointer(disk / "run" / "checkpoints", writable=False) as left:
            assert left.steps() == [8]
            restored = left.restore_latest(setup.build(config).abstract_state)
        assert restored.step == 8
        # Of a write that orbax did not wait for, something may be left, which is no checkpoint.
        assert all("step_00000016" in s and "never finished" in s for s in restored.skipped)
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_vocabulary_too_large_for_the_text_tower(tiny_config, tmp_path):
    with pytest.raises(ValueError, match=r"4096 tokens, model.text.vocab_size=100; set"):
        loop.train(tiny_config("model.text.vocab_size=100"), tmp_path)
