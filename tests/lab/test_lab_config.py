"""What a lab's configuration may not say, each in one line; and which cells it has."""

import copy
import pathlib

import numpy as np
import pytest

from jaxclip import cli, config_file
from jaxclip.lab import config as config_lib
from jaxclip.lab import injectors
from jaxclip.models import presets

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"

GIVEN = {"rules": {"adamw": {}, "lion": {"name": "lion"}}, "rates": [1e-3, 1e-2]}


def resolve(**changes):
    return config_lib.resolve({**copy.deepcopy(GIVEN), **changes})


def test_cells_are_the_product_of_the_axes():
    cells = config_lib.cells(resolve(injectors={"one": {"name": "labels", "count": 1}}))
    assert len(set(cells)) == len(cells) == 2 * 2 * 2 * 3
    assert {c.injector for c in cells} == {"none", "one"}


def test_parts_of_the_grid_and_their_order():
    grid = [
        {"rules": ["lion"], "seeds": [0]},
        {"rules": ["adamw"], "rates": [0.1], "seeds": [5]},
        {"rules": ["lion"], "seeds": [0, 1], "rates": [1e-3]},
    ]
    cells = config_lib.cells(resolve(grid=grid))
    assert [(c.rule, c.rate, c.seed) for c in cells] == [
        ("lion", 1e-3, 0), ("lion", 1e-2, 0), ("adamw", 0.1, 5), ("lion", 1e-3, 1),
    ]  # fmt: skip


def test_rules_stand_over_the_base():
    config = resolve(train={"optim": {"b2": 0.98, "weight_decay": 0.3}})
    adamw, lion = (config_lib.training(config, "plain", rule)["optim"] for rule in GIVEN["rules"])
    assert adamw["b2"] == 0.98 and adamw["weight_decay"] == lion["weight_decay"] == 0.3
    assert "b2" not in lion  # another optimizer has other options
    assert adamw["learning_rate"] == 1.0 and lion["schedule"] == adamw["schedule"]


def test_digest_is_of_everything_that_counts():
    base = resolve(injectors={"a": {"name": "labels", "count": 1}})
    which = config_lib.Cell("plain", "float32", "adamw", 1e-3, "a", 0)
    digest = config_lib.digest(base, which)
    assert digest == config_lib.digest(resolve(injectors=base["injectors"], title="x"), which)
    others = [
        (base, which._replace(seed=1)),
        (base, which._replace(rate=2e-3)),
        (resolve(injectors={"a": {"name": "labels", "count": 2}}), which),
        (resolve(injectors=base["injectors"], train={"total_steps": 601}), which),
        (resolve(injectors=base["injectors"], watch=["x"]), which),
        (resolve(injectors=base["injectors"], models={"plain": {"embed_dim": 16}}), which),
    ]
    assert len({digest, *(config_lib.digest(*other) for other in others)}) == len(others) + 1


def test_digest_is_not_of_what_says_nothing_here(monkeypatch):
    which = config_lib.Cell("plain", "float32", "adamw", 1e-3, "none", 0)
    digest = config_lib.digest(resolve(), which)
    made = config_lib.training
    monkeypatch.setattr(
        config_lib, "training", lambda *args: {**made(*args), "a_new_key": 1, "log_every_steps": 7}
    )
    assert config_lib.digest(resolve(), which) == digest
    # The history that spikes are judged by counts where something is done about them.
    monkeypatch.undo()
    watch = {"watch": {"window": 50, "min_history": 20}}
    assert config_lib.digest(resolve(train=watch), which) == digest
    for rule in ({"on_spike": {"actions": "skip"}}, {"on_spike": {"actions": "clip"}}):
        plain, watched = (resolve(rules={"adamw": rule}, train=t) for t in ({}, watch))
        assert len({config_lib.digest(c, which) for c in (plain, watched)} | {digest}) == 3


