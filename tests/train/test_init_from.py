"""Starting from another run, and learning from it as a frozen teacher."""

import pathlib

import jax
import numpy as np
import pytest

from jaxclip import parallel
from jaxclip.train import checks, dry_run, init_from, loop, setup, state_io
from jaxclip.train.checkpoint import Checkpointer


@pytest.fixture(autouse=True)
def cached(compilation_cache):
    with compilation_cache():
        yield


def build(config):
    return setup.build(config, devices=jax.devices()[:1])


def saved(workdir):
    """Averaged parameters in the newest checkpoint, by name."""
    config = init_from.open_source(workdir)
    return state_io.named_leaves(config.read(None))


def test_a_run_starts_from_the_averaged_weights_of_another(trained, tiny_config, capsys):
    experiment = build(tiny_config(f"init_from={trained}"))
    state = experiment.init_state()
    expected = saved(trained)
    for name, leaf in state_io.named_leaves(state.params).items():
        np.testing.assert_array_equal(leaf, expected[name], err_msg=name)
    jax.tree.map(np.testing.assert_array_equal, state.ema_params, state.params)
    assert int(state.step) == 0
    assert f"start from {trained}: {len(expected)} taken, 0 resized" in capsys.readouterr().out


def test_what_is_excluded_starts_anew(trained, tiny_config):
    config = tiny_config(f"init_from={trained}", "init_from_exclude=['^text/']")
    _, report = build(config).started(setup.build(config).init_state().params)
    assert all(name.startswith("text/") for name in report.new) and report.new
    assert set(report.left) == set(report.new)


def test_another_image_size_resizes_the_positions(trained, tiny_config):
    config = tiny_config(f"init_from={trained}", "data.image_size=32")
    state = build(config).init_state()
    names = state_io.named_leaves(state.params)
    tables = [name for name in names if name.startswith("image/") and name.endswith("positions")]
    old = saved(trained)[tables[0]]
    assert names[tables[0]].shape[0] > old.shape[0]
    # Interpolation keeps the mean of a table, but for its border.
    prefix = old.shape[0] - round((old.shape[0]) ** 0.5) ** 2
    np.testing.assert_allclose(
        names[tables[0]][prefix:].mean(0), old[prefix:].mean(0), atol=0.25 * np.abs(old).max()
    )


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["init_from=/nowhere/at/all"], "init_from='/nowhere/at/all': there is no such folder"),
        (["model.embed_dim=24"], "tensors of other shapes:\n  .*there, .* here"),
        (["init_from_exclude=['.']"], "has no tensor in common with this model"),
    ],
)
def test_what_does_not_fit_is_named(trained, tiny_config, overrides, message):
    experiment = build(tiny_config(f"init_from={trained}", *overrides))
    with pytest.raises(ValueError, match=message):
        experiment.init_state()


def test_a_folder_that_is_no_run(tmp_path, tiny_config):
    experiment = build(tiny_config(f"init_from={tmp_path}"))
    with pytest.raises(
        ValueError, match=r"is neither the workdir of a run nor published weights: .*holds no"
    ):
        experiment.init_state()


def test_a_folder_that_is_not_there_is_refused_before_anything_is_written(tmp_path, tiny_config):
    config = tiny_config("init_from=/nowhere/at/all")
    with pytest.raises(ValueError, match="init_from='/nowhere/at/all': there is no such folder"):
        loop.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="init_from='/nowhere/at/all': there is no such folder"):
        dry_run.dry_run(config)


def test_a_run_that_has_begun_needs_its_start_no_more(trained, tiny_config):
    checks.check_start(tiny_config("init_from=/nowhere/at/all"), trained / "checkpoints")


def test_published_siglip_weights_say_how_texts_are_padded():
    golden = pathlib.Path(__file__).parents[1] / "weights" / "golden" / "hf_siglip"
    config = init_from.open_source(golden).config
    assert config["tokenizer"]["kind"] == "siglip" and config["model"]["text"]["pad_id"] == 1


def teach(trained, *overrides):
    return [
        "objective=['contrastive', {'name': 'tests.train.test_init_from:Follow'}]",
        "teacher.kind=frozen",
        f"teacher.path={trained}",
        *overrides,
    ]


