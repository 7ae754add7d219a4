"""Symile."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip import fields, models
from jaxclip.objectives.symile import Symile
from tests.objectives import fixture_g as g

ROWS = {"image": g.I, "text": g.T, "texts1/text": g.U}


def test_values_on_fixture_g():
    loss, metrics, _ = g.value(Symile(negatives="all"), ROWS)
    assert float(loss) == pytest.approx(6.2986854, abs=1e-5)
    anchors = [float(metrics[f"anchor_{key}"]) for key in ("image", "text", "texts1_text")]
    assert anchors == pytest.approx([6.1331226, 6.4872250, 6.2757086], abs=1e-5)


def test_shuffled_negatives_hold_each_true_triple_once():
    # With one dimension and s -> 0 every logit is 0: the loss is the log of how many there are.
    size = 7
    rows = {key: jnp.ones((size, 1)) for key in ROWS}
    counts = []
    for step in range(30):
        ctx = g.context(1e-9, size=size)
        ctx = type(ctx)(**{**ctx.__dict__, "key": jax.random.key(step)})
        _, metrics, _ = g.value(Symile(), rows, ctx)
        counts += [float(value) for key, value in metrics.items()]
    # A row has its own triple and size - 1 others, one less for a true triple off the diagonal.
    assert max(counts) == pytest.approx(np.log(size), rel=1e-5)
    assert min(counts) > np.log(size - 1) and min(counts) < np.log(size) - 1e-3


def test_gradient_is_that_of_the_formula():
    def reference(x, _):
        rows = [x[key] for key in ROWS]
        total = 0.0
        for k in range(3):
            a, b, c = rows[k], *(rows[i] for i in range(3) if i != k)
            logits = 10 * np.einsum("id,jd,kd->ijk", a, b, c).reshape(6, -1)
            total += (g.lse(logits) - 10 * (a * b * c).sum(1)).mean() / 3
        return total

    g.check_gradient(Symile(negatives="all"), g.random_rows(*ROWS), reference)


@pytest.mark.parametrize("negatives", ["all", "shuffled"])
def test_it_learns_a_bit_that_no_two_modalities_show(negatives):
    # c = a xor b. Embeddings are one row of a table for each bit.
    bits = np.array(list(itertools.product([0, 1], repeat=2)) * 4)
    codes = np.stack([bits[:, 0], bits[:, 1], bits[:, 0] ^ bits[:, 1]], 1)
    objective = Symile(negatives=negatives)
    tables = jax.random.normal(jax.random.key(1), (3, 2, 4))

    @jax.jit
    def step(tables, key):
        def loss(tables):
            rows = {name: models.unit(tables[i][codes[:, i]]) for i, name in enumerate(ROWS)}
            ctx = g.context(20.0, size=len(codes))
            return g.value(objective, rows, type(ctx)(**{**ctx.__dict__, "key": key}))[0]

        return tables - 0.3 * jax.grad(loss)(tables)

    for key in jax.random.split(jax.random.key(0), 150):
        tables = step(tables, key)
    a, b, c = (models.unit(tables[i]) for i in range(3))
    for first, second in itertools.product([0, 1], repeat=2):
        scores = a @ (b[second] * c[first ^ second])
        assert int(jnp.argmax(scores)) == first


def test_the_third_is_a_caption_by_its_tag():
    assert Symile(source="de").fields == {"texts1/text": fields.Captions(source="de")}


def test_bad_options_are_refused():
    with pytest.raises(ValueError, match=r"symile.negatives='none'; use 'shuffled' or 'all'"):
        Symile(negatives="none")