def test_cell_by_name():
    config = resolve()
    assert config_lib.parse_cell("rule=lion,rate=1e-2,seed=1", config) == config_lib.Cell(
        "plain", "float32", "lion", 0.01, "none", 1
    )
    whole = config_lib.cells(config)[3]
    assert config_lib.parse_cell(str(whole), config) == whole


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rule=lion,seed=0", "--cell: rate is missing; one of 0.001, 0.01"),
        ("rule=loin,rate=1,seed=0", "--cell: unknown rule='loin'; did you mean 'lion'?"),
        ("rules=lion", "--cell: 'rules=lion' is no AXIS=VALUE; did you mean 'rule'?"),
        ("rule=lion,rate=fast,seed=0", "--cell: rate='fast' must be a number"),
    ],
)
def test_mistakes_in_a_cell(text, message):
    with pytest.raises(ValueError) as error:
        config_lib.parse_cell(text, resolve())
    assert message in str(error.value)


MISTAKES = [
    ({"rule": {}}, "unknown lab config key 'rule'; did you mean 'rules'?"),
    ({"rules": {}}, "lab config key 'rules' is empty; name at least one"),
    ({"rules": ["adamw"]}, "lab config key 'rules' wants dict, got ['adamw']"),
    ({"rules": {"a": {"name": "adamv"}}}, "rules.a, models.plain: unknown optim.name='adamv'"),
    ({"rules": {"a": {"b3": 0.9}}}, "rules.a, models.plain: optim.b3: 'adamw' has no such option"),
    ({"rules": {"a": {"learning_rate": 1}}}, "rules.a: the learning rate is an axis of its own"),
    ({"rules": {"a": {"update_clip": "elementwise"}}}, "rules.a: update_clip and sam are not for"),
    ({"models": {"a": 3}}, "models.a=3 must be a mapping with keys of model"),
    ({"precisions": [3]}, "precisions: 3 must be the name of a number format"),
    ({"injectors": {"x": 3}}, "injectors.x: injector 3 is neither a name nor a dict with a 'name'"),
    ({"train": {"optim": "sgd"}}, "train.optim wants dict, got 'sgd'"),
    ({"train": {"total_steps": "9"}}, "train.total_steps wants int, got '9'"),
    ({"rules": {"a": "adamw"}}, "rules.a='adamw' must be a mapping with keys of optim"),
    ({"rules": {"a": {"on_spike": {"actions": "skp"}}}}, "unknown action 'skp'; did you mean"),
    ({"rules": {"a": {"on_spike": {"action": "skip"}}}}, "unknown config key 'on_spike.action'"),
    (
        {
            "rules": {
                "a": {"name": "sgd", "weight_decay": 0, "on_spike": {"actions": "reset_moments"}}
            }
        },
        "rules.a, models.plain: on_spike.actions has 'reset_moments', but the state of",
    ),
    (
        {
            "rules": {"a": {"on_spike": {"actions": "rewind"}}},
            "train": {"checkpoint": {"every_steps": 0}},
        },
        "on_spike.actions has 'rewind', which goes back to a checkpoint",
    ),
    ({"rules": {"a-b": {}}}, "rules: name 'a-b'; use letters, digits"),
    ({"rates": [0.0]}, "rates: 0.0 must be a number above 0"),
    ({"seeds": [0.5]}, "seeds: 0.5 must be an integer >= 0"),
    ({"precisions": ["int44"]}, "unknown precision 'int44'; did you mean 'int4'?"),
    ({"precisions": ["int4_mad"]}, "gradient='mad' is for formats that clip, such as"),
    ({"injectors": {"x": {"name": "sclae"}}}, "injectors.x: unknown injector 'sclae'; did you"),
    ({"baseline": "adam"}, "unknown baseline='adam'; did you mean 'adamw'?"),
    ({"last_steps": 10_000}, "last_steps=10000 must be from 1 to train.total_steps=600"),
    ({"grid": [{"rule": ["adamw"]}]}, "grid: unknown axis 'rule'; did you mean 'rules'?"),
    ({"grid": [{"rules": ["adam"]}]}, "grid: rules: 'adam' is not among them; did you mean"),
    ({"grid": [{"rules": "adamw"}]}, "grid: rules='adamw' must be a list"),
    ({"models": {"m": {"image": {"wdith": 3}}}}, "rules.adamw, models.m: unknown config key"),
    ({"train": {"ema_decay": 0.9}}, "train.ema_decay has no meaning in the lab; known: "),
    ({"train": {"optm": {}}}, "train.optm has no meaning in the lab; did you mean 'optim'?"),
    ({"train": {"data": {"nam": ""}}}, "models.plain: unknown config key 'data.nam'; did you"),
]


