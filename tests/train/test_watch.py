"""Early signs: second moments that lag, activations, examples that oppose each other."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxclip import optim, parallel
from jaxclip.optim import config as optim_config
from jaxclip.train import dry_run, opposition, setup, spike_files, watch


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


def rms_after(tx, b2, steps, k):
    """RMS of a tensor whose gradient is constant for ``steps`` steps, then k times that."""
    params = {"w": jnp.ones(5), "scale": jnp.float32(1.0)}
    gradient = {"w": jnp.asarray([1.0, -2.0, 0.5, 3.0, 1e-3]), "scale": jnp.float32(0.1)}

    @jax.jit
    def one(state, factor):
        grads = jax.tree.map(lambda g: factor * g, gradient)
        _, new = tx.update(grads, state, params)
        return new, watch.second_moment_rms(state, new, b2, 1e-8)["w"]

    factors = jnp.ones(steps + 1).at[steps].set(k)
    _, found = jax.lax.scan(one, tx.init(params), factors)
    return np.asarray(found)


@pytest.mark.parametrize(
    ("b2", "steps", "expected"),
    [(0.999, 20_000, 21.8), (0.99, 3000, 9.5), (0.95, 3000, 4.4), (0.999, 110, 9.7)],
)
def test_rms_is_that_of_the_closed_form(b2, steps, expected):
    """k / sqrt(b + (1 - b) k²) with 1 - b = (1 - b2) / (1 - b2^t), for k = 30."""
    new = (1 - b2) / (1 - b2 ** (steps + 1))
    closed = 30 / np.sqrt(1 - new + new * 900)
    assert closed == pytest.approx(expected, rel=0.01)
    found = rms_after(optax.adamw(0.0, b2=b2), b2, steps, 30.0)
    np.testing.assert_allclose(found[:-1], 1.0, rtol=2e-3)
    assert found[-1] == pytest.approx(closed, rel=2e-3)


def test_it_is_what_stable_adamw_says_of_itself():
    tx = optim.stable_adamw(0.0, b2=0.99)
    found = rms_after(tx, None, 300, 30.0)
    assert found[-1] == pytest.approx(
        rms_after(optax.adamw(0.0, b2=0.99), 0.99, 300, 30.0)[-1], rel=1e-3
    )


def test_it_sees_the_gradient_behind_the_clippers():
    clipped = optax.chain(optax.clip_by_global_norm(4.0), optax.adamw(0.0, b2=0.99))
    found = rms_after(clipped, 0.99, 300, 30.0)
    # The norm is 3.78, so that 30 times it is let through as 4 / 3.78 times.
    np.testing.assert_allclose(found[-1], 4 / 3.7785, rtol=2e-3)


@pytest.mark.parametrize("name", ["adamw", "muon", "nadam"])
def test_rms_is_read_from_the_states_of_optimizers_that_move_it_as_adam_does(name):
    b2, eps = watch._decay({"name": name})
    assert (b2, eps) == (0.999, 1e-8)
    params = {"w": jnp.ones(3)}
    tx = optim_config.OPTIMIZERS[name](learning_rate=0.1)
    first, second = jnp.array([1.0, -2.0, 3.0]), jnp.array([4.0, 0.5, -3.0])
    state = tx.update({"w": first}, tx.init(params), params)[1]
    new = tx.update({"w": second}, state, params)[1]
    v = (b2 * first**2 + second**2) * (1 - b2) / (1 - b2**2)
    found = watch.second_moment_rms(state, new, b2, eps)["w"]
    assert float(found) == pytest.approx(float(jnp.sqrt(jnp.mean(second**2 / v))), rel=1e-3)


def test_optimizers_that_move_it_by_another_rule_have_no_rms():
    assert set(watch.ADAMS) <= set(optim_config.OPTIMIZERS)
    for name in ("yogi", "adopt", "adamax", "adamaxw", "lion", "sgd"):
        assert watch._decay({"name": name}) == (None, 0.0)
    assert watch._decay({"name": "muon", "adam_b2": 0.9, "eps": 1e-3}) == (0.9, 1e-3)


def test_optimizers_without_a_second_moment_have_no_rms():
    tx = optax.sgd(0.1, momentum=0.9)
    state = tx.init({"w": jnp.ones(3)})
    assert watch.second_moment_rms(state, state, None, 1e-8) == {}


@pytest.fixture(scope="module")
def stepped(tiny_config):
    """A step with the watch on: experiment, states before and after, metrics, probe."""
    config = tiny_config("watch.enabled=True", "optim.clip=none")
    experiment = setup.build(config, devices=jax.devices()[:1])
    batch = parallel.to_global(dry_run.made_up_batch(config), experiment.mesh)
    state = experiment.init_state()
    probe = watch.make_probe(experiment.towers, list(experiment.batch_spec), 8)
    probed = state.params, jax.device_get(probe(state.params, batch))
    probed = jax.tree.map(np.asarray, probed)
    for _ in range(3):  # the first steps of the warm-up have a rate near zero
        before = jax.tree.map(np.asarray, state)
        state, metrics = experiment.train_step(state, batch)
    return experiment, before, jax.tree.map(np.asarray, state), jax.device_get(metrics), probed


def test_numbers_of_each_tensor_are_its_own(stepped):
    _, before, after, metrics, _ = stepped
    names = optim.tensor_names(before.params)
    for i, (old, new) in enumerate(
        zip(jax.tree.leaves(before.params), jax.tree.leaves(after.params), strict=True)
    ):
        found = {n: metrics[watch.TENSORS + n][i] for n in ("update_norm", "parameter_norm")}
        np.testing.assert_allclose(found["update_norm"], np.linalg.norm(new - old), rtol=1e-4)
        np.testing.assert_allclose(found["parameter_norm"], np.linalg.norm(old), rtol=1e-5)
    norms = metrics[watch.TENSORS + "gradient_norm"]
    np.testing.assert_allclose(np.linalg.norm(norms), metrics["grad_norm"], rtol=1e-5)
    rms = metrics[watch.TENSORS + "rms"]
    assert np.isnan(rms[names.index("logit_scale")])
    # The same batch three times: v is hardly behind.
    assert (
        0 < metrics["watch/rms_max"] < 2
        and np.isfinite(np.delete(rms, names.index("logit_scale"))).all()
    )
    assert metrics["watch/rms_first_layer"] == rms[names.index("image/patch_embedding/kernel")]
    total = np.linalg.norm(metrics[watch.TENSORS + "update_norm"])
    assert metrics["watch/update_ratio"] == pytest.approx(
        total / np.linalg.norm(metrics[watch.TENSORS + "parameter_norm"]), rel=1e-5
    )


def test_the_probe_tells_of_activations(stepped):
    experiment, _, _, _, (params, probed) = stepped
    batch = dry_run.made_up_batch(experiment.config)
    for tower in ("image", "text"):
        look = jax.jit(functools.partial(experiment.towers.features, tower=tower))
        features = look(params, array=batch[tower][:8])
        raw, unit = np.asarray(features.raw), np.asarray(features.embedding)
        np.testing.assert_allclose(
            probed[f"watch/embedding_norm_{tower}"], np.linalg.norm(raw, axis=1).mean(), rtol=1e-4
        )
        products = (unit @ unit.T)[~np.eye(8, dtype=bool)]
        np.testing.assert_allclose(
            probed[f"watch/embedding_cosine_{tower}"], products.mean(), atol=1e-5
        )
        logits = probed[f"{watch.TENSORS}attention_logit_{tower}"]
        assert logits.shape == (1, 2) and logits.max() == probed[f"watch/attention_logit_{tower}"]


# Opposing examples.


def test_two_groups_with_opposite_gradients_are_told_apart():
    """Losses (w - x)²/2 with x = ±10 for two examples each and 0.1 for the rest."""
    x = jnp.asarray([0.1, 10.0, 0.1, -10.1, 0.1, 10.0, -10.1, 0.1])

    def value_and_grad(params, batch):
        def loss(params):
            losses = (params["w"] - batch["x"]) ** 2 / 2
            return jnp.mean(batch[opposition.WEIGHT] * losses), losses

        return jax.value_and_grad(loss, has_aux=True)(params)

    found = opposition.opposition(
        value_and_grad, {"w": jnp.float32(0.0)}, {"x": x}, length=0.5, group=2
    )
    # The step goes to w = 0.5, for the mean of x is positive.
    assert sorted(np.asarray(found.falling).tolist()) == [1, 5]
    assert sorted(np.asarray(found.rising).tolist()) == [3, 6]
    assert float(found.cosine) == pytest.approx(-1.0)
    mean = float(np.mean(np.asarray(x)))
    np.testing.assert_allclose(found.share, [10 / 4 / mean, 10.1 / 4 / mean], rtol=1e-4)
    np.testing.assert_allclose(found.change, 0.5**2 / 2 - 0.5 * np.asarray(x), rtol=1e-4, atol=1e-5)


def test_example_losses_have_the_softmax_loss_as_their_mean():
    from jaxclip import losses

    rng = np.random.default_rng(0)
    image, text = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in rng.normal(size=(2, 6, 4)))
    found = opposition.example_losses(jnp.asarray(image), jnp.asarray(text), jnp.float32(2.0))
    logits = np.exp(2.0) * image @ text.T
    rows = np.log(np.exp(logits).sum(1)) - np.diag(logits)
    columns = np.log(np.exp(logits).sum(0)) - np.diag(logits)
    np.testing.assert_allclose(found, (rows + columns) / 2, rtol=1e-5)
    loss, _ = losses.softmax(jnp.asarray(image), jnp.asarray(text), logit_scale=jnp.float32(2.0))
    np.testing.assert_allclose(jnp.mean(found), loss, rtol=1e-6)


# What is written down.


def test_tensors_that_stand_out():
    names = ["a", "b", "c"]
    steps = [
        {
            f"{watch.TENSORS}gradient_norm": np.float32([1, 2, 3]),
            f"{watch.TENSORS}rms": np.float32([1, np.nan, 1 + (i == 3) * 4]),
            "loss": np.float32(i),
        }
        for i in range(6)
    ]
    steps[-1][f"{watch.TENSORS}gradient_norm"] = np.float32([1, 20, 60])
    found = spike_files.outstanding(names, steps)
    assert found["gradient"][0] == ["c", 20.0] and found["gradient"][1] == ["b", 10.0]
    assert found["rms"][0] == ["c", 5.0, 2]
    assert spike_files.scalars(steps) == {"loss": [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]}


def test_the_report_shows_a_spike_and_a_rewind(tmp_path):
    from jaxclip import storage
    from jaxclip.train import report_spikes

    assert report_spikes.events(tmp_path) == ""
    example = {
        "row": 3, "record": 9, "key": "k<1>", "caption": "a <b> & c", "loss": 2.5, "change": -0.25,
        "picture": "data:image/png;base64,AA==",
    }  # fmt: skip
    (tmp_path / "spikes").mkdir()
    content = {
        "step": 14, "batch": 13, "kind": "loss", "steps": [13, 14],
        "metrics": {"loss": [2.0, None], "grad_norm": [1.0, 9.0]},
        "tensors": {"gradient": [["image/x", 9.0]], "rms": [["image/y", 3.5, 4], ["z", 1.1, 0]]},
        "falling": [example], "rising": [{**example, "change": None}], "cosine": -0.93,
        "share": [0.5, 0.25],
    }  # fmt: skip
    storage.write_json(tmp_path / "spikes" / "step_00000014.json", content)
    spike_files.write_rewinds(tmp_path, [{"step": 14, "to": 8, "passed_over": [13, 13]}])
    found = report_spikes.events(tmp_path)
    assert "Step 14: a spike of the loss, in batch 13" in found
    assert "back to step 8; batches 13 to 13 are passed over" in found
    assert "9 times image/x" in found and "image/y 3.5 (4 steps before)" in found
    assert "z 1.1" not in found  # no early sign
    assert "a &lt;b&gt; &amp; c" in found and "<b> &" not in found and "-0.93" in found
    (tmp_path / "spikes" / "step_00000020.json").write_text("{torn")
    assert report_spikes.events(tmp_path) == found


def test_without_a_gradient_the_rms_is_zero():
    params, tx = {"w": jnp.linspace(0.1, 1.0, 7)}, optax.adamw(0.0, b2=0.999)

    @jax.jit
    def one(state, grads):
        new = tx.update(grads, state, params)[1]
        return new, watch.second_moment_rms(state, new, 0.999, 1e-8)["w"]

    state, first = one(tx.init(params), params)
    assert float(first) == pytest.approx(1.0, rel=1e-3)
    for _ in range(3):
        state, found = one(state, {"w": jnp.zeros(7)})
        assert 0.0 <= float(found) < 0.02  # a rounding of v: sqrt(1e-7 / (1 - b2))
