"""Sampling by weights: exact in each epoch, a function of (seed, epoch, place)."""

import json

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from jaxclip.data import pipeline, sampling
from jaxclip.data.mixture import BLOCK, MixtureOrder
from jaxclip.data.record import Record
from jaxclip.data.sampling import SampledOrder
from jaxclip.fields import Index

WEIGHTS = st.lists(
    st.one_of(st.just(0.0), st.just(1.0), st.floats(0.001, 3.0)), min_size=1, max_size=40
).filter(any)


@hypothesis.given(WEIGHTS, st.integers(0, 2**40), st.integers(1, 50), st.integers(1, 9))
def test_each_epoch_has_each_record_as_often_as_its_weight_to_within_one(
    weights, seed, window, chunk
):
    sampled = SampledOrder(np.array(weights), seed, window, chunk)
    size = sampled.epoch_size
    assert size == max(1, round(sum(weights)))
    scaled = np.array(weights) * size / sum(weights)
    for epoch in range(4):
        records = sampled(np.arange(epoch * size, (epoch + 1) * size))
        counts = np.bincount(records, minlength=len(weights))
        assert (np.abs(counts - scaled) < 1 + 1e-9).all()
        assert not counts[scaled == 0].any()


@hypothesis.given(WEIGHTS, st.lists(st.integers(0, 10_000), min_size=1, max_size=30))
def test_a_place_does_not_depend_on_what_was_asked_before(weights, places):
    together = SampledOrder(np.array(weights), 7)(np.array(places))
    alone = [SampledOrder(np.array(weights), 7)(np.array([place]))[0] for place in places]
    assert together.tolist() == alone


@hypothesis.given(WEIGHTS, st.integers(0, 10**12), st.integers(0, 9))
def test_replacements_have_a_weight(weights, place, attempt):
    record = SampledOrder(np.array(weights), 3).replacement(place, attempt)
    assert weights[record] > 0


def test_over_many_epochs_frequencies_are_the_weights():
    weights = np.array([1.0, 0.5, 0.05, 0.5, 0.3, 2.5, 0.0, 0.15])
    sampled = SampledOrder(weights, 11)
    epochs = 2000
    records = sampled(np.arange(epochs * sampled.epoch_size))
    means = np.bincount(records, minlength=len(weights)) / epochs
    # A count is one of two neighbours: its variance is at most a quarter.
    assert np.abs(means - weights).max() < 5 * 0.5 / np.sqrt(epochs)
    assert sampled.epoch_size == 5


def test_equal_weights_are_permutations():
    sampled = SampledOrder(np.ones(30), 5)
    for epoch in range(3):
        assert sorted(sampled(np.arange(30) + 30 * epoch)) == list(range(30))


@pytest.fixture(scope="module")
def folder(tmp_path_factory, toys):
    """Nine records of three classes (6, 2 and 1 of them), with weights in their meta."""
    labels = [0] * 6 + [1] * 2 + [2]
    records = [
        Record(toys.picture(i), (f"thing {i}",), label, f"k{i}", json.dumps({"weight": i / 10}))
        for i, label in enumerate(labels)
    ]
    records.append(Record(toys.picture(9), ("thing 9",), -1, "k9", json.dumps({"weight": 1})))
    names = ["a", "b", "c"]
    return toys.write_data_set(
        tmp_path_factory.mktemp("d") / "d", {"train": records}, class_names=names
    )


def weights(folder, written):
    return sampling.weights_of(written, pipeline.training_data(config(folder)), "train")


def config(folder, **more):
    return pipeline.complete({"name": str(folder), **more})


def test_weights_come_from_records_files_and_classes(folder, tmp_path):
    expected = [*(i / 10 for i in range(9)), 1]
    np.testing.assert_allclose(weights(folder, "column"), expected)
    np.save(tmp_path / "w.npy", np.arange(10, dtype=np.float32))
    np.testing.assert_array_equal(weights(folder, f"file('{tmp_path / 'w.npy'}')"), np.arange(10))
    by_class = [1 / 6] * 6 + [1 / 2] * 2 + [1, 1]
    np.testing.assert_allclose(weights(folder, "classes"), by_class)
    np.testing.assert_allclose(weights(folder, "classes(power=0.5)"), np.sqrt(by_class))
    np.testing.assert_allclose(weights(folder, "classes(limit=3)"), [1 / 2] * 6 + [1] * 4)
    assert weights(folder, "") is None


def test_stored_numbers_take_precedence(folder, toys, tmp_path):
    own = toys.write_data_set(tmp_path / "own", {"train": toys.records(4)})
    pipeline.write_stored(own, "train", "weight", np.float32([[1], [0], [2], [0]]))
    np.testing.assert_array_equal(weights(own, "column('weight')"), [1, 0, 2, 0])


def batches(folder, steps, hosts=1, **more):
    makers = [
        pipeline.batch_maker(
            config(folder, **more),
            tokenizer=lambda texts: np.zeros((len(texts), 1), np.int32),
            global_batch_size=12,
            seed=4,
            process_index=host,
            process_count=hosts,
            spec={"i": Index()},
        )
        for host in range(hosts)
    ]
    return [np.concatenate([maker(step)["i"] for maker in makers]).tolist() for step in steps]


def test_batches_are_sampled_alike_on_any_number_of_hosts(folder):
    whole = batches(folder, range(20), sampling="column('weight')")
    for hosts in (2, 3):
        assert batches(folder, range(20), hosts, sampling="column('weight')") == whole
    counts = np.bincount(np.concatenate(whole), minlength=10)
    assert counts[0] == 0 and counts[1] > 0
    expected = 240 * np.array([*range(9), 10]) / 46
    assert np.abs(counts - expected).max() < 15


def test_a_source_of_a_mixture_may_have_weights():
    mixed = MixtureOrder([4, 4], [1, 1], 0, record_weights=[None, np.array([0, 1.0, 0, 1.0])])
    counts = np.bincount(mixed(np.arange(BLOCK)), minlength=8)
    np.testing.assert_array_equal(counts, [512] * 4 + [0, 1024, 0, 1024])


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("colum('weight')", "unknown sampling 'colum'; did you mean 'column'"),
        ("column('wieght')", "10 of 10 records have no weight of 0 or more; the first is number 0"),
        ("file", "must name a file"),
        ("file('/nowhere/w.npy')", "can't be read"),
        ("classes(limit=2, power=0.5)", "give either limit or power"),
        ("column|classes", "must be one of classes, column, curated, file"),
    ],
)
def test_mistakes_are_named(folder, written, message):
    with pytest.raises(ValueError, match=message):
        weights(folder, written)
    with pytest.raises(ValueError, match=message):
        batches(folder, [0], sampling=written)


def test_what_does_not_go_together(folder):
    with pytest.raises(ValueError, match=r"does not go with data\.examples_per_class"):
        batches(folder, [0], sampling="classes", examples_per_class=2)
    with pytest.raises(ValueError, match=r"does not go with data\.mixture"):
        batches(folder, [0], sampling="classes", mixture=[{"name": str(folder)}])
