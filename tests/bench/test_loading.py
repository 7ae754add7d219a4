"""What `bench data` measures with: CPU time of all processes, and its own data sets."""

import subprocess
import sys
import time

import pytest

from jaxclip.bench import loading, start
from jaxclip.data import sources

BURN = "import time\nend = time.process_time() + 0.3\nwhile time.process_time() < end: pass\n"


def test_cpu_time_counts_processes_below_this_one():
    before, own = loading.cpu_seconds(), time.process_time()
    program = BURN + "print('done', flush=True)\ninput()"
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        child.stdout.readline()
        spent = loading.cpu_seconds() - before
        child.stdin.close()
    assert 0.25 < spent - (time.process_time() - own) < 10


def test_data_sets_of_many_shards_can_be_read(tmp_path):
    names = [
        str(start._tfrecords(tmp_path / "a", 5)),
        f"webdataset:{start._tars(tmp_path / 'b', 5)}",
    ]
    for name in names:
        source = sources.open(name).source("train")
        assert len(source) == 20
        assert source[17].image == source[1].image != source[2].image


@pytest.mark.slow
def test_memory_does_not_grow_with_the_records_read():
    for kind, sizes in start.memory(200_000, 256).items():
        assert len(sizes) == 10 and max(sizes[5:]) < 1.02 * sizes[4] + 5, (kind, sizes)
