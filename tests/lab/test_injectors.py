"""Injectors as what they are: arrays over the steps, functions of options and seed."""

import jax
import numpy as np
import pytest

from jaxclip.lab import injectors, program

NAMES = ("image/patch_embedding/kernel", "image/blocks_0/mlp/up/kernel", "logit_scale")


def place(seed=3, steps=200, groups=(0,) * 20 + (1,) * 20):
    return injectors.Place(seed, steps, 4, NAMES, np.asarray(groups))


def plan(section, **kwargs):
    return injectors.make_plan(injectors.build(section), place(**kwargs))


def changed(section, **kwargs):
    """Names of the arrays that an injector changes."""
    clean, hit = plan("none", **kwargs), plan(section, **kwargs)
    return {
        name
        for name, a, b in zip(clean._fields, clean, hit, strict=True)
        if not np.array_equal(a, b, equal_nan=True)
    }


def test_batches_depend_on_seed_and_step_alone():
    whole, short, other = plan("none"), plan("none", steps=50), plan("none", seed=4)
    np.testing.assert_array_equal(whole.image[:50], short.image)
    np.testing.assert_array_equal(whole.image, whole.text)
    assert not np.array_equal(whole.image, other.image)
    assert all(len(set(row)) == 4 for row in whole.image)
    assert len(np.unique(whole.image)) == 40


def test_scale_hits_the_share_it_was_told():
    hit = plan({"name": "scale", "k": 7.0, "share": 0.05, "start": 100})
    steps = np.flatnonzero(hit.active)
    assert len(steps) == 5 and steps.min() >= 100  # 5% of the 100 steps behind the start
    assert (hit.gradient[steps] == 7).all()
    assert (np.delete(hit.gradient, steps, axis=0) == 1).all()
    other = plan({"name": "scale", "k": 7.0, "share": 0.05, "start": 100}, seed=4)
    assert not np.array_equal(hit.active, other.active)


def test_scale_of_one_tensor():
    hit = plan({"name": "scale", "k": 7.0, "steps": [3], "path": "mlp"})
    assert np.argwhere(hit.gradient != 1).tolist() == [[3, 1]]


def test_stale_v_divides_up_to_its_step():
    hit = plan({"name": "stale_v", "k": 30.0, "start": 150})
    np.testing.assert_array_equal(hit.gradient[:150, 0], np.float32(1) / np.float32(30))
    assert (hit.gradient[150:] == 1).all() and (hit.gradient[:, 1:] == 1).all()
    assert np.flatnonzero(hit.active).tolist() == [150]


def test_labels_roll_and_constant_repeats():
    clean = plan("none")
    rolled = plan({"name": "labels", "start": 10, "count": 2})
    np.testing.assert_array_equal(rolled.text[10:12], np.roll(clean.text[10:12], 1, axis=1))
    np.testing.assert_array_equal(rolled.text[12:], clean.text[12:])
    np.testing.assert_array_equal(rolled.image, clean.image)
    one = plan({"name": "constant", "start": 10, "count": 1})
    assert len(set(one.image[10])) == len(set(one.text[10])) == 1
    assert one.image[10, 0] == one.text[10, 0]


def test_shift_changes_the_group():
    hit = plan({"name": "shift", "start": 60})
    assert (hit.image[:60] < 20).all() and (hit.image[60:] >= 20).all()
    np.testing.assert_array_equal(hit.image, hit.text)


@pytest.mark.parametrize(
    ("section", "fields"),
    [
        ({"name": "direction", "k": 5.0, "steps": [2]}, {"direction", "active"}),
        ({"name": "rate", "k": 5.0, "start": 2, "count": 3}, {"rate", "active"}),
        ({"name": "temperature", "steps": [2]}, {"logit_scale", "active"}),
        ({"name": "bitflip", "exponent": 3, "steps": [2]}, {"weight", "active"}),
        ({"name": "nonfinite", "steps": [2]}, {"gradient", "active"}),
        ({"name": "pixels", "start": 2, "count": 1}, {"noise", "active"}),
        ({"name": "heavy_tail", "start": 2, "count": 3}, {"tail", "df", "active"}),
    ],
    ids=lambda value: "" if isinstance(value, set) else str(value),
)
def test_only_its_own_arrays_change(section, fields):
    assert changed(section) == fields


# Each switched off by its own options; a shift that is none is one that is not there.
OFF = {
    "bitflip": {},
    "constant": {"count": 0},
    "direction": {"share": 0.0},
    "heavy_tail": {"count": 0},
    "labels": {"count": 0},
    "nonfinite": {},
    "pixels": {"count": 0},
    "rate": {"count": 0},
    "scale": {"share": 0.0},
    "stale_v": {"k": 1.0, "start": 100},
    "temperature": {},
}


