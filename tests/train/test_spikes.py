"""The spike score on curves whose spikes are known."""

import math

import numpy as np
import pytest

from jaxclip.train import spikes


def noise(length, seed=0, level=5.0):
    return level + np.random.default_rng(seed).normal(scale=0.1, size=length)


def naive(values, window, threshold, min_history):
    """The definition, word for word."""
    found = []
    for i, value in enumerate(values):
        history = [v for v in values[:i] if math.isfinite(v)][-window:]
        if math.isnan(value) or value == math.inf:
            found.append(i)
        elif len(history) >= min_history:
            mean, deviation = np.mean(history), np.std(history)
            if value - mean > threshold * deviation + 1e-9 * abs(mean):
                found.append(i)
    return found


def test_plain_noise_has_no_spikes():
    found = spikes.find_spikes(noise(3000))
    assert (found.count, found.score, found.steps_lost) == (0, 0.0, 0)
    assert math.isnan(found.largest_ratio)


def test_one_spike_is_counted_measured_and_timed():
    curve = noise(3000)
    curve[2000:2007] = [50, 40, 30, 20, 12, 9, 7]  # 2007 is noise again
    curve[2007] = 4.0
    found = spikes.find_spikes(curve)
    # Once 50, 40 and 30 are in the window, its deviation is so large that 20 is none.
    assert found.steps.tolist() == naive(curve, 1000, 10, 100)
    assert found.steps[0] == 2000
    assert found.score == found.count / 3000
    assert found.largest_ratio == pytest.approx(50 / np.median(curve[1000:2000]))
    (episode,) = found.episodes
    assert (episode.step, episode.peak, episode.recovered) == (2000, 50.0, True)
    assert episode.steps_lost == found.steps_lost == 7
    assert episode.spikes == found.count


@pytest.mark.parametrize("seed", range(3))
def test_equals_the_definition(seed):
    rng = np.random.default_rng(seed)
    curve = rng.lognormal(sigma=0.3, size=700)
    curve[rng.integers(60, 700, 12)] *= rng.uniform(3, 60, 12)
    curve[[100, 101, 300]] = [np.nan, np.inf, -np.inf]
    options = {"window": 50, "threshold": 4.0, "min_history": 20}
    expected = naive(curve, 50, 4.0, 20)
    assert len(expected) > 5
    assert spikes.find_spikes(curve, **options).steps.tolist() == expected


def test_a_constant_curve_has_no_spike_and_any_step_up_is_one():
    curve = np.full(500, 0.1)
    assert spikes.find_spikes(curve).count == 0
    curve[400] = 0.11
    assert spikes.find_spikes(curve).steps.tolist() == [400]


def test_a_falling_curve_has_none():
    assert spikes.find_spikes(np.linspace(7, 1, 2000)).count == 0


def test_nothing_is_judged_before_there_is_a_history():
    curve = noise(300)
    curve[50] = 1000.0
    assert spikes.find_spikes(curve).count == 0
    assert spikes.find_spikes(curve, min_history=40).steps.tolist() == [50]


def test_a_run_that_never_recovers_loses_the_rest():
    curve = noise(2000)
    curve[1500:] = np.nan
    found = spikes.find_spikes(curve, steps=np.arange(1, 2001))
    assert found.nonfinite == found.count == 500
    (episode,) = found.episodes
    assert (episode.step, episode.recovered, episode.steps_lost) == (1501, False, 499)
    assert math.isnan(episode.peak) and math.isnan(found.largest_ratio)


def test_steps_lost_are_in_steps_not_points():
    curve = noise(2000)
    curve[1500:1503] = 30.0
    curve[1503] = 4.0
    found = spikes.find_spikes(curve, steps=np.arange(2000) * 10)
    assert found.steps_lost == 30


def test_what_a_gradient_spike_costs_is_told_by_the_loss():
    norm, loss = noise(2000, 1, 1.0), noise(2000, 2)
    norm[1500] = 40.0
    loss[1501:1506] = 8.0
    loss[1506] = 4.0
    found = spikes.find_spikes(norm, loss=loss)
    assert found.steps.tolist() == [1500]
    assert found.steps_lost == 5
    loss[1501:1507] = 4.0
    assert spikes.find_spikes(norm, loss=loss).steps_lost == 0


def test_two_spikes_are_two_episodes():
    curve = noise(4000)
    for place in (1500, 3500):
        curve[place] = 60.0
        curve[place + 1] = 4.0
    found = spikes.find_spikes(curve)
    assert [(e.step, e.steps_lost, e.spikes) for e in found.episodes] == [
        (1500, 1, 1),
        (3500, 1, 1),
    ]


def test_empty_and_single_curves():
    assert spikes.find_spikes([]).score == 0.0
    assert spikes.find_spikes([1.0]).count == 0
    assert spikes.find_spikes([math.nan]).episodes[0].steps_lost == 0


@pytest.mark.parametrize(
    "options", [{"window": 5, "min_history": 6}, {"min_history": 0}, {"threshold": 0.0}]
)
def test_bad_options_are_refused(options):
    with pytest.raises(ValueError):
        spikes.find_spikes([1.0], **options)


def test_lengths_must_agree():
    with pytest.raises(ValueError, match="one length"):
        spikes.find_spikes([1.0, 2.0], steps=[1])
