"""One run in a workdir at a time: who is refused, whose lock is no obstacle, what is let go."""

import json
import os
import signal
import subprocess
import sys
import threading

import pytest

from jaxclip import lock as lock_lib
from jaxclip.lock import FILE_NAME, Holder, Lock, LockedError, LostLockError
from tests.patience import LONG, until


class Clock:
    """The time that a lock waits by: it passes while the lock sleeps, and ``meanwhile`` is done."""

    def __init__(self):
        self.now, self.meanwhile = 0.0, lambda: None

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds
        self.meanwhile()


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Beats of 20 ms."""
    monkeypatch.setattr(lock_lib, "BEAT_SECONDS", 0.02)


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(lock_lib, "time", clock)
    return clock


def write(folder, holder):
    (folder / FILE_NAME).write_bytes(lock_lib._encode(holder))


@pytest.fixture
def child():
    """A process that lives until the test is over."""
    with subprocess.Popen(["sleep", "1000"]) as process:
        yield process
        process.kill()


def test_a_second_run_is_refused_by_one_line_with_host_and_process(tmp_path):
    first = Lock(tmp_path)
    with pytest.raises(LockedError) as refused:
        Lock(tmp_path)
    message = str(refused.value)
    assert f"process {os.getpid()} on host {first.holder.host}" in message
    assert "use another --workdir" in message and "\n" not in message
    assert "remove" not in message and "delete" not in message
    first.release()
    assert not list(tmp_path.iterdir())
    Lock(tmp_path).release()


def test_many_at_once_and_one_gets_it(tmp_path, monkeypatch):
    """Also over the lock of a dead one, which all of them want out of the way."""
    monkeypatch.setattr(lock_lib, "_GUARD_SECONDS", LONG)  # none of them is killed
    write(tmp_path, Holder.this_process()._replace(pid=2**22 + 1))
    got, refused = [], []
    barrier = threading.Barrier(8)

    def take():
        barrier.wait()
        try:
            got.append(Lock(tmp_path))
        except LockedError:
            refused.append(1)

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 1 and len(refused) == 7
    got[0].check()
    got[0].release()
    assert not list(tmp_path.iterdir())


def test_the_lock_of_a_process_that_ended_is_no_obstacle(tmp_path, clock):
    code = (
        "import os, sys; from jaxclip.lock import Lock; Lock(sys.argv[1]); os.kill(os.getpid(), 9)"
    )
    killed = subprocess.run([sys.executable, "-c", code, tmp_path], check=False)
    assert killed.returncode == -signal.SIGKILL and (tmp_path / FILE_NAME).exists()
    Lock(tmp_path).release()
    assert clock.now == 0, "on the same host nothing needs to be waited for"


def test_a_number_that_was_given_to_another_process_is_not_mistaken_for_it(tmp_path, child):
    holder = Holder.this_process()
    living = holder._replace(pid=child.pid, started=lock_lib._started(child.pid))
    write(tmp_path, living)
    with pytest.raises(LockedError, match=f"process {child.pid} on host"):
        Lock(tmp_path)
    write(tmp_path, living._replace(started="12345"))
    Lock(tmp_path).release()


def test_a_zombie_is_dead(tmp_path):
    process = subprocess.Popen(["true"])
    holder = Holder.this_process()._replace(
        pid=process.pid, started=lock_lib._started(process.pid) or "1"
    )
    # It ends, and nobody asks for its status.
    until(lambda: not holder.is_alive())
    process.wait()


def test_another_host_that_is_gone_is_waited_for_once(tmp_path, clock):
    write(tmp_path, Holder("far", "boot", 7, "1", "token"))
    lock = Lock(tmp_path)
    assert lock_lib.WATCH_SECONDS <= clock.now < lock_lib.WATCH_SECONDS + 2
    lock.release()


def test_another_host_that_lives_is_seen_to_and_named(tmp_path, clock):
    """The same name with another boot is another machine, or a container beside this one."""
    here = Holder.this_process()
    for far in (here._replace(host="far"), here._replace(machine="another boot")):
        write(tmp_path, far)
        began = clock.now

        def beat(far=far, due=clock.now + lock_lib.BEAT_SECONDS):
            if clock.now >= due:
                write(tmp_path, far._replace(beat=1))

        clock.meanwhile = beat
        with pytest.raises(LockedError, match=f"on host {far.host}; .*--break_lock"):
            Lock(tmp_path)
        assert clock.now < began + lock_lib.BEAT_SECONDS + 2


def test_a_lock_that_was_cut_off_while_it_was_written_is_no_obstacle(tmp_path, clock):
    (tmp_path / FILE_NAME).write_text("")
    Lock(tmp_path).release()
    assert not list(tmp_path.iterdir())


def test_who_lost_the_lock_stops_and_leaves_the_new_one_alone(tmp_path):
    first = Lock(tmp_path)
    second = Lock(tmp_path, force=True)
    with pytest.raises(LostLockError, match="taken over by process"):
        until(first.check)
    first.release()
    second.check()
    assert json.loads((tmp_path / FILE_NAME).read_bytes())["token"] == second.holder.token
    second.release()


def test_a_stop_is_heard_while_waiting(tmp_path):
    write(tmp_path, Holder("far", "boot", 7, "1", "token"))
    with pytest.raises(LockedError, match="stopped while waiting"):
        Lock(tmp_path, stopped=lambda: True)
    assert (tmp_path / FILE_NAME).exists()


def test_a_beat_keeps_the_size_of_the_file(tmp_path):
    lock = Lock(tmp_path)
    path = tmp_path / FILE_NAME
    first = path.read_bytes()
    until(lambda: path.read_bytes() != first)
    assert len(path.read_bytes()) == len(first)
    lock.release()


def test_who_was_killed_while_removing_a_dead_lock_is_no_obstacle(tmp_path, clock):
    write(tmp_path, Holder.this_process()._replace(pid=2**22 + 1))
    (tmp_path / f"{FILE_NAME}.taking").write_text("")
    Lock(tmp_path).release()
    assert not list(tmp_path.iterdir())
