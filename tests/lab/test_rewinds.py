"""Going back in the lab: the run whose plan lacks what was passed over, as the trainer has it."""

import numpy as np
import pytest

from jaxclip import config as config_lib
from jaxclip.lab import config as lab_config
from jaxclip.lab import injectors, measures, policy_table, rewinds, runner, tables
from jaxclip.train import rewind

STEPS = 40
PLACE = injectors.Place(0, STEPS, 2, ("w",), np.zeros(9, int))


def training(**policy):
    changes = {"actions": "rewind", "rewind_steps": 3, **policy}
    return config_lib.resolve(
        {"total_steps": STEPS, "on_spike": changes, "checkpoint": {"every_steps": 5}}
    )


def plan(config, steps):
    """Rows that can be told apart: the row's number is in ``logit_scale``; some have a spike."""
    made = injectors.make_plan(
        injectors.build({"name": "scale", "k": 9.0, "steps": list(steps)}), PLACE
    )
    longer = injectors.extend(made, PLACE, rewinds.spare(config))
    return longer._replace(logit_scale=np.arange(len(longer.image), dtype=np.float32))


def once(rows):
    """A run whose loss is the number of the row, and which spikes at rows with a factor."""
    assert len(rows.image) == STEPS
    spike = (rows.gradient != 1).any(axis=1)
    return {"loss": rows.logit_scale.copy(), "watch/spike": 2.0 * spike}


def test_the_batches_since_the_checkpoint_are_passed_over():
    config = training()
    # The row 18 is step 19: back to step 15, past rows 15 to 18. Row 19 comes next.
    found = rewinds.run(once, plan(config, [18]), config)
    assert found["loss"].tolist() == [*range(15), *range(19, 19 + STEPS - 15)]
    assert found[rewinds.REPEATED] == 4 and found[rewinds.TIMES] == 1
    assert not found["watch/spike"].any()


def test_only_the_last_ones_where_the_policy_says_so():
    config = training(rewind_batches=1)
    found = rewinds.run(once, plan(config, [18]), config)
    assert found["loss"].tolist() == [*range(18), *range(19, STEPS + 1)]
    assert found[rewinds.REPEATED] == 4


def test_batches_behind_the_spikes_own_too_where_it_says_so():
    config = training(rewind_beyond=6)
    # Rows 15 to 18 and six more: the spikes of rows 20 and 22 never come.
    found = rewinds.run(once, plan(config, [18, 20, 22]), config)
    assert found["loss"].tolist() == [*range(15), *range(25, 25 + STEPS - 15)]
    assert found[rewinds.TIMES] == 1 and found[rewinds.REPEATED] == 4
    # Without it each of them is a rewind of its own.
    found = rewinds.run(once, plan(training(), [18, 20, 22]), training())
    assert found[rewinds.TIMES] > 1


def test_a_second_spike_and_one_near_the_start():
    config = training()
    # Row 1, step 2: back to the start past rows 0 and 1. Row 30 is then step 29: back to 25.
    found = rewinds.run(once, plan(config, [1, 30]), config)
    assert found["loss"].tolist() == [*range(2, 27), *range(31, 31 + 15)]
    assert found[rewinds.REPEATED] == 2 + 4 and found[rewinds.TIMES] == 2


def test_the_limit_ends_the_run():
    config = training(rewind_limit=1)
    found = rewinds.run(once, plan(config, [18, 30]), config)
    assert found[rewinds.TIMES] == 1
    step = int(np.flatnonzero(found["watch/spike"])[0])
    assert np.isfinite(found["loss"][:step]).all() and np.isnan(found["loss"][step:]).all()
    assert measures.final_loss(found["loss"]) == np.inf


def test_without_the_policy_the_plan_is_run_as_it_is():
    config = training(actions="skip")
    assert rewinds.spare(config) == 0
    found = rewinds.run(once, plan(config, [18]), config)
    assert found["loss"].tolist() == list(range(STEPS)) and rewinds.TIMES not in found


def test_there_are_rows_enough():
    """The most that can be passed over: a spike in the last step before the next checkpoint."""
    config = training(rewind_limit=3)
    found = rewinds.run(once, plan(config, [8, 17, 26]), config)
    assert found[rewinds.TIMES] == 3 and len(found["loss"]) == STEPS


def test_the_table_tells_what_was_done():
    config = lab_config.resolve(
        {
            "rules": {"plain": {}, "rewind": {"on_spike": {"actions": "rewind"}}},
            "rates": [0.01],
            "injectors": {"scale": {"name": "scale", "steps": [5]}},
        }
    )
    results = {}
    for seed, spikes in ((0, 2.0), (1, 1.0)):
        cell = lab_config.Cell("plain", "float32", "rewind", 0.01, "scale", seed)
        numbers = {"judged": spikes, "rewinds": 1.0, "steps_repeated": 30.0}
        results[cell] = tables.Result(cell, {}, numbers, {})
    cell = cell._replace(rule="plain")
    results[cell] = tables.Result(cell, {}, {"judged": 3.0}, {})
    table = policy_table.policies(config, results)
    assert table.rows == [
        ("rewind", "scale", "rewind", "1.5", "1.0", "30.0"),
        ("plain", "scale", "none", "3.0", "", ""),
    ]
    results = {cell: tables.Result(cell, {}, {"final_loss": 1.0}, {})}
    assert policy_table.policies(config, results) is None


@pytest.mark.slow
def test_a_run_that_went_back_is_the_run_without_the_batches(monkeypatch):
    """The real step: bit for bit the run whose plan never had these rows."""
    tower = {"width": 8, "depth": 1, "num_heads": 2, "mlp_dim": 16}
    given = {
        "train": {
            "total_steps": 32,
            "global_batch_size": 8,
            "data": {"image_size": 8},
            "tokenizer": {"context_length": 4},
            "model": {"image": {"patch_size": 4, **tower}, "text": tower, "embed_dim": 8},
            "optim": {"schedule": {"name": "constant", "warmup_steps": 4}},
            "watch": {"window": 8, "min_history": 8, "threshold": 20.0},
            "checkpoint": {"every_steps": 4},
        },
        "rules": {"rewind": {"on_spike": {"actions": "rewind", "rewind_steps": 2}}},
        "rates": [0.01],
        "injectors": {"scale": {"name": "scale", "k": 1000.0, "steps": [20]}},
        "last_steps": 4,
        "damage_steps": 8,
    }
    made = []

    class Remembered(rewind.Rewinds):
        def __init__(self, *args):
            super().__init__(*args)
            made.append(self)

    monkeypatch.setattr(rewinds, "Rewinds", Remembered)
    config = lab_config.resolve(given)
    lab = runner.Lab(config)
    cell = lab_config.Cell("plain", "float32", "rewind", 0.01, "scale", 0)
    hit, _ = lab.run(cell)
    passed = next(each.passed_over for each in made if each.done)
    assert any(first <= 20 <= last for first, last in passed)
    own = lab._program_of(cell)
    place = lab._place(cell, own.names)
    clean = injectors.extend(lab.plan(cell.clean(), own.names), place, own.spare)
    for first, last in reversed(passed):
        clean = injectors.Plan(*(np.delete(a, slice(first, last + 1), 0) for a in clean))
    never = own.run(cell.rate, cell.seed, clean)
    assert never[rewinds.TIMES] == 0 and hit[rewinds.TIMES] >= 1
    np.testing.assert_array_equal(hit["loss"], never["loss"])
    assert np.isfinite(hit["loss"]).all() and hit["grad_norm"].max() < 200