@pytest.mark.parametrize("name", OFF)
def test_off_is_the_plan_of_the_clean_run(name):
    """A run is a function of rate, seed and plan: the same plan is the same run, to the bit."""
    # The step at which `stale_v` would end stays marked, for the report.
    assert changed({"name": name, **OFF[name]}) - {"active"} == set()


def test_every_injector_is_in_a_test():
    assert set(injectors.INJECTORS.names()) == OFF.keys() | {"shift"}


def test_values():
    flip = plan({"name": "bitflip", "exponent": 3, "steps": [2], "path": "kernel$"})
    assert np.count_nonzero(flip.weight != 1) == 1 and flip.weight[2].max() == 8
    assert np.isnan(plan({"name": "nonfinite", "steps": [2]}).gradient[2, 0])
    assert plan({"name": "temperature", "value": 2.0, "steps": [2]}).logit_scale[2] == 2
    assert plan({"name": "rate", "k": 5.0, "start": 2, "count": 3}).rate.tolist()[1:6] == [
        1, 5, 5, 5, 1,
    ]  # fmt: skip


def test_labels_of_a_share_of_the_steps():
    hit = plan({"name": "labels", "share": 0.1, "start": 100})
    steps = np.flatnonzero(hit.active)
    assert len(steps) == 10 and steps.min() >= 100
    rows = np.flatnonzero((hit.text != hit.image).any(axis=1))
    np.testing.assert_array_equal(rows, steps)


def test_a_tail_lasts_to_the_end_unless_told_otherwise():
    hit = plan({"name": "heavy_tail", "k": 2.0, "df": 3.0, "start": 150})
    assert np.flatnonzero(hit.tail).tolist() == list(range(150, 200))
    assert (hit.tail[150:] == 2).all() and (hit.df[150:] == 3).all()


def test_rows_behind_a_plan_are_clean_and_in_order():
    hit = plan({"name": "scale", "k": 7.0, "steps": [199]})
    longer = injectors.extend(hit, place(), 5)
    clean = injectors.empty_plan(place(steps=205))
    for own, before, rest in zip(longer, hit, clean, strict=True):
        np.testing.assert_array_equal(own[:200], before)
        np.testing.assert_array_equal(own[200:], rest[200:])
    assert injectors.extend(hit, place(), 0) is hit


def test_several_at_once():
    hit = plan([{"name": "scale", "k": 2.0, "steps": [3]}, {"name": "labels", "count": 1}])
    assert np.flatnonzero(hit.active).tolist() == [0, 3]
    assert (hit.gradient[3] == 2).all()


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("scael", "unknown injector 'scael'; did you mean 'scale'"),
        ({"name": "scale", "kk": 3}, "unknown option 'kk' of injector 'scale'; did you mean 'k'"),
        ({"name": "scale", "k": "3"}, "k='3' of injector 'scale' must be float"),
        ({"name": "scale", "share": 1.5}, "share=1.5 must be in"),
        ({"name": "scale", "steps": [200]}, "step 200 is not in a run of train.total_steps=200"),
        ({"name": "scale", "path": "nothing"}, "path='nothing' matches no parameter"),
        ({"name": "scale", "path": "("}, "is no pattern"),
        ({"name": "labels", "start": 199, "count": 2}, "steps 199 to 200 are not in a run"),
        ({"name": "stale_v", "k": 0.0}, "k=0.0 must be positive"),
        ({"name": "shift", "start": 500}, "not in a run"),
        ({"name": "heavy_tail", "df": 0.0}, "df=0.0 must be positive"),
        ({"name": "heavy_tail", "start": 300}, "not in a run"),
    ],
    ids=str,
)
def test_mistakes(section, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        plan(section)


def test_too_few_pairs():
    with pytest.raises(ValueError, match=r"global_batch_size=4, but there are only 3 pairs"):
        plan("none", groups=(0, 0, 0))
    with pytest.raises(ValueError, match="one group only"):
        plan({"name": "shift", "start": 60}, groups=(0,) * 20)


def test_noise_is_students():
    """Quantiles of many draws beside the closed forms, within four of their standard errors."""
    q = np.asarray([0.001, 0.05, 0.25, 0.5, 0.75, 0.95, 0.999])
    cauchy, two = np.tan(np.pi * (q - 0.5)), (2 * q - 1) / np.sqrt(2 * q * (1 - q))
    draw = jax.jit(lambda df: program.student_t(jax.random.key(0), df, (100_000,)))
    for df, expected, density in (
        (1.0, cauchy, 1 / (np.pi * (1 + cauchy**2))),
        (2.0, two, (2 + two**2) ** -1.5),
    ):
        drawn = np.asarray(draw(df))
        error = np.sqrt(q * (1 - q) / len(drawn)) / density
        assert (np.abs(np.quantile(drawn, q) - expected) < 4 * error).all(), df
