"""Going back from a spike: a run hit by a poisoned batch ends as one that never saw it."""

import json
import signal

import jax
import numpy as np
import pytest

from jaxclip.data import order, pipeline
from jaxclip.train import checkpoint, checks, loop, metrics, rewind, setup, signals, spike_files
from jaxclip.train import step as step_lib

MARK = 7  # a token that makes a batch poisonous
OVERRIDES = (
    "total_steps=24",
    "watch.window=16",
    "watch.min_history=4",
    "watch.threshold=6",
    "checkpoint.every_steps=4",
    "checkpoint.best_metric=",
    "evaluate.every_steps=0",
    "evaluate.zero_shot=[]",
    "evaluate.retrieval=[]",
    "evaluate.gallery_split=",
    "optim.clip=none",
    "log_every_steps=3",
    "writers=jsonl",
)
REWIND = ("on_spike.actions=rewind", "on_spike.rewind_steps=3", "on_spike.rewind_batches=1")


@pytest.fixture(autouse=True, scope="module")
def quick(compilation_cache):
    """Most of the time is compilation: the compiler is told not to optimise."""
    option = "jax_disable_most_optimizations"
    before = jax.config.values[option]
    jax.config.update(option, True)
    try:
        with compilation_cache():
            yield
    finally:
        jax.config.update(option, before)


@pytest.fixture(autouse=True)
def poison(monkeypatch):
    """``poison(batches)``: those of the data's order whose loss and gradient are 100-fold."""
    poisoned = set()
    made, read = step_lib.make_gradient, pipeline.train_iterator

    def make_gradient(*args, **options):
        gradient = made(*args, **options)

        def harmed(params, state, batch):
            (loss, aux), grads = gradient(params, state, batch)
            factor = jax.numpy.where(batch["text"][0, -1] == MARK, 100.0, 1.0)
            return (loss * factor, aux), jax.tree.map(lambda g: g * factor, grads)

        return harmed

    class Poisoned:
        def __init__(self, iterator, step, passed_over):
            self.iterator, self.step, self.passed_over = iterator, step, passed_over

        def __next__(self):
            batch = dict(next(self.iterator))
            batch["text"] = batch["text"].copy()
            number = order.batch_of(self.step, self.passed_over)
            batch["text"][:, -1] = MARK if number in poisoned else 0
            self.step += 1
            return batch

        def __getattr__(self, name):
            return getattr(self.iterator, name)

    def train_iterator(*args, **options):
        iterator = read(*args, **options)
        return Poisoned(iterator, options["start_step"], options.get("passed_over", ()))

    monkeypatch.setattr(step_lib, "make_gradient", make_gradient)
    monkeypatch.setattr(pipeline, "train_iterator", train_iterator)
    return poisoned.update


def final_state(config, workdir):
    experiment = setup.build(config)
    with checkpoint.Checkpointer(workdir / "checkpoints", writable=False) as checkpointer:
        restored = checkpointer.restore_latest(experiment.abstract_state)
    return jax.tree.map(np.asarray, restored.state), restored.extra[rewind.KEY]


