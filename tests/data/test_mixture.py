"""Mixtures: exact shares in any block, epochs within each source, a function of (seed, place)."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from jaxclip.data import mixture, pipeline, sources
from jaxclip.data.mixture import BLOCK, MixtureOrder


@hypothesis.given(
    sizes=st.lists(st.integers(1, 500), min_size=1, max_size=5),
    seed=st.integers(0, 2**40),
    block=st.integers(0, 3),
    data=st.data(),
)
@hypothesis.settings(max_examples=25, deadline=None)
def test_each_block_has_the_shares_and_sources_go_through_epochs(sizes, seed, block, data):
    weights = data.draw(
        st.lists(st.floats(0.2, 5.0), min_size=len(sizes), max_size=len(sizes)), label="weights"
    )
    mixed = MixtureOrder(sizes, weights, seed)
    shares = np.array(weights) / sum(weights) * BLOCK
    assert mixed.counts.sum() == BLOCK and np.abs(mixed.counts - shares).max() < 1
    starts = np.cumsum([0, *sizes])
    indices = mixed(np.arange((block + 1) * BLOCK))
    for number, size in enumerate(sizes):
        mine = indices[(indices >= starts[number]) & (indices < starts[number + 1])]
        assert len(mine) == (block + 1) * mixed.counts[number]
        # Epoch after epoch: whole ones hold every record once.
        whole = len(mine) // size * size
        times = np.bincount(mine[:whole] - starts[number], minlength=size)
        assert (times == whole // size).all()


@hypothesis.given(places=st.lists(st.integers(0, 3 * BLOCK), min_size=1, max_size=40))
@hypothesis.settings(max_examples=25, deadline=None)
def test_a_place_does_not_depend_on_what_was_asked_before(places):
    sizes, weights = [17, 300], [1.0, 2.0]
    together = MixtureOrder(sizes, weights, 3)(np.array(places))
    alone = [MixtureOrder(sizes, weights, 3)(np.array([place]))[0] for place in places]
    assert together.tolist() == alone


def test_without_weights_it_is_as_one_data_set():
    mixed = MixtureOrder([100, 300], [None, None], 0)
    assert mixed.counts.tolist() == [BLOCK // 4, 3 * BLOCK // 4]


def test_replacements_are_of_the_same_source():
    mixed = MixtureOrder([10, 1000], [1.0, 1.0], 0)
    places = np.arange(200)
    first = mixed(places) < 10
    stand_ins = np.array([mixed.replacement(int(p), 0) for p in places])
    np.testing.assert_array_equal(stand_ins < 10, first)
    assert len(set(stand_ins)) > 50


def test_a_source_that_would_never_come_is_refused():
    with pytest.raises(ValueError, match=r"data.mixture\[1\] would have less than one of 4096"):
        MixtureOrder([10, 10], [1e6, 1.0], 0)


@pytest.fixture(scope="module")
def folders(tmp_path_factory, toys):
    root = tmp_path_factory.mktemp("mixed")
    return [
        str(toys.write_data_set(root / name, {"train": toys.records(count), "val": []}, shards=1))
        for name, count in (("few", 10), ("many", 40))
    ]


def batches(config, tokenize, steps, *, rows=16, **options):
    pytest.importorskip("tensorflow")
    iterator = pipeline.train_iterator(
        {"image_size": 8, **config}, tokenizer=tokenize, global_batch_size=rows, seed=2, **options
    )
    made = [next(iterator) for _ in range(steps)]
    iterator.close()
    return made


def test_training_draws_from_all_sources_and_is_exact_anywhere(folders, tokenize):
    config = {"mixture": [{"name": folders[0], "weight": 3}, {"name": folders[1], "weight": 1}]}
    whole = batches(config, tokenize, 6)
    later = batches(config, tokenize, 3, start_step=3)
    halves = [
        batches(config, tokenize, 6, process_index=index, process_count=2) for index in range(2)
    ]
    for step in range(6):
        for key in ("image", "text"):
            joined = np.concatenate([half[step][key] for half in halves])
            np.testing.assert_array_equal(joined, whole[step][key])
            if step >= 3:
                np.testing.assert_array_equal(later[step - 3][key], whole[step][key])


def test_each_source_has_its_caption_rule(folders):
    given = [{"name": folders[0], "captions": "first"}, {"name": folders[1], "captions": "longest"}]
    made = mixture.Mixture(mixture.parts(given, sources.open, "train"), "train")
    source = made.source("train")
    plain = [sources.open(folder).source("train") for folder in folders]
    assert len(source) == 50 == made.splits["train"]
    assert source[3].texts == plain[0][3].texts[:1]
    assert source[10].texts == (max(plain[1][0].texts, key=len),)
    assert source[49].key == plain[1][39].key and source.picture(9).key == plain[0][9].key


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("emoji", "must be a list"),
        (["emoji"], "must be a mapping with a 'name'"),
        ([{"name": "emoji", "wieght": 1}], "did you mean 'weight'"),
        ([{"name": "emoji", "weight": 0}], "weight=0 must be a number above 0"),
        ([{"name": "emoji", "weight": float("nan")}], "must be a number above 0"),
        ([{"name": "emoji", "captions": "best"}], "must be one of all, first, longest"),
        ([{"name": "emoji", "split": "trian"}], r"mixture\[0\].*did you mean 'train'"),
        ([{"name": "emoji", "languages": ["xx"]}], r"mixture\[0\].*xx"),
    ],
)
def test_mistakes_are_named(given, message):
    with pytest.raises(ValueError, match=message):
        mixture.parts(given, sources.open, "train")


def test_classes_together_are_refused(folders, tokenize):
    config = {"mixture": [{"name": folders[0]}], "examples_per_class": 2}
    with pytest.raises(ValueError, match="examples_per_class=2"):
        batches(config, tokenize, 1)