def test_a_frozen_teacher_is_read_used_and_not_saved(trained, tiny_config, tmp_path):
    experiment = build(tiny_config(*teach(trained)))
    state = experiment.init_state()
    expected = saved(trained)
    before = {k: np.asarray(v) for k, v in state_io.named_leaves(state.frozen).items()}
    for name, leaf in before.items():
        np.testing.assert_array_equal(leaf, expected[name], err_msg=name)
    assert not any("frozen" in name for name in state_io.named_leaves(state.opt_state))
    batch = parallel.to_global(dry_run.made_up_batch(experiment.config), experiment.mesh)
    state, metrics = experiment.train_step(state, batch)
    assert 0 < float(metrics["Follow/loss"]) < 4
    for name, leaf in state_io.named_leaves(state.frozen).items():
        np.testing.assert_array_equal(leaf, before[name], err_msg=name)
    # A checkpoint holds none of it, and a state out of one gets it back.
    from jaxclip.train import state as state_lib

    with Checkpointer(tmp_path / "checkpoints") as checkpointer:
        checkpointer.save(1, state_lib.to_save(state))
    with Checkpointer(tmp_path / "checkpoints", writable=False) as checkpointer:
        restored = loop.first_state(experiment, checkpointer)[0]
    assert not list((tmp_path / "checkpoints").rglob("*frozen*"))
    jax.tree.map(np.testing.assert_array_equal, restored, state)


def test_a_student_that_is_the_teacher_has_no_distance(trained, tiny_config):
    experiment = build(tiny_config(*teach(trained, f"init_from={trained}")))
    batch = parallel.to_global(dry_run.made_up_batch(experiment.config), experiment.mesh)
    _, metrics = experiment.train_step(experiment.init_state(), batch)
    assert float(metrics["Follow/loss"]) == pytest.approx(0, abs=1e-10)


def test_a_teacher_may_have_another_architecture(trained, tiny_config):
    experiment = build(
        tiny_config(
            *teach(
                trained, "model.image.width=32", "data.image_size=24", "model.image.patch_size=8"
            )
        )
    )
    batch = parallel.to_global(dry_run.made_up_batch(experiment.config), experiment.mesh)
    _, metrics = experiment.train_step(experiment.init_state(), batch)
    assert np.isfinite(float(metrics["Follow/loss"]))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["teacher.kind=frosen"], "teacher.kind='frosen'; use 'none', 'frozen', 'ema', 'stored'"),
        (["teacher.path="], "needs teacher.path, the workdir of a run"),
        (["teacher.path=/nowhere"], "teacher.path='/nowhere': there is no such folder"),
        (["teacher.kind=none"], "needs 'teacher/image', but the run has no teacher"),
        (["teacher.kind=stored"], "teacher.size=0: set it to the length"),
        (["teacher.kind=ema", "teacher.decay=1.5"], r"teacher.decay=1.5 must be in \[0, 1\]"),
        (["model.embed_dim=24"], "the teacher embeds into 16 numbers, this model into 24"),
    ],
)
def test_wrong_teachers_are_refused_before_any_compile(trained, tiny_config, overrides, message):
    with pytest.raises(ValueError, match=message):
        build(tiny_config(*teach(trained), *overrides))


def test_a_teacher_with_another_tokenizer(trained, tiny_config):
    with pytest.raises(ValueError, match=r"reads tokens of tokenizer\.kind='emoji_bpe'"):
        build(tiny_config(*teach(trained), "tokenizer.kind=clip"))


# The objective that these tests train with: a user's own, found by its import path.
import dataclasses  # noqa: E402

import jax.numpy as jnp  # noqa: E402

from jaxclip import objectives  # noqa: E402


@dataclasses.dataclass(frozen=True)
class Follow(objectives.Objective):
    """Squared distance to the teacher's image embeddings."""

    @property
    def needs(self):
        return frozenset({"image", "teacher/image"})

    def check(self, sizes, teacher):
        if teacher is not None and teacher.embed_dim != sizes.embed_dim:
            raise ValueError(
                f"the teacher embeds into {teacher.embed_dim} numbers, this model into "
                f"{sizes.embed_dim}"
            )

    def loss(self, params, state, outputs, ctx):
        distance = jnp.sum((outputs["image"] - outputs["teacher/image"]) ** 2, axis=1)
        return jnp.mean(distance), {}, state
