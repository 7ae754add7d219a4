"""A grid of tiny runs: what is done stays, a cell alone is the same, off is off."""

import contextlib
import json
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxclip import cli, lock, objectives, optim
from jaxclip.lab import cells as cells_lib
from jaxclip.lab import command, figure, report, runner, tables
from jaxclip.lab import config as config_lib
from jaxclip.train import state as state_lib
from jaxclip.train import step as step_lib
from jaxclip.train import towers

STEPS = 24
TOWER = {"width": 8, "depth": 1, "num_heads": 2, "mlp_dim": 16}
GIVEN = {
    "title": "tiny & quick",
    "train": {
        "total_steps": STEPS,
        "global_batch_size": 8,
        "data": {"image_size": 8},
        "tokenizer": {"context_length": 4},
        "model": {"image": {"patch_size": 4, **TOWER}, "text": TOWER, "embed_dim": 8},
        "optim": {"b2": 0.95, "schedule": {"name": "constant", "warmup_steps": 4}},
    },
    "rules": {
        "zclip": {"clip": {"name": "zclip", "max_norm": None, "warmup_steps": 5}},
        "adamw": {},
    },
    "rates": [0.01],
    "injectors": {
        "off": {"name": "scale", "share": 0.0},
        "scale": {"name": "scale", "k": 1000.0, "steps": [12]},
        "all": [
            {"name": "direction", "k": 3.0, "steps": [6]},
            {"name": "temperature", "value": 3.0, "steps": [8]},
            {"name": "bitflip", "steps": [10]},
            {"name": "nonfinite", "steps": [14]},
            {"name": "pixels", "start": 16, "count": 1},
        ],
    },
    "seeds": [0, 1],
    # The second rule is compiled by slow tests only.
    "grid": [{"rules": ["zclip"]}],
    "last_steps": 4,
    "damage_steps": 8,
    "watch": ["^image/patch_embedding"],
}


def cell(rule="zclip", injector="none", seed=0):
    return config_lib.Cell("plain", "float32", rule, 0.01, injector, seed)


@pytest.fixture(scope="module")
def config_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("lab") / "lab_tiny.py"
    path.write_text(f"def get_config():\n    return {GIVEN!r}\n")
    return path


@pytest.fixture(scope="module")
def config():
    return config_lib.resolve(GIVEN)


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory, compilation_cache):
    """Workdir of a grid that was interrupted after its first cells and went on."""
    workdir = tmp_path_factory.mktemp("grid")
    with compilation_cache():
        said = []

        def stop(text):
            said.append(text)
            if len(said) == 3:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            runner.run_grid(config, workdir, say=stop)
        assert len(list((workdir / cells_lib.FOLDER).iterdir())) == 3
        assert not (workdir / lock.FILE_NAME).exists()
        outcome = runner.run_grid(config, workdir, say=said.append)
    assert outcome == (8, 8, 5) and len(said) == 8
    return workdir


def curves(config, workdir, which):
    return cells_lib.read(cells_lib.path_of(workdir, config, which))[0]


def test_what_is_done_is_not_done_again(config, finished):
    before = {path: path.stat().st_mtime_ns for path in (finished / "cells").iterdir()}
    assert runner.run_grid(config, finished) == (8, 8, 0)
    assert before == {path: path.stat().st_mtime_ns for path in (finished / "cells").iterdir()}


def test_injectors_that_are_off_change_no_bit(config, finished):
    for seed in (0, 1):
        clean, off = (curves(config, finished, cell("zclip", i, seed)) for i in ("none", "off"))
        assert clean.keys() == off.keys()
        for name, values in clean.items():
            np.testing.assert_array_equal(values, off[name])


@pytest.mark.slow
def test_without_injection_it_is_the_trainers_own_step(config, finished):
    """The same run by ``make_train_step`` alone, with the rate in ``from_config``."""
    train = config_lib.training(config, "plain", "zclip")
    model = towers.build_model(train)
    gradient = step_lib.make_gradient(
        objectives.from_config([], train["loss"]), towers.from_config(train, model)
    )
    tx = optim.from_config({**train["optim"], "learning_rate": 0.01}, STEPS)
    lab = runner.Lab(config)
    names = [
        state_lib.parameter_path(path)
        for path, _ in jax.tree_util.tree_leaves_with_path(
            jax.eval_shape(model.init, jax.random.key(0))
        )
    ]
    plan = lab.plan(cell(), names)
    images, tokens, _ = (jnp.asarray(array) for array in lab.pairs["train"])
    step = step_lib.make_train_step(gradient, tx)

    def run(params):
        state = state_lib.create_state(lambda key: params, tx, jax.random.key(0))
        return jax.lax.scan(
            lambda state, at: step(state, {"image": images[at[0]], "text": tokens[at[1]]}),
            state,
            (plan.image, plan.text),
        )[1]

    expected = jax.jit(run)(jax.jit(model.init)(jax.random.key(0)))
    found = curves(config, finished, cell())
    for name in ("loss", "grad_norm", "logit_scale"):
        np.testing.assert_allclose(found[name], expected[name], rtol=2e-4, err_msg=name)
    assert found["loss"][-1] < found["loss"][0]


