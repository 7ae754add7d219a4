"""Low-rank additions: they alone train, and whoever reads the weights gets the sum."""

import jax
import numpy as np
import pytest

import jaxclip
from jaxclip import parallel
from jaxclip.train import dry_run, init_from, loop, low_rank, setup, state_io

LORA = (
    "low_rank.rank=2",
    "low_rank.scaling=0.5",
    "optim.groups=[{'pattern': '^(?!low_rank/)', 'frozen': True}]",
    "optim.clip=none",
    "ema_decay=0.0",
    "evaluate.zero_shot=[]",
    "evaluate.retrieval=[]",
    "checkpoint.best_metric=",
)


@pytest.fixture(scope="module")
def finished(tiny_config, trained, compilation_cache, tmp_path_factory):
    """Workdir of two steps from the weights of ``trained``, and its experiment."""
    workdir = tmp_path_factory.mktemp("runs") / "lora"
    config = tiny_config(*LORA, f"init_from={trained}", "total_steps=2", "log_every_steps=1")
    with compilation_cache():
        assert loop.train(config, workdir).finished
    return workdir, config


def test_factors_alone_train_and_readers_get_the_sum(finished, trained):
    workdir, _ = finished
    before = state_io.named_leaves(init_from.open_source(trained).read(None))
    after = init_from.open_source(workdir).read(None)
    assert low_rank.KEY not in after
    after = state_io.named_leaves(after)
    assert after.keys() == before.keys()
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    kinds = {name.rsplit("/", 2)[1] for name in changed}
    assert kinds == {"query", "key", "value"} and all(n.endswith("kernel") for n in changed)
    assert any(n.startswith("text/") for n in changed) and len(changed) == 6
    name = "image/blocks_0/attention/query/kernel"
    assert np.linalg.matrix_rank(after[name] - before[name], tol=1e-6) <= 2
    # The run itself sees what readers see.
    model, given = jaxclip.load(workdir), jaxclip.load(trained)
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)
    assert np.abs(model.encode_image(images) - given.encode_image(images)).max() > 1e-6


@pytest.mark.slow
def test_the_start_is_the_model_and_sharding_changes_nothing(tiny_config, trained, finished):
    results = []
    for mesh in ("{'data': -1}", "{'data': 2, 'fsdp': 4}"):
        config = tiny_config(*LORA, f"init_from={trained}", f"mesh={mesh}", "sharding=fsdp")
        experiment = setup.build(config)
        state = experiment.init_state()
        assert "low_rank" in state.params
        batch = parallel.to_global(dry_run.made_up_batch(config), experiment.mesh)
        before = np.asarray(experiment.encode_image(state.params, batch["image"]))
        params = {k: v for k, v in state.params.items() if k != "low_rank"}
        np.testing.assert_array_equal(before, experiment.encode_image(params, batch["image"]))
        sizes = [leaf.size for leaf in jax.tree.leaves(state.opt_state)]
        factors = sum(leaf.size for leaf in jax.tree.leaves(state.params["low_rank"]))
        assert sum(sizes) < 2 * factors + 10  # two moments of the factors, and counters
        state, metrics = experiment.train_step(state, batch)
        results.append((float(metrics["loss"]), np.asarray(state.params["low_rank"]["image"]
                        ["blocks_0"]["attention"]["query"]["kernel"]["b"])))  # fmt: skip
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-5)
    np.testing.assert_allclose(results[0][1], results[1][1], atol=1e-5)
    workdir, _ = finished
    shapes = jax.eval_shape(experiment.model.init, jax.random.key(0))
    shardings = parallel.specs_for(shapes, parallel.sharding_rules("fsdp"), experiment.mesh)
    placed = state_io.named_leaves(init_from.open_source(workdir).read(shardings))
    for name, leaf in state_io.named_leaves(init_from.open_source(workdir).read(None)).items():
        np.testing.assert_allclose(placed[name], leaf, atol=1e-7)
        assert placed[name].sharding == state_io.named_leaves(shardings)[name]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("low_rank.rank=17", "rank=17 must be from 1 to 16"),
        ("low_rank.patterns=['convolution']", "no kernel of the tower has a pattern"),
        ("low_rank.patterns=['(']", r"low_rank\.patterns: '\(' is no regular expression"),
        ("low_rank.rang=3", r"unknown config key 'low_rank\.rang'; did you mean 'low_rank\.rank'"),
    ],
)
def test_mistakes_are_one_line(tiny_config, override, message):
    with pytest.raises(ValueError, match=message):
        setup.build(tiny_config(*LORA, override))