def assert_equal(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.fixture
def hit(poison, tiny_config):
    """The configuration that is hit by batch 13, which step 14 gets."""
    poison([13])
    return tiny_config(*OVERRIDES, *REWIND)


def test_a_poisoned_batch_leaves_no_trace(hit, tiny_config, tmp_path, capsys):
    """Equal to the bit: the same run, told from the start to leave the batch out."""
    assert loop.train(hit, tmp_path / "hit").finished
    assert "going back to step 8 and passing over batches 13 to 13" in capsys.readouterr().out
    clean = tiny_config(*OVERRIDES, *REWIND, "skip_batches=[[13, 13]]")
    assert loop.train(clean, tmp_path / "clean").finished
    (one, done), (other, none) = (
        final_state(config, tmp_path / name) for config, name in ((hit, "hit"), (clean, "clean"))
    )
    assert_equal(one, other)
    assert done == [{"step": 14, "to": 8, "passed_over": [13, 13]}] and not none
    curves = [metrics.curves(metrics.read_metrics(tmp_path / name)) for name in ("hit", "clean")]
    np.testing.assert_array_equal(curves[0]["loss"], curves[1]["loss"])
    assert int(one.guard.spikes) == 0


@pytest.mark.slow
def test_without_the_policy_the_same_batch_does_harm(hit, tiny_config, tmp_path):
    harmed = tiny_config(*OVERRIDES, "watch.enabled=True")
    assert loop.train(harmed, tmp_path / "harmed").finished
    clean = tiny_config(*OVERRIDES, "watch.enabled=True", "skip_batches=[[13, 13]]")
    assert loop.train(clean, tmp_path / "clean").finished
    losses = [
        metrics.curves(metrics.read_metrics(tmp_path / name))["loss"][1]
        for name in ("harmed", "clean")
    ]
    assert losses[0][13] > 50 and losses[1].max() < 10
    assert not np.array_equal(losses[0][14:], losses[1][14:])


@pytest.fixture
def stop_after(monkeypatch):
    """``stop_after(*steps)``: a signal at each of these calls, one a run."""
    asked = signals.StopSignals.requested
    steps = []

    def requested(self, at):
        if steps and at == steps[0]:
            steps.pop(0)
            signal.raise_signal(signal.SIGTERM)
        return asked(self, at)

    monkeypatch.setattr(signals.StopSignals, "requested", requested)
    return steps.extend


@pytest.mark.slow
def test_stops_before_at_and_after_the_spike_change_nothing(hit, tmp_path, stop_after, capsys):
    """At step 14 itself nothing is saved: the next run comes to it again, and decides alike."""
    loop.train(hit, tmp_path / "whole")
    stop_after([11, 14, 14 + 6 + 2])  # the last one after the run went back by 6
    for _ in range(3):
        assert not loop.train(hit, tmp_path / "parts").finished
    assert loop.train(hit, tmp_path / "parts").finished
    assert "stopped after step 14, a spike; run it again" in capsys.readouterr().out
    (one, done), (other, again) = (final_state(hit, tmp_path / n) for n in ("whole", "parts"))
    assert_equal(one, other)
    assert done == again


@pytest.mark.slow
def test_a_kill_while_going_back_changes_nothing(hit, tmp_path, monkeypatch):
    """It comes after the choice, when checkpoints of the spike's past are half removed."""
    loop.train(hit, tmp_path / "whole")
    forget = checkpoint.Checkpointer.forget_after

    def killed(self, step):
        self.wait()
        self._folder.remove(12)
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint.Checkpointer, "forget_after", killed)
    with pytest.raises(KeyboardInterrupt):
        loop.train(hit, tmp_path / "killed")
    monkeypatch.setattr(checkpoint.Checkpointer, "forget_after", forget)
    assert loop.train(hit, tmp_path / "killed").finished
    (one, done), (other, again) = (final_state(hit, tmp_path / n) for n in ("whole", "killed"))
    assert_equal(one, other)
    assert done == again


@pytest.mark.slow
def test_all_batches_since_the_checkpoint_and_back_to_the_start(poison, tiny_config, tmp_path):
    poison([5, 16])
    config = tiny_config(*OVERRIDES, *REWIND, "on_spike.rewind_batches=0")
    assert loop.train(config, tmp_path).finished
    state, done = final_state(config, tmp_path)
    # Step 6 gets batch 5 and goes back to 0, no checkpoint being older; then step n gets batch
    # n + 5, so that step 11 gets batch 16 and goes back to 8.
    assert done == [
        {"step": 6, "to": 0, "passed_over": [0, 5]},
        {"step": 11, "to": 8, "passed_over": [14, 16]},
    ]
    assert int(state.step) == 24
    assert rewind.Rewinds(config, done).batch(24) == 24 - 1 + 6 + 3


@pytest.mark.slow
def test_the_limit_ends_the_run_in_one_line_and_leaves_what_was_good(poison, tiny_config, tmp_path):
    poison(range(13, 24))
    config = tiny_config(*OVERRIDES, *REWIND, "on_spike.rewind_limit=2")
    with pytest.raises(rewind.SpikeError, match=r"spike at step 14 after 2 rewinds") as error:
        loop.train(config, tmp_path)
    assert "\n" not in str(error.value) and "the newest checkpoint is 12" in str(error.value)
    assert "delete" not in str(error.value) and "remove" not in str(error.value)
    poison([])
    more = tiny_config(*OVERRIDES, *REWIND, "on_spike.rewind_limit=20")
    assert loop.train(more, tmp_path, extend=True).finished


@pytest.mark.slow
def test_the_policy_may_begin_in_the_middle_of_a_run(poison, tiny_config, tmp_path):
    """A checkpoint without the guard's history begins a new one."""
    plain = tiny_config(*OVERRIDES, "total_steps=8")
    assert loop.train(plain, tmp_path).finished
    poison([17])
    config = tiny_config(*OVERRIDES, *REWIND)
    assert loop.train(config, tmp_path, extend=True).finished
    state, done = final_state(config, tmp_path)
    assert done == [{"step": 18, "to": 12, "passed_over": [17, 17]}]
    assert int(state.guard.seen) == 16
    history = json.loads((tmp_path / "config_history.json").read_text())
    assert len(history) == 1


