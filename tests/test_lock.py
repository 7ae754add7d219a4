"""One run in a workdir at a time: who is refused, whose lock is no obstacle, what is let go."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from jaxclip import lock as lock_lib
from jaxclip.lock import FILE_NAME, Holder, Lock, LockedError, LostLockError


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Beats of 20 ms, watched for 0.3 s."""
    monkeypatch.setattr(lock_lib, "BEAT_SECONDS", 0.02)
    monkeypatch.setattr(lock_lib, "WATCH_SECONDS", 0.3)


def write(folder, holder):
    (folder / FILE_NAME).write_bytes(lock_lib._encode(holder))


@pytest.fixture
def child():
    """A process that lives until the test is over."""
    with subprocess.Popen(["sleep", "60"]) as process:
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


def test_many_at_once_and_one_gets_it(tmp_path):
    """Also over the lock of a dead one, which all of them want out of the way."""
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


def test_the_lock_of_a_process_that_ended_is_no_obstacle(tmp_path):
    code = (
        "import os, sys; from jaxclip.lock import Lock; Lock(sys.argv[1]); os.kill(os.getpid(), 9)"
    )
    killed = subprocess.run([sys.executable, "-c", code, tmp_path], check=False)
    assert killed.returncode == -signal.SIGKILL and (tmp_path / FILE_NAME).exists()
    began = time.monotonic()
    Lock(tmp_path).release()
    assert time.monotonic() - began < 0.2, "on the same host nothing needs to be waited for"


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
    time.sleep(0.1)  # it ended, and nobody has asked for its status
    assert not holder.is_alive()
    process.wait()


def test_another_host_that_is_gone_is_waited_for_once(tmp_path):
    write(tmp_path, Holder("far", "boot", 7, "1", "token"))
    began = time.monotonic()
    lock = Lock(tmp_path)
    assert time.monotonic() - began >= 0.3
    lock.release()


def test_another_host_that_lives_is_seen_to_and_named(tmp_path):
    """The same name with another boot is another machine, or a container beside this one."""
    here = Holder.this_process()
    for far in (here._replace(host="far"), here._replace(machine="another boot")):
        write(tmp_path, far)
        ends = threading.Event()

        def beat(far=far, ends=ends):
            for count in range(1, 1000):
                if ends.wait(0.02):
                    return
                write(tmp_path, far._replace(beat=count))

        thread = threading.Thread(target=beat)
        thread.start()
        try:
            with pytest.raises(LockedError, match=f"on host {far.host}; .*--break_lock"):
                Lock(tmp_path)
        finally:
            ends.set()
            thread.join()


def test_a_lock_that_was_cut_off_while_it_was_written_is_no_obstacle(tmp_path):
    (tmp_path / FILE_NAME).write_text("")
    Lock(tmp_path).release()
    assert not list(tmp_path.iterdir())


def test_who_lost_the_lock_stops_and_leaves_the_new_one_alone(tmp_path):
    first = Lock(tmp_path)
    second = Lock(tmp_path, force=True)
    deadline = time.monotonic() + 5
    with pytest.raises(LostLockError, match="taken over by process"):
        while time.monotonic() < deadline:
            first.check()
            time.sleep(0.01)
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
    deadline = time.monotonic() + 5
    while path.read_bytes() == first and time.monotonic() < deadline:
        time.sleep(0.01)
    second = path.read_bytes()
    assert second != first and len(second) == len(first)
    lock.release()


def test_who_was_killed_while_removing_a_dead_lock_is_no_obstacle(tmp_path, monkeypatch):
    monkeypatch.setattr(lock_lib, "_GUARD_SECONDS", 0.1)
    write(tmp_path, Holder.this_process()._replace(pid=2**22 + 1))
    (tmp_path / f"{FILE_NAME}.taking").write_text("")
    Lock(tmp_path).release()
    assert not list(tmp_path.iterdir())