@pytest.mark.parametrize(("changes", "message"), MISTAKES, ids=[m for _, m in MISTAKES])
def test_mistakes(changes, message):
    with pytest.raises(ValueError) as error:
        resolve(**changes)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_mistakes_on_the_command_line(tmp_path, capsys):
    path = tmp_path / "lab_x.py"
    path.write_text(f"def get_config():\n    return {GIVEN!r}\n")

    def refused(*argv):
        assert cli.main(["lab", "--config", *argv]) == 2
        error = capsys.readouterr().err.strip()
        assert error.startswith("jaxclip: error: ") and "\n" not in error
        return error

    assert "does not exist; did you mean" in refused(str(tmp_path / "lab_y.py"))
    assert "--workdir is missing" in refused(str(path))
    assert "unknown rule='x'" in refused(str(path), "--cell", "rule=x")
    path.write_text("def get_config():\n    return {'rules': {'a': {'name': 'x'}}, 'rates': [1]}\n")
    assert "unknown optim.name='x'" in refused(str(path), "--workdir", str(tmp_path / "w"))
    assert not (tmp_path / "w").exists(), "a refused grid leaves no trace"


def test_list(tmp_path, capsys):
    path = tmp_path / "lab_x.py"
    path.write_text(f"def get_config():\n    return {GIVEN!r}\n")
    assert cli.main(["lab", "--config", str(path), "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 12
    assert lines[0] == "- model=plain,precision=float32,rule=adamw,rate=0.001,injector=none,seed=0"


@pytest.mark.parametrize(
    ("spec", "cells"),
    [
        ("lab_rules.py", 126),
        ("lab_rules.py:clippers", 105),
        ("lab_rules.py:zclip", 54),
        ("lab_rules.py:percentiles", 63),
        ("lab_stale_v.py", 57),
        ("lab_policies.py", 120),
        ("lab_heavy_tails.py", 84),
        ("lab_rules.py:agc", 108),
        ("lab_low_bit.py", 153),
        ("lab_low_bit.py:octav", 39),
        ("lab_cures.py", 84),
        ("lab_cures.py:z_loss", 12),
        pytest.param(
            "lab_cures.py:towers",
            48,
            marks=pytest.mark.skipif(
                not hasattr(presets.ImageConfig, "qk_norm"), reason="towers without these cures"
            ),
        ),
    ],
)
def test_configs_of_the_tables(spec, cells):
    config = config_lib.resolve(config_file.load_file(CONFIGS / spec))
    made = config_lib.cells(config)
    assert len(made) == cells and {c.seed for c in made} == {0, 1, 2}
    # Whatever the patterns match is there: the names are those of the first stage and the blocks.
    place = injectors.Place(
        0,
        config["train"]["total_steps"],
        2,
        ("image/blocks_1/mlp/up/kernel", "image/patch_embedding/kernel"),
        np.arange(4) // 2,
    )
    for section in config["injectors"].values():
        injectors.make_plan(injectors.build(section), place)


@pytest.mark.parametrize("name", ["lab_rules.py", "lab_cures.py", "lab_low_bit.py"])
def test_variants_that_are_not_there(name, capsys):
    assert cli.main(["lab", "--config", f"{CONFIGS / name}:other"]) == 2
    assert "has no variant 'other'; there is" in capsys.readouterr().err
