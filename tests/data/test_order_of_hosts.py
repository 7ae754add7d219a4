"""Each record once an epoch, whatever the hosts, the shards, and where training stops."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from jaxclip.data import pipeline, sources
from jaxclip.fields import Index

HOSTS, SHARDS, RECORDS, BATCH = (1, 2, 3, 8), (1, 7, 64), 130, 24


@pytest.fixture(scope="module")
def folders(tmp_path_factory, toys):
    """The same records in so many shards."""
    root = tmp_path_factory.mktemp("shards")
    return {
        count: str(
            toys.write_data_set(root / str(count), {"train": toys.records(RECORDS)}, shards=count)
        )
        for count in SHARDS
    }


def keys(folder, hosts, steps, seed=4):
    """Keys of the records of some steps, joined over hosts; no picture is decoded for them."""
    source = sources.open(folder).source("train")
    makers = [
        pipeline.batch_maker(
            {"name": folder}, _no_texts, BATCH, seed, host, hosts, {"i": Index()}, None
        )
        for host in range(hosts)
    ]
    rows = [np.concatenate([maker(step)["i"] for maker in makers]) for step in steps]
    return [[source[int(index)].key for index in row] for row in rows]


def _no_texts(texts):
    return np.zeros((len(texts), 1), np.int32)


@pytest.mark.parametrize("shards", SHARDS)
@pytest.mark.parametrize("hosts", HOSTS)
def test_every_key_comes_once_an_epoch(folders, hosts, shards):
    steps = range(-(-3 * RECORDS // BATCH))
    row = [key for batch in keys(folders[shards], hosts, steps) for key in batch]
    epochs = [row[start : start + RECORDS] for start in range(0, 3 * RECORDS, RECORDS)]
    assert all(len(set(epoch)) == RECORDS for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


@hypothesis.given(
    stops=st.lists(st.integers(1, 30), min_size=1, max_size=5),
    hosts=st.lists(st.sampled_from(HOSTS), min_size=6, max_size=6),
    shards=st.sampled_from(SHARDS),
)
@hypothesis.settings(max_examples=12, deadline=None)
def test_stopping_anywhere_and_other_hosts_change_nothing(folders, stops, hosts, shards):
    ends = sorted(set(stops))
    whole = keys(folders[shards], 1, range(ends[-1]))
    pieces, start = [], 0
    for end, count in zip(ends, hosts, strict=False):
        pieces += keys(folders[shards], count, range(start, end))
        start = end
    assert pieces == whole
