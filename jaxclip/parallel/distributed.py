"""Start-up on many hosts: who the processes of a run are, found in flags or in the environment."""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

import jax
from jax.experimental import multihost_utils

from jaxclip.parallel import waiting

logger = logging.getLogger("jaxclip")

# What the launch scripts set (launch/local_processes.sh, launch/slurm.sh, launch/gke/).
_VARIABLES = {
    "coordinator_address": "JAXCLIP_COORDINATOR_ADDRESS",
    "num_processes": "JAXCLIP_NUM_PROCESSES",
    "process_id": "JAXCLIP_PROCESS_ID",
}


# What errors say when the other end is gone: those of gloo, NCCL, JAX's coordination service.
_LOST = (
    "gloo context initialization failed",
    "connection closed by peer",
    "connection reset by peer",
    "socket closed",
    "remote process has exited",
    "heartbeat timeout",
    "stopped sending heartbeats",
    "coordination service",
    "coordinationservice",
)


def initialize_distributed(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    heartbeat_timeout_seconds: int = 60,
    initialization_timeout_seconds: int = 300,
    shutdown_timeout_seconds: int = 300,
) -> None:
    """Join the other processes of this run, if there are any; call it before anything uses JAX.

    The first of these that says something decides:

    1. the arguments, each of which defaults to its variable ``JAXCLIP_COORDINATOR_ADDRESS``,
       ``JAXCLIP_NUM_PROCESSES`` or ``JAXCLIP_PROCESS_ID``. A process uses all devices it sees;
    2. a Slurm step of several tasks (``srun``): a process uses all GPUs that Slurm has bound to it
       (``CUDA_VISIBLE_DEVICES``), else its share of those of the node: all of them where each node
       has one task;
    3. an Open MPI job of several ranks (``mpirun``), with the same rule;
    4. a Cloud TPU slice (a pod of TPU VMs, or GKE; several slices, too), from the metadata of the
       machine.

    Otherwise, and where one process is all there are, nothing happens. Several processes start
    their devices and wait for each other. Processes on CPUs talk through gloo (JAX's default,
    ``jax_cpu_collectives_implementation``).

    Args:
      coordinator_address: ``host:port`` that process 0 listens on and all others can reach.
      num_processes: how many processes the run has.
      process_id: this process's number, 0 … num_processes - 1, each given to one process.
      heartbeat_timeout_seconds: a process silent for so long counts as dead, and JAX ends the
        others (by SIGABRT, with a line that names the process). They learn of one that ended,
        rather than hung, as soon as its connections close.
      initialization_timeout_seconds: how long to wait for all processes to appear. A line on
        standard error says after 10 s what is waited for; when the time is up another one does, and
        the process ends with status 1, where JAX would abort it.
      shutdown_timeout_seconds: how long a process that has finished waits for the others.

    Raises:
      ValueError: some of the three are given and others not, or they make no sense.
      RuntimeError: JAX has computed something already.
    """
    timeouts: dict[str, Any] = {
        "heartbeat_timeout_seconds": heartbeat_timeout_seconds,
        "initialization_timeout": initialization_timeout_seconds,
        "shutdown_timeout_seconds": shutdown_timeout_seconds,
    }
    given = _given(
        {
            "coordinator_address": coordinator_address,
            "num_processes": num_processes,
            "process_id": process_id,
        }
    )
    if given is not None:
        if given["num_processes"] > 1:
            # "deactivate": what Slurm or Kubernetes have in the environment is of no concern here.
            hint = f"for one process alone give no {_how('num_processes')}"
            with waiting.told(timeouts, hint) as longer:
                jax.distributed.initialize(**given, **longer, cluster_detection_method="deactivate")
    elif _count("SLURM_NTASKS") > 1 and "SLURM_STEP_NODELIST" in os.environ:
        _join("SLURM_NTASKS", "slurm", _slurm_devices(), timeouts)
    elif _count("OMPI_COMM_WORLD_SIZE") > 1:
        _join("OMPI_COMM_WORLD_SIZE", "ompi", _mpi_devices(), timeouts)
    elif "tpu" in (jax.config.values["jax_platforms"] or "").split(","):
        # JAX itself puts it there on a machine that has TPU chips and libtpu.
        _join_tpu_slice(timeouts)
    if is_distributed():
        # Now, while all are here: gloo gives up on a process that comes to the first collective
        # 30 s after the others (a later one waits), as it may on a busy machine.
        multihost_utils.sync_global_devices("jaxclip_start")


def is_distributed() -> bool:
    """Whether this process has joined others."""
    return jax.distributed.is_initialized()


def explain_loss(error: BaseException) -> str:
    """What to tell the user where an error says that another process is gone.

    Args:
      error: any exception; its causes are looked at, too.

    Returns:
      A sentence; empty where the error is of this process's own making.
    """
    # A store that is gone says the same, as an OSError, and what is built around that repeats it.
    ours: set[str] = set()
    others: set[str] = set()
    for cause in _causes(error):
        found = {phrase for phrase in _LOST if phrase in str(cause).lower()}
        is_other = isinstance(cause, OSError) or getattr(cause, "explained", False)
        (others if is_other else ours).update(found)
    if not ours - others:
        return ""
    lines = str(error).strip().splitlines() or [""]
    return (
        f"process {jax.process_index()} of {jax.process_count()} on {socket.gethostname()} lost "
        "another one, which ended or can't be reached; the cause is in the log of that one. The "
        f"same command goes on from the newest checkpoint. ({type(error).__name__}: {lines[0]})"
    )