@pytest.mark.slow
def test_batches_that_are_trained_on_can_not_be_passed_over(tiny_config, tmp_path):
    assert loop.train(tiny_config(*OVERRIDES, "total_steps=8"), tmp_path).finished
    late = tiny_config(*OVERRIDES, "skip_batches=[[7, 9]]")
    with pytest.raises(ValueError, match=r"batches up to 7 are trained on already; .* 8 on"):
        loop.train(late, tmp_path, extend=True)
    good = tiny_config(*OVERRIDES, "skip_batches=[[8, 9]]")
    assert loop.train(good, tmp_path, extend=True).finished


@pytest.mark.slow
def test_a_spike_is_written_down_with_its_batch_and_shown(poison, tiny_config, tmp_path):
    poison([13])
    config = tiny_config(
        *OVERRIDES, "watch.enabled=True", "watch.probe_every_steps=5", "watch.steps_kept=8",
        "on_spike.actions=skip|lower_rate", "optim.clip=zclip",
    )  # fmt: skip
    assert loop.train(config, tmp_path).finished
    (found,) = spike_files.read(tmp_path)
    assert found["step"] == 14 and found["batch"] == 13
    assert found["kind"] == "loss and gradient norm"
    assert found["steps"] == list(range(7, 15)) and found["metrics"]["loss"][-1] > 50
    assert len(found["metrics"]["optim/zclip/clipped"]) == 8
    probed = found["metrics"]["watch/attention_logit_image"]
    assert [value is not None for value in probed] == [step % 5 == 0 for step in range(7, 15)]
    numbers = np.load(tmp_path / "spikes" / "step_00000014.npz")
    assert numbers["gradient_norm"].shape == (8, len(numbers["names"])) == numbers["rms"].shape
    assert (
        numbers["gradient_norm"][-1].max() > 30 * numbers["gradient_norm"][:-1].max(axis=1).mean()
    )
    # The examples are those of this very batch, as training saw them.
    rows = [each["row"] for each in (*found["falling"], *found["rising"])]
    assert len(rows) == 8 and -1 <= found["cosine"] <= 1
    expected = pipeline.look_up(
        config["data"], tokenizer=checks.load_tokenizer(config), global_batch_size=16, seed=0,
        batch=13, rows=rows,
    )  # fmt: skip
    for each, other in zip((*found["falling"], *found["rising"]), expected, strict=True):
        assert each["key"] == other["key"]
        assert each["caption"] == other["caption"] and each["picture"].startswith("data:image/png")
    assert all(
        a["change"] <= b["change"] for a, b in zip(found["falling"], found["rising"], strict=True)
    )
    report = (tmp_path / "report.html").read_text()
    assert "Step 14: a spike of the loss and gradient norm, in batch 13" in report
    assert found["rising"][0]["caption"] in report and "Largest attention logit" in report


@pytest.mark.slow
def test_examples_looked_up_are_those_of_training(tiny_config):
    config = tiny_config(*OVERRIDES)
    options = {
        "tokenizer": checks.load_tokenizer(config), "global_batch_size": 16, "seed": 3,
    }  # fmt: skip
    with_training = pipeline.train_iterator(config["data"], start_step=5, passed_over=(), **options)
    batch = next(with_training.iterator)
    with_training.iterator.close()
    found = pipeline.look_up(config["data"], batch=5, rows=[3, 0, 15], **options)
    for each, row in zip(found, (3, 0, 15), strict=True):
        np.testing.assert_array_equal(each["image"], batch["image"][row])
        np.testing.assert_array_equal(
            options["tokenizer"]([each["caption"]])[0], batch["text"][row]
        )


def test_batch_of_and_join_ranges():
    passed = order.join_ranges([[8, 9], [3, 4], [5, 5], [9, 12]])
    assert passed == [[3, 5], [8, 12]]
    left = [n for n in range(40) if not any(a <= n <= b for a, b in passed)]
    assert [order.batch_of(step, passed) for step in range(len(left))] == left
    assert order.batch_of(7, []) == 7


def test_what_is_passed_over(tiny_config):
    """Back from step 13 to step 8: batches 8 to 12, fewer, or more, by the policy."""
    for policy, expected in (
        ("on_spike.rewind_batches=0", [8, 12]),
        ("on_spike.rewind_batches=2", [11, 12]),
        ("on_spike.rewind_beyond=5", [12, 17]),  # `REWIND` has rewind_batches=1
    ):
        rewinds = rewind.Rewinds(tiny_config(*OVERRIDES, *REWIND, policy))
        rewinds.note(13, 8)
        assert rewinds.passed_over == [expected], policy
        assert [rewinds.batch(expected[0] + 1 + n) for n in (0, 1)] == [
            expected[1] + 1, expected[1] + 2,
        ]  # fmt: skip
