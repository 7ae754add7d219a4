"""Memory of opening published weights."""

import mmap

import numpy as np
import pytest

from jaxclip.bench import weights
from jaxclip.models import presets
from jaxclip.weights.checkpoint import open_checkpoint
from tests.patience import until


@pytest.mark.parametrize("random", [False, True])
def test_the_checkpoint_is_one_and_may_be_holes(tmp_path, random):
    size = weights.write_checkpoint(
        tmp_path / "w", "vit_s32", depth=1, dtype="float16", shards=3, random=random
    )
    opened = open_checkpoint(tmp_path / "w")
    assert opened.family == "hf_clip" and len(list((tmp_path / "w").glob("*.safetensors"))) == 3
    assert opened.sizes.image.width == presets.get("vit_s32").image.width
    used = [opened.tensors[entry.theirs] for entry in opened.entries]
    assert sum(np.prod(t.shape, dtype=np.int64) * t.dtype.itemsize for t in used) == size
    on_disk = sum(file.stat().st_blocks * 512 for file in (tmp_path / "w").glob("*.safetensors"))
    assert on_disk >= size if random else on_disk < size / 10
    # Nothing is read twice as large as it is, and what is read are the numbers.
    first = used[0].read()
    assert first.dtype == np.float16 and bool(np.any(first)) == random


def test_a_full_disk_is_said_before_anything_is_written(tmp_path, monkeypatch):
    usage = weights.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(weights.shutil, "disk_usage", lambda path: usage._replace(free=10**6))
    with pytest.raises(ValueError, match=r"has no room for 0\.0 GiB; leave out --random"):
        weights.write_checkpoint(tmp_path / "w", "vit_s32", depth=1, random=True)
    assert not list((tmp_path / "w").glob("*.safetensors"))


def test_the_peak_counts_what_was_let_go(monkeypatch):
    looks, own_mib = [], weights.own_mib

    def look():
        looks.append(own_mib())
        return looks[-1]

    monkeypatch.setattr(weights, "own_mib", look)

    def work():
        # Pages that no one has had: an allocator may have some left of what was let go before.
        pages = mmap.mmap(-1, 64 * 2**20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        pages.write(b"1" * len(pages))
        before = len(looks)
        until(lambda: len(looks) > before + 1)  # of two looks one began with these pages
        pages.close()
        return 3

    result, peak = weights.peak_of(work)
    assert result == 3 and 50 * 2**20 < peak < 300 * 2**20


@pytest.mark.slow
@pytest.mark.parametrize(("case", "most"), [("stored", 1.1), ("float32", 1.1), ("import", 1.3)])
def test_opening_takes_little_more_than_the_weights(tmp_path, case, most):
    weights.write_checkpoint(tmp_path / "weights", "vit_bigg14", depth=4, random=True)
    found = weights.measure(case, tmp_path)
    assert found["peak"] <= most * found["result"]


@pytest.mark.slow
def test_into_a_mesh_less_than_a_shard_is_held_beside_it(tmp_path):
    weights.write_checkpoint(tmp_path / "weights", "vit_bigg14", depth=4)
    found = weights.measure("mesh", tmp_path)
    assert found["peak"] - found["result"] <= 1.1 * found["result"] / weights.DEVICES
