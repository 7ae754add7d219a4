"""ALIP's gates."""

import numpy as np
import pytest

from jaxclip import fields, models
from jaxclip.objectives.alip import ALIP
from tests.objectives import fixture_g as g

TRIPLE = {"image": g.I, "text": g.T, "texts1/text": g.U}
START = ALIP().init_state(models.CLIPConfig())


@pytest.mark.parametrize("implementation", ["plain", "blockwise"])
def test_the_first_step_on_fixture_g(implementation):
    objective = ALIP(implementation=implementation)
    loss, metrics, state = g.value(objective, TRIPLE, state=START)
    assert float(loss) == pytest.approx(0.1133495, abs=1e-6)
    assert float(metrics["sample_weight"]) == pytest.approx(0.970367, abs=1e-6)
    assert float(metrics["true_weight"]) == pytest.approx(0.970367 * 0.887445, abs=1e-6)
    assert float(metrics["synthetic_weight"]) == pytest.approx(0.970367**2, abs=1e-6)
    ten, twenty = np.cos(np.deg2rad([10.0, 20.0]))
    expected = {"captions": ten, "true": twenty, "synthetic": ten}
    for name, mean in expected.items():
        assert float(state[name]) == pytest.approx(0.99 + 0.01 * mean, abs=1e-6)


def test_without_gates_it_is_the_sum_of_two_clips():
    loss, _, _ = g.value(ALIP(sharpness=0.0), TRIPLE, state=START)
    images = np.asarray(g.I, np.float64)
    expected = sum(g.clip(images, np.asarray(texts, np.float64), 10.0) for texts in (g.T, g.U))
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_averages_move_before_they_are_used_and_gates_have_an_edge_at_1():
    # Cosines of the captions 0.2, 0.5, 0.3 with the average 0.4: w = 0.671214, 1, 0.819823.
    captions = np.array([0.2, 0.5, 0.3])
    side = np.sqrt(1 - captions**2)
    text = np.tile([1.0, 0.0], (3, 1))
    rows = {"image": text, "text": text, "texts1/text": np.stack([captions, side], 1)}
    state = {name: np.float32(0.4) for name in START}
    _, metrics, state = g.value(ALIP(), {k: np.float32(v) for k, v in rows.items()}, state=state)
    assert float(state["captions"]) == pytest.approx(0.399333, abs=1e-6)
    weights = np.array([0.671214, 1.0, 0.819823])
    assert float(metrics["sample_weight"]) == pytest.approx(weights.mean(), abs=1e-6)
    # The image agrees with the true caption: exp(2 (1 - 0.406)), above 1, where the gate is shut.
    agreement = np.exp(2 * (1 - 0.406))
    expected = (weights * np.array([agreement, 1.0, agreement])).mean()
    assert float(metrics["true_weight"]) == pytest.approx(expected, abs=1e-5)


def test_gradient_does_not_go_through_the_gates():
    def reference(x, base):
        def each(a, b):
            logits = 10 * a @ b.T
            return (g.lse(logits) + g.lse(logits.T) - 2 * np.diagonal(logits)) / 2

        image, true, synthetic = (base[k] for k in ("image", "text", "texts1/text"))
        gates = []
        for a, b in ((true, synthetic), (true, image), (synthetic, image)):
            cosines = (a * b).sum(1)
            gates.append(np.exp(2 * (cosines - 0.99 - 0.01 * cosines.mean())))
        sample = np.minimum(1, gates[0])
        total = 0.0
        for gate, key in ((gates[1], "text"), (gates[2], "texts1/text")):
            weights = sample * np.where(gates[0] < 1, gate, 1)
            total += (weights * each(x["image"], x[key])).mean()
        return total

    g.check_gradient(ALIP(), g.random_rows("image", "text", "texts1/text"), reference, state=START)


def test_it_asks_for_captions_by_their_tags():
    assert ALIP().fields == {"texts1/text": fields.Captions(source="synthetic")}
    assert ALIP(source="ofa", true_source="web").fields == {
        "text": fields.Captions(source="web"),
        "texts1/text": fields.Captions(source="ofa"),
    }


def test_bad_options_are_refused():
    with pytest.raises(ValueError, match=r"alip.decay=2.0 must be a number in \[0, 1\]"):
        ALIP(decay=2.0)
    with pytest.raises(ValueError, match=r"alip.source='web' must be another tag"):
        ALIP(source="web", true_source="web")
