"""Maps from dense to sparse weights against their rules, and what configurations are refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip.models.sparsity import SPARSITIES, auto_sparse, n_m, rules
from jaxclip.models.sparsity._base import Sparsity
from jaxclip.models.sparsity.auto_sparse import AutoSparse
from jaxclip.models.sparsity.gradual import Gradual
from jaxclip.models.sparsity.n_m import NM

RNG = np.random.default_rng(0)
W, G = (jnp.asarray(RNG.standard_normal((12, 5)), jnp.float32) for _ in range(2))


def at(progress):
    return jnp.float32(progress)


def both(sparsity, progress, w=W, g=G):
    out, back = jax.vjp(lambda w: sparsity(w, at(progress), None), w)
    return np.asarray(out), np.asarray(back(g)[0])


def test_the_largest_of_each_group_of_inputs_stay():
    w = jnp.asarray([[1.0, -9], [-4, 2], [3, 3], [2, 3], [5, 0], [-6, 1]])
    mask = n_m.keep_largest(w, 2, 4)
    expected = [[0, 1], [1, 0], [1, 1], [0, 0], [1, 1], [1, 1]]  # ties: the first
    np.testing.assert_array_equal(mask, np.array(expected, bool))
    counts = np.asarray(n_m.keep_largest(W, 1, 4)).reshape(3, 4, 5).sum(1)
    np.testing.assert_array_equal(counts, 1)


def test_n_m_begins_dense_and_ends_masked():
    sparsity = NM(2, 4, start=0.2, stop=0.6)
    sparsity.check()
    mask = np.asarray(n_m.keep_largest(W, 2, 4))
    np.testing.assert_array_equal(both(sparsity, 0.1)[0], W)
    np.testing.assert_allclose(both(sparsity, 0.4)[0], np.where(mask, W, 0.5 * W), rtol=1e-6)
    for progress in (0.6, 0.8, 1.0):
        np.testing.assert_array_equal(both(sparsity, progress)[0], np.where(mask, W, 0))
    # The whole gradient reaches the dense weight, whatever is masked.
    for progress in (0.1, 0.4, 1.0):
        np.testing.assert_array_equal(both(sparsity, progress)[1], G)


def test_sr_ste_pulls_masked_weights_to_zero():
    sparsity = NM(1, 4, decay="none", weight_pull=2e-4)
    mask = np.asarray(n_m.keep_largest(W, 1, 4))
    out, gradient = both(sparsity, 0.0)
    np.testing.assert_array_equal(out, np.where(mask, W, 0))
    np.testing.assert_allclose(gradient, G + 2e-4 * np.where(mask, 0, W), rtol=1e-6)
    assert (out != 0).sum() == W.size // 4
    # Not in the dense share of a run.
    later = NM(1, 4, decay="none", weight_pull=2e-4, start=0.5)
    out, gradient = both(later, 0.4)
    np.testing.assert_array_equal(out, W)
    np.testing.assert_array_equal(gradient, G)


def test_exponential_decay_and_its_end():
    sparsity = NM(1, 2, decay="exponential", stop=0.5)
    found = [float(sparsity.leak(at(p))) for p in (0.0, 0.25, 0.49999, 0.5, 1.0)]
    np.testing.assert_allclose(found, [1, 0.1, 0.01, 0, 0], rtol=1e-3)
    # Where masks would not be there before the end of the run, they are at its end.
    assert float(NM(1, 2, stop=1.0).leak(at(1.0))) == 0


@pytest.mark.parametrize(
    ("structure", "n", "m", "expected"),
    [
        ("fixed", 2, 4, [(2, 4)]),
        ("stepwise", 1, 8, [(7, 8), (4, 8), (2, 8), (1, 8)]),
        ("stepwise", 2, 4, [(3, 4), (2, 4)]),
        ("stepwise", 1, 2, [(1, 2)]),
        ("geometric", 1, 4, [(8, 32), (4, 16), (2, 8), (1, 4)]),
    ],
)
def test_structures(structure, n, m, expected):
    assert NM(n, m, structure=structure).stages() == expected


def test_a_structure_goes_from_stage_to_stage():
    sparsity = NM(1, 4, decay="none", structure="stepwise", stop=0.75)
    kept = [(both(sparsity, p)[0].reshape(3, 4, 5) != 0).sum(1) for p in (0.0, 0.3, 0.6, 0.9)]
    assert [sorted(set(k.ravel())) for k in kept] == [[3], [2], [1], [1]]


def test_auto_sparse_is_soft_thresholding_or_straight_through():
    own = jnp.float32(-0.5)
    level = 1 / (1 + np.exp(0.5))
    soft = np.sign(W) * np.maximum(np.abs(W) - level, 0)
    kept = np.abs(W) > level
    assert 0.1 < kept.mean() < 0.9
    for alpha in (0.0, 0.3, 1.0):
        out, back = jax.vjp(auto_sparse.soft_threshold, W, own, jnp.float32(alpha))
        to_w, to_own, _ = back(G)
        np.testing.assert_allclose(out, soft, rtol=1e-5, atol=1e-6)
        passed = np.where(kept, 1, alpha) * np.asarray(G)
        np.testing.assert_allclose(to_w, passed, rtol=1e-6)
        wanted = -(np.sign(W) * passed).sum() * level * (1 - level)
        np.testing.assert_allclose(to_own, wanted, rtol=1e-4)

    def plain(w, own):
        return jnp.sign(w) * jax.nn.relu(jnp.abs(w) - jax.nn.sigmoid(own))

    expected = jax.vjp(plain, W, own)[1](G)
    found = jax.vjp(lambda w, o: auto_sparse.soft_threshold(w, o, jnp.float32(0)), W, own)[1](G)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), found, expected)


def test_auto_sparse_anneals_and_starts_at_its_threshold():
    sparsity = AutoSparse(alpha=0.8, stop=0.5, threshold=0.02)
    sparsity.check()
    own = jnp.float32(sparsity.initial())
    np.testing.assert_allclose(jax.nn.sigmoid(own), 0.02, rtol=1e-5)
    masked, wide = np.abs(W) <= 0.4, jnp.float32(np.log(0.4 / 0.6))
    for progress, alpha in ((0.0, 0.8), (0.25, 0.4), (0.5, 0.0), (1.0, 0.0)):
        gradient = jax.vjp(lambda w, p=progress: sparsity(w, at(p), wide), W)[1](G)[0]
        np.testing.assert_allclose(gradient[masked], alpha * G[masked], atol=1e-6)


def test_gradual_pruning_follows_the_cube():
    sparsity = Gradual(0.8, start=0.0, stop=0.5)
    sparsity.check()
    np.testing.assert_allclose(sparsity.share(at(0.25)), 0.8 * (1 - 0.5**3), rtol=1e-6)
    for progress in (0.0, 0.25, 0.7, 1.0):
        out, gradient = both(sparsity, progress)
        zeros = round(float(sparsity.share(at(progress))) * W.size)
        assert (out == 0).sum() == zeros
        largest = np.sort(np.abs(W).ravel())[zeros:]
        np.testing.assert_allclose(np.sort(np.abs(out[out != 0])), largest)
        np.testing.assert_array_equal(gradient, np.where(out == 0, 0, G))
    _, gradient = both(Gradual(0.8, stop=0.5, regrow=True), 1.0)
    np.testing.assert_array_equal(gradient, G)


def test_every_file_is_a_sparsity():
    for name in SPARSITIES.names():
        assert issubclass(SPARSITIES.get(name), Sparsity), name


PARAMS = {
    "image": {"blocks_0": {"mlp": {"up": {"kernel": W, "bias": G[0]}}}, "norm": {"scale": G[0]}},
    "text": {"blocks_0": {"mlp": {"down": {"kernel": G}}, "attention": {"out": {"kernel": W}}}},
    "logit_scale": jnp.float32(2),
}


def test_rules_reach_the_tensors_they_name():
    given = [{"name": "n_m", "tensors": "image/.*mlp"}, {"name": "auto_sparse", "threshold": 0.1}]
    sparse = rules.from_config(given, 10)
    own = jax.jit(sparse.init)(PARAMS)  # as a run's state is made
    assert list(jax.tree.leaves(own)) == [own["sparsity"]["text"]["blocks_0"]["mlp"]["down"][
        "kernel"]["own"]]  # fmt: skip
    seen = sparse({**PARAMS, **own})
    assert seen.keys() == PARAMS.keys()
    up, down = seen["image"]["blocks_0"]["mlp"]["up"], seen["text"]["blocks_0"]["mlp"]["down"]
    assert (np.asarray(up["kernel"]) == 0).mean() == 0.5
    np.testing.assert_allclose(
        down["kernel"], np.sign(G) * np.maximum(np.abs(G) - 0.1, 0), rtol=1e-4, atol=1e-6
    )
    np.testing.assert_array_equal(up["bias"], G[0])
    np.testing.assert_array_equal(seen["text"]["blocks_0"]["attention"]["out"]["kernel"], W)
    zeros = rules.share_of_zeros({**PARAMS, **own}, sparse)
    assert zeros["image/blocks_0/mlp/up/kernel"] == 0.5 and len(zeros) == 2
    # Early in the run less is masked.
    early = sparse({**PARAMS, **own}, 1)["image"]["blocks_0"]["mlp"]["up"]["kernel"]
    assert np.all(np.asarray(early) != 0)
    assert rules.Sparse()(PARAMS) is PARAMS


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("n_n", r"config.sparsity\[0\]: unknown sparsity 'n_n'"),
        ([{"name": "n_m", "N": 1}], "unknown option 'N' of sparsity 'n_m'"),
        ([{"name": "n_m", "n": 5}], "n=5 must be from 1 to m=4"),
        ([{"name": "n_m", "decay": "cosine"}], "decay='cosine' is none of"),
        ([{"name": "gradual", "start": 0.9}], "start=0.9 is behind stop=0.8"),
        ([{"name": "gradual", "sparsity": 1.5}], "sparsity=1.5 must be from 0 to 1"),
        ([{"name": "auto_sparse", "threshold": 0.0}], "threshold=0.0 must be between"),
        ([{"name": "n_m", "tensors": "("}], r"config.sparsity\[0\]"),
        ([1], "is neither a name nor a dict"),
    ],
)
def test_what_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        rules.from_config(given, 10)


def test_a_rule_for_nothing():
    with pytest.raises(ValueError, match=r"tensors='image/\.\*bias' is left with no kernel"):
        rules.from_config([{"name": "n_m", "tensors": "image/.*bias"}], 10).init(PARAMS)