def test_seeds_differ(config, finished):
    one, other = (curves(config, finished, cell(seed=seed))["loss"] for seed in (0, 1))
    assert not np.array_equal(one, other)


def test_a_spike_is_one_and_is_clipped(config, finished):
    clean, hit = (curves(config, finished, cell("zclip", name)) for name in ("none", "scale"))
    np.testing.assert_array_equal(clean["loss"][:13], hit["loss"][:13])
    ratio = hit["grad_norm"] / clean["grad_norm"]
    np.testing.assert_allclose(ratio[12], 1000, rtol=1e-5)
    assert hit["optim/zclip/clipped"][12] == 1 and clean["optim/zclip/clipped"][12] == 0
    assert hit["optim/zclip/threshold"][12] < hit["grad_norm"][12]


@pytest.mark.slow
def test_what_adamw_keeps_of_a_spike(config, tmp_path):
    part = {"rules": ["adamw"], "injectors": ["none", "scale"], "seeds": [0]}
    adamw = {**config, "grid": [part], "baseline": "adamw"}
    runner.run_grid(adamw, tmp_path)
    hit = curves(adamw, tmp_path, cell("adamw", "scale"))
    # Near the largest that there is after 13 steps: sqrt((1 - b2^13) / (1 - b2)) = 3.1.
    assert 2.5 < hit["rms/^image/patch_embedding"][12] < 3.2
    table = tables.at_best_rate(adamw, tables.read(adamw, tmp_path))
    assert [row[0] for row in table.rows] == ["adamw"] and table.rows[0][4] == "1.00"


def test_each_injector_shows_where_it_was_put(config, finished):
    clean, hit = (curves(config, finished, cell("zclip", name)) for name in ("none", "all"))
    np.testing.assert_array_equal(clean["loss"][:7], hit["loss"][:7])
    # g and k ‖g‖ u are nearly at right angles: 3 ‖g‖ makes sqrt(1 + 9).
    np.testing.assert_allclose(hit["grad_norm"][6] / clean["grad_norm"][6], 10**0.5, rtol=0.1)
    assert not np.isclose(hit["loss"][7], clean["loss"][7], rtol=1e-6)
    assert np.isclose(np.log(hit["logit_scale"][8]), 3.0, atol=0.05)
    assert np.flatnonzero(np.diff(hit["nonfinite_count"])).tolist() == [13]
    assert np.isnan(hit["grad_norm"][14]) and np.isfinite(hit["loss"]).all()
    assert np.flatnonzero(hit["active"]).tolist() == [6, 8, 10, 14, 16]


def test_a_damaged_file_is_made_again(config, finished, tmp_path):
    which = cell("zclip", "scale")
    path = cells_lib.path_of(tmp_path, config, which)
    path.parent.mkdir(parents=True)
    path.write_bytes(cells_lib.path_of(finished, config, which).read_bytes()[:-100])
    assert cells_lib.read(path) is None


def test_a_plan_that_can_not_be_is_refused_before_any_cell_runs(config, tmp_path):
    late = {"name": "scale", "steps": [STEPS]}
    other = {**config, "injectors": {**config["injectors"], "late": late}}
    with pytest.raises(ValueError, match=r"step 24 is not in a run of train\.total_steps=24"):
        runner.run_grid(other, tmp_path)
    assert not (tmp_path / cells_lib.FOLDER).exists() and not (tmp_path / lock.FILE_NAME).exists()


def test_told_to_stop_it_begins_no_cell(config, tmp_path, monkeypatch):
    monkeypatch.setattr(runner.Lab, "check", lambda self, cells: None)
    assert runner.run_grid(config, tmp_path, stop=lambda: True) == (0, 8, 0)


