"""What watching costs: ratios to the plain step beside it, by every clock, and the probe."""

import pytest

from jaxclip.bench import step, timing, watch


def test_every_clock_is_read_around_the_same_calls():
    now = {"a": 0.0, "b": 0.0}

    def work(a, b):
        def call():
            now["a"] += a
            now["b"] += b

        return call

    found = timing.take_turns_by(
        {"a": lambda: now["a"], "b": lambda: now["b"]},
        {"one": work(2.0, 1.0), "other": work(3.0, 5.0)},
        reference="one",
        rounds=4,
        warmup=1,
    )
    assert found["a"]["other"].ratio == 1.5 and found["b"]["other"].ratio == 5.0
    assert found["a"]["one"] == timing.Timing(2.0, 2.0, 2.0, 1.0, 0.0)


def test_the_error_of_a_ratio_is_that_of_a_median():
    found = timing._timing([float(ratio) for ratio in range(1, 10)], [1.0] * 9)
    assert found.ratio == 5.0  # the median deviation from it is 2
    assert found.error == pytest.approx(1.2533 * 1.4826 * 2 / 3)


def made_up(monkeypatch):
    """Trainers whose steps take no time: operations 100, bytes 1000, with a watch some more."""

    def make(config):
        watches = config["watch"]["enabled"]
        return step.Trainer(
            lambda: 0.0, 101.0 if watches else 100.0, 0, {}, {}, 0.0, 1100.0 if watches else 1000.0
        )

    monkeypatch.setattr(watch, "make_trainer", make)
    monkeypatch.setattr(watch, "_probe", lambda config, trainer: lambda: None)


def test_counts_and_the_probe_are_over_the_plain_step(monkeypatch, capsys):
    made_up(monkeypatch)

    def turns(clocks, candidates, *, reference, rounds):
        assert list(candidates) == ["plain", "watch", "skip", "probe"] and reference == "plain"
        ratios = {"plain": 1.0, "watch": 1.01, "skip": 1.002, "probe": 0.1}
        return {
            clock: {n: timing.Timing(r, r, r, r, 0.001) for n, r in ratios.items()}
            for clock in clocks
        }

    monkeypatch.setattr(timing, "take_turns_by", turns)
    assert watch.main(["--variants", "watch|skip"]) == 0
    out = capsys.readouterr().out
    row = next(line for line in out.splitlines() if line.startswith("| watch"))
    assert row.count("+1.00% ± 0.10") == 2 and "+10.00%" in row and "| +1.00% " in row
    assert "probe: 10.00% of a plain step by CPU time, every 20 steps: +0.50%" in out
    assert "watch, with its probe: +1.50% by CPU time" in out
    assert "skip, with its probe" not in out


def test_without_a_probe_there_is_none(monkeypatch, capsys):
    made_up(monkeypatch)
    assert watch.main(["--rounds", "1", "--variants", "watch", "watch.probe_every_steps=0"]) == 0
    assert "probe" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--variants", "wacth"], "no variant 'wacth'; known: plain, skip, watch"),
        (["--rounds", "0"], "--rounds 0: at least 1"),
        (["watch.enabeld=True"], "unknown config key 'watch.enabeld'"),
    ],
)
def test_mistakes_are_one_line(argv, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        watch.main(argv)
    assert stopped.value.code == 2 and message in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.slow
def test_the_real_step_and_its_counts():
    small = (
        "model.image.width=64", "model.image.depth=1", "model.image.num_heads=2",
        "model.image.mlp_dim=128", "model.text.width=32", "model.text.depth=1",
        "model.text.num_heads=2", "model.text.mlp_dim=64",
    )  # fmt: skip
    given = {"model": {"preset": "tiny"}, "global_batch_size": 64}
    costs = watch.measure(given, small, 3, ["watch", "watch and policies"])
    # Arithmetic on each parameter, beside products over all tokens of a batch.
    assert 1.0 < costs.flops["watch"] <= costs.flops["watch and policies"] < 1.02
    assert costs.bytes_accessed["watch"] > 1.0
    assert costs.probe_every == 20 and costs.timings["clock"]["probe"].ratio > 0