def leave(status: int) -> NoReturn:
    """End this process after an error, without the good-bye that waits for the other processes.

    Python's own exit would wait in JAX's shutdown barrier for processes that may be waiting for
    this one in a collective. Ending at once closes the connections, by which they learn of it.

    Args:
      status: exit status.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _causes(error: BaseException) -> Iterator[BaseException]:
    link: BaseException | None = error
    seen: set[int] = set()
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or link.__context__


def _given(arguments: Mapping[str, Any]) -> dict[str, Any] | None:
    """The three arguments, completed from the environment and checked; None if there are none."""
    values = {
        name: os.environ.get(_VARIABLES[name]) or None if value is None else value
        for name, value in arguments.items()
    }
    missing = [name for name, value in values.items() if value is None]
    if len(missing) == len(values):
        return None
    if missing:
        present = [name for name in values if name not in missing]
        raise ValueError(
            f"{_how(*present)} given, but not {_how(*missing)}; several processes need all three, "
            "one process none"
        )
    address, count, process = values.values()
    count, process = _integer("num_processes", count), _integer("process_id", process)
    host, colon, port = str(address).rpartition(":")
    if not (host and colon and port.isdigit() and 0 < int(port) < 65536):
        raise ValueError(f"{_how('coordinator_address')}={address!r} is not of the form host:port")
    if count < 1:
        raise ValueError(f"{_how('num_processes')}={count} must be at least 1")
    if not 0 <= process < count:
        raise ValueError(
            f"{_how('process_id')}={process} must be in 0 … {count - 1} "
            f"({_how('num_processes')}={count})"
        )
    return {"coordinator_address": address, "num_processes": count, "process_id": process}


def _how(*names: str) -> str:
    """How to give arguments: ``--process_id (or JAXCLIP_PROCESS_ID)``."""
    return " and ".join(f"--{name} (or {_VARIABLES[name]})" for name in names)


def _integer(name: str, value: Any) -> int:
    try:
        return int(value)
    except ValueError as error:
        raise ValueError(f"{_how(name)}={value!r} is not a whole number") from error


def _count(variable: str) -> int:
    value = os.environ.get(variable, "")
    return int(value) if value.isdigit() else 0


def _join(
    says_several: str, method: str, devices: list[int] | None, timeouts: dict[str, Any]
) -> None:
    """Join the processes that a scheduler's variables describe.

    Raises:
      ValueError: a variable is missing (of Open MPI 5, say), and which one says that there are
        several processes.
    """
    try:
        hint = f"{says_several}={os.environ[says_several]}; unset it for one process alone"
        with waiting.told(timeouts, hint) as longer:
            jax.distributed.initialize(
                **longer, cluster_detection_method=method, local_device_ids=devices
            )
    except KeyError as error:
        raise ValueError(
            f"{says_several}={os.environ[says_several]} says that this is one of several processes,"
            f" but {error.args[0]} is not set; unset {says_several} for one process, or give "
            f"{_how(*_VARIABLES)}"
        ) from error


def _slurm_devices() -> list[int] | None:
    """GPUs of this task of a Slurm step, as numbers among those that it sees."""
    # "1" or "1(x4)": one task on each of four nodes. JAX alone would take one GPU of each node.
    tasks = os.environ.get("SLURM_STEP_TASKS_PER_NODE", "").partition(",")[0].partition("(")[0]
    return _task_devices(
        tasks=int(tasks) if tasks.isdigit() else 0,
        index=_count("SLURM_LOCALID"),
        on_node=_count("SLURM_GPUS_ON_NODE"),
    )


def _mpi_devices() -> list[int] | None:
    """The same for a rank of Open MPI."""
    return _task_devices(
        tasks=_count("OMPI_COMM_WORLD_LOCAL_SIZE"),
        index=_count("OMPI_COMM_WORLD_LOCAL_RANK"),
        on_node=0,
    )


def _task_devices(tasks: int, index: int, on_node: int) -> list[int] | None:
    """GPUs that one of a node's tasks uses, as numbers among those that it sees.

    Args:
      tasks: tasks on this node; 0 if not known.
      index: number of this one among them.
      on_node: GPUs that the job has on this node; 0 if not known.

    Returns:
      None: the one of the task's number, JAX's own choice.
    """
    visible = _visible_gpus()
    if visible is None:
        return list(range(on_node)) if tasks == 1 and on_node else None
    # One that is all, or fewer than there are: the scheduler has bound them to this task.
    if visible == 1 or tasks == 1 or visible < on_node:
        return list(range(visible)) or None
    if tasks and visible % tasks == 0 and index < tasks:
        each = visible // tasks
        return list(range(index * each, (index + 1) * each)) or None
    return None


def _visible_gpus() -> int | None:
    """How many GPUs this process sees by its environment; None where nothing limits them."""
    for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"):
        if name in os.environ:
            # As CUDA reads it: what comes after the first number that can't be does not count.
            entries = [entry.strip() for entry in os.environ[name].split(",")]
            valid = [bool(entry) and not entry.startswith(("-", "No")) for entry in entries]
            return (*valid, False).index(False)
    return None


def _join_tpu_slice(timeouts: dict[str, Any]) -> None:
    try:
        with waiting.told(timeouts, "the TPU's metadata names several hosts") as longer:
            jax.distributed.initialize(**longer)
    except ValueError as error:
        # JAX's way to say that nothing told it of a slice: a TPU host that stands alone.
        logger.info("no TPU slice found (%s): one process", error)
