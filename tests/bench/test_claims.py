"""Claims in direction: what is compared, when a direction holds, and the table."""

import itertools
import json
import pathlib
import types

import numpy as np
import pytest

from jaxclip import objectives
from jaxclip.bench import claim_arm, claims
from jaxclip.bench.claim_list import ARMS, CLAIMS

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"


def test_every_claim_compares_arms_that_there_are():
    known = set(claim_arm.MEASURES)
    for name, claim in CLAIMS.items():
        assert {claim.arm, *claim.baselines} <= set(ARMS), name
        assert claim.arm not in claim.baselines and claim.wanted.keys() <= known
        assert set(claim.wanted.values()) <= {"up", "down", "kept"}
        assert claim.basis in ("pictures", "time")
    assert len(CLAIMS) >= 10 and set(ARMS) == {
        arm for claim in CLAIMS.values() for arm in (claim.arm, *claim.baselines)
    }


def test_arms_are_configurations(tmp_path):
    place = claim_arm.Place(tmp_path, CONFIGS, 50)
    for name in ("contrastive", "names", "gone_on", "clip_refine", "flip", "half_augmented"):
        config = claim_arm.configuration(place, ARMS[name])
        assert config["data"]["train_split"] == ARMS[name].split
        objectives.from_config(config["objective"], config["loss"])
    assert config["optim"]["schedule"] == {"name": "constant", "warmup_steps": 4}
    refined = claim_arm.configuration(place, ARMS["clip_refine"])
    assert refined["init_from"] == refined["teacher"]["path"] == str(place.teacher)
    assert refined["optim"]["learning_rate"] == 1e-4


@pytest.mark.parametrize(
    ("wanted", "measure", "baselines", "own", "expected"),
    [
        ("up", "top5", [[0.2, 0.3]], [0.31, 0.4], "holds"),
        ("up", "top5", [[0.2, 0.3]], [0.3, 0.4], "unclear"),
        ("up", "top5", [[0.2, 0.3]], [0.1, 0.19], "does not"),
        ("up", "top5", [[0.2, 0.3], [0.5, 0.6]], [0.4, 0.45], "does not"),
        ("down", "gap", [[0.8, 0.9]], [0.5, 0.7], "holds"),
        ("down", "top5", [[0.2, 0.3]], [0.4, 0.5], "does not"),
        ("kept", "top5", [[0.2, 0.3]], [0.1, 0.25], "holds"),
        ("kept", "top5", [[0.2, 0.3]], [0.1, 0.15], "does not"),
        ("kept", "uniform", [[-2.0, -1.9]], [-1.5, -1.0], "does not"),  # less is better
        ("up", "top5", [[0.2, 0.3]], [float("nan"), 0.4], "unclear"),
    ],
)
def test_a_direction_holds_where_all_seeds_agree(wanted, measure, baselines, own, expected):
    assert claims.verdict(wanted, measure, baselines, own) == expected


def test_equal_time_is_steps_by_cost():
    assert claims.equal_time(240, 2.4) == 100 and claims.equal_time(240, 0.5) == 480
    assert claims.equal_time(240, 1.09) == 240  # what the measurement itself differs by


def book(tmp_path):
    made = claims.Book(tmp_path / "cells.json")
    made.costs = {"patches": 1.5, "flip": 1.0, "contrastive": 1.0, "slip": 2.0}
    for seed, value in ((0, 0.2), (1, 0.22)):
        made.cells[f"patches-{seed}"] = {"100": {"top5": value}}
        made.cells[f"flip-{seed}"] = {"100": {"top5": value - 0.1}, "150": {"top5": value + 0.1}}
        made.cells[f"contrastive-{seed}"] = {"100": {"top5": value}}
    made.write()
    return made


def test_both_bases_are_reported_and_what_is_not_done_is_left_out(tmp_path):
    chosen = {name: CLAIMS[name] for name in ("flip", "slip")}
    found = claims.outcomes(chosen, claims.Book(book(tmp_path).path), (0, 1), 100)
    assert list(found) == ["flip"]  # of slip there is no cell
    result = found["flip"]["measures"]["top5"]
    assert result["pictures"]["verdict"] == "does not" and result["time"]["verdict"] == "holds"
    assert result["time"]["steps"] == [150]
    text = claims.report(chosen, book(tmp_path), (0, 1), 100)
    assert text.startswith("1 of 2 claims, 100 steps, seeds 0, 1")
    assert "| patches 20.0, 22.0 |" in text and "| 30.0, 32.0 |" in text
    assert "| does not       |" in text and "| **holds**  |" in text  # the paper speaks of time


