"""What several processes decide alike; each is a thread here, and what they gather is exact."""

import threading

import numpy as np
import pytest
from etils import epath

from jaxclip.errors import RunError
from jaxclip.train import checkpoint_search, manifest, multihost
from tests.patience import LONG


@pytest.fixture
def as_processes(monkeypatch):
    """``run(count, function)``: what ``function(index)`` returns or raises on each process."""
    me = threading.local()

    def run(count, function):
        meeting, given = threading.Barrier(count, timeout=LONG), {}
        results = [None] * count

        def gather(value):
            given[me.index] = np.asarray(value)
            meeting.wait()
            together = np.stack([given[i] for i in range(count)])
            meeting.wait()
            return together

        def process(index):
            me.index = index
            try:
                results[index] = function(index)
            except Exception as error:
                results[index] = error

        monkeypatch.setattr(multihost.jax, "process_count", lambda: count)
        monkeypatch.setattr(multihost.jax, "process_index", lambda: me.index)
        monkeypatch.setattr(multihost.socket, "gethostname", lambda: f"host{me.index}")
        monkeypatch.setattr(multihost.multihost_utils, "process_allgather", gather)
        monkeypatch.setattr(
            multihost.multihost_utils, "broadcast_one_to_all", lambda value: gather(value)[0]
        )
        threads = [threading.Thread(target=process, args=(i,)) for i in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return results

    return run


def test_the_first_problem_is_told_to_all(as_processes):
    def tell(problems):
        return as_processes(3, lambda i: multihost.first_problem(problems[i]))

    assert tell(["", "", ""]) == [""] * 3
    assert tell(["", "no route", ""]) == ["process 1 of 3 on host1: no route"] * 3
    assert tell(["", "é" * 2000, "later"])[2].startswith("process 1 of 3 on host1: éé")
    assert len(set(tell(["", "é" * 2000, ""]))) == 1


@pytest.mark.parametrize("error", [OSError("disk full"), ValueError("bad"), RunError("no")])
def test_what_one_can_not_do_ends_all_with_one_line(as_processes, error):
    went_on = []

    def work(index):
        with multihost.together("checkpoint 5 can't be fetched"):
            if index == 1:
                raise error
        went_on.append(index)

    raised = as_processes(3, work)
    line = f"checkpoint 5 can't be fetched: process 1 of 3 on host1: {error}"
    assert [(type(each), str(each)) for each in raised] == [(multihost.ProcessesError, line)] * 3
    assert raised[1].__cause__ is error and not went_on
    error = None
    assert as_processes(3, lambda i: work(0)) == [None] * 3


def test_a_fault_of_the_program_keeps_its_trace_and_ends_the_others(as_processes):
    def work(index):
        with multihost.together("this can't be done"):
            return {}["key"] if index == 0 else None

    raised = as_processes(2, work)
    assert isinstance(raised[0], KeyError)
    assert str(raised[1]) == "this can't be done: process 0 of 2 on host0: 'key'"


def test_one_process_alone_keeps_its_own_error():
    with pytest.raises(OSError, match=r"^full$"), multihost.together("it"):
        raise OSError("full")


class Folder:
    """Of checkpoints, one process of which fails at one of the things to be done with it."""

    place = "gs://bucket/run/checkpoints"
    harmed = ()

    def __init__(self, index):
        self.index, self.damaged = index, set()

    def do(self, what):
        if self.harmed == (self.index, what):
            raise {"verify": manifest.ManifestError}.get(what, OSError)(f"{what} failed")

    def on_disk(self):
        return [1]

    def path(self, step):
        return epath.Path("step_00000001")

    def manifest(self, step):
        return {"tree": {}, "extra": {}, "metrics": {}}

    def check(self, step):
        self.do("choose")

    def bring(self, step, wanted):
        self.do("fetch")
        self.do("verify")
        return self.path(step)

    def join(self, place, content):
        pass

    def release(self):
        pass


@pytest.mark.parametrize("harmed", [(0, "choose"), (1, "fetch"), (1, "verify")])
def test_a_checkpoint_that_one_process_can_not_fetch_ends_all(as_processes, monkeypatch, harmed):
    """None goes on with an older checkpoint, or waits for the one that failed."""
    monkeypatch.setattr(checkpoint_search.state_io, "restore", lambda path, wanted: "state")
    found = as_processes(2, lambda i: checkpoint_search.restore(Folder(i), {}))
    assert [each.state for each in found] == ["state"] * 2
    monkeypatch.setattr(Folder, "harmed", harmed)
    first, second = as_processes(2, lambda i: checkpoint_search.restore(Folder(i), {}))
    assert type(first) is type(second) is multihost.ProcessesError
    assert str(first) == str(second)
    assert f"process {harmed[0]} of 2 on host{harmed[0]}: {harmed[1]} failed" in str(first)