def test_an_interrupt_that_jax_swallows_is_remembered():
    before = signal.getsignal(signal.SIGINT)
    with command._Interrupts() as interrupts:
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert interrupts.seen
    assert signal.getsignal(signal.SIGINT) is before


def test_a_workdir_that_can_not_be_is_one_line(config_path, tmp_path, capsys, compilation_cache):
    (tmp_path / "file").write_text("")
    argv = ["lab", "--config", str(config_path), "--workdir", str(tmp_path / "file")]
    with compilation_cache():
        assert cli.main(argv) == 1
    error = capsys.readouterr().err
    assert "can't be made: a part of the path is a file" in error and error.count("\n") == 1


def test_the_picture_names_every_rule(config, finished, tmp_path, monkeypatch):
    """Of a grid with one rate, too, which has no panel of rates."""
    from matplotlib.figure import Figure

    named = []
    monkeypatch.setattr(Figure, "legend", lambda self, handles, labels, **how: named.extend(labels))
    assert figure.write(config, tables.read(config, finished), tmp_path / "x.png")
    assert named == ["zclip"]


def test_two_runs_in_one_place(config, finished):
    held = lock.Lock(finished)
    try:
        with pytest.raises(lock.LockedError, match="is in use by process"):
            runner.run_grid(config, finished)
    finally:
        held.release()


def test_a_cell_alone_is_the_same_to_the_bit(config_path, finished, capsys, compilation_cache):
    argv = ["lab", "--config", str(config_path), "--workdir", str(finished), "--cell"]
    text = "rule=zclip,injector=scale,seed=1"
    with compilation_cache():
        assert cli.main([*argv, text]) == 0
    out = capsys.readouterr().out
    assert "model=plain,precision=float32,rule=zclip,rate=0.01,injector=scale,seed=1" in out
    assert "final_loss" in out and f"as in {finished}, to the bit" in out


def test_report_and_tables(config, config_path, finished, capsys):
    assert cli.main(["lab", "--config", str(config_path), "--workdir", str(finished)]) == 0
    path = finished / report.FILE_NAME
    assert capsys.readouterr().out.strip() == str(path)
    page = path.read_text()
    assert "tiny &amp; quick" in page and page.count("<svg") == 4
    assert "--cell model=plain,precision=float32,rule=zclip" in page
    table = tables.injections(config, tables.read(config, finished))
    assert [row[0] for row in table.rows] == ["zclip"]
    off = table.header.index("off")
    assert table.rows[0][off + 1 : off + 3] == ("+0.0%", "")
    scale = table.header.index("scale")
    harm = [
        curves(config, finished, cell("zclip", "scale", seed))["loss"]
        - curves(config, finished, cell("zclip", "none", seed))["loss"]
        for seed in (0, 1)
    ]
    mean = np.mean([each[12:20].sum() for each in harm])
    assert float(table.rows[0][scale + 2].split()[0]) == pytest.approx(mean, abs=0.06)
    text = (finished / report.TABLES).read_text()
    assert "### What injections cost" in text and "| zclip |" in text
    assert "### RMS of the step" in text


def test_a_report_of_no_cells(config, tmp_path):
    assert report.write(config, tmp_path, "x.py").is_file()


def test_cells_of_another_configuration_are_not_taken(config, finished):
    other = json.loads(json.dumps(GIVEN))
    other["train"]["optim"]["weight_decay"] = 0.3
    other = config_lib.resolve(other)
    assert not tables.read(other, finished)
    assert len(tables.read(config, finished)) == 8


@pytest.mark.slow
def test_rates_are_what_from_config_makes_of_them():
    """A rule with rate 1 times the rate, beside the rule with the rate: the same updates."""
    params = {"w": jnp.asarray([[1.0, -2.0], [0.5, 3.0]])}
    gradient = {"w": jnp.asarray([[0.3, 0.1], [-0.2, 0.4]])}
    for section in (
        {"name": "adamw", "weight_decay": 0.1},
        {"name": "stable_adamw", "weight_decay": 0.1},
        {"name": "spam", "weight_decay": 0.1},
        {"name": "stable_spam", "weight_decay": 0.1},
    ):
        one = optax.chain(
            optim.from_config({**section, "learning_rate": 1.0}, 9), optax.scale(0.01)
        )
        other = optim.from_config({**section, "learning_rate": 0.01}, 9)
        found, expected = (
            jax.jit(tx.update)(gradient, tx.init(params), params)[0] for tx in (one, other)
        )
        np.testing.assert_allclose(found["w"], expected["w"], rtol=1e-6, err_msg=section["name"])