def test_what_is_done_is_not_done_again(tmp_path, monkeypatch):
    place = claim_arm.Place(tmp_path, CONFIGS, 100)
    ran = []

    class Runs:
        config, tokenizer = None, None

        def __init__(self, place, arm):
            self.arm = arm

        def run(self, seed, stops, judge):
            ran.append((self.arm.method, seed, list(stops)))
            return {stop: {"top5": 0.1} for stop in stops}, 0.2

    monkeypatch.setattr(claim_arm, "Runs", Runs)
    monkeypatch.setattr(claim_arm, "Judge", lambda *_: None)
    monkeypatch.setattr(claim_arm, "write_data", lambda _: None)
    monkeypatch.setattr(claim_arm, "cost", lambda own, other, rounds: 2.0)
    notes = book(tmp_path)
    claims.Workshop(place, notes, 1).try_claim(CLAIMS["slip"], (0, 1, 2))
    assert ran == [("contrastive", 2, [100])] + [("slip", seed, [50, 100]) for seed in range(3)]
    ran.clear()
    again = claims.Book(notes.path)
    claims.Workshop(place, again, 1).try_claim(CLAIMS["slip"], (0, 1, 2))
    assert ran == [] and again.cells["slip-1"]["50"] == {"top5": 0.1}
    assert isinstance(claims.outcomes({"slip": CLAIMS["slip"]}, again, (0, 1), 100), dict)
    with pytest.raises(SystemExit):
        claims.main(["--to", str(tmp_path), "--only", "slop"])


def test_measures_by_hand():
    angles = np.deg2rad([0.0, 60.0, 150.0])
    images = 3.0 * np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)
    names = np.asarray([[1, 0], [0, 1], [-1, 0], [0, -1]], np.float32)
    labels = np.array([0, 1, 1])
    swapped = np.array([[0, 1], [0, 1], [-1, 0]], np.float32)
    found = claim_arm.measures(
        images, names, labels, images / 3, swapped, np.array([True, True, False])
    )
    assert found["top1"] == pytest.approx(2 / 3)  # the third is nearer to the left than to the top
    assert found["top5"] == found["long5"] == found["both5"] == found["order"] == 1
    gap = images.mean(0) / 3 - names[labels].mean(0)
    assert found["gap"] == pytest.approx(np.linalg.norm(gap), rel=1e-6)
    unit = images / 3

    def spread(rows):
        pairs = [np.exp(-2 * np.sum((a - b) ** 2)) for a in rows for b in rows if a is not b]
        return np.log(np.mean(pairs))

    expected = (spread(list(unit)) + spread(list(names[labels]))) / 2
    assert found["uniform"] == pytest.approx(expected, rel=1e-5)
    assert set(found) == set(claim_arm.MEASURES)


def test_distances_are_no_cosines():
    images = np.array([[1.0, 0.0], [1.0, 0.1]], np.float32)
    names = np.array([[5.0, 0.0], [0.9, 0.3]], np.float32)
    rest = (np.array([1, 1]), images, images, np.array([True, True]))
    assert claim_arm.measures(images, names, *rest, "cosine")["top1"] == 0
    assert claim_arm.measures(images, names, *rest, "squared")["top1"] == 1


@pytest.mark.slow
def test_a_claim_is_tried(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(claims, "compiled_before", lambda folder: None)
    # Each look at the clock is a second after the last one, so that all steps cost the same.
    clock = types.SimpleNamespace(process_time=itertools.count().__next__)
    monkeypatch.setattr(claim_arm, "time", clock)
    options = ["--to", str(tmp_path), "--configs", str(CONFIGS), "--steps", "4", "--rounds", "1"]
    assert claims.main([*options, "--only", "captions", "--seeds", "0"]) == 0
    assert "1 of 18 claims, 4 steps, seeds 0" in capsys.readouterr().out
    found = json.loads((tmp_path / "claims.json").read_text())["captions"]
    assert found["measures"]["top5"]["pictures"]["steps"] == 4
    assert found["cost"]["names"] == 1.0
    assert (tmp_path / "claims.md").read_text().startswith("1 of 18 claims")
