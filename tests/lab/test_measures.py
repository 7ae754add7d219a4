"""What a study reports, on curves whose numbers are known."""

import math

import numpy as np
import pytest

from jaxclip.lab import events, measures


def test_lr_sensitivity_of_the_paper():
    losses = (2.5, 2.1, 2.0, 2.2, 4.6, math.inf)
    assert measures.lr_sensitivity(losses, 4.85) == pytest.approx(1.041667, abs=1e-6)
    assert measures.lr_sensitivity((2.0, 2.0), 4.85) == 0
    assert measures.lr_sensitivity((2.0, math.nan), 4.0) == 1.0


def test_stable_range():
    rates, losses = (1, 2, 4, 8), (2.5, 2.0, 2.2, 4.0)
    # Up to 2 + 0.1 (5 - 2) = 2.3.
    assert measures.stable_range(rates, losses, 5.0) == 2
    assert measures.stable_range(rates, losses, 5.0, spiked=(False, False, True, False)) == 1
    assert measures.stable_range(rates, losses, 5.0, best=1.0) == 0
    assert measures.stable_range(rates, (2.0, math.inf, 2.0, math.nan), 5.0) == 4


def test_damage_sums_from_the_first_injection_on():
    clean = np.full(10, 2.0)
    loss = clean + np.asarray([9, 9, 9, 0, 1, 2, 3, 4, 5, 6])
    active = np.arange(10) == 3
    assert measures.damage(loss, clean, active, steps=3) == 0 + 1 + 2
    assert measures.damage(loss, clean, active, steps=100) == 21
    assert measures.damage(loss, clean, np.zeros(10, bool)) is None
    assert measures.damage(np.full(10, np.nan), clean, active) == math.inf


def test_steps_to_equal_loss():
    loss = np.concatenate([np.linspace(5, 1, 41), np.full(9, 1.0)])
    assert measures.steps_to(loss, 3.0, smooth=1) == 21
    # The median of five trails by two steps.
    assert measures.steps_to(loss, 3.0, smooth=5) == 23
    assert measures.steps_to(loss, 0.5) is None
    spiky = loss.copy()
    spiky[2] = 0.0
    assert measures.steps_to(spiky, 3.0, smooth=5) == 23
    assert measures.steps_to(np.full(9, np.nan), 3.0) is None


def test_numbers_of_a_cell():
    rng = np.random.default_rng(0)
    loss = 2 + 0.01 * rng.standard_normal(400)
    loss[300] = 4.0
    curves = {
        "loss": loss,
        "grad_norm": np.where(np.arange(400) == 299, 100.0, 1.0 + 0.01 * rng.random(400)),
        "nonfinite_count": np.arange(400) // 200,
        "optim/zclip/clipped": (np.arange(400) == 299).astype(float),
        "rms/^a": np.where(np.arange(400) == 350, 7.0, 1.0),
        "held_out_loss": np.float32(3.0),
    }
    numbers = measures.of_cell(curves, 50)
    assert numbers["spikes"] == numbers["gradient_spikes"] == 1 / 400
    assert numbers["peak"] == 4.0 and numbers["skipped"] == 1
    assert numbers["clipped/zclip"] == 1 / 400
    assert numbers["rms/^a"] == 7.0 and numbers["held_out_loss"] == 3.0
    assert numbers["final_loss"] == pytest.approx(loss[-50:].mean())
    curves["loss"] = np.where(np.arange(400) < 390, loss, np.nan)
    assert measures.of_cell(curves)["final_loss"] == math.inf


def test_spread():
    assert measures.spread([1.0, 2.0, 3.0]) == (2.0, 1.0)
    assert math.isnan(measures.spread([1.0])[1])
    assert measures.spread([1.0, math.inf])[0] == math.inf


def test_planted_events_are_found_and_paired():
    rng = np.random.default_rng(1)
    loss, rms = 2 + 0.01 * rng.standard_normal(1000), np.ones(1000)
    planted = (200, 500, 800)
    for step in planted:
        loss[step : step + 3] += 1.0
        rms[step - 4] = rms[step - 3] = 9.0  # one event: they are less than 10 steps apart
    loss[650] += 1.0  # a single deviation is none
    of_rms, of_loss = events.rms_events(rms), events.loss_events(loss)
    assert of_rms.tolist() == [step - 4 for step in planted]
    assert of_loss.tolist() == list(planted)
    found = events.lead_lag(of_rms, of_loss, range(100, 1000))
    assert found[:3] == (3, 3, 3) and found.p_value < 0.01


def test_events_that_come_too_late_are_not_led():
    # In the same step, and nine steps before.
    found = events.lead_lag([200, 491], [200, 500], range(100, 1000))
    assert found.led == 0 and found.p_value == 1.0
    assert events.lead_lag([200], [], range(1000)) == (1, 0, 0, 1.0)


def test_a_loss_that_is_not_finite_is_an_event():
    loss = np.full(300, 2.0)
    loss[200:203] = np.nan
    assert events.loss_events(loss).tolist() == [200]
