"""What `bench data` measures with: CPU time of all processes, and its own data sets."""

import concurrent.futures
import os
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
    for kind, sizes in start.memory(60_000, 256).items():
        assert len(sizes) == 10 and max(sizes[5:]) < 1.02 * sizes[4] + 5, (kind, sizes)


def test_what_more_workers_bring_is_said_of_rounds_in_turn():
    def cost(rate, cpu):
        return loading.Cost(rate, cpu, 0.0)

    costs = {
        ("ours", 0): [cost(1.0, 1.0)] * 3,
        ("ours", 1): [cost(100.0, 0.010), cost(50.0, 0.010), cost(80.0, 0.008)],
        ("ours", 2): [cost(190.0, 0.010), cost(95.0, 0.010), cost(40.0, 0.010)],
        ("theirs", 2): [cost(1.0, 1.0)] * 3,
    }
    (line,) = loading._scaling(costs)
    assert "ours, 2 workers make 1.90 times" in line and "CPU time, 2.00 times" in line


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux only")
def test_pinning_holds_for_all_threads_and_ends():
    before, seen = os.sched_getaffinity(0), {}
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        assert pool.submit(os.sched_getaffinity, 0).result() == before
        with loading._on_cpus(1):
            seen["here"] = os.sched_getaffinity(0)
            seen["there"] = pool.submit(os.sched_getaffinity, 0).result()
        assert pool.submit(os.sched_getaffinity, 0).result() == before
    assert seen["here"] == seen["there"] == {min(before)}
    assert os.sched_getaffinity(0) == before
    wrong = pytest.raises(ValueError, match=r"--pin: 9999 workers, but this process may use \d+")
    with wrong, loading._on_cpus(9999):
        pass
