"""CLIP with balance and z losses of experts."""

import jax.numpy as jnp
import pytest

from jaxclip.models import experts
from jaxclip.objectives.clip_moe import CLIPMoE
from tests.objectives import fixture_g as g


def rows(logits):
    logits = jnp.array(logits, jnp.float32)  # [B, L, E]
    return experts.statistics(logits, experts.route(logits, 1)[1])[:, None]


def outputs(image, text):
    return {"image": g.I, "text": g.T, "image_router": image, "text_router": text}


NONE = jnp.zeros((3, 0, 3, 1))


def test_without_experts_it_is_clip():
    value, metrics, _ = g.value(CLIPMoE(balance=5.0, z=5.0), outputs(NONE, NONE))
    assert float(value) == pytest.approx(0.1081597, rel=1e-5)
    assert float(metrics["balance"]) == float(metrics["router_z"]) == 0.0


def test_the_terms_are_added():
    image = rows([[[2, 0], [2, 0]]] * 3)
    text = rows([[[2, 0], [0, 2]]] * 3)
    value, metrics, _ = g.value(CLIPMoE(balance=0.5, z=0.25), outputs(image, text))
    assert float(metrics["balance"]) == pytest.approx(1.761594 + 1.0, abs=1e-5)
    z = 2 * 2.126928**2  # ln(e² + 1), in both towers
    assert float(metrics["router_z"]) == pytest.approx(z, rel=1e-5)
    assert float(value) == pytest.approx(0.1081597 + 0.5 * 2.761594 + 0.25 * z, rel=1e-5)


def test_balance_is_of_the_batch_not_of_its_rows():
    """A row may send all its tokens to one expert, if another row sends them to the other."""
    image = rows([[[2, 0]], [[0, 2]]])
    _, metrics, _ = g.value(
        CLIPMoE(), {**outputs(image, jnp.zeros((2, 0, 3, 1))), "image": g.I[:2], "text": g.T[:2]},
        g.context(size=2),
    )  # fmt: skip
    assert float(metrics["balance"]) == pytest.approx(1.0, abs=1e-6)
