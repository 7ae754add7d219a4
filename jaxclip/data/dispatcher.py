"""The thread of the training process that starts data workers, deals tasks out to them and collects
what they answer; see :mod:`.workers`."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
import logging
import mmap
import os
import queue
import selectors
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxclip.data import shared_memory, wire
from jaxclip.data.ahead import Closed
from jaxclip.data.shared_memory import Layout

_LOG = logging.getLogger(__name__)

# The program's main module is not imported; modules are found where this process finds them.
_COMMAND = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from jaxclip.data import worker; worker.main(sys.argv[2:])"
)
# Times that a worker may end before it has done anything, and that the same rows may end workers.
_MAX_STARTS, _MAX_DEATHS = 3, 50
# A worker calls its libraries from threads of its own; theirs would only be in the way. And memory
# for a picture that is given back to the system costs more to have again than to decode it takes:
# a fifth of the time of all.
_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 28),
    "MALLOC_MMAP_THRESHOLD_": str(1 << 26),
}
_MAX_LOGGED = 1000


class Job:
    """Tasks that somebody waits for.

    Attributes:
      done: those that are finished.
      abandoned: whether nobody waits any more.
    """

    def __init__(self) -> None:
        self.done: queue.SimpleQueue[Task] = queue.SimpleQueue()
        self.abandoned = False


@dataclasses.dataclass(eq=False)
class Task:
    """Some rows of a batch.

    Attributes:
      job: what it is part of.
      rows: their numbers within the batch.
      places: int64[n].
      indices: int64[n], numbers of the records.
      slot: where the views are once it is done.
      outcomes: of each row, as :func:`.wire.pack_outcome` has it.
      arrays: of the outcomes.
      error: name and text of an exception in the worker.
      careful: whether a worker does nothing else meanwhile.
      deaths: workers that ended over it.
    """

    job: Job
    rows: Sequence[int]
    places: np.ndarray
    indices: np.ndarray
    slot: int = -1
    outcomes: Sequence[Any] = ()
    arrays: Sequence[np.ndarray] = ()
    error: tuple[str, str] | None = None
    careful: bool = False
    deaths: int = 0


class _Worker:
    """A running process, and what it has been given."""

    def __init__(self, number: int, setup: Mapping[str, Any], memory: int):
        self.number = number
        self.connection, other = socket.socketpair()
        with other:
            arguments = [str(other.fileno()), str(memory), str(os.getpid())]
            command = [sys.executable, "-c", _COMMAND, json.dumps(sys.path), *arguments]
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                pass_fds=(other.fileno(), memory),
                env={**os.environ, **_ENVIRONMENT},
                process_group=0,  # Ctrl-C in a terminal is for the parent alone
            )
        self.parser = wire.Parser()
        self.tasks: dict[int, Task] = {}
        self.ready = False
        self.is_careful = False
        self.connection.sendall(wire.encode({**setup, "worker": number}))

    def kill(self) -> None:
        """End it; it has nothing to lose."""
        self.connection.close()
        self.process.kill()
        self.process.wait()


class Dispatcher:
    """Deals tasks out to workers.

    Args:
      setup: what each worker is told first.
      layout: of the shared memory.

    Attributes:
      views: of each slot, uint8[rows, S, S, 3] by key.
      failure: why no more tasks can be done; None while they can.

    Raises:
      ValueError: no memory for it, or a system that can't start such processes.
    """

    def __init__(self, setup: Mapping[str, Any], layout: Layout):
        if os.name != "posix" or not sys.executable:
            raise ValueError("data workers can't be started on this system; set data.workers=0")
        self._setup = {**setup, "layout": dataclasses.asdict(layout)}
        self._layout = layout
        self._descriptor = shared_memory.create(layout.size)
        memory = mmap.mmap(self._descriptor, layout.size)
        self.views = [layout.views(memory, slot) for slot in range(layout.slots)]
        self._boards = [layout.board(memory, number) for number in range(layout.workers)]
        self.failure: Exception | None = None
        self._free = list(range(layout.slots))
        self._queue: collections.deque[Task] = collections.deque()
        self._lethal: list[tuple[int, str, str]] = []
        self._numbers = iter(range(sys.maxsize))
        self._starts = [0] * layout.workers
        self._logged: set[tuple[str, str]] = set()
        # What other threads ask for; a byte in the pipe wakes this one.
        self._inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._waking, self._woken = socket.socketpair()
        self._waking.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._woken, selectors.EVENT_READ, None)
        self._workers: dict[int, _Worker] = {}
        for number in range(layout.workers):
            self._start(number)
        threading.Thread(target=self._run, name="jaxclip-dispatcher", daemon=True).start()

    def submit(self, tasks: Sequence[Task]) -> None:
        """Have tasks done."""
        self._ask(lambda: self._queue.extend(tasks))

    def release(self, slot: int) -> None:
        """What is in a slot is not needed any more."""
        self._ask(lambda: self._free.append(slot))

    def abandon(self, job: Job) -> None:
        """Nobody waits for a job any more."""
        self._ask(lambda: self._drop(job))

    def close(self) -> None:
        """End the workers. This does not wait for it."""
        if self.failure is None:
            self.failure = Closed("the iterator is closed")
        self._ask(lambda: None)

    def in_words(self) -> list[str]:
        """What the workers are doing, the longest first."""
        found = [f"worker {n}: {each}" for n, b in enumerate(self._boards) for each in b.in_words()]
        starting = sum(not each.ready for each in list(self._workers.values()))
        return found + ([f"{starting} workers are starting"] if starting else [])

    def _ask(self, action: Any) -> None:
        self._inbox.put(action)
        with contextlib.suppress(OSError):  # full: it will wake anyway; closed: it is gone
            self._waking.send(b"x")

    # --- all below runs in the dispatcher's own thread, but for the first starts ---

    def _run(self) -> None:
        try:
            while self.failure is None:
                for key, _ in self._selector.select():
                    if key.data is None:
                        self._woken.recv(4096)
                    elif key.data in self._workers.values():
                        self._hear(key.data)
                while not self._inbox.empty():
                    self._inbox.get()()
                self._hand_out()
        except Exception as error:  # else those who wait would do so for ever
            self.failure = error
        for worker in self._workers.values():
            worker.kill()
        self._selector.close()
        self._waking.close()
        self._woken.close()
        os.close(self._descriptor)

    def _start(self, number: int) -> None:
        worker = self._workers[number] = _Worker(number, self._setup, self._descriptor)
        self._starts[number] += 1
        self._selector.register(worker.connection, selectors.EVENT_READ, worker)

    def _drop(self, job: Job) -> None:
        job.abandoned = True
        self._queue = collections.deque(task for task in self._queue if task.job is not job)
        while not job.done.empty():
            self._free.append(job.done.get().slot)

    def _hand_out(self) -> None:
        while self._queue and self._free:
            careful = self._queue[0].careful
            most = 0 if careful else self._layout.threads  # one more than that waits at the worker
            able = [
                worker
                for worker in self._workers.values()
                if worker.ready and not worker.is_careful and len(worker.tasks) <= most
            ]
            if not able:
                return
            worker = min(able, key=lambda each: len(each.tasks))
            task = self._queue.popleft()
            task.slot, number = self._free.pop(), next(self._numbers)
            worker.tasks[number] = task
            worker.is_careful = careful
            message = {
                "task": number, "slot": task.slot, "careful": careful, "lethal": self._lethal,
            }  # fmt: skip
            try:
                worker.connection.sendall(wire.encode(message, [task.places, task.indices]))
            except OSError:
                self._replace(worker)

    def _hear(self, worker: _Worker) -> None:
        try:
            data = worker.connection.recv(1 << 16)
        except OSError:
            data = b""
        if not data:
            self._replace(worker)
            return
        for message, arrays in worker.parser.feed(data):
            if "task" in message:
                self._finish(worker, message, arrays)
            elif "log" in message:
                self._log(*message["log"])
            elif "failed" in message:
                raise ValueError(
                    f"a data worker can't be set up: {message['failed']} (it knows no ops or kinds "
                    "of data that your program registers: write 'package.module:name', or set "
                    "data.workers=0)"
                )
            else:
                worker.ready = True

    def _finish(
        self, worker: _Worker, message: Mapping[str, Any], arrays: Sequence[np.ndarray]
    ) -> None:
        task = worker.tasks.pop(message["task"])
        worker.is_careful = False
        self._starts[worker.number] = 0
        task.outcomes, task.arrays = message.get("rows", ()), arrays
        if "error" in message:
            name, text = message["error"]
            task.error = (name, text)
        if task.job.abandoned:
            self._free.append(task.slot)
        else:
            task.job.done.put(task)

    def _log(self, name: str, level: int, text: str) -> None:
        """Log what a worker has logged; what several say is said once."""
        if (name, text) not in self._logged and len(self._logged) < _MAX_LOGGED:
            self._logged.add((name, text))
            logging.getLogger(name).log(level, "%s", text)

    def _replace(self, worker: _Worker) -> None:
        """Start another worker in the place of one that has ended, and do its tasks again."""
        self._selector.unregister(worker.connection)
        worker.connection.close()
        ended = _how(worker.process.wait())
        doing = self._boards[worker.number].busy()
        words = self._boards[worker.number].in_words()
        self._boards[worker.number].reset()
        _LOG.warning(
            "data worker %d %s%s; another one takes its place",
            worker.number, ended, f" while {words[0]}" if words else "",
        )  # fmt: skip
        if not worker.ready and self._starts[worker.number] >= _MAX_STARTS:
            raise RuntimeError(
                f"a data worker {ended} before it was ready, {_MAX_STARTS} times; its own messages "
                "are above; data.workers=0 reads in this process"
            )
        if worker.is_careful and doing:
            detail = f"a worker {ended} while {words[0].rpartition(' for ')[0]}"
            self._lethal.append((doing[0].number, "crashed", detail))
        for task in reversed(worker.tasks.values()):
            task.careful, task.deaths = True, task.deaths + 1
            if task.deaths > _MAX_DEATHS:
                raise RuntimeError(f"{task.deaths} data workers ended over the same rows: {ended}")
            self._free.append(task.slot)
            self._queue.appendleft(task)
        self._start(worker.number)


def _how(status: int) -> str:
    """How a process ended."""
    if status >= 0:
        return f"ended with status {status}"
    try:
        return f"was ended by {signal.Signals(-status).name}"
    except ValueError:
        return f"was ended by signal {-status}"
